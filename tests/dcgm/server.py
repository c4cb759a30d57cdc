"""A dcgm-exporter made of text: it shows one collection until the next, without timestamps."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


# The columns of dcgm-exporter's default counters file that matter here.
DEFAULT_FIELDS = (
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
)
ALL_FIELDS = (
    *DEFAULT_FIELDS,
    "DCGM_FI_PROF_SM_ACTIVE",
    "DCGM_FI_PROF_SM_OCCUPANCY",
    "DCGM_FI_PROF_PIPE_FP64_ACTIVE",
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE",
    "DCGM_FI_PROF_PIPE_FP16_ACTIVE",
)


def row(name: str, value: float, **labels: str) -> str:
    """One line of the exposition."""
    text = ",".join(f'{label}="{content}"' for label, content in labels.items())
    return f"{name}{{{text}}} {value}"


def device_rows(values: Mapping[str, float], **labels: str) -> list[str]:
    """All lines of one device."""
    return [row(name, value, **labels) for name, value in values.items()]


@dataclass(frozen=True, slots=True)
class Device:
    """What one device shows: its labels, and the mean of every collection."""

    labels: Mapping[str, str]
    values: Mapping[str, float]


class DcgmExporter:
    """Serves `rows` on a free local port until closed; counts the scrapes."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.scrapes = 0
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                exporter.scrapes += 1
                body = "\n".join([*exporter.rows, ""]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Its metrics address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/metrics"

    def show(self, rows: Iterable[str]) -> None:
        """Replace what the next scrape sees, all at once."""
        self.rows = list(rows)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def collecting(dcgm: DcgmExporter, devices: Iterable[Device], seconds: float) -> Iterator[None]:
    """Show a new collection at this interval in seconds.

    Activities differ in the ninth digit, as real ones do; those of an idle device stay zero.
    """
    done = threading.Event()
    shown = tuple(devices)

    def collect() -> None:
        number = 0
        while not done.is_set():
            number += 1
            rows: list[str] = []
            for device in shown:
                values = {
                    name: value + number * 1e-9 if value else 0.0
                    for name, value in device.values.items()
                }
                values["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] = 1000.0 * number
                rows += device_rows(values, **device.labels)
            dcgm.show(rows)
            done.wait(seconds)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
