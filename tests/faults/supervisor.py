"""What systemd does with `Restart=always`: start the daemon again whenever it ends."""

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from tests.daemon.process import PASSIVE, Scrape


_RESTART_SECONDS = 0.1


class Supervisor:
    """Keeps `flopwatch serve` running on one port. Use it as a context manager."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        config = directory / "supervised.yaml"
        config.write_text(PASSIVE + "sampling: {interval: 250ms, slow_interval: 1s}\n")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._command = [
            *(sys.executable, "-m", "exporter", "serve", "--config.file", str(config)),
            *("--web.listen-address", f"127.0.0.1:{self._port}"),
        ]
        self._environment = dict(environment)
        self._log = directory / "supervised.log"
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.exits: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        while self._thread.is_alive():
            if self._process is not None:
                self._process.kill()
            self._thread.join(0.1)

    @property
    def log(self) -> str:
        """The log of all runs."""
        return self._log.read_text()

    def until(self, condition: Callable[[Scrape], object], seconds: float = 40.0) -> Scrape:
        """Scrape the current run until the condition holds."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self._port}/metrics", timeout=5
                ) as answer:
                    scrape = Scrape(answer.read().decode())
                if condition(scrape):
                    return scrape
            except OSError:
                pass  # between two runs
            assert time.monotonic() < deadline, f"condition never held:\n{self.log}"
            time.sleep(0.05)

    def _run(self) -> None:
        with self._log.open("ab") as log:
            while not self._stopping.is_set():
                self._process = subprocess.Popen(self._command, env=self._environment, stderr=log)
                self.exits.append(self._process.wait())
                self._stopping.wait(_RESTART_SECONDS)
