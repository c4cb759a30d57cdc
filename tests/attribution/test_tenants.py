"""A minute of a host whose GPUs are shared in every way, on the fake driver: what each is charged.

The daemon sees real processes. GPU 0 has three tenants, GPU 1 three clients of MPS, GPU 2 three engines
that take turns, GPU 3 MIG instances with a job each, GPU 4 two tenants and processes that end before the
daemon looks at them.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from tests.attribution.test_bill import COUNTERS
from tests.daemon.process import DaemonProcess, Scrape, passive
from tests.fake_nvml import H100, H100_1G_10GB, H100_3G_40GB, FakeNvml, Load, MigInstance


FLOP, ENERGY = "flopwatch_holder_flop_total", "flopwatch_holder_energy_joules_total"
SECONDS = "flopwatch_gpu_seconds_total"
MINUTE = 60.0
SHARED = {
    "0": {"chat": 48, "search": 24, "batch": 8},
    "1": {"red": 40, "green": 30, "blue": 10},
    "2": {"first": 60, "second": 20, "third": 10},
}
STAYING = {"long": 50, "longer": 25}
SHORT_PERCENT = 20
INSTANCES = (H100_3G_40GB, H100_1G_10GB)
DECODE = replace(Load.decode(), memory_used_bytes=2**30)
# What each instance does, as a part of DECODE: the one with 60 SMs a third, the one with 16 all of it.
WORK = {H100_3G_40GB: 1 / 3, H100_1G_10GB: 1.0}
# It serves one page for as long as it lives.
ENGINE = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'vllm:num_requests_running{model_name="tiny"} 1\\n')
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Minute:
    """The first scrape with complete data, and one taken a minute of watched time later."""

    first: Scrape
    last: Scrape

    def grown(self, name: str, **labels: str) -> float:
        """Increase of the sum of these series. The whole GPU's have no label `mig`."""
        before, after = (
            sum(
                value
                for found, value in scrape.series(name, **labels).items()
                if ("mig" in labels) == ("mig" in dict(found))
            )
            for scrape in (self.first, self.last)
        )
        return after - before


def sleeping(stack: ExitStack, folder: Path, name: str) -> int:
    """A process of this name, until the stack ends."""
    program = folder / name
    shutil.copy("/bin/sleep", program)
    process = stack.enter_context(subprocess.Popen([program, "600"]))
    stack.callback(process.kill)
    return process.pid


def serving(stack: ExitStack) -> tuple[int, int]:
    """The process and the port of an engine."""
    process = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE)
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    return process.pid, int(process.stdout.readline())


def sms(instance: MigInstance) -> float:
    """An instance's part of the GPU's SMs."""
    return instance.multiprocessor_count / H100.multiprocessor_count


def part_of_decode(part: float) -> Load:
    """Everything that GPM counts is this part of DECODE."""
    activities = ("graphics", "sm", "any_tensor", "hmma_tensor", "fp32", "fp16", "dram")
    return replace(DECODE, **{name: getattr(DECODE, name) * part for name in activities})


def ended() -> int:
    """The id of a process that ended before the daemon could look at it."""
    with subprocess.Popen(["/bin/true"]) as process:
        return process.pid


def put(fake: FakeNvml, gpu: int, shares: Mapping[int, int], kind: str = "compute") -> None:
    """Let these processes use the GPU, in percent of the SMs' time."""
    entries = [(pid, 2**30, cast("object", kind)) for pid in shares]
    fake.set_processes(gpu, entries, sm_percent=dict(shares))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minute]:
    """The host, watched for a minute."""
    folder = tmp_path_factory.mktemp("tenants")
    with ExitStack() as stack:
        fake = stack.enter_context(FakeNvml([H100] * 5, folder))
        for gpu in range(5):
            fake.gpu(gpu).set_load(DECODE)
        for gpu, kind in ((0, "compute"), (1, "mps")):
            shares = SHARED[str(gpu)]
            put(fake, gpu, {sleeping(stack, folder, n): s for n, s in shares.items()}, kind)
        engines = {name: serving(stack) for name in SHARED["2"]}
        put(fake, 2, {engines[name][0]: share for name, share in SHARED["2"].items()})
        jobs = folder / "jobs"
        jobs.mkdir()
        fake.gpu(3).set_mig(INSTANCES)
        fake.gpu(3).set_load(part_of_decode(sum(part * sms(each) for each, part in WORK.items())))
        for instance, part in WORK.items():
            loads = fake.gpu(3).instance_loads(instance.gpu_instance_id)
            loads.set_load(part_of_decode(part))
            (jobs / f"3.{instance.gpu_instance_id}").write_text(f"job{instance.gpu_instance_id}\n")
        staying = {sleeping(stack, folder, name): share for name, share in STAYING.items()}
        put(fake, 4, staying)
        workloads = ", ".join(
            f"{{name: {name}, engine: vllm, url: 'http://127.0.0.1:{port}/metrics', interval: 1s, gpus: [2]}}"
            for name, (_pid, port) in engines.items()
        )
        config = passive(
            "sampling: {interval: 500ms, slow_interval: 1s}\n"
            "processes: {holders: true}\n"
            f"hpc: {{job_mapping_dir: {jobs}}}\n"
            f"workloads: [{workloads}]\n"
        )
        daemon = stack.enter_context(DaemonProcess(folder, config=config, environment=fake.env))
        first = daemon.wait_until(everybody_is_known, seconds=120)

        def watched(scrape: Scrape) -> bool:
            """A process starts and ends at once: the driver remembers it for a tick or two."""
            put(fake, 4, {**staying, ended(): SHORT_PERCENT})
            daemon.wait_for(lambda: seconds(daemon.scrape()) > seconds(scrape) + 0.6)
            put(fake, 4, staying)
            return seconds(scrape) > seconds(first) + MINUTE

        last = daemon.wait_until(watched, seconds=300)
        yield Minute(first, last)


def seconds(scrape: Scrape) -> float:
    """For how long the last GPU has been watched."""
    return scrape.total(SECONDS, gpu="4")


def everybody_is_known(scrape: Scrape) -> bool:
    """All tenants have been distinguished, and have done some work."""
    names = [*(name for shares in SHARED.values() for name in shares), *STAYING]
    return all(
        scrape.has("flopwatch_holder_basis_info", workload=name, basis="process_utilization")
        and scrape.total(FLOP, workload=name) > 0
        for name in names
    ) and all(
        scrape.total(FLOP, hpc_job=f"job{each.gpu_instance_id}", mig=str(each.gpu_instance_id)) > 0
        for each in INSTANCES
    )


@pytest.mark.parametrize(
    ("gpu", "holder"),
    [("0", "process"), ("1", "process"), ("2", "workload")],
    ids=["tenants", "MPS", "time-slicing"],
)
def test_each_tenant_is_charged_its_share(minute: Minute, gpu: str, holder: str) -> None:
    """FLOP and bytes by SM time, energy by it for the busy part and in thirds for the idle one: within 2 %."""
    shares = SHARED[gpu]
    whole = sum(shares.values())
    flop = minute.grown("flopwatch_flop_total", gpu=gpu, pipe="tensor")
    energy = minute.grown("flopwatch_energy_joules_total", gpu=gpu)
    idle = minute.grown(SECONDS, gpu=gpu, state="idle") / minute.grown(SECONDS, gpu=gpu)
    assert 0 < idle < 0.1
    for name, percent in shares.items():
        labels = {"gpu": gpu, "holder": holder, "workload": name}
        share = percent / whole
        assert minute.grown(FLOP, **labels) == pytest.approx(flop * share, rel=0.02), name
        truth = energy * (idle / len(shares) + (1 - idle) * share)
        assert minute.grown(ENERGY, **labels) == pytest.approx(truth, rel=0.02), name


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance.gpu_instance_id)
def test_a_job_on_an_instance_has_all_of_it(minute: Minute, instance: MigInstance) -> None:
    """All FLOP of its instance, and of the GPU's what its instance did: 20 to 16 parts, not 60 to 16.

    A third of 60 SMs and all of 16 work. Energy is divided like the time, and that is by SMs.
    """
    mig, job = str(instance.gpu_instance_id), f"job{instance.gpu_instance_id}"
    own = minute.grown("flopwatch_flop_total", gpu="3", mig=mig, pipe="tensor")
    assert own > 0
    assert minute.grown(FLOP, gpu="3", mig=mig, hpc_job=job) == pytest.approx(own, rel=1e-9)

    work = {each: part * sms(each) for each, part in WORK.items()}
    share = work[instance] / sum(work.values())
    assert share == pytest.approx({60: 20 / 36, 16: 16 / 36}[instance.multiprocessor_count])
    flop = minute.grown("flopwatch_flop_total", gpu="3", pipe="tensor")
    assert minute.grown(FLOP, gpu="3", hpc_job=job) == pytest.approx(flop * share, rel=0.02)

    energy = minute.grown("flopwatch_energy_joules_total", gpu="3")
    assert minute.grown(ENERGY, gpu="3", hpc_job=job) == pytest.approx(
        energy * sms(instance), rel=0.02
    )


def test_processes_that_nobody_saw_are_charged_to_nobody(minute: Minute) -> None:
    """They had ended before their owner could be read: the others keep their proportion of two to one."""
    long, longer = (minute.grown(FLOP, gpu="4", workload=name) for name in STAYING)
    short = minute.grown(FLOP, gpu="4", holder="none")
    flop = minute.grown("flopwatch_flop_total", gpu="4", pipe="tensor")

    assert long == pytest.approx(2 * longer, rel=0.02)
    # With one at any time, which a slow machine comes to, they have their share of all the work.
    most = flop * SHORT_PERCENT / (sum(STAYING.values()) + SHORT_PERCENT)
    assert 0 < short <= most * (1 + 1e-9)
    assert long + longer + short == pytest.approx(flop, rel=1e-9)


@pytest.mark.parametrize("gpu", ["0", "1", "2", "3", "4"])
def test_shares_sum_exactly(minute: Minute, gpu: str) -> None:
    """In the first scrape and in the last, of every counter, of the GPU and of each instance."""
    for scrape in (minute.first, minute.last):
        for shares, (whole, labels) in COUNTERS.items():
            for mig in {dict(found).get("mig", "") for found in scrape.series(whole, gpu=gpu)}:
                parts = {} if not mig else {"mig": mig}
                both = (
                    sum(
                        value
                        for found, value in scrape.series(name, gpu=gpu, **parts, **more).items()
                        if bool(mig) == ("mig" in dict(found))
                    )
                    for name, more in ((shares, {}), (whole, labels))
                )
                charged, counted = both
                assert charged == pytest.approx(counted, rel=1e-9), (shares, mig)


def test_a_holder_has_at_most_twelve_series_on_a_device(minute: Minute) -> None:
    """Eight states of its time, FLOP, bytes, energy and basis: docs/scaling.md counts on it."""
    names = ("holder", "namespace", "pod", "container", "hpc_job", "workload")
    series: dict[tuple[str, ...], int] = {}
    for name, found in minute.last.samples:
        if name.startswith("flopwatch_holder_") and "uuid" in dict(found):
            labels = dict(found)
            key = (labels["uuid"], *(labels[each] for each in names))
            series[key] = series.get(key, 0) + 1

    assert len(series) > 12
    assert max(series.values()) <= 12
