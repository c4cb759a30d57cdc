"""Who used a GPU, as a daemon on a fake driver reports it for tenants with known shares."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from exporter.accounting.device import Counters
from exporter.accounting.flop import PipeWork
from exporter.attribution.bill import HostLedger, assign_processes
from exporter.attribution.jobs import ProcessOwners, process_owner
from exporter.attribution.ledger import instance_weights
from exporter.attribution.snapshot import (
    NOBODY,
    DeviceKey,
    Holder,
    HoldersSnapshot,
    JobUse,
    ProcessOwner,
)
from exporter.device_state import DeviceState
from exporter.readings import DeviceIdentity, FastReading
from exporter.state import State
from tests.daemon.process import DaemonProcess, Labels, Scrape, passive
from tests.fake_nvml import H100, FakeNvml, Load
from tests.inference.engines.server import serving, text


ENERGY = "flopwatch_holder_energy_joules_total"
CONFIG = passive("sampling: {interval: 250ms, slow_interval: 1s}\n")
COUNTERS = {
    "flopwatch_holder_flop_total": ("flopwatch_flop_total", {"pipe": "tensor"}),
    "flopwatch_holder_dram_bytes_total": ("flopwatch_dram_bytes_total", {}),
    "flopwatch_holder_energy_joules_total": ("flopwatch_energy_joules_total", {}),
    "flopwatch_holder_gpu_seconds_total": ("flopwatch_gpu_seconds_total", {}),
}


def assert_sums_are_exact(scrape: Scrape, gpu: str) -> None:
    """The shares of all holders are the device's own counters, in one and the same scrape."""
    for shares, (whole, labels) in COUNTERS.items():
        assert scrape.total(shares, gpu=gpu) == pytest.approx(
            scrape.total(whole, gpu=gpu, **labels), rel=1e-9
        ), shares


@pytest.fixture
def tenants(tmp_path: Path) -> Iterator[dict[str, int]]:
    """Three processes with names of their own: pids by name."""
    with ExitStack() as stack:
        pids = {}
        for name in ("chat", "search", "batch"):
            program = tmp_path / name
            shutil.copy("/bin/sleep", program)
            process = stack.enter_context(subprocess.Popen([program, "600"]))
            stack.callback(process.kill)
            pids[name] = process.pid
        yield pids


def test_tenants_are_charged_by_their_sm_time(start, tenants: dict[str, int]) -> None:
    """Shares of 48, 24 and 8 % of the SMs are 60, 30 and 10 % of the FLOP, within 2 points."""
    shares = {"chat": 48, "search": 24, "batch": 8}
    fake, daemon = start(
        [H100],
        config=CONFIG + "processes: {holders: true}\n",
        prepare=lambda fake: fake.set_processes(
            0,
            [(pid, 2**30, "compute") for pid in tenants.values()],
            sm_percent={tenants[name]: percent for name, percent in shares.items()},
        ),
    )
    fake.gpu(0).set_load(Load.decode())

    def flop(scrape: Scrape, name: str) -> float:
        return scrape.total("flopwatch_holder_flop_total", holder="process", workload=name)

    first = daemon.wait_until(
        lambda scrape: (
            scrape.has("flopwatch_holder_basis_info", basis="process_utilization")
            and all(flop(scrape, name) > 0 for name in shares)
        )
    )
    before = first.total("flopwatch_flop_total", pipe="tensor")
    last = daemon.wait_until(
        lambda scrape: (
            scrape.total("flopwatch_gpu_seconds_total")
            > first.total("flopwatch_gpu_seconds_total") + 6
        )
    )
    used = last.total("flopwatch_flop_total", pipe="tensor") - before
    for name, percent in shares.items():
        share = (flop(last, name) - flop(first, name)) / used
        assert share == pytest.approx(percent / 80, abs=0.02), name
    assert_sums_are_exact(first, "0")
    assert_sums_are_exact(last, "0")
    # Before the daemon started; the series does not grow.
    earlier = before_start(last)
    assert before_start(first) == earlier
    assert first.samples[ENERGY, earlier] == last.samples[ENERGY, earlier] > 0


def test_jobs_with_indistinguishable_processes_share_equally(start, tmp_path: Path) -> None:
    """Two jobs on one GPU, no processes to see: halves, and the basis says so. Then one leaves."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "0").write_text("41\n42\n")
    config = CONFIG + f"hpc: {{job_mapping_dir: {jobs}}}\n"
    fake, daemon = start([H100, H100], config=config)
    for gpu in range(2):
        fake.gpu(gpu).set_load(Load.decode())

    shared = daemon.wait_until(
        lambda scrape: (
            scrape.total("flopwatch_holder_flop_total", hpc_job="42") > 0
            and scrape.has("flopwatch_holder_basis_info", hpc_job="42", basis="equal")
        )
    )
    assert_sums_are_exact(shared, "0")
    assert_sums_are_exact(shared, "1")
    # The other GPU has no holder: its capacity is charged to none.
    assert shared.total("flopwatch_holder_flop_total", gpu="1", holder="none") == shared.total(
        "flopwatch_flop_total", gpu="1", pipe="tensor"
    )

    (jobs / "0").write_text("41\n")
    alone = daemon.wait_until(
        lambda scrape: scrape.has("flopwatch_holder_basis_info", hpc_job="41", basis="exclusive")
    )
    later = daemon.wait_until(
        lambda scrape: (
            scrape.total("flopwatch_holder_flop_total", hpc_job="41")
            > alone.total("flopwatch_holder_flop_total", hpc_job="41")
        )
    )
    left = later.total("flopwatch_holder_flop_total", hpc_job="42")
    assert left == alone.total("flopwatch_holder_flop_total", hpc_job="42")
    assert_sums_are_exact(later, "0")


def test_prices_come_from_the_configuration(start) -> None:
    """By GPU; the first match applies, and a reload changes it. A GPU without a match has no price."""
    prices = "prices: [{match: {index: 0}, per_gpu_hour: 2.5, currency: eur}]\n"
    _fake, daemon = start([H100, H100], config=CONFIG + prices)
    name = "flopwatch_price_per_gpu_hour"

    scrape = daemon.wait_until(lambda scrape: scrape.has(name))
    assert scrape.value(name, gpu="0", currency="EUR") == 2.5
    assert not scrape.has(name, gpu="1")

    daemon.config_file.write_text(CONFIG + "prices: [{per_gpu_hour: 3}]\n")
    daemon.reload()
    daemon.wait_until(
        lambda scrape: (
            scrape.series(name, currency="USD").values() and len(scrape.series(name)) == 2
        )
    )


def test_a_lost_gpu_is_not_charged_and_the_sums_hold_after(start) -> None:
    """Its holders have no series while it is away, and continue from their last values."""
    fake, daemon = start([H100], config=CONFIG)
    fake.gpu(0).set_load(Load.decode())
    before = daemon.wait_until(lambda s: s.total("flopwatch_holder_flop_total", gpu="0") > 0)
    fake.lose(0)
    daemon.wait_until(lambda scrape: not scrape.has("flopwatch_holder_flop_total"))
    fake.restore(0)
    after = daemon.wait_until(
        lambda s: (
            s.total("flopwatch_holder_flop_total", gpu="0")
            > before.total("flopwatch_holder_flop_total", gpu="0")
        )
    )

    assert_sums_are_exact(after, "0")


def test_a_restart_charges_no_energy_twice(tmp_path: Path) -> None:
    """What a job used before the restart is not charged to nobody after it.

    As `increase()` counts: what each series grew, from zero where it fell or is new in between. The
    device's own counter goes on; the holders may miss what it counted while no daemon ran.
    """
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "0").write_text("41\n")
    config = CONFIG + f"hpc: {{job_mapping_dir: {jobs}}}\n"
    seen: list[Scrape] = []
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        for _start in range(2):
            with DaemonProcess(tmp_path, config=config, environment=fake.env) as daemon:
                seen.append(
                    daemon.wait_until(lambda scrape: scrape.total(ENERGY, hpc_job="41") > 0)
                )
                used = seen[-1].total(ENERGY, hpc_job="41")
                seen.append(
                    daemon.wait_until(
                        lambda scrape, used=used: scrape.total(ENERGY, hpc_job="41") > used + 2000
                    )
                )
                daemon.wait_for(lambda: time.time() > begun(seen[-1]) + 1)

    def increase(name: str) -> float:
        grown = 0.0
        for before, after in pairwise(seen):
            for labels, value in after.series(name).items():
                was = before.samples.get((name, labels))
                if was is not None:
                    grown += value - was if value >= was else value
        return grown

    charged, counted = increase(ENERGY), increase("flopwatch_energy_joules_total")
    assert 2 * 2000 < charged <= counted * (1 + 1e-9)
    for scrape in seen:
        assert_sums_are_exact(scrape, "0")


def before_start(scrape: Scrape) -> Labels:
    """The labels of the series with the energy from before the daemon's start."""
    (labels,) = (
        found
        for found in scrape.series(ENERGY, holder="none")
        if dict(found)["container"].startswith("before ")
    )
    return labels


def begun(scrape: Scrape) -> float:
    """When the daemon of a scrape started: that series names it, to the second."""
    text = dict(before_start(scrape))["container"].removeprefix("before ")
    return datetime.fromisoformat(text).timestamp()


ENGINE_PAGE = """
process_start_time_seconds 1774942000
vllm:prompt_tokens_total{{model_name="tiny"}} {prompts}
vllm:generation_tokens_total{{model_name="tiny"}} {answers}
vllm:num_preemptions_total{{model_name="tiny"}} {preemptions}
vllm:spec_decode_num_draft_tokens_total{{model_name="tiny"}} {drafts}
vllm:spec_decode_num_accepted_tokens_total{{model_name="tiny"}} {accepted}
vllm:num_requests_running{{model_name="tiny"}} 1
"""


def test_what_an_engine_executed_and_wasted(start) -> None:
    """It has the GPU to itself: all FLOP are its own. 40 of 100 drafts were rejected, nothing was preempted.

    After a preemption vLLM does not say how much was computed again, and the cause is absent.
    """
    model = Path(__file__).parents[1] / "inference/engines/tiny.json"
    wasted, counted = "flopwatch_model_wasted_flop_total", "flopwatch_model_waste_counted"

    def page(**counts: int) -> str:
        return ENGINE_PAGE.format(
            **{"prompts": 0, "answers": 0, "preemptions": 0, "drafts": 0, "accepted": 0, **counts}
        )

    with serving(text(page())) as engine:
        config = CONFIG + (
            f"workloads: [{{name: chat, engine: vllm, url: '{engine.url}', interval: 1s, gpus: [0], "
            f"model: {model}}}]\n"
        )
        fake, daemon = start([H100], config=config)
        fake.gpu(0).set_load(Load.decode())
        before = daemon.wait_until(
            lambda scrape: (
                scrape.has("flopwatch_workload_executed_flop_total", workload="chat")
                and scrape.has(wasted, cause="rejected_drafts")
            ),
            seconds=120,
        )
        assert before.value(wasted, cause="preemption") == 0
        assert before.value(counted, cause="preemption") == 1
        assert before.value(counted, cause="lost_cache_hits") == 0
        assert not before.has(wasted, cause="lost_cache_hits")

        engine.answer = text(page(prompts=1000, answers=200, drafts=100, accepted=60))
        after = daemon.wait_until(
            lambda scrape: scrape.total(wasted, cause="rejected_drafts") > 0, seconds=120
        )
        engine.answer = text(
            page(prompts=1000, answers=200, drafts=100, accepted=60, preemptions=1)
        )
        daemon.wait_until(
            lambda scrape: scrape.total(counted, cause="preemption") == 0, seconds=120
        )
    executed, flop = (
        after.total(name, **labels) - before.total(name, **labels)
        for name, labels in (
            ("flopwatch_workload_executed_flop_total", {}),
            ("flopwatch_flop_total", {"pipe": "tensor"}),
        )
    )
    assert executed > 0
    assert executed == pytest.approx(flop, rel=1e-6)


class TestWhoseAProcessIs:
    POD_A = Holder("pod", "team", "chat-7d4b", "vllm")
    POD_B = Holder("pod", "team", "search-5c2a", "vllm")
    JOB = Holder("job", hpc_job="42")

    @pytest.fixture
    def proc(self, tmp_path: Path) -> Path:
        """A pod's process, a Slurm step, and a daemon of the host."""
        self.write(
            tmp_path,
            100,
            cgroup="0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-1f.scope\n",
            hostname="chat-7d4b\n",
            mountinfo=(
                "714 700 8:1 /var/lib/kubelet/pods/0d9d6f4e-aaaa-bbbb-cccc-1234567890ab/containers/"
                "vllm/3c1f /dev/termination-log rw - ext4 /dev/sda1 rw\n"
            ),
        )
        self.write(tmp_path, 200, cgroup="0::/system.slice/slurmstepd.scope/job_42/step_0/user\n")
        self.write(tmp_path, 300, cgroup="0::/system.slice/dcgm.service\n", hostname="node\n")
        return tmp_path

    @staticmethod
    def write(proc: Path, pid: int, *, start: int = 5, hostname: str = "", **files: str) -> None:
        folder = proc / str(pid)
        (folder / "root/etc").mkdir(parents=True, exist_ok=True)
        (folder / "root/etc/hostname").write_text(hostname)
        (folder / "comm").write_text("python\n")
        (folder / "stat").write_text(f"{pid} (python) S 1 " + "0 " * 17 + f"{start} 0\n")
        for name, content in files.items():
            (folder / name).write_text(content)

    def test_pod_and_container(self, proc: Path) -> None:
        """By the host name that the container has, and the mount that the kubelet gives it."""
        assert process_owner(100, proc) == ProcessOwner("chat-7d4b", "vllm", "", "python")

    def test_job(self, proc: Path) -> None:
        """By the control group of its step."""
        assert process_owner(200, proc) == ProcessOwner("", "", "42", "python")

    def test_a_system_daemon_belongs_to_no_holder(self, proc: Path) -> None:
        """Its host name is the node's, which belongs to no pod."""
        assert process_owner(300, proc) == ProcessOwner("", "", "", "python")

    def test_processes_find_their_holders(self, proc: Path) -> None:
        """Containers with the same name are distinguished by pod; an unknown process is left out."""
        owners = ProcessOwners(proc).find([100, 200, 300, 400])

        assert assign_processes([self.POD_A, self.POD_B, self.JOB], [100, 200, 300], owners) == {
            100: self.POD_A,
            200: self.JOB,
        }

    def test_a_pod_in_the_hosts_network_is_found_by_its_container(self) -> None:
        """Its host name is the node's; when two containers share a name the owner stays unknown."""
        owner = {1: ProcessOwner("node-7", "vllm", "", "python")}
        other = Holder("pod", "team", "search-5c2a", "triton")

        assert assign_processes([self.POD_A, other], [1], owner) == {1: self.POD_A}
        assert assign_processes([self.POD_A, self.POD_B], [1], owner) == {}

    def test_a_reused_pid_is_read_again(self, proc: Path) -> None:
        """The new process began later. One that has ended keeps its owner for its last samples."""
        owners = ProcessOwners(proc)
        assert owners.find([100])[100].container == "vllm"
        self.write(proc, 100, start=9, cgroup="0::/user.slice\n")
        assert owners.find([100])[100].container == ""

        shutil.rmtree(proc / "200")
        assert owners.find([100, 200]) == {100: owners.find([100])[100]}


def test_a_partitioned_gpu_is_shared_by_the_sms_of_its_instances() -> None:
    """60 of 132 SMs are A's, 32 have no holder, two share 16 in halves, 24 are in no instance."""

    def device(uuid: str, sms: int | None, mig: str | None = None) -> DeviceState:
        identity = DeviceIdentity(index="0", uuid=uuid, name="H100", sm_count=sms, mig=mig)
        return DeviceState(identity, 0.0, up=True, max_age_seconds=1.0)

    a, b = Holder("job", hpc_job="a"), Holder("job", hpc_job="b")
    gpu = DeviceState(
        DeviceIdentity(index="0", uuid="GPU", name="H100", sm_count=132),
        0.0,
        up=True,
        max_age_seconds=1.0,
        instances=(device("M1", 60, "1"), device("M2", 32, "2"), device("M3", 16, "3")),
    )

    weights = instance_weights(gpu, {"M1": [a], "M3": [a, b]})

    assert weights == pytest.approx({a: 68 / 132, b: 8 / 132, NOBODY: 56 / 132})
    assert instance_weights(device("GPU", None), {}) is None


def test_a_recreated_instance_starts_from_zero() -> None:
    """Instances come and go, each with counters from zero: earlier charges are not part of them."""

    def state(uuid: str, tensor_seconds: float) -> State:
        identity = DeviceIdentity(index="0", uuid=uuid, name="H100", sm_count=16, mig="1")
        device = DeviceState(
            identity,
            0.0,
            up=True,
            max_age_seconds=1.0,
            fast=FastReading(at_seconds=0.0),
            counters=Counters(state_seconds={"tensor": tensor_seconds}),
        )
        return State(at_seconds=0.0, devices=(device,))

    ledger = HostLedger()
    ledger.charge(state("MIG-1", 100.0))
    ledger.charge(state("MIG-2", 5.0))
    again = ledger.charge(state("MIG-1", 30.0))

    assert again.devices["MIG-1"].accounts[NOBODY].state_seconds == {"tensor": 30.0}


def test_no_counter_falls_when_an_instance_comes_back_with_its_old_uuid() -> None:
    """Jobs a and b end, nobody has the GPU for a while, M1 is made again with counters from zero.

    Then a and c come. What they did cannot be told apart in the first tick: its 4 TFLOP are shared by
    their SMs, half each. In the second one they did 1 and 3 TFLOP.
    """
    hosts = HostLedger()

    def charged(
        at: float, whole: float, m1: float | None, m2: float, *jobs: str
    ) -> dict[Holder, float]:
        def device(uuid: str, sms: int, flop: float, **more: object) -> DeviceState:
            index: dict[str, object] = {"mig": uuid} if uuid.startswith("MIG") else {}
            return DeviceState(
                DeviceIdentity(index="0", uuid=uuid, name="H100", sm_count=sms, **index),  # type: ignore[arg-type]
                at,
                up=True,
                max_age_seconds=1.0,
                fast=FastReading(at_seconds=at),
                counters=Counters(
                    flop={(PipeWork("tensor", "bf16"), "gpm"): flop},
                    state_seconds={"tensor": at},
                ),
                **more,  # type: ignore[arg-type]
            )

        instances = tuple(
            device(uuid, 16, flop)
            for uuid, flop in (("MIG-1", m1), ("MIG-2", m2))
            if flop is not None
        )
        uses = tuple(
            JobUse(DeviceKey(uuid=f"MIG-{number}"), job) for number, job in enumerate(jobs, 1)
        )
        state = State(
            at_seconds=at,
            devices=(device("GPU", 32, whole, instances=instances), *instances),
            holders=HoldersSnapshot(jobs=uses),
        )
        accounts = hosts.charge(state).devices["GPU"].accounts
        return {holder: account.flop or 0.0 for holder, account in accounts.items()}

    a, c = Holder("job", hpc_job="a"), Holder("job", hpc_job="c")
    charged(1.0, 0.0, 0.0, 0.0, "a", "b")
    charged(2.0, 8e12, 2e12, 6e12, "a", "b")
    charged(3.0, 8e12, 2e12, 6e12)
    earlier = charged(4.0, 8e12, None, 6e12)
    first = charged(5.0, 12e12, 1e12, 9e12, "a", "c")
    second = charged(6.0, 16e12, 2e12, 12e12, "a", "c")

    assert earlier[a] == pytest.approx(2e12)
    assert (first[a], first[c]) == pytest.approx((4e12, 2e12))
    assert (second[a], second[c]) == pytest.approx((5e12, 5e12))


def test_a_device_that_has_not_ticked_is_charged_for_nothing_new() -> None:
    """All States of one tick share the same account; the next tick has another one."""

    def ticked(at_seconds: float) -> DeviceState:
        return DeviceState(
            identity=DeviceIdentity(index="0", uuid="GPU-a", name="GPU"),
            at_seconds=at_seconds,
            up=True,
            max_age_seconds=4.0,
            fast=FastReading(at_seconds=at_seconds),
            counters=Counters(energy_joules=at_seconds),
        )

    ledger, first, second = HostLedger(), ticked(5.0), ticked(6.0)
    bills = [ledger.charge(State(6.0, (device,))) for device in (first, first, second)]

    accounts = [bill.devices["GPU-a"].accounts[NOBODY] for bill in bills]
    assert accounts[0] is accounts[1]
    assert [account.energy_joules for account in accounts] == [5.0, 5.0, 6.0]
