"""What a scrape costs over plain HTTP, with a password, and over TLS; and under a flood.

    python -m benchmarks.web_server

Server and clients share this process and its interpreter lock: compare the rows, not the numbers
with another machine's.
"""

import base64
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import bcrypt
import structlog
import trustme

from exporter.web.config import load_web_config
from exporter.web.http import Response
from exporter.web.server import Server


BODY = b"flopwatch_gpu_up 1\n" * 10_000  # 190 kB, as eight GPUs have
SCRAPES = 500
SILENT_CLIENTS = 300


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(10)).decode()
        credentials = base64.b64encode(b"prometheus:secret").decode()
        context = write_certificate(folder)
        tls = "tls_server_config: {cert_file: server.pem, key_file: server.key}\n"
        users = f"basic_auth_users: {{prometheus: {hashed}}}\n"
        password = f"Authorization: Basic {credentials}\r\n"
        print(
            f"{'scrape of ' + str(len(BODY)) + ' bytes':32} {'first ms':>9} {'p50 ms':>8} {'p99 ms':>8}"
        )
        for title, text, header, client_tls in (
            ("plain", "", "", None),
            ("plain, 300 silent clients", "", "", None),
            ("basic authentication", users, password, None),
            ("TLS", tls, "", context),
            ("TLS, basic authentication", tls + users, password, context),
        ):
            (folder / "web.yml").write_text(text)
            silent = SILENT_CLIENTS if "silent" in title else 0
            with serving(folder / "web.yml", silent) as port:
                report(title, scrape_times(port, header, client_tls))


def write_certificate(folder: Path) -> ssl.SSLContext:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "server.key")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextmanager
def serving(web_config: Path, silent_clients: int) -> Iterator[int]:
    response = Response(200, BODY)
    server = Server(["127.0.0.1:0"], lambda _: response, web_config=load_web_config(web_config))
    server.start()
    port = server.addresses[0][1]
    with ExitStack() as stack:
        stack.callback(server.close, 1.0)
        for _ in range(silent_clients):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield port
    assert server.addresses == ()


def scrape_times(port: int, header: str, context: ssl.SSLContext | None) -> list[float]:
    """Seconds of each scrape on one connection; the first includes connecting."""
    request = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode()
    times = []
    began = time.perf_counter()
    with ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        if context is not None:
            client = stack.enter_context(context.wrap_socket(client, server_hostname="localhost"))
        for _ in range(SCRAPES):
            client.sendall(request)
            read_response(client)
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
    return times


def read_response(client: socket.socket) -> None:
    data = client.recv(65536)
    assert data.startswith(b"HTTP/1.1 200 "), data[:60]
    missing = len(BODY) - (len(data) - data.index(b"\r\n\r\n") - 4)
    while missing:
        missing -= len(client.recv(1 << 20))


def report(title: str, times: list[float]) -> None:
    first, *rest = (seconds * 1e3 for seconds in times)
    percentiles = statistics.quantiles(rest, n=100)
    print(f"{title:32} {first:9.2f} {percentiles[49]:8.2f} {percentiles[98]:8.2f}")


if __name__ == "__main__":
    main()
