"""Who holds the GPU: info series to join and, by option, labels on chosen families."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from exporter.attribution.settings import PriceRule
from exporter.attribution.snapshot import Account, DeviceKey, Holder, HoldersSnapshot, WorkloadUse
from exporter.collect.settings import matches
from exporter.device_state import UNKNOWN
from exporter.metrics.family import (
    Family,
    Label,
    Labels,
    Sample,
    Subject,
    by_label,
    device_labels,
    optional,
)
from exporter.metrics.rows import ByKey, ByLabel, Part, Rows, Samples, Value
from exporter.state import State


SUBJECT = Subject("Who holds the GPU", per_device=False)

GPU_ALLOCATION_INFO = SUBJECT.gauge(
    "flopwatch_gpu_allocation_info",
    labels=("namespace", "pod", "container"),
    per_device=True,
    help="Kubernetes container that holds the GPU, always 1 (kubelet pod-resources API).",
    interpretation="Join it to add the pod to a query.",
)
GPU_JOB_INFO = SUBJECT.gauge(
    "flopwatch_gpu_job_info",
    labels=("hpc_job", "job"),
    per_device=True,
    help=(
        "Batch job that holds the GPU, always 1 (job mapping directory, or the control groups of "
        "its processes). `job` repeats `hpc_job` for one release; Prometheus renames `job`."
    ),
    interpretation="Join it to add the job to a query.",
)
HOLDER_SOURCE_UP = SUBJECT.gauge(
    "flopwatch_holder_source_up",
    labels=("source",),
    help=(
        "Whether the last reading of the source (pod_resources, job_mapping, job_processes) "
        "succeeded, 1 or 0. Absent without such a source."
    ),
    interpretation="0: the last holders are shown for up to 30 s, then the holders are unknown.",
)
HOLDER_SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS = SUBJECT.gauge(
    "flopwatch_holder_source_last_success_timestamp_seconds",
    labels=("source",),
    help="Unix time of the source's last successful reading.",
    interpretation="Holders are shown for three intervals (30 s) without a newer reading.",
)
HOLDER_SOURCE_ERRORS_TOTAL = SUBJECT.counter(
    "flopwatch_holder_source_errors_total",
    unit="errors",
    labels=("source", "reason"),
    help="Failed readings by source and reason.",
    interpretation=(
        "permission: the daemon may not open the kubelet's socket (it needs uid 0) or a job's files."
    ),
)
HOLDER_UNKNOWN_DEVICES = SUBJECT.gauge(
    "flopwatch_holder_unknown_devices",
    unit="devices",
    help="Devices held by pods or jobs that this exporter does not see.",
    interpretation="Above 0: a GPU is lost, or hidden from the exporter's container.",
)


_HOLDER_LABELS = ("holder", "namespace", "pod", "container", "hpc_job", "workload")
HOLDER_FLOP_TOTAL = SUBJECT.counter(
    "flopwatch_holder_flop_total",
    unit="FLOP",
    labels=_HOLDER_LABELS,
    per_device=True,
    help=(
        "Executed FLOP of the tensor pipe, divided among the holders of the device (pod, job, "
        "workload, process, none). The shares of current and recent holders sum to "
        'flopwatch_flop_total{pipe="tensor"}.'
    ),
    interpretation="How much of the device each tenant used.",
)
HOLDER_DRAM_BYTES_TOTAL = SUBJECT.counter(
    "flopwatch_holder_dram_bytes_total",
    unit="bytes",
    labels=_HOLDER_LABELS,
    per_device=True,
    help="Bytes of flopwatch_dram_bytes_total, divided among the holders of the device.",
    interpretation="Which tenant takes the memory bandwidth.",
)
HOLDER_ENERGY_JOULES_TOTAL = SUBJECT.counter(
    "flopwatch_holder_energy_joules_total",
    unit="joules",
    labels=_HOLDER_LABELS,
    per_device=True,
    help=(
        "Energy of flopwatch_energy_joules_total, divided among the holders of the device: the "
        "idle part equally (between MIG instances by their SMs), the rest by their work. Energy used before the exporter started is in a "
        'separate constant series (holder="none", container="before <start>").'
    ),
    interpretation="Energy by tenant, and energy of capacity that nobody holds.",
)
HOLDER_GPU_SECONDS_TOTAL = SUBJECT.counter(
    "flopwatch_holder_gpu_seconds_total",
    unit="seconds",
    labels=(*_HOLDER_LABELS, "state"),
    per_device=True,
    help=(
        "Time of flopwatch_gpu_seconds_total by state, divided among the holders of the device: "
        "idle time equally (between MIG instances by their SMs), the rest by their work."
    ),
    interpretation="What each tenant held, and how much of it was idle.",
)
HOLDER_BASIS_INFO = SUBJECT.gauge(
    "flopwatch_holder_basis_info",
    labels=(*_HOLDER_LABELS, "basis"),
    per_device=True,
    help=(
        "How the shares of the device are determined, always 1: exclusive (one holder, or one on "
        "each MIG instance), process_utilization (SM time by process, NVML), equal (the driver "
        "reports none; between MIG instances by their SMs)."
    ),
    interpretation="equal: the shares are an assumption, not a measurement.",
)


WORKLOAD_EXECUTED_FLOP_TOTAL = SUBJECT.counter(
    "flopwatch_workload_executed_flop_total",
    unit="FLOP",
    labels=("workload",),
    help=(
        "Executed FLOP of the tensor pipes that are attributed to the engine. Absent if the "
        "engine shares a GPU and its part cannot be separated, or if it uses GPUs of other "
        "hosts."
    ),
    interpretation="What exceeds flopwatch_model_flop_total is work that produced no tokens.",
)
WORKLOAD_UNEXPLAINED_FLOP_RATIO = SUBJECT.gauge(
    "flopwatch_workload_unexplained_flop_ratio",
    labels=("workload",),
    help=(
        "Share of the executed FLOP of the last ten busy minutes that neither tokens nor "
        "flopwatch_model_wasted_flop_total explain. Negative if they need more than was "
        "counted."
    ),
    interpretation=(
        "0.05 to 0.2: padding. Near 0.5 or below -0.05: another precision, product or model than assumed."
    ),
)
PRICE_PER_GPU_HOUR = SUBJECT.gauge(
    "flopwatch_price_per_gpu_hour",
    labels=("currency",),
    per_device=True,
    help="Price of one hour of the GPU, from the configuration. Absent without a price.",
    interpretation="Multiply it by flopwatch_holder_gpu_seconds_total for what each tenant costs.",
)


def price_samples(state: State, prices: Sequence[PriceRule]) -> Iterator[Sample]:
    """The price of each GPU; a MIG instance costs its share of the SMs."""
    for device in state.devices:
        identity = device.identity
        if identity.uuid == UNKNOWN:
            continue
        rule = next((rule for rule in prices if matches(rule, identity)), None)
        if rule is None:
            continue
        price = rule.per_gpu_hour
        if identity.mig is not None:
            gpu = state.find(identity.index)
            whole = None if gpu is None else gpu.identity.sm_count
            if not whole or not identity.sm_count:
                continue
            price *= identity.sm_count / whole
        labels = (*device_labels(identity), ("currency", rule.currency))
        yield Sample(PRICE_PER_GPU_HOUR, labels, price)


PRICES: Samples[tuple[State, Sequence[PriceRule]]] = Samples(
    lambda source: price_samples(*source),
    key=lambda source: ([device.identity for device in source[0].devices], source[1]),
)


# An account, and whether the device answers for its energy now.
ACCOUNT_ROWS = Rows[tuple[Account, bool]](
    Value(HOLDER_FLOP_TOTAL, lambda source: source[0].flop),
    Value(HOLDER_DRAM_BYTES_TOTAL, lambda source: source[0].dram_bytes),
    Value(
        HOLDER_ENERGY_JOULES_TOTAL, lambda source: source[0].energy_joules if source[1] else None
    ),
    ByLabel(HOLDER_GPU_SECONDS_TOTAL, "state", lambda source: source[0].state_seconds),
)
BASIS_ROWS = Rows[Mapping[Holder, str]](
    ByKey(
        HOLDER_BASIS_INFO,
        lambda found: (*_holder_labels(found[0]), ("basis", found[1])),
        lambda basis: dict.fromkeys(basis.items(), 1.0),
    )
)


WORKLOAD_ROWS = Rows[WorkloadUse](
    Value(WORKLOAD_EXECUTED_FLOP_TOTAL, lambda use: use.executed_flop),
    Value(
        WORKLOAD_UNEXPLAINED_FLOP_RATIO,
        lambda use: None if use.explained_share is None else 1 - use.explained_share,
    ),
)


def bill_parts(state: State) -> Iterator[Part]:
    """Each holder's use of each fresh device, and how much of it became tokens."""
    for workload, use in state.bill.workloads.items():
        yield WORKLOAD_ROWS.of((("workload", workload),), use)
    for device in state.devices:
        charges = state.bill.devices.get(device.identity.uuid)
        if charges is None:
            continue
        labels = device_labels(device.identity)
        counts_energy = device.fast is not None and device.fast.energy_joules is not None
        for holder, account in charges.accounts.items():
            yield ACCOUNT_ROWS.of((*labels, *_holder_labels(holder)), (account, counts_energy))
        yield BASIS_ROWS.of(labels, charges.basis)


def _holder_labels(holder: Holder) -> Labels:
    return tuple(zip(_HOLDER_LABELS, holder, strict=True))


def holder_samples(state: State) -> Iterator[Sample]:
    """All samples of all holders. A device that the host does not list is counted, not shown."""
    unknown: set[DeviceKey] = set()
    # Two names of one device (a UUID and an index) must not make one series twice.
    seen: set[tuple[Labels, Labels]] = set()
    for family, key, labels in _held(state.holders):
        found = state.held(key)
        if found is None:
            unknown.add(key)
            continue
        device = device_labels(found.identity)
        if (device, labels) not in seen:
            seen.add((device, labels))
            yield Sample(family, (*device, *labels), 1.0)
    yield from _sources(state.holders)
    if state.holders.sources and not state.pending:
        yield Sample(HOLDER_UNKNOWN_DEVICES, (), float(len(unknown)))


# A device that the host does not list yet may be found later.
HOLDERS = Samples(
    holder_samples,
    key=lambda state: (
        state.holders,
        state.pending,
        [device.identity for device in state.devices],
    ),
)


@dataclass(frozen=True, slots=True)
class HolderLabels:
    """Labels of the holders, by device UUID, for the series of the chosen families."""

    by_uuid: Mapping[str, Labels] = field(default_factory=dict)
    chosen: AbstractSet[str] = frozenset()

    def added_to(self, family: Family, labels: Labels) -> Labels:
        """The labels to add to a series of this family that has these labels."""
        if family.name not in self.chosen or not family.per_device:
            return ()
        uuid = next((value for name, value in labels if name == "uuid"), "")
        extra = self.by_uuid.get(uuid, ())
        # A family that names the holder itself keeps its own.
        return () if {name for name, _ in extra} & set(family.labels) else extra


def holder_labels(state: State, chosen: AbstractSet[str]) -> HolderLabels:
    """Namespace, pod, container and hpc_job of each device, for the series of the chosen families.

    Only where there is one holder: no single label is correct for a shared device, and a series per
    holder would count its work several times.
    """
    # On most hosts no family is chosen, and there is nothing to do.
    return HolderLabels(_sole_holders(state), chosen) if chosen else HolderLabels()


def _held(snapshot: HoldersSnapshot) -> Iterator[tuple[Family, DeviceKey, Labels]]:
    for allocation in snapshot.allocations:
        labels: Labels = (
            ("namespace", allocation.namespace),
            ("pod", allocation.pod),
            ("container", allocation.container),
        )
        yield GPU_ALLOCATION_INFO, allocation.device, labels
    for use in snapshot.jobs:
        yield GPU_JOB_INFO, use.device, (("hpc_job", use.job), ("job", use.job))


def _sources(snapshot: HoldersSnapshot) -> Iterator[Sample]:
    for source, state in snapshot.sources.items():
        labels = (("source", source),)
        yield Sample(HOLDER_SOURCE_UP, labels, float(state.up))
        yield from optional(
            HOLDER_SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS,
            labels,
            state.last_success_unix_seconds,
        )
        yield from by_label(HOLDER_SOURCE_ERRORS_TOTAL, labels, "reason", state.errors)


def _sole_holders(state: State) -> dict[str, Labels]:
    """By device UUID the labels of its holder: of its one container, of its one job, or of both."""
    held: dict[str, dict[str, set[Labels]]] = {}
    for family, key, labels in _held(state.holders):
        found = state.held(key)
        if found is not None:
            held.setdefault(found.identity.uuid, {}).setdefault(family.name, set()).add(labels)
    sole: dict[str, Labels] = {}
    for uuid, by_family in held.items():
        labels_of: list[Label] = []
        for alternatives in by_family.values():
            if len(alternatives) == 1:
                labels_of += (each for each in next(iter(alternatives)) if each[0] != "job")
        sole[uuid] = tuple(labels_of)
    return sole
