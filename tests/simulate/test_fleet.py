"""The simulated fleet: marked as simulated, deterministic, and exported as the daemon exports."""

import json
import shutil
import subprocess

import msgspec
import pytest

from exporter.errors import FlopwatchError
from exporter.metrics.family import Sample
from exporter.simulate.host import (
    FleetPlan,
    Pull,
    SimulatedHost,
    Timing,
    build_fleet,
    find_scenarios,
    fleet_router,
    history,
)
from exporter.simulate.scenarios import SCENARIOS
from exporter.status.document import Status
from exporter.web.http import Request


BEGAN = 1_750_000_000.0
MINUTE = 60.0


class Clock:
    """A clock that does not move until it is set."""

    def __init__(self, now: float = BEGAN) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def fleet(
    scenario: str, *, hosts: int = 1, gpus: int = 8, seed: int = 1, clock: Clock | None = None
) -> list[SimulatedHost]:
    plan = FleetPlan(find_scenarios([scenario]), hosts=hosts, gpus=gpus, seed=seed)
    return build_fleet(plan, Timing(BEGAN), clock or Clock())


def value(host: SimulatedHost, name: str, **labels: str) -> float:
    """The value of the one sample with this name and at least these labels."""
    found = samples(host, name, **labels)
    assert len(found) == 1, found
    return found[0].value


def samples(host: SimulatedHost, name: str, **labels: str) -> list[Sample]:
    wanted = set(labels.items())
    return [p for p in host.samples() if p.family.name == name and wanted <= set(p.labels)]


def get(router: object, path: str, **headers: str) -> bytes:
    request = Request(method="GET", path=path, query="", headers=headers, client="127.0.0.1")
    response = router(request)  # type: ignore[operator]
    assert response.status == 200
    return bytes(response.body)


def test_devices_say_that_they_are_simulated() -> None:
    """Every device has `simulated` in its name and its UUID: it cannot be mistaken for hardware."""
    (host,) = fleet("steady-decode", gpus=2)
    host.advance(BEGAN + 5)

    for info in samples(host, "flopwatch_gpu_info"):
        labels = dict(info.labels)
        assert "(simulated)" in labels["name"]
        assert "SIMULATED" in labels["uuid"]


def test_same_seed_same_fleet() -> None:
    """Two fleets of one seed export the same, sample for sample; another seed does not."""

    def exported(seed: int) -> list[Sample]:
        (host,) = fleet("mixed-fleet", gpus=2, seed=seed)
        host.advance(BEGAN + 90)
        return list(host.samples())

    assert exported(seed=7) == exported(seed=7)
    assert exported(seed=7) != exported(seed=8)


def test_more_frequent_readings_change_nothing() -> None:
    """A host has its own ticks: scraped every 5 s or once a minute, it counts the same."""
    (often,), (seldom,) = fleet("straggler", gpus=2), fleet("straggler", gpus=2)
    for second in range(5, 65, 5):
        often.advance(BEGAN + second)
    seldom.advance(BEGAN + 60)

    assert list(often.samples()) == list(seldom.samples())


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "driver-not-loaded"])
def test_states_sum_to_the_time_watched(name: str) -> None:
    """The states of a healthy GPU's time sum to the ten minutes that passed.

    Without activity windows, watching begins with the first tick, at the end of its two seconds.
    """
    (host,) = fleet(name, gpus=8)
    host.advance(BEGAN + 10 * MINUTE)

    seconds = sum(p.value for p in samples(host, "flopwatch_gpu_seconds_total", gpu="7"))
    assert seconds == pytest.approx(598.0 if name == "no-activity-counters" else 600.0)


def test_decode_is_memory_bound_and_prefill_is_not() -> None:
    """Memory takes the largest share of decode, the tensor pipe that of prefill."""

    def largest(scenario: str) -> str:
        (host,) = fleet(scenario, gpus=1)
        host.advance(BEGAN + 4 * MINUTE)
        states = samples(host, "flopwatch_gpu_seconds_total")
        return dict(max(states, key=lambda p: p.value).labels)["state"]

    assert largest("steady-decode") == "memory"
    assert largest("prefill-heavy") == "tensor"


def test_idle_fleet_loses_nothing_to_clocks() -> None:
    """An idle GPU idles its clock too: all of its time is `idle`."""
    (host,) = fleet("idle-fleet", gpus=1)
    host.advance(BEGAN + 2 * MINUTE)

    assert value(host, "flopwatch_gpu_seconds_total", state="idle") == pytest.approx(120.0)


def test_straggler_probes_slower_by_its_fault() -> None:
    """From minute 5 on GPU 3 reaches 88 % of its baseline, give or take the noise; GPU 2 all of it."""
    (host,) = fleet("straggler")
    host.advance(BEGAN + 10 * MINUTE)

    def ratio(gpu: str) -> float:
        return value(host, "flopwatch_probe_baseline_ratio", gpu=gpu, kernel="gemm_bf16")

    assert ratio("3") == pytest.approx(0.88, abs=0.02)
    assert ratio("2") == pytest.approx(1.0, abs=0.02)


def test_lost_gpu_keeps_only_its_health() -> None:
    """A lost GPU is down, its XID is exported, and no reading remains; its neighbour continues."""
    (host,) = fleet("lost-gpu")
    host.advance(BEGAN + 6 * MINUTE)

    assert value(host, "flopwatch_gpu_up", gpu="6") == 0
    assert value(host, "flopwatch_xid_errors_total", gpu="6", xid="79") == 1
    assert samples(host, "flopwatch_power_watts", gpu="6") == []
    assert value(host, "flopwatch_gpu_up", gpu="5") == 1
    assert value(host, "flopwatch_power_watts", gpu="5") > 0


def test_xid_burst_counts_every_half_minute() -> None:
    """First at minute 5, then every 30 s: eleven by minute 10."""
    (host,) = fleet("xid-burst")
    host.advance(BEGAN + 10 * MINUTE + 1)

    assert value(host, "flopwatch_xid_errors_total", gpu="2", xid="31") == 11


def test_only_wrong_results_are_reported() -> None:
    """Silent corruption shows in the probes' comparison alone: no XID, no lower speed."""
    (host,) = fleet("silent-corruption")
    host.advance(BEGAN + 8 * MINUTE)

    assert value(host, "flopwatch_probe_mismatches_total", gpu="4", kernel="gemm_int8") >= 1
    assert samples(host, "flopwatch_xid_errors_total") == []


def test_heat_and_power_take_the_clock() -> None:
    """The same load loses its clock to heat in one scenario and to power in the other."""

    def lost(scenario: str, gpu: str, state: str) -> float:
        (host,) = fleet(scenario)
        host.advance(BEGAN + 15 * MINUTE)
        return value(host, "flopwatch_gpu_seconds_total", gpu=gpu, state=state)

    assert lost("thermal-throttling", "5", "clock_thermal") > 60
    assert lost("thermal-throttling", "4", "clock_thermal") == 0
    assert lost("power-cap", "0", "clock_power") > 120


def test_discovery_lists_every_host_with_its_cluster() -> None:
    """/sd is Prometheus's HTTP service discovery: targets at the asked address, one path a host."""
    router = fleet_router(fleet("straggler", hosts=2))
    groups = json.loads(get(router, "/sd", host="fleet:9908"))

    assert groups == [
        {
            "targets": ["fleet:9908"],
            "labels": {
                "__metrics_path__": f"/hosts/straggler-00{position}/metrics",
                "instance": f"straggler-00{position}",
                "cluster": "sim-straggler",
            },
        }
        for position in (0, 1)
    ]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_exposition_is_valid() -> None:
    """promtool finds no parse error in a host's page."""
    clock = Clock()
    router = fleet_router(fleet("mixed-fleet", clock=clock))
    clock.now = BEGAN + 30
    page = get(router, "/hosts/mixed-fleet-000/metrics")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
    )

    # 3 is a remark on style; 1 would be a page that Prometheus cannot read.
    assert done.returncode in {0, 3}, done.stderr
    assert b"flopwatch_gpu_seconds_total" in page


def test_unknown_scenario_is_named_with_the_known_ones() -> None:
    """A mistyped scenario is a message with all names, not a traceback."""
    with pytest.raises(FlopwatchError, match="no scenario 'stragler'; known: steady-decode, "):
        find_scenarios(["stragler"])


def test_history_is_openmetrics_with_timestamps() -> None:
    """The past has one sample per series and step, Prometheus's target labels, and an end marker."""
    hosts = fleet("steady-decode", gpus=1)
    lines = list(history(hosts, begins=BEGAN, ends=BEGAN + 60, step_seconds=30))
    ups = [line for line in lines if line.startswith("flopwatch_gpu_up{")]

    assert lines[-1] == "# EOF\n"
    assert [line.split()[-1] for line in ups] == ["1750000030.000", "1750000060.000"]
    assert 'cluster="sim-steady-decode",instance="steady-decode-000",job="flopwatch"' in ups[0]


def document(host: SimulatedHost) -> Status:
    """The host's status document, as `flopwatch top --url` reads it."""
    router = fleet_router([host])
    answer = router(Request("GET", f"/hosts/{host.name}/api/v1/status", "", {}, "127.0.0.1"))
    assert answer.status == 200
    return msgspec.json.decode(answer.body, type=Status)


def kinds(host: SimulatedHost, gpu: str) -> set[str]:
    """Kinds of the findings on a GPU that are more than an explanation, by the exported series."""
    return {
        dict(p.labels)["kind"]
        for p in samples(host, "flopwatch_finding", gpu=gpu)
        if dict(p.labels)["severity"] != "info"
    }


@pytest.mark.parametrize(
    ("scenario", "gpu", "kind"),
    [
        ("straggler", "3", "slower_than_baseline"),
        ("thermal-throttling", "5", "clock_held_by_heat"),
        ("lost-gpu", "6", "lost"),
        ("nvlink-down", "1", "nvlink_down"),
        ("silent-corruption", "4", "wrong_results"),
        ("power-limit-lowered", "2", "power_limit_lowered"),
        ("hot-memory", "4", "memory_hot"),
        ("dead-engine", "0", "memory_held"),
    ],
)
def test_page_and_series_name_the_fault(scenario: str, gpu: str, kind: str) -> None:
    """An hour into it the sick GPU has the finding, on the page and as a series, and GPU 7 none of its own."""
    (host,) = fleet(scenario, clock=Clock(BEGAN + 60 * MINUTE))
    host.advance(BEGAN + 60 * MINUTE)

    assert kind in kinds(host, gpu)
    device = next(device for device in document(host).devices if device.gpu == gpu)
    assert kind in {finding.kind for finding in device.findings}
    if scenario != "dead-engine":
        assert kinds(host, "7") == set()


def test_a_host_without_its_driver_says_so() -> None:
    """Eight GPUs on the bus, none listed: the host is critical, and says why."""
    (host,) = fleet("driver-not-loaded", clock=Clock(BEGAN + MINUTE))
    status = document(host)

    assert status.host.health == "critical"
    assert status.host.summary.startswith("The PCI bus shows 8\u00a0GPUs, the driver lists none.")
    assert value(host, "flopwatch_expected_gpus") == 8


def test_pulling_a_lever_changes_the_throughput_and_is_recorded() -> None:
    """Twice the batch at minute 20, ten times as fast: more tokens a second, and one comparison."""
    plan = FleetPlan(
        find_scenarios(["serving-queue"]), hosts=1, gpus=2, pulls=(Pull("larger_batch", 1200.0),)
    )
    clock = Clock()
    (host,) = build_fleet(plan, Timing(BEGAN, pace=10.0), clock)

    def tokens() -> float:
        return value(host, "flopwatch_model_tokens_total", phase="decode")

    def at(second: float) -> float:
        clock.now = BEGAN + second
        host.advance(clock.now)
        return tokens()

    before = -at(60.0) + at(100.0)
    advice = json.loads(get(fleet_router([host]), f"/hosts/{host.name}/api/v1/advice"))
    assert "larger_batch" in {lever["lever"] for lever in advice["workloads"][0]["levers"]}
    for second in range(101, 260):
        at(float(second))
    after = -at(260.0) + at(300.0)
    assert after > 1.2 * before
    counted = samples(host, "flopwatch_lever_backtests_total", lever="larger_batch")
    assert sum(sample.value for sample in counted) == 1


def test_a_lever_needs_a_scenario_with_an_engine() -> None:
    plan = FleetPlan(find_scenarios(["steady-decode"]), pulls=(Pull("larger_batch", 60.0),))

    with pytest.raises(FlopwatchError, match="use serving-queue or serving-capped"):
        build_fleet(plan, Timing(BEGAN), Clock())
