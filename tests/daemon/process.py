"""The real daemon in a process of its own, scraped over HTTP."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families


Labels = frozenset[tuple[str, str]]


class Scrape:
    """One exposition, queried by name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"series exposed twice: {key}"
                self.samples[key] = sample.value

    def series(self, name: str, **labels: str) -> dict[Labels, float]:
        """All series of a name that have these labels."""
        wanted = frozenset(labels.items())
        return {
            found: value
            for (sample, found), value in self.samples.items()
            if sample == name and wanted <= found
        }

    def value(self, name: str, **labels: str) -> float:
        """The one series of a name that has these labels."""
        found = self.series(name, **labels)
        assert len(found) == 1, f"{name} {labels}: {len(found)} series"
        return next(iter(found.values()))

    def total(self, name: str, **labels: str) -> float:
        """Sum over the series of a name that have these labels."""
        return sum(self.series(name, **labels).values())

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is such a series."""
        return bool(self.series(name, **labels))


class DaemonProcess:
    """`flopwatch serve` on a free port. Use it as a context manager."""

    def __init__(
        self,
        directory: Path,
        *,
        config: str = "",
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        program: Sequence[str] = ("-m", "exporter"),
        wait: bool = True,
    ) -> None:
        self.config_file = directory / "config.yaml"
        self.config_file.write_text(config or PASSIVE)
        self._log: list[str] = []
        self._wait = wait
        self._command = [
            sys.executable,
            *program,
            "serve",
            "--config.file",
            str(self.config_file),
            "--web.listen-address",
            "127.0.0.1:0",
            "--log.format",
            "logfmt",
            *arguments,
        ]
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("FLOPWATCH_")},
            "XDG_STATE_HOME": str(directory),
            # Run as root, the daemons of all tests would share one state file, and the memory of
            # their GPUs.
            **(
                {}
                if "state_file" in config
                else {"FLOPWATCH_STATE_FILE": f"{directory}/state.json"}
            ),
            **(environment or {}),
        }
        self._address = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, env=self._environment, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            if self._wait:
                self.wait_for(lambda: self.address)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        if error is not None:
            print(self.log)

    @property
    def log(self) -> str:
        """Everything that the daemon has logged."""
        return "".join(self._log)

    @property
    def address(self) -> str:
        """http://host:port, empty until the daemon says that it serves."""
        if not self._address:
            match = re.search(r"event=serving .*addresses=\['([^']+)'", self.log)
            self._address = f"http://{match[1]}" if match else ""
        return self._address

    def get(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and body of a request."""
        request = urllib.request.Request(
            self.address + path, method=method, headers=dict(headers or {})
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def scrape(self) -> Scrape:
        """The metrics, now."""
        status, text = self.get("/metrics")
        assert status == 200
        return Scrape(text)

    def wait_for(self, condition: Callable[[], object], seconds: float = 120.0) -> None:
        """Wait until the condition holds; fails with the log when it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"daemon ended:\n{self.log}"
            assert time.monotonic() < deadline, f"condition never held:\n{self.log}"
            time.sleep(0.05)

    def wait_until(self, condition: Callable[[Scrape], object], seconds: float = 120.0) -> Scrape:
        """Scrape until the condition holds, and return that scrape."""
        found: list[Scrape] = []

        def check() -> bool:
            scrape = self.scrape()
            found[:] = [scrape]
            return bool(condition(scrape))

        self.wait_for(check, seconds)
        return found[0]

    def reload(self) -> None:
        """Send SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def terminate(self) -> tuple[int, float]:
        """Send SIGTERM; exit code and seconds until the end."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30), time.monotonic() - started

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)


# Probes would load torch: tests of the passive daemon do without.
PASSIVE = "probes: {enabled: false}\n"


def passive(text: str) -> str:
    """A configuration with probes off."""
    return PASSIVE + text
