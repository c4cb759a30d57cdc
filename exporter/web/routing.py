from collections.abc import Iterable

from exporter.web.http import Handler, Request, Response, plain, respond


class Router:
    """Finds the handler for an exact path; fill it before serving, then it is safe in all threads.

    A trailing slash is ignored. A path without routes is 404; a method without a route 405 with Allow; HEAD is served by the GET
    handler (the server drops the body). A handler that raises is logged as `request_failed` with
    its traceback and answered by 500 and nothing more.
    """

    def __init__(self) -> None:
        self._routes: dict[str, dict[str, Handler]] = {}

    def add(self, path: str, methods: str | Iterable[str], handler: Handler) -> None:
        """Serve `path` for one or more methods; a second handler for the same two is an error."""
        routes = self._routes.setdefault(path, {})
        for method in (methods,) if isinstance(methods, str) else methods:
            if method in routes:
                raise ValueError(f"{method} {path} has a handler already")
            routes[method] = handler

    def __call__(self, request: Request) -> Response:
        """Answer a request: the router is itself a Handler."""
        path = request.path
        routes = self._routes.get(path) or self._routes.get(path.rstrip("/") or "/")
        if routes is None:
            return plain(404)
        method = request.method
        if method == "HEAD" and method not in routes:
            method = "GET"
        handler = routes.get(method)
        if handler is None:
            return plain(405, headers=(("Allow", self._allowed(routes)),))
        return respond(handler, request)

    @staticmethod
    def _allowed(routes: dict[str, Handler]) -> str:
        methods = set(routes)
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods))
