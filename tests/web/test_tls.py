import contextlib
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from exporter.errors import WebConfigError
from exporter.web.config import load_web_config
from exporter.web.connections import Limits
from exporter.web.http import Response, plain
from exporter.web.server import Server
from tests.web.certificates import Authority
from tests.web.clients import Answer, RawClient, connection_threads, eventually, request_bytes


Serve = Callable[..., Server]
CERT = "cert_file: server.pem, key_file: server.key"
CLIENT = "client_ca_file: ca.pem, client_auth_type: RequireAndVerifyClientCert"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that has issued server.pem and server.key."""
    authority = Authority(tmp_path)
    authority.issue("server")
    return authority


@pytest.fixture
def serve_tls(serve: Serve, authority: Authority) -> Serve:
    """Starts a server with the given keys in its tls_server_config."""

    def start(keys: str = CERT, **options: object) -> Server:
        path = authority.folder / "web.yml"
        path.write_text(f"tls_server_config: {{{keys}}}\n")
        return serve(web_config=load_web_config(path), **options)

    return start


def trusting(authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.ca.configure_trust(context)
    return context


def scrape(server: Server, context: ssl.SSLContext) -> Answer:
    with RawClient(server, tls=context) as client:
        return client.get("/metrics")


def serial_number(server: Server, context: ssl.SSLContext) -> str:
    with RawClient(server, tls=context) as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        return str((client.socket.getpeercert() or {})["serialNumber"])


class TestServing:
    def test_requests_are_served_over_tls(self, serve_tls: Serve, authority: Authority) -> None:
        """Several requests and a large body pass over one TLS 1.3 connection."""
        body = bytes(range(256)) * 20_000
        server = serve_tls(handler=lambda _: Response(200, body))
        with RawClient(server, tls=trusting(authority)) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            assert client.get("/").body == body
            assert client.get("/").body == body
            assert client.socket.version() == "TLSv1.3"

    def test_an_inline_certificate_serves(self, serve: Serve, authority: Authority) -> None:
        """Certificate and key need not be files."""
        lines = {
            key: "".join(
                f"    {line}\n" for line in (authority.folder / file).read_text().splitlines()
            )
            for key, file in (("cert", "server.pem"), ("key", "server.key"))
        }
        path = authority.folder / "web.yml"
        path.write_text(f"tls_server_config:\n  cert: |\n{lines['cert']}  key: |\n{lines['key']}")

        server = serve(web_config=load_web_config(path))

        assert scrape(server, trusting(authority)).status == 200

    def test_the_minimum_version_holds(self, serve_tls: Serve, authority: Authority) -> None:
        """A client that speaks at most TLS 1.2 cannot connect where 1.3 is the least."""
        server = serve_tls(f"{CERT}, min_version: TLS13")
        old = trusting(authority)
        old.maximum_version = ssl.TLSVersion.TLSv1_2

        with pytest.raises(ssl.SSLError):
            scrape(server, old)
        assert scrape(server, trusting(authority)).status == 200

    def test_the_maximum_version_and_ciphers_hold(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """The one cipher suite that is allowed is the one that is used."""
        name = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
        server = serve_tls(f"{CERT}, max_version: TLS12, cipher_suites: [{name}]")
        with RawClient(server, tls=trusting(authority)) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            cipher = client.socket.cipher()

        assert cipher is not None
        assert cipher[:2] == ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2")

    def test_http_2_is_not_promised(self, serve_tls: Serve, authority: Authority) -> None:
        """A client that offers both protocols is told HTTP/1.1."""
        context = trusting(authority)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with RawClient(serve_tls(), tls=context) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            assert client.socket.selected_alpn_protocol() == "http/1.1"

    def test_plain_http_is_told_what_is_wrong(self, serve_tls: Serve) -> None:
        """A scraper configured without TLS reads the reason."""
        with RawClient(serve_tls()) as client:
            answer = client.get("/metrics")

        assert answer.status == 400
        assert answer.body == b"this is an HTTPS server, the request was HTTP\n"

    def test_refusals_arrive_over_tls(self, serve_tls: Serve, authority: Authority) -> None:
        """A malformed request gets its status inside TLS, and the end of TLS after it."""
        with RawClient(serve_tls(), tls=trusting(authority)) as client:
            client.send(b"nonsense\r\n\r\n")

            assert client.read_answer().status == 400
            assert client.is_closed_by_peer()


class TestHostileClients:
    def test_silent_clients_lock_no_one_out(self, serve_tls: Serve, authority: Authority) -> None:
        """200 connections that never begin their handshake do not keep a client from its own."""
        server = serve_tls(limits=Limits(connections=16, head_seconds=3600.0))
        silent = [RawClient(server) for _ in range(200)]
        try:
            assert scrape(server, trusting(authority)).status == 200
        finally:
            for client in silent:
                client.socket.close()

    @pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"])
    def test_stalled_handshakes_are_closed(self, serve_tls: Serve, sent: bytes) -> None:
        """A handshake that stops anywhere ends at the deadline."""
        with RawClient(serve_tls(limits=Limits(head_seconds=0.1))) as client:
            client.send(sent)

            assert client.is_closed_by_peer()

    def test_a_stalled_handshake_is_closed_for_a_new_connection(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """Half a handshake is a waiting connection and can be displaced."""
        server = serve_tls(limits=Limits(connections=1, head_seconds=3600.0))
        with RawClient(server) as stalled:
            stalled.send(b"\x16\x03\x01\x02\x00")

            def is_served() -> bool:
                # Turned away until the server has had time to see that the first one stalls.
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    return scrape(server, trusting(authority)).status == 200
                return False

            assert eventually(is_served)
            assert stalled.is_closed_by_peer()

    def test_dribbled_headers_end_over_tls(self, serve_tls: Serve, authority: Authority) -> None:
        """The deadline holds for records that arrive one byte at a time."""
        server = serve_tls(limits=Limits(head_seconds=2.0))
        with RawClient(server, tls=trusting(authority)) as client:
            client.socket.settimeout(0.02)
            received = b""
            client.send(b"GET / HTTP/1.1\r\nX: ")
            while not received:
                client.send(b"x")
                try:
                    received = client.socket.recv(1000)
                except TimeoutError:
                    continue

        assert received.startswith(b"HTTP/1.1 408 ")

    def test_a_client_that_does_not_read_is_cut_off(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """The deadline for an answer holds over TLS."""
        body = b"x" * 50_000_000
        server = serve_tls(
            handler=lambda _: Response(200, body), limits=Limits(response_seconds=0.2)
        )
        with RawClient(server, tls=trusting(authority)) as client:
            client.send(request_bytes("GET", "/"))
            assert eventually(lambda: connection_threads() == 0)

    def test_a_failed_handshake_is_not_logged_as_our_error(self, serve_tls: Serve) -> None:
        """Noise instead of a handshake is logged at debug, as any client can cause it."""
        with capture_logs() as logs, RawClient(serve_tls()) as client:
            client.send(b"\x16\x03\x01\x00\x05noise")
            client.is_closed_by_peer()
            assert eventually(lambda: bool(logs))

        assert {entry["log_level"] for entry in logs} == {"debug"}


class TestClientCertificates:
    def test_a_client_without_certificate_is_refused(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """Where a client certificate is required, none means no answer."""
        server = serve_tls(f"{CERT}, {CLIENT}")

        with pytest.raises((ssl.SSLError, ConnectionError)):
            scrape(server, trusting(authority))

    def test_a_client_of_the_authority_is_served(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """A certificate of the configured authority is enough without an allow-list."""
        context = trusting(authority)
        authority.issue("client", "anybody.example.com").configure_cert(context)

        assert scrape(serve_tls(f"{CERT}, {CLIENT}"), context).status == 200

    def test_a_client_of_another_authority_is_refused(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """A certificate of another authority is rejected."""
        context = trusting(authority)
        trustme.CA().issue_cert("prometheus.example.com").configure_cert(context)

        with pytest.raises((ssl.SSLError, ConnectionError)):
            scrape(serve_tls(f"{CERT}, {CLIENT}"), context)

    def test_an_optional_certificate_is_verified_if_given(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """VerifyClientCertIfGiven serves those without one, and refuses a foreign one."""
        server = serve_tls(
            f"{CERT}, client_ca_file: ca.pem, client_auth_type: VerifyClientCertIfGiven"
        )
        foreign = trusting(authority)
        trustme.CA().issue_cert("prometheus.example.com").configure_cert(foreign)

        assert scrape(server, trusting(authority)).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            scrape(server, foreign)

    @pytest.mark.parametrize(
        ("identity", "allowed"),
        [
            ("prometheus.example.com", True),
            ("other.example.com", False),
            ("10.1.2.3", True),
            ("10.1.2.4", False),
            ("fd00::7", True),
            ("alice@example.com", True),
        ],
    )
    def test_the_allow_list_decides(
        self, serve_tls: Serve, authority: Authority, identity: str, allowed: bool
    ) -> None:
        """Of the authority's clients only those with a listed alternative name are served."""
        sans = '[prometheus.example.com, 10.1.2.3, "FD00:0:0::7", alice@example.com]'
        server = serve_tls(f"{CERT}, {CLIENT}, client_allowed_sans: {sans}")
        context = trusting(authority)
        authority.issue("client", identity).configure_cert(context)

        if allowed:
            assert scrape(server, context).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                scrape(server, context)


class TestRotation:
    def test_a_replaced_certificate_serves_the_next_connection(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """New files are picked up without a reload; a connection that is open stays open."""
        server = serve_tls()
        context = trusting(authority)
        before = serial_number(server, context)
        with RawClient(server, tls=context) as client:
            client.get("/")
            authority.issue("server")

            assert serial_number(server, context) != before
            assert client.get("/").status == 200

    def test_half_a_rotation_keeps_the_old_certificate(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """While the key does not belong to the certificate, the old pair serves; one log line."""
        server = serve_tls()
        context = trusting(authority)
        before = serial_number(server, context)
        key = authority.folder / "server.key"
        old_key = key.read_bytes()
        authority.issue("server")
        new_key = key.read_bytes()
        key.write_bytes(old_key)

        with capture_logs() as logs:
            assert serial_number(server, context) == before
            assert serial_number(server, context) == before
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        key.write_bytes(new_key)

        assert [entry["event"] for entry in warnings] == ["certificate_reload_failed"]
        assert "does not belong to the certificate" in warnings[0]["error"]
        assert serial_number(server, context) != before

    def test_a_vanished_certificate_keeps_the_old_one(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """Files that are gone for a moment do not stop the server."""
        server = serve_tls()
        (authority.folder / "server.pem").unlink()

        assert scrape(server, trusting(authority)).status == 200

    def test_a_replaced_authority_decides_about_the_next_client(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """After the client authority is replaced, the old one's clients are refused."""
        old, new = trustme.CA(), trustme.CA()
        clients = authority.folder / "clients.pem"
        old.cert_pem.write_to_path(clients)
        server = serve_tls(f"{CERT}, {CLIENT.replace('ca.pem', 'clients.pem')}")
        contexts = []
        for ca in (old, new):
            context = trusting(authority)
            ca.issue_cert("prometheus.example.com").configure_cert(context)
            contexts.append(context)

        assert scrape(server, contexts[0]).status == 200
        new.cert_pem.write_to_path(clients)
        assert scrape(server, contexts[1]).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            scrape(server, contexts[0])


class TestReload:
    def test_a_new_file_takes_effect(self, serve_tls: Serve, authority: Authority) -> None:
        """After a reload the minimum version of the new file holds."""
        server = serve_tls()
        old = trusting(authority)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert scrape(server, old).status == 200

        path = authority.folder / "web.yml"
        path.write_text(f"tls_server_config: {{{CERT}, min_version: TLS13}}")
        server.reload_web_config()

        with pytest.raises(ssl.SSLError):
            scrape(server, old)

    def test_a_bad_file_is_refused_and_the_old_one_stays(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """The error names the mistake; the server continues as before."""
        server = serve_tls()
        (authority.folder / "web.yml").write_text("tls_server_config: {cert_file: nowhere.pem}")

        with pytest.raises(WebConfigError, match=r"tls_server_config\.key_file: is missing"):
            server.reload_web_config()

        assert scrape(server, trusting(authority)).status == 200

    def test_idle_connections_of_the_old_file_end(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """A client admitted by the old file must authenticate again with the new one."""
        server = serve_tls()
        with RawClient(server, tls=trusting(authority)) as client:
            client.get("/")
            server.reload_web_config()

            assert client.is_closed_by_peer()

    def test_an_answer_in_flight_survives_a_reload(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """A reload does not cut a scrape; its connection ends afterwards."""
        entered, leave = threading.Event(), threading.Event()

        def work(_: object) -> Response:
            entered.set()
            leave.wait(30)
            return plain(200, "done")

        server = serve_tls(handler=work)
        with RawClient(server, tls=trusting(authority)) as client:
            client.send(request_bytes("GET", "/"))
            assert entered.wait(30)
            server.reload_web_config()
            leave.set()
            answer = client.read_answer()

            assert answer.body == b"done\n"
            assert answer.headers["Connection"] == "close"

    def test_a_connection_answered_during_a_reload_is_closed(
        self, serve_tls: Serve, authority: Authority
    ) -> None:
        """The reload did not cut it while it was writing; it does not wait for another request."""
        body = b"x" * 20_000_000
        server = serve_tls(handler=lambda _: Response(200, body))
        with RawClient(server, tls=trusting(authority)) as client:
            client.send(request_bytes("GET", "/"))
            client.receive_some()
            server.reload_web_config()

            assert client.read_answer().body == body
            assert client.is_closed_by_peer()

    def test_tls_can_be_switched_off(self, serve_tls: Serve, authority: Authority) -> None:
        """A file without tls_server_config makes the next connections plain."""
        server = serve_tls()
        (authority.folder / "web.yml").write_text("")
        server.reload_web_config()

        with RawClient(server) as client:
            assert client.get("/").status == 200

    def test_without_a_web_configuration_nothing_happens(self, serve: Serve) -> None:
        """Reloading without a configuration is not an error and closes nothing."""
        server = serve()
        with RawClient(server) as client:
            client.get("/")
            server.reload_web_config()

            assert client.get("/").status == 200
