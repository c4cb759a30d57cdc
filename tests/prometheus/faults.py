"""One fault for each alert, each on a host of its own: before, while it lasts, and repaired.

All of them go into one promtool run, so that a week with every rule is evaluated once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field


CLUSTER = 'cluster="c", job="flopwatch"'
PEERS = 4
BF16, DEVICE = 'precision="bf16"', 'path="device"'


@dataclass(frozen=True, slots=True)
class Phases:
    """Minutes before the fault, of the fault, and after its repair; `gap` is the minute of a failed scrape."""

    before: int
    fault: int
    after: int
    gap: int
    interval_seconds: int = 60

    @property
    def ends(self) -> tuple[int, int, int]:
        """The minutes at which the phases end."""
        return (self.before, self.before + self.fault, self.before + self.fault + self.after)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A value in each phase; None: the series is absent."""

    metric: str
    labels: str
    values: tuple[float | None, float | None, float | None]

    def at(self, second: float, _phases: Phases, phase: int) -> float | None:
        return self.values[phase]


@dataclass(frozen=True, slots=True)
class Counter:
    """Growth a minute in each phase."""

    metric: str
    labels: str
    per_minute: tuple[float, float, float]
    start: float = 0.0

    def at(self, second: float, phases: Phases, _phase: int) -> float | None:
        value, began = self.start, 0.0
        for end, rate in zip(phases.ends, self.per_minute, strict=True):
            value += rate * (min(second, 60.0 * end) - began) / 60 if second > began else 0.0
            began = 60.0 * end
        return value


@dataclass(frozen=True, slots=True)
class Once:
    """A value that changes when the fault begins and then stays, even after the repair."""

    metric: str
    labels: str
    before: float | None
    after: float

    def at(self, _second: float, _phases: Phases, phase: int) -> float | None:
        return self.before if phase == 0 else self.after


@dataclass(frozen=True, slots=True)
class Moment:
    """The Unix time at which a phase began (Prometheus's time zero is 1970); absent before."""

    metric: str
    labels: str
    phase: int

    def at(self, _second: float, phases: Phases, phase: int) -> float | None:
        return None if phase < self.phase else 60.0 * phases.ends[self.phase - 1]


@dataclass(frozen=True, slots=True)
class Ticking:
    """The host's clock or the time of the last success, behind by seconds in each phase; -1 stops it."""

    metric: str
    labels: str
    behind: tuple[float, float, float]

    def at(self, second: float, phases: Phases, phase: int) -> float | None:
        if self.behind[phase] < 0:
            return 60.0 * phases.ends[phase - 1]
        return second - self.behind[phase]


Series = Gauge | Counter | Once | Moment | Ticking


def notation(series: Series, phases: Phases, *, goes_down: bool) -> str:
    """The series in promtool's notation, with a stale marker in the minute of the failed scrape."""
    step = phases.interval_seconds
    words: list[str] = []
    last: str | None = None
    times = 0
    for index in range(60 * phases.ends[2] // step + 1):
        second = index * step
        phase = next((i for i, end in enumerate(phases.ends) if second < 60 * end), 2)
        value = series.at(second, phases, phase)
        failed = goes_down and 60 * phases.gap <= second < 60 * (phases.gap + 1)
        word = "stale" if failed else "_" if value is None else f"{value:.12g}"
        if series.metric == "up" and failed:
            word = "0"
        if word == last and word != "stale":
            times += 1
            continue
        words += _repeated(last, times)
        last, times = word, 0
    return " ".join([*words, *_repeated(last, times)])


def _repeated(word: str | None, times: int) -> list[str]:
    if word is None:
        return []
    if word == "_":  # of these x counts all, of values those that follow the first
        return [f"_x{times + 1}"]
    return [f"{word}x{times}" if times else word]


@dataclass(frozen=True, slots=True)
class Fault:
    """One host's series, and the labels of the alert that it must raise in addition to the host's."""

    alert: str
    series: tuple[Series, ...]
    labels: dict[str, str] = field(default_factory=lambda: {"gpu": "0", "uuid": "GPU-0"})
    host: str = ""
    needs_a_day: bool = False
    also: tuple[str, dict[str, str]] | None = None

    @property
    def instance(self) -> str:
        """The host's name."""
        return self.host or self.alert.lower()


G0 = 'gpu="0", uuid="GPU-0"'
UP = (1.0, 1.0, 1.0)
HEALTHY = (
    Gauge("up", "", UP),
    Gauge("flopwatch_gpu_up", G0, UP),
    Gauge("flopwatch_boot_time_seconds", "", (1.0, 1.0, 1.0)),
    Ticking("flopwatch_time_seconds", "", (0, 0, 0)),
)


def gauge(metric: str, *values: float | None, labels: str = G0) -> Gauge:
    return Gauge(metric, labels, (values[0], values[1], values[2]))


def counter(metric: str, *rates: float, labels: str = G0, start: float = 0.0) -> Counter:
    return Counter(metric, labels, (rates[0], rates[1], rates[2]), start)


def seconds(state: str, *shares: float) -> Counter:
    return counter(
        "flopwatch_gpu_seconds_total",
        *(60 * share for share in shares),
        labels=f'{G0}, state="{state}"',
    )


REBOOT = Moment("flopwatch_boot_time_seconds", "", 2)
RESET = Moment("flopwatch_gpu_reset_timestamp_seconds", G0, 2)


def peers(metric: str, sick: float, labels: str) -> tuple[Series, ...]:
    made: list[Series] = []
    for index in range(PEERS + 1):
        who = f'gpu="{index}", uuid="GPU-{index}"'
        made.append(Gauge("flopwatch_gpu_info", f'{who}, name="{sick}{labels[:5]}"', UP))
        # Every kernel that a GPU has; only the one with the given labels is slow.
        made += [
            Gauge("flopwatch_probe_efficiency_ratio", f'{who}, precision="{name}"', (0.7, 0.7, 0.7))
            for name in ("fp8", "int8")
        ]
        if labels != DEVICE:
            copies = "flopwatch_probe_bandwidth_bytes_per_second"
            made.append(Gauge(copies, f"{who}, {DEVICE}", (3e12, 3e12, 3e12)))
        value = (0.8, sick, 0.8) if index == 0 else (0.8, 0.8, 0.8)
        made.append(Gauge(metric, f"{who}, {labels}", value))
        if index:
            made.append(Gauge("flopwatch_gpu_up", who, UP))
    return tuple(made)


def named(sick: float, labels: str, **more: str) -> dict[str, str]:
    return {"gpu": "0", "uuid": "GPU-0", "name": f"{sick}{labels[:5]}", **more}


CHAT = 'workload="chat", model="m"'
NOTHING: dict[str, str] = {}


def engine(
    *, running: float, waiting: float, tokens: tuple[float, float, float]
) -> tuple[Series, ...]:
    return (
        gauge("flopwatch_workload_gpu_info", 1, 1, 1, labels=f'{G0}, workload="chat"'),
        gauge("flopwatch_workload_up", 1, 1, 1, labels='workload="chat"'),
        gauge("flopwatch_model_info", 1, 1, 1, labels=CHAT),
        gauge(
            "flopwatch_model_requests", running, running, running, labels=f'{CHAT}, state="running"'
        ),
        gauge(
            "flopwatch_model_requests", waiting, waiting, waiting, labels=f'{CHAT}, state="waiting"'
        ),
        counter("flopwatch_model_tokens_total", *tokens, labels=f'{CHAT}, phase="decode"'),
    )


def flops(*shares: float) -> tuple[Series, ...]:
    """A GPU with a peak of 1000 FLOP/s, its SMs busy, that moves bytes in proportion."""
    return (
        gauge("flopwatch_headline_peak_flops", 1000, 1000, 1000),
        counter(
            "flopwatch_flop_total",
            *(60_000 * share for share in shares),
            labels=f'{G0}, pipe="tensor"',
        ),
        gauge("flopwatch_sm_active_ratio", 0.9, 0.9, 0.9),
        counter("flopwatch_dram_bytes_total", *(150_000 * share for share in shares)),
    )


FAULTS = (
    Fault("GPULost", (gauge("flopwatch_gpu_up", 1, 0, 1),)),
    Fault(
        "GPUMissing",
        (Gauge("flopwatch_gpu_up", 'gpu="1", uuid="GPU-1"', (1, None, 1)),),
        NOTHING,
    ),
    Fault(
        "GPUDriverNotLoaded",
        (gauge("flopwatch_gpu_up", 1, None, 1), Gauge("flopwatch_expected_gpus", "", (1, 1, 1))),
        NOTHING,
    ),
    Fault(
        "GPUXidCritical",
        (Moment("flopwatch_xid_last_timestamp_seconds", f'{G0}, xid="79"', 1), REBOOT),
        {"gpu": "0", "uuid": "GPU-0", "xid": "79"},
    ),
    Fault(
        "GPUXidWarning",
        (Moment("flopwatch_xid_last_timestamp_seconds", f'{G0}, xid="94"', 1), RESET),
        {"gpu": "0", "uuid": "GPU-0", "xid": "94"},
    ),
    Fault(
        "GPUXidBurst", (counter("flopwatch_xid_errors_total", 0, 1, 0, labels=f'{G0}, xid="31"'),)
    ),
    Fault(
        "GPUUncorrectableMemoryErrors",
        (Once("flopwatch_ecc_errors_total", f'{G0}, kind="uncorrected"', 3, 4), RESET),
    ),
    Fault(
        "GPUCorrectableMemoryErrors",
        (counter("flopwatch_ecc_errors_total", 0, 100, 0, labels=f'{G0}, kind="corrected"'),),
    ),
    Fault("GPURowRemapPending", (gauge("flopwatch_row_remap_pending", 0, 1, 0),)),
    Fault("GPURowRemapFailed", (gauge("flopwatch_row_remap_failed", 0, 1, 0),)),
    Fault(
        "GPURecoveryActionNeeded",
        (gauge("flopwatch_recovery_action", 1, 0, 1, labels=f'{G0}, action="none"'),),
    ),
    Fault(
        "GPUMemoryHeld",
        (
            gauge("flopwatch_memory_size_bytes", 80e9, 80e9, 80e9),
            gauge("flopwatch_memory_used_bytes", 75e9, 75e9, 0.5e9),
            seconds("idle", 0.1, 1, 1),
            seconds("tensor", 0.9, 0, 0),
            gauge("flopwatch_workload_gpu_info", 1, None, 1, labels=f'{G0}, workload="chat"'),
            gauge("flopwatch_workload_up", 1, 0, 1, labels='workload="chat"'),
        ),
        also=("WorkloadDown", {"workload": "chat"}),
    ),
    Fault("NVLinkDown", (gauge("flopwatch_nvlinks_up", 18, 16, 18),)),
    Fault(
        "NVLinkDown",
        (
            gauge("flopwatch_nvlinks_up", 18, 14, 18),
            Gauge("flopwatch_nvlinks_up", 'gpu="1", uuid="GPU-1"', (18, 14, 18)),
            Gauge("flopwatch_gpu_up", 'gpu="1", uuid="GPU-1"', UP),
        ),
        host="lostplane",
        also=("NVLinkDown", {"gpu": "1", "uuid": "GPU-1"}),
    ),
    Fault(
        "NVLinkErrors",
        (counter("flopwatch_nvlink_errors_total", 0, 10, 0, labels=f'{G0}, kind="replay"'),),
    ),
    Fault(
        "PCIeLinkDegraded",
        (
            gauge("flopwatch_pcie_link_width", 16, 8, 16),
            gauge("flopwatch_pcie_link_width_max", 16, 16, 16),
        ),
    ),
    Fault("PCIeReplays", (counter("flopwatch_pcie_replays_total", 0, 10, 0),)),
    Fault(
        "GPUUtilizationDropped",
        flops(0.4, 0.1, 0.4),
        needs_a_day=True,
    ),
    Fault(
        "GPUSlowerThanPeers",
        peers("flopwatch_probe_efficiency_ratio", 0.7, BF16),
        named(0.7, BF16, unit="compute"),
        host="slowcompute",
    ),
    Fault(
        "GPUSlowerThanPeers",
        peers("flopwatch_probe_bandwidth_bytes_per_second", 0.7, DEVICE),
        named(0.7, DEVICE, unit="memory"),
        host="slowmemory",
    ),
    Fault(
        "GPUFarSlowerThanPeers",
        peers("flopwatch_probe_efficiency_ratio", 0.4, BF16),
        named(0.4, BF16),
    ),
    Fault(
        "GPUSlowerThanOwnBaseline", (gauge("flopwatch_probe_lowest_baseline_ratio", 1, 0.85, 1),)
    ),
    Fault(
        "GPUFarSlowerThanOwnBaseline", (gauge("flopwatch_probe_lowest_baseline_ratio", 1, 0.6, 1),)
    ),
    Fault(
        "GPUSilentDataCorruption",
        (Once("flopwatch_probe_wrong_results_total", G0, 0, 1), RESET),
    ),
    Fault("GPUClocksHeldDownByHeat", (seconds("clock_thermal", 0, 0.2, 0),)),
    Fault("GPUClocksHeldDownByPower", (seconds("clock_power", 0.18, 0.4, 0.18),)),
    Fault(
        "GPUPowerBrake",
        (
            counter(
                "flopwatch_clock_event_seconds_total",
                0,
                30,
                0,
                labels=f'{G0}, reason="hw_power_brake_slowdown"',
            ),
        ),
    ),
    Fault("GPUPowerLimitLowered", (gauge("flopwatch_power_limit_watts", 700, 450, 700),)),
    Fault(
        "GPUMemoryHot",
        (gauge("flopwatch_temperature_celsius", 80, 98, 80, labels=f'{G0}, sensor="memory"'),),
    ),
    Fault(
        "GPUHotWhileIdle",
        (
            gauge("flopwatch_temperature_celsius", 40, 82, 40, labels=f'{G0}, sensor="gpu"'),
            seconds("idle", 0.98, 0.98, 0.98),
        ),
    ),
    Fault(
        "WorkloadStuck",
        engine(running=60, waiting=0, tokens=(60_000, 0, 60_000)),
        {"workload": "chat"},
    ),
    Fault(
        "WorkloadDown",
        (gauge("flopwatch_workload_up", 1, 0, 1, labels='workload="chat"'),),
        {"workload": "chat"},
    ),
    Fault(
        "ModelThroughputFell",
        engine(running=60, waiting=8, tokens=(60_000, 30_000, 60_000)),
        {"workload": "chat", "model": "m"},
        needs_a_day=True,
    ),
    Fault(
        "PrefixCacheCollapsed",
        (
            counter("flopwatch_model_cached_tokens_total", 6000, 100, 6000, labels=CHAT),
            counter(
                "flopwatch_model_tokens_total", 4000, 9900, 4000, labels=f'{CHAT}, phase="prefill"'
            ),
        ),
        {"workload": "chat", "model": "m"},
        needs_a_day=True,
    ),
    Fault(
        "ProbesFailing",
        (
            counter(
                "flopwatch_probe_failures_in_a_row", 0, 1, -1, labels=f'{G0}, kernel="gemm_fp8"'
            ),
            counter(
                "flopwatch_probe_runs_total",
                0,
                1,
                0,
                labels=f'{G0}, kernel="gemm_fp8", outcome="error"',
            ),
        ),
    ),
    Fault(
        "FlopwatchDown",
        (Gauge("up", "", (1, 0, 1)), gauge("flopwatch_gpu_up", 1, None, 1)),
        NOTHING,
    ),
    Fault("FlopwatchSourceHung", (gauge("flopwatch_source_hung", 0, 1, 0),)),
    Fault(
        "FlopwatchSourceStale",
        (
            Ticking(
                "flopwatch_source_last_success_timestamp_seconds", f'{G0}, source="gpm"', (0, -1, 0)
            ),
        ),
        {"gpu": "0", "uuid": "GPU-0", "source": "gpm"},
    ),
    Fault(
        "HostClockSkew",
        (
            Ticking("flopwatch_time_seconds", "", (0, 900, 0)),
            Ticking(
                "flopwatch_source_last_success_timestamp_seconds",
                f'{G0}, source="gpm"',
                (0, 900, 0),
            ),
        ),
        NOTHING,
    ),
    Fault(
        "FlopwatchTicksMissed",
        (counter("flopwatch_ticks_missed_total", 0, 20, 0),),
        NOTHING,
    ),
    Fault(
        "FlopwatchSeriesDropped",
        (counter("flopwatch_series_dropped_total", 0, 50, 0, labels=""),),
        NOTHING,
    ),
    Fault(
        "FlopwatchConfigReloadFailed",
        (gauge("flopwatch_config_last_reload_successful", 1, 0, 1, labels=""),),
        NOTHING,
    ),
    Fault(
        "FlopwatchConfigurationProblem",
        (gauge("flopwatch_configuration_problem", None, 1, None, labels='problem="no GPU 9"'),),
        {"problem": "no GPU 9"},
    ),
    Fault(
        "FlopwatchEstimatorOff",
        (
            gauge(
                "flopwatch_estimator_error_ratio",
                -0.02,
                -0.15,
                -0.02,
                labels=f'{G0}, precision="fp8"',
            ),
        ),
        {"gpu": "0", "uuid": "GPU-0", "precision": "fp8"},
    ),
    Fault(
        "ProbeWorkerRestarting",
        (counter("flopwatch_probe_worker_restarts_total", 0, 0.2, 0, labels=""),),
        NOTHING,
    ),
)


def host_series(
    fault: Fault, phases: Phases, extra: str, *, goes_down: bool
) -> Iterator[tuple[str, str]]:
    """Selector and values of all series of the fault's host; its own series replace healthy ones."""
    own = {(series.metric, series.labels) for series in fault.series}
    for series in (*fault.series, *(one for one in HEALTHY if (one.metric, one.labels) not in own)):
        labels = ", ".join(
            part for part in (CLUSTER, f'instance="{fault.instance}"', series.labels, extra) if part
        )
        yield f"{series.metric}{{{labels}}}", notation(series, phases, goes_down=goes_down)
