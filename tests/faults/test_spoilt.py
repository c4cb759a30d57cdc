"""A hundred corrupted messages to each input of the real daemon: it only logs that it rejects them."""

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, passive
from tests.fake_nvml import A100, FakeNvml, Load
from tests.faults.invariants import Witness
from tests.fuzz.__main__ import edits
from tests.fuzz.edits import spoil
from tests.fuzz.targets import TARGETS
from tests.inference.engines.server import EngineServer, serving, text


INPUTS = 100
# An endpoint that sends garbage is scraped less and less often: many get a hundred answers sooner.
WORKLOADS = 60
GAUGE = "flopwatch_power_watts"


def spoilt(target: str) -> Iterator[bytes]:
    """Real inputs with a few edits, the same ones in every run."""
    source = random.Random(target)
    for _ in range(INPUTS):
        yield spoil(source.choice(TARGETS[target].seeds), edits(source))


class Doors:
    """A daemon on one GPU, whose engine and dcgm-exporter answer as the test wants."""

    def __init__(self, daemon: DaemonProcess, server: EngineServer) -> None:
        self.daemon = daemon
        self.server = server
        self.witness = Witness(daemon, window_seconds=4.0)
        self.witness.until(lambda scrape: scrape.has(GAUGE))

    def stands(self) -> None:
        """It serves the GPU, and logged no internal error."""
        assert self.daemon.process.poll() is None
        assert self.witness.scrape().has(GAUGE)
        assert "Traceback" not in self.daemon.log
        assert "reason=internal" not in self.daemon.log


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    """All scraped as often as can be configured."""
    with FakeNvml([A100], tmp_path) as fake, serving(text("")) as server:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, graphics=0.9, power_watts=300))
        config = passive(
            "sampling: {interval: 250ms}\n"
            f"dcgm: {{url: '{server.url}'}}\n"
            f"hpc: {{job_mapping_dir: '{tmp_path}/jobs'}}\n"
            "workloads:\n"
        ) + "".join(
            f"  - {{name: chat-{number}, engine: vllm, url: '{server.url}', interval: 1s, gpus: [0]}}\n"
            for number in range(WORKLOADS)
        )
        with DaemonProcess(
            tmp_path,
            config=config,
            environment=fake.env,
            arguments=["--web.enable-lifecycle"],
        ) as daemon:
            yield Doors(daemon, server)


def test_requests(doors: Doors) -> None:
    """Each is answered or closed."""
    host, port = doors.daemon.address.removeprefix("http://").split(":")
    for data in spoilt("request"):
        with socket.create_connection((host, int(port)), 10) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass  # closed on what it had not read
    doors.stands()


def test_configurations(doors: Doors) -> None:
    """Each is accepted or rejected as a whole, with a line for each mistake."""
    good = doors.daemon.config_file.read_text()
    refused = 0
    for data in spoilt("config"):
        doors.daemon.config_file.write_bytes(data)
        status, body = doors.daemon.get("/-/reload", method="POST")
        assert status in (200, 500), body
        refused += status == 500
    assert refused > INPUTS / 2
    doors.daemon.config_file.write_text(good)
    assert doors.daemon.get("/-/reload", method="POST")[0] == 200
    doors.stands()


@pytest.mark.parametrize("target", ["engine_exposition", "engine_answer", "dcgm_exposition"])
def test_answers_of_others(doors: Doors, target: str) -> None:
    """Sixty engines and a dcgm-exporter that all send the same garbage, well or badly compressed."""
    inputs = list(spoilt(target))
    served: list[int] = []

    def answer(exchange) -> None:
        data = inputs[len(served) % INPUTS]
        served.append(len(data))
        if target == "engine_answer":
            exchange.send(data)
        else:
            text(data.decode(errors="replace"))(exchange)

    doors.server.answer = answer
    doors.daemon.wait_for(lambda: len(served) >= INPUTS, 60)
    doors.stands()


def test_job_mappings(doors: Doors, tmp_path: Path) -> None:
    """Whatever the files contain, only printable names become labels."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    for number, data in enumerate(spoilt("job_mapping")):
        (jobs / str(number)).write_bytes(data)
    (jobs / "0").write_text("4711\n")

    doors.witness.until(lambda scrape: scrape.has("flopwatch_gpu_job_info", gpu="0", job="4711"))
    time.sleep(1)
    doors.stands()
