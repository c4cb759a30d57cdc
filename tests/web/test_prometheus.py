"""A real Prometheus scrapes the server without problems."""

import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bcrypt
import pytest

from exporter.metrics.layout import Format
from exporter.web.config import load_web_config
from exporter.web.http import Request, Response
from exporter.web.routes import choose_format
from exporter.web.server import Server
from tests.web.certificates import Authority
from tests.web.clients import eventually


pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Debian's prometheus is not installed"
)

BODIES = {
    Format.TEXT: b"# TYPE flopwatch_gpu_up gauge\nflopwatch_gpu_up 1\n",
    Format.OPENMETRICS: b"# TYPE flopwatch_gpu_up gauge\nflopwatch_gpu_up 1\n# EOF\n",
}


@contextmanager
def prometheus(folder: Path, scrape: dict[str, object]) -> Iterator[str]:
    """A Prometheus with one scrape configuration; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    with (folder / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=output,
            stderr=output,
        )
        try:
            yield address
        finally:
            process.terminate()
            process.wait(30)


def value(address: str, expression: str) -> str | None:
    """The value of an expression with one result; None while there is none."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/query?query={expression}") as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return None
    return found[0]["value"][1] if found else None


def test_prometheus_scrapes_over_tls_with_certificate_and_password(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    """With every protection on, scrapes succeed, in OpenMetrics."""
    authority = Authority(tmp_path)
    authority.issue("server")
    authority.issue("client", "prometheus.example.com")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    web_config = tmp_path / "web.yml"
    web_config.write_text(
        "tls_server_config: {cert_file: server.pem, key_file: server.key, client_ca_file: ca.pem,\n"
        "  client_auth_type: RequireAndVerifyClientCert,\n"
        "  client_allowed_sans: [prometheus.example.com], min_version: TLS13}\n"
        f"basic_auth_users: {{prometheus: {hashed}}}\n"
    )
    accepted: list[str | None] = []

    def metrics(request: Request) -> Response:
        accept = request.headers.get("accept")
        accepted.append(accept)
        chosen, content_type = choose_format(accept)
        return Response(200, BODIES[chosen], content_type)

    server = serve(metrics, web_config=load_web_config(web_config))
    scrape: dict[str, object] = {
        "job_name": "flopwatch",
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "scheme": "https",
        "tls_config": {"ca_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.key"},
        "basic_auth": {"username": "prometheus", "password": "secret"},
        "static_configs": [{"targets": [f"127.0.0.1:{server.addresses[0][1]}"]}],
    }

    with prometheus(tmp_path, scrape) as address:
        assert eventually(lambda: float(value(address, "sum_over_time(up[5m])") or 0) >= 2)
        assert value(address, "flopwatch_gpu_up") == "1"

    assert {choose_format(accept)[0] for accept in accepted} == {Format.OPENMETRICS}
