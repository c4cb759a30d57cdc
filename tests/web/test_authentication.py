import base64
import threading
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest

from exporter.web.config import load_web_config
from exporter.web.security import (
    BCRYPT_HASH,
    BasicAuthenticator,
    RateLimiter,
    Verdict,
    VerdictMemory,
)
from exporter.web.server import Server
from tests.web.clients import RawClient, eventually


def hash_of(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


CLIENT = "192.0.2.1"
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
        assert [authenticator.check(authorization, CLIENT) for _ in range(2)] == [
            expected,
            expected,
        ]


class TestCost:
    def test_an_unknown_user_takes_as_long_as_a_known_one(
        self, authenticator: BasicAuthenticator, comparisons: list[bytes]
    ) -> None:
        """Either takes one comparison of the same cost, and none when it is repeated."""
        for user in ("alice", "mallory"):
            for _ in range(2):
                assert authenticator.check(basic(user, "wrong"), CLIENT) is Verdict.REFUSED

        assert len(comparisons) == 2
        assert {hashed[:7] for hashed in comparisons} == {b"$2b$04$"}

    def test_the_decoy_is_as_costly_as_the_costliest(self, comparisons: list[bytes]) -> None:
        """With hashes of several costs, an unknown user pays the highest."""
        costs = {
            "cheap": hash_of("a"),
            "dear": bcrypt.hashpw(b"a", bcrypt.gensalt(5)).decode(),
        }
        BasicAuthenticator(costs).check(basic("mallory", "a"), CLIENT)

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
            assert authenticator.check(basic("alice", "secret"), CLIENT) is Verdict.ADMITTED

        assert len(comparisons) == 1

    def test_a_verdict_belongs_to_user_and_password(
        self, authenticator: BasicAuthenticator, comparisons: list[bytes]
    ) -> None:
        """A verdict is not found under another split of the same characters."""
        authenticator.check(basic("alice", "secret"), CLIENT)
        authenticator.check(basic("alices", "ecret"), CLIENT)

        assert len(comparisons) == 2

    def test_memory_is_bounded_and_guesses_do_not_evict_a_scraper(
        self, authenticator: BasicAuthenticator, comparisons: list[bytes]
    ) -> None:
        """After 1,000 guesses at most 100 verdicts are kept, the scraper's among them."""
        authenticator.check(basic("alice", "secret"), CLIENT)
        for number in range(1000):
            authenticator.check(basic("alice", f"guess {number}"), CLIENT)
        compared = len(comparisons)
        authenticator.check(basic("alice", "secret"), CLIENT)

        assert len(authenticator._memory) == 100
        assert len(comparisons) == compared == 1001

    def test_no_password_is_kept(self, authenticator: BasicAuthenticator) -> None:
        """The cache holds keyed hashes of 32 bytes, different in each process."""
        other = BasicAuthenticator(HASHES)
        for one in (authenticator, other):
            one.check(basic("alice", "secret"), CLIENT)

        (key,), (other_key,) = authenticator._memory, other._memory
        assert len(key) == 32
        assert key != other_key

    def test_one_comparison_runs_at_a_time_and_four_wait_per_address(
        self, authenticator: BasicAuthenticator, bcrypt_gate: "BcryptGate"
    ) -> None:
        """Guessing in parallel is not faster; beyond its queue an address is turned away."""
        guesses = Guesses(authenticator)
        guesses.start(5, CLIENT)
        bcrypt_gate.wait_until_busy()
        guesses.wait_until_queued(4)

        assert authenticator.check(basic("alice", "one more"), CLIENT) is Verdict.OVERLOADED
        bcrypt_gate.open(5)
        assert guesses.verdicts() == [Verdict.REFUSED] * 5
        assert bcrypt_gate.at_once == [1] * 5

    def test_addresses_take_turns(
        self, authenticator: BasicAuthenticator, bcrypt_gate: "BcryptGate"
    ) -> None:
        """A scraper behind twenty guesses of other addresses waits for one of each, not for all."""
        guesses = Guesses(authenticator)
        guesses.start(1, "192.0.2.2")  # at work
        bcrypt_gate.wait_until_busy()
        guesses.start(4, "192.0.2.2")
        guesses.wait_until_queued(4)
        scraper = Guesses(authenticator, "scraper")
        scraper.start(1, CLIENT)
        guesses.wait_until_queued(5)

        bcrypt_gate.open(3)  # the running one, one more of its address, the scraper's
        assert scraper.verdicts() == [Verdict.REFUSED]
        bcrypt_gate.open(3)
        assert len(guesses.verdicts()) == 5

    def test_an_ipv6_subnet_is_one_client(
        self, authenticator: BasicAuthenticator, bcrypt_gate: "BcryptGate"
    ) -> None:
        """A host that is given a /64 has as many addresses as it likes."""
        guesses = Guesses(authenticator)
        for number in range(5):
            guesses.start(1, f"2001:db8::{number}")
        bcrypt_gate.wait_until_busy()
        guesses.wait_until_queued(4)

        assert authenticator.check(basic("alice", "x"), "2001:db8::99") is Verdict.OVERLOADED
        bcrypt_gate.open(5)
        guesses.verdicts()

    def test_a_reload_keeps_the_verdicts_on_unchanged_hashes(
        self, comparisons: list[bytes]
    ) -> None:
        """A reload does not make every scraper queue again."""
        memory = VerdictMemory()
        BasicAuthenticator(HASHES, memory).check(basic("alice", "secret"), CLIENT)
        successor = BasicAuthenticator({**HASHES, "long": hash_of("y")}, memory)

        assert successor.check(basic("alice", "secret"), CLIENT) is Verdict.ADMITTED
        assert len(comparisons) == 1


class BcryptGate:
    """Replaces bcrypt: comparisons begin at once and end when the test says so."""

    def __init__(self) -> None:
        self.at_once: list[int] = []
        self._running = threading.Semaphore(0)
        self._go_on = threading.Semaphore(0)
        self._current = 0

    def compare(self, _password: bytes, _hashed: bytes) -> bool:
        self._current += 1
        self.at_once.append(self._current)
        self._running.release()
        self._go_on.acquire()
        self._current -= 1
        return False

    def wait_until_busy(self) -> None:
        assert self._running.acquire(timeout=30)

    def open(self, comparisons: int) -> None:
        self._go_on.release(comparisons)


@pytest.fixture
def bcrypt_gate(monkeypatch: pytest.MonkeyPatch) -> BcryptGate:
    gate = BcryptGate()
    monkeypatch.setattr(bcrypt, "checkpw", gate.compare)
    return gate


class Guesses:
    """Wrong passwords, each on a thread of its own."""

    def __init__(self, authenticator: BasicAuthenticator, word: str = "guess") -> None:
        self._authenticator = authenticator
        self._word = word
        self._verdicts: list[Verdict] = []
        self._threads: list[threading.Thread] = []

    def start(self, count: int, client: str) -> None:
        for _ in range(count):
            password = f"{self._word} {len(self._threads)}"
            thread = threading.Thread(target=self._guess, args=(password, client))
            thread.start()
            self._threads.append(thread)

    def _guess(self, password: str, client: str) -> None:
        self._verdicts.append(self._authenticator.check(basic("alice", password), client))

    def wait_until_queued(self, count: int) -> None:
        turns = self._authenticator._turns
        assert eventually(lambda: sum(map(len, list(turns._waiting.values()))) == count)

    def verdicts(self) -> list[Verdict]:
        for thread in self._threads:
            thread.join(timeout=30)
        return self._verdicts


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
    def test_only_health_paths_need_no_password(self, server: Server, path: str) -> None:
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
