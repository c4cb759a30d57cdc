"""A client that connects while the daemon starts: its connection waits for the first tick of each device."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter import procfs
from tests.daemon.process import DaemonProcess, Scrape, passive
from tests.fake_nvml import H100, FakeNvml


TICK = "nvmlDeviceGetPowerUsage"
# On a loaded machine too, the first tick is neither late nor old.
UNHURRIED = "sampling: {interval: 60s, slow_interval: 60s, deadline: 60s}\n"
# The daemon, which waits for the first tick as long as it takes, and says when it begins to.
PATIENT = """
import sys
import exporter.app
from exporter.cli.main import main
from exporter.collect.host import HostSampling

wait = HostSampling.wait_for_devices

def noted(self, timeout_seconds):
    print("waits for the first tick", file=sys.stderr, flush=True)
    return wait(self, timeout_seconds)

HostSampling.wait_for_devices = noted
exporter.app._FIRST_TICK_SECONDS = 3600.0
sys.exit(main())
"""


@contextmanager
def scraper(daemon: DaemonProcess) -> Iterator[socket.socket]:
    """A client that connects as soon as the daemon listens, and has sent its request."""
    pid = daemon.process.pid
    ports: list[int] = []

    def listens() -> bool:
        ports[:] = [
            each.port for each in procfs.listening(pid) if procfs.holders(each.inode, [pid])
        ]
        return bool(ports)

    daemon.wait_for(listens)
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=120) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        yield client


def answer(client: socket.socket) -> Scrape:
    """What the daemon answers, whenever that comes."""
    with client.makefile("rb") as stream:
        head, _, body = stream.read().decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ")
    return Scrape(body)


def test_the_first_scrape_finds_the_device(tmp_path: Path) -> None:
    """It came before the first tick, is not answered meanwhile, and has that tick's readings."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.hang(TICK)
        daemon = DaemonProcess(
            tmp_path,
            config=passive(UNHURRIED),
            environment=fake.env,
            program=("-c", PATIENT),
            wait=False,
        )
        with daemon, scraper(daemon) as client:
            daemon.wait_for(lambda: fake.hanging(TICK) and "waits for" in daemon.log)
            early, _, _ = select.select([client], [], [], 0)
            fake.release(TICK)
            first = answer(client)

    assert early == []
    assert first.value("flopwatch_gpu_up", gpu="0") == 1
    assert first.has("flopwatch_power_watts", gpu="0")


def test_a_first_tick_that_never_comes_holds_up_no_scrape(tmp_path: Path) -> None:
    """The call of the first tick never returns: the scrape is answered, without a reading."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.hang(TICK)
        daemon = DaemonProcess(tmp_path, environment=fake.env, wait=False)
        with daemon, scraper(daemon) as client:
            first = answer(client)
            daemon.wait_for(lambda: fake.hanging(TICK))
            fake.release(TICK)

    assert first.total("flopwatch_gpu_up") == 0
    assert not first.has("flopwatch_power_watts")
