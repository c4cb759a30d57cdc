import base64
import threading
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest

from exporter.web.authentication import BCRYPT_HASH, BasicAuthenticator, Verdict
from exporter.web.config import load_web_config
from exporter.web.rate_limit import RateLimiter
from exporter.web.server import Server
from tests.web.clients import RawClient


def hash_of(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


HASHES = {"alice": hash_of("secret"), "bób": hash_of("pass:word"), "long": hash_of("x" * 72)}


@pytest.fixture
def authenticator() -> BasicAuthenticator:
    return BasicAuthenticator(HASHES)


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes that bcrypt was asked to compare with."""
    asked: list[bytes] = []
    check = bcrypt.checkpw

    def remember(password: bytes, hashed: bytes) -> bool:
        asked.append(hashed)
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", remember)
    return asked


class TestVerdicts:
    @pytest.mark.parametrize(
        ("authorization", "expected"),
        [
            (basic("alice", "secret"), Verdict.ADMITTED),
            (basic("alice", "secret").replace("Basic", "bAsIc"), Verdict.ADMITTED),
            (basic("bób", "pass:word"), Verdict.ADMITTED),
            (basic("long", "x" * 72), Verdict.ADMITTED),
            (basic("long", "x" * 73), Verdict.REFUSED),
            (basic("long", "x" * 10_000), Verdict.REFUSED),
            (basic("alice", "Secret"), Verdict.REFUSED),
            (basic("alice", ""), Verdict.REFUSED),
            (basic("alice", "secret\0"), Verdict.REFUSED),
            (basic("Alice", "secret"), Verdict.REFUSED),
            (basic("bób", "secret"), Verdict.REFUSED),
            (basic("mallory", "secret"), Verdict.REFUSED),
            (basic("", ""), Verdict.REFUSED),
            (None, Verdict.REFUSED),
            ("", Verdict.REFUSED),
            ("Basic", Verdict.REFUSED),
            ("Basic ", Verdict.REFUSED),
            ("Basic !!!", Verdict.REFUSED),
            ("Basic ü", Verdict.REFUSED),
            ("Basic " + base64.b64encode(b"no colon").decode(), Verdict.REFUSED),
            ("Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(), Verdict.REFUSED),
            (basic("alice", "secret") + ", " + basic("alice", "secret"), Verdict.REFUSED),
            ("Bearer secret", Verdict.REFUSED),
        ],
    )
    def test_the_right_password_of_a_known_user_is_admitted(
        self, authenticator: BasicAuthenticator, authorization: str | None, expected: Verdict
    ) -> None:
        """Everything else is refused, and nothing raises; twice alike, as the second is cached."""
        assert [authenticator.check(authorization) for _ in range(2)] == [expected, expected]


class TestCost:
    def test_an_unknown_user_costs_as_much_as_a_known_one(
        self, authenticator: BasicAuthenticator, comparisons: list[bytes]
    ) -> None:
        """Either pays one comparison of the same cost, and as little when it is repeated."""
        for user in ("alice", "mallory"):
            for _ in range(2):
                assert authenticator.check(basic(user, "wrong")) is Verdict.REFUSED

        assert len(comparisons) == 2
        assert {hashed[:7] for hashed in comparisons} == {b"$2b$04$"}

    def test_the_decoy_is_as_costly_as_the_costliest(self, comparisons: list[bytes]) -> None:
        """With hashes of several costs, an unknown user pays the highest."""
        costs = {
            "cheap": hash_of("a"),
            "dear": bcrypt.hashpw(b"a", bcrypt.gensalt(5)).decode(),
        }
        BasicAuthenticator(costs).check(basic("mallory", "a"))

        assert [hashed[:7] for hashed in comparisons] == [b"$2b$05$"]

    def test_decoys_are_hashes_of_nothing_known(self) -> None:
        """Each process has its own decoy, and bcrypt can compare with it."""
        decoys = {BasicAuthenticator(HASHES)._decoy for _ in range(20)}

        assert len(decoys) == 20
        for decoy in decoys:
            assert BCRYPT_HASH.fullmatch(decoy.decode())
            assert not bcrypt.checkpw(b"secret", decoy)

    def test_a_repeated_password_is_compared_once(
        self, authenticator: BasicAuthenticator, comparisons: list[bytes]
    ) -> None:
        """Only the first scrape pays for bcrypt."""
        for _ in range(5):
            assert authenticator.check(basic("alice", "secret")) is Verdict.ADMITTED

        assert len(comparisons) == 1

    def test_a_verdict_belongs_to_user_and_password(
        self, authenticator: BasicAuthenticator, comparisons: list[bytes]
    ) -> None:
        """A verdict is not found under another split of the same characters."""
        authenticator.check(basic("alice", "secret"))
        authenticator.check(basic("alices", "ecret"))

        assert len(comparisons) == 2

    def test_the_memory_is_bounded_and_guesses_do_not_displace_a_scraper(
        self, authenticator: BasicAuthenticator, comparisons: list[bytes]
    ) -> None:
        """After 1,000 guesses at most 100 verdicts are kept, the scraper's among them."""
        authenticator.check(basic("alice", "secret"))
        for number in range(1000):
            authenticator.check(basic("alice", f"guess {number}"))
        compared = len(comparisons)
        authenticator.check(basic("alice", "secret"))

        assert len(authenticator._verdicts) == 100
        assert len(comparisons) == compared == 1001

    def test_no_password_is_kept(self, authenticator: BasicAuthenticator) -> None:
        """The memory holds keyed hashes of 32 bytes, different in each process."""
        other = BasicAuthenticator(HASHES)
        for one in (authenticator, other):
            one.check(basic("alice", "secret"))

        (key,), (other_key,) = authenticator._verdicts, other._verdicts
        assert len(key) == 32
        assert key != other_key

    def test_one_comparison_runs_at_a_time_and_few_wait(
        self, authenticator: BasicAuthenticator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Guessing in parallel gets nowhere faster; beyond the queue it is turned away at once."""
        running = threading.Semaphore(0)
        go_on = threading.Semaphore(0)
        at_once: list[int] = []
        current = [0]

        def slow(_: bytes, __: bytes) -> bool:
            current[0] += 1
            at_once.append(current[0])
            running.release()
            go_on.acquire()
            current[0] -= 1
            return False

        monkeypatch.setattr(bcrypt, "checkpw", slow)
        verdicts: list[Verdict] = []
        threads = [
            threading.Thread(
                target=lambda n=number: verdicts.append(authenticator.check(basic("alice", str(n))))
            )
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        assert running.acquire(timeout=30)
        while authenticator._waiting < 8:
            threading.Event().wait(0.001)

        assert authenticator.check(basic("alice", "one more")) is Verdict.OVERLOADED
        for _ in threads:
            go_on.release()
        for thread in threads:
            thread.join()

        assert verdicts == [Verdict.REFUSED] * 8
        assert at_once == [1] * 8


class TestServing:
    @pytest.fixture
    def server(self, tmp_path: Path, serve: Callable[..., Server]) -> Server:
        path = tmp_path / "web.yml"
        path.write_text(
            f"basic_auth_users: {{alice: {HASHES['alice']}}}\n"
            "http_server_config: {headers: {X-Frame-Options: deny}}\n"
        )
        return serve(web_config=load_web_config(path))

    def test_a_request_without_password_is_challenged(self, server: Server) -> None:
        """401 names the scheme; the connection stays open for a second try."""
        with RawClient(server) as client:
            refused = client.get("/metrics")
            served = client.get("/metrics", f"Authorization: {basic('alice', 'secret')}")

        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"] == 'Basic realm="flopwatch", charset="UTF-8"'
        assert refused.body == b"unauthorized\n"
        assert served.status == 200

    @pytest.mark.parametrize("path", ["/-/healthy", "/-/ready"])
    def test_health_needs_no_password(self, server: Server, path: str) -> None:
        """A kubelet can ask."""
        with RawClient(server) as client:
            assert client.get(path).status == 200

    @pytest.mark.parametrize(
        "path",
        ["/-/healthy/", "/-/healthy/../../metrics", "//-/healthy", "/-/HEALTHY", "/-/reload"],
    )
    def test_nothing_like_health_is_free(self, server: Server, path: str) -> None:
        """Only the exact paths are; the handler sees the same path as the check."""
        with RawClient(server) as client:
            assert client.get(path).status == 401

    def test_configured_headers_are_on_every_answer(self, server: Server) -> None:
        """Also on refusals."""
        with RawClient(server) as client:
            answers = [client.get("/metrics"), client.get("/-/healthy")]
            client.send(b"nonsense\r\n\r\n")
            answers.append(client.read_answer())

        assert [answer.status for answer in answers] == [401, 200, 400]
        assert {answer.headers["X-Frame-Options"] for answer in answers} == {"deny"}

    def test_a_changed_password_holds_after_the_reload(
        self, server: Server, tmp_path: Path
    ) -> None:
        """The old password, though cached, is refused; not before the reload."""
        old, new = (f"Authorization: {basic('alice', word)}" for word in ("secret", "changed"))
        with RawClient(server) as client:
            assert client.get("/", old).status == 200
            (tmp_path / "web.yml").write_text(f"basic_auth_users: {{alice: {hash_of('changed')}}}")
            assert client.get("/", old).status == 200
        server.reload_web_config()

        with RawClient(server) as client:
            assert [client.get("/", old).status, client.get("/", new).status] == [401, 200]


class TestRateLimit:
    def test_a_burst_then_one_each_interval(self) -> None:
        """With a burst of 2 and 10 s between, the third at once is refused, one more after 10 s."""
        now = [100.0]
        limiter = RateLimiter(10.0, 2, clock=lambda: now[0])

        at_once = [limiter.allows() for _ in range(3)]
        now[0] += 9.9
        early = limiter.allows()
        now[0] += 0.2
        later = [limiter.allows(), limiter.allows()]
        now[0] += 1000.0
        rested = [limiter.allows() for _ in range(3)]

        assert at_once == [True, True, False]
        assert early is False
        assert later == [True, False]
        assert rested == [True, True, False]

    def test_too_many_requests_are_refused_but_health_is_not(
        self, tmp_path: Path, serve: Callable[..., Server]
    ) -> None:
        """429 beyond the burst; a flood of scrapes does not have the pod killed."""
        path = tmp_path / "web.yml"
        path.write_text("rate_limit: {interval: 1h, burst: 1}")
        with RawClient(serve(web_config=load_web_config(path))) as client:
            statuses = [client.get(path).status for path in ("/a", "/b", "/-/healthy")]

        assert statuses == [200, 429, 200]
