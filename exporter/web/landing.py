"""The page at `/`: what this is, and where to go from here."""

from html import escape

from exporter.version import REVISION, VERSION
from exporter.web.http import Request, Response


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>flopwatch</title>
<style>:root {{ color-scheme: light dark }} body {{ font: 16px/1.5 system-ui, sans-serif;
margin: 3rem auto; max-width: 40rem; padding: 0 1rem }}</style>
<h1>flopwatch</h1>
<p>How many FLOPS each GPU of this host delivers, and where the others went.</p>
<ul><li><a href="{metrics}">Metrics</a></li><li><a href="/-/healthy">Health</a></li>
<li><a href="/-/ready">Readiness</a></li></ul>
<p>Version {version}, revision {revision}</p>
</html>
"""


class LandingPage:
    """Serves the page, rendered once."""

    def __init__(self, telemetry_path: str) -> None:
        self._body = _PAGE.format(
            metrics=escape(telemetry_path, quote=True),
            version=escape(VERSION),
            revision=escape(REVISION),
        ).encode()

    def __call__(self, _request: Request) -> Response:
        """Answer a GET."""
        return Response(200, self._body, "text/html; charset=utf-8")
