"""`flopwatch top`: a daemon's status in the terminal, and one clear line where there is none."""

import base64
import io
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from exporter.cli.main import main
from exporter.cli.top import Access, DocumentError, fetch_status
from exporter.status.document import STATUS_PATH, Status
from exporter.status.terminal import plain, render
from exporter.web.config import load_web_config
from exporter.web.http import Request, Response, Router
from exporter.web.http import plain as answer
from exporter.web.server import Server
from tests.status.examples import COARSE, DECODE, Machine, cpu, fleet, gpu
from tests.web.certificates import Authority


class Daemon:
    """A web server with the test's own routes."""

    def __init__(self) -> None:
        self.router = Router()
        self.requests: list[Request] = []
        self.server = Server(["127.0.0.1:0"], self._handle)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.addresses[0][1]}"

    def answers(self, response: Response) -> None:
        self.router.add(STATUS_PATH, "GET", lambda _request: response)

    def _handle(self, request: Request) -> Response:
        self.requests.append(request)
        return self.router(request)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    started = Daemon()
    yield started
    started.server.close(0.5)


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def shown(status: Status, *, width: int = 100, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(status, width=width, height=height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")


class TestPicture:
    def test_it_says_what_the_page_says(self) -> None:
        """Number, bar, board and sentence of a device."""
        machine = Machine()
        machine.add(gpu(0))
        machine.run(120, {"0": DECODE}, step=1.0)
        text = shown(machine.service.status())

        assert "118 TFLOP/s of 989 TFLOP/s bf16 12 %" in text
        assert "Memory-bound: DRAM at 91 %, tensor pipe waits" in text
        assert "455 of 700 W" in text
        assert text.count("M") >= 30

    def test_the_processors_own_count_is_shown_beside_its_peak(self) -> None:
        """20 GFLOP/s in fp32 and 1 in fp64 by its own counters, and no probe yet."""
        machine = Machine()
        machine.add(cpu())
        load = replace(COARSE, counted={"fp32": 20e9, "fp64": 1e9})
        machine.run(70, {"cpu0": load}, step=1.0)

        assert "peak 346 GFLOP/s fp32, 21.0 GFLOP/s executed" in shown(machine.service.status())

    def test_a_sentence_is_wrapped_and_not_cut(self) -> None:
        """At 60 columns, what to do still stands at its end; busy is of the same minute as the bar."""
        machine = Machine()
        machine.add(cpu())
        machine.run(70, {"cpu0": COARSE}, step=1.0)
        text = shown(machine.service.status(), width=60)

        assert "Busy 60 %" in text
        assert "(`flopwatch check` says why)" in " ".join(text.split())

    def test_the_bar_has_a_letter_for_each_share(self) -> None:
        """Of 50 letters 31 stand for memory (0.62): readable without colour."""
        machine = Machine()
        machine.add(gpu(0))
        machine.run(120, {"0": DECODE}, step=1.0)
        bar = next(
            line
            for line in shown(machine.service.status(), width=150).splitlines()
            if "MMM" in line
        )

        assert bar.count("M") == 31
        assert bar.endswith("TTTTTT" + "M" * 31 + "SSSSSUUUU····")

    def test_a_low_window_gets_a_line_for_each_device(self) -> None:
        """Eight devices in twelve lines, the sick ones first."""
        lines = shown(fleet(8, seconds=60).service.status(), height=12).splitlines()

        assert len(lines) == 10
        assert lines[2].startswith("✖ GPU 3")

    def test_devices_that_do_not_fit_are_counted(self) -> None:
        """64 devices in ten lines: two of the host, seven devices, and the rest as a number."""
        lines = shown(fleet(64, seconds=60).service.status(), height=10).splitlines()

        assert len(lines) == 10
        assert lines[-1] == "… and 57 more"

    def test_no_line_is_wider_than_the_window(self) -> None:
        """Down to forty columns."""
        for width in (40, 80, 200):
            for line in shown(fleet(4, seconds=60).service.status(), width=width).splitlines():
                assert len(line) <= width

    @given(st.text(max_size=40))
    @settings(max_examples=60, deadline=None)
    def test_external_names_cannot_control_the_terminal(self, name: str) -> None:
        """No escape sequence, no bell, no line of its own; rich's markup stays text."""
        machine = Machine(name=name + "\x1b[2J[red]")
        snapshot = gpu(0)
        machine.add(
            replace(snapshot, identity=replace(snapshot.identity, name=name + "\x1b]0;x\x07"))
        )
        machine.run(10, {"0": DECODE})
        text = shown(machine.service.status())

        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert "[red]" in text

    def test_plain_keeps_what_people_write(self) -> None:
        """Accents and no-break spaces are text."""
        assert plain("é\N{NO-BREAK SPACE}漢") == "é\N{NO-BREAK SPACE}漢"


class TestFetch:
    def test_the_document_comes_back(self, daemon: Daemon) -> None:
        """From an address with or without scheme, path or slash."""
        machine = fleet(1, seconds=60)
        machine.service.add_routes(daemon.router)
        for url in (
            daemon.url,
            daemon.url + "/",
            daemon.url + STATUS_PATH,
            daemon.url.removeprefix("http://"),
        ):
            assert fetch_status(Access(url=url)) == machine.service.status()

    def test_user_and_password_are_sent(self, daemon: Daemon) -> None:
        """From the address or apart from it, decoded."""
        daemon.answers(answer(401))
        for access in (
            Access(url=daemon.url.replace("http://", "http://bob:p%40ss@")),
            Access(url=daemon.url, user="bob", password="p@ss"),
        ):
            with pytest.raises(DocumentError, match="user or password not accepted"):
                fetch_status(access)
        expected = "Basic " + base64.b64encode(b"bob:p@ss").decode()
        assert [r.headers["authorization"] for r in daemon.requests] == [expected] * 2

    @pytest.mark.parametrize(
        ("response", "message"),
        [
            (Response(404), "answered with status 404; is this the address of a flopwatch daemon?"),
            (Response(200, b"<html>"), "not a flopwatch status document"),
            (Response(200, b'{"api_version": 2}'), "serves version 2 of the status API"),
            (Response(200, b"{}"), "serves version 0"),
            (Response(200, b'{"api_version": 1}'), "malformed"),
        ],
    )
    def test_other_answers_are_one_line(
        self, daemon: Daemon, response: Response, message: str
    ) -> None:
        """Each says which daemon, and what is wrong."""
        daemon.answers(response)
        with pytest.raises(DocumentError, match=message.replace("?", r"\?")) as caught:
            fetch_status(Access(url=daemon.url))
        assert str(caught.value).startswith(daemon.url)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "http://",
            "ftp://x",
            "http://a b",
            "http://x:99999",
            "http://[::1",
            "http://x/ü",
        ],
    )
    def test_an_invalid_address_is_refused(self, url: str) -> None:
        """Before any network access."""
        with pytest.raises(DocumentError, match="--url must be an address"):
            fetch_status(Access(url=url))

    def test_a_password_never_shows_in_a_message(self, closed_port: int) -> None:
        """It might be logged."""
        with pytest.raises(DocumentError) as caught:
            fetch_status(Access(url=f"http://bob:hunter2@127.0.0.1:{closed_port}"))
        assert "hunter2" not in str(caught.value)

    def test_a_missing_ca_file_is_named(self, tmp_path: Any) -> None:
        """With the flag that it came from."""
        with pytest.raises(DocumentError, match=r"--ca-file .*: no such file"):
            fetch_status(Access(url="https://127.0.0.1:1", ca_file=str(tmp_path / "none.pem")))

    def test_certificates_are_verified_unless_told_otherwise(self, tmp_path: Path) -> None:
        """An unknown authority is refused; --ca-file names one, --insecure accepts any."""
        Authority(tmp_path).issue("server")
        config = tmp_path / "web.yml"
        config.write_text("tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
        machine, router = fleet(1, seconds=60), Router()
        machine.service.add_routes(router)
        server = Server(["127.0.0.1:0"], router, web_config=load_web_config(config))
        server.start()
        try:
            url = f"https://127.0.0.1:{server.addresses[0][1]}"
            with pytest.raises(
                DocumentError, match=r"certificate not accepted: .*\(see --ca-file\)"
            ):
                fetch_status(Access(url=url))
            for trust in ({"ca_file": str(tmp_path / "ca.pem")}, {"verify": False}):
                status = fetch_status(replace(Access(url=url), **trust))  # type: ignore[arg-type]
                assert status == machine.service.status()
        finally:
            server.close(5)

    def test_a_silent_daemon_times_out(self) -> None:
        """After the time limit, with a line that says so."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(DocumentError, match=r"no answer in 0\.1 s"):
                fetch_status(Access(url=url, timeout_seconds=0.1))


class TestCommand:
    def test_once_prints_the_picture(
        self, daemon: Daemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And ends with 0."""
        fleet(4, seconds=60).service.add_routes(daemon.router)

        assert main(["top", "--once", "--url", daemon.url]) == 0
        assert "GPU 3" in capsys.readouterr().out

    def test_a_missing_daemon_is_one_line_and_exit_code_two(
        self, closed_port: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No traceback, no screen of its own."""
        assert main(["top", "--url", f"127.0.0.1:{closed_port}"]) == 2
        captured = capsys.readouterr()
        assert captured.err == f"flopwatch: http://127.0.0.1:{closed_port}: connection refused\n"
        assert captured.out == ""

    @pytest.mark.parametrize("interval", ["0", "-1", "nan"])
    def test_an_interval_that_makes_no_sense(
        self, interval: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It would poll the daemon without a pause."""
        assert main(["top", "--interval", interval]) == 2
        assert "--interval must be at least" in capsys.readouterr().err
