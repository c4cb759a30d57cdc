"""One device, a GPU or a MIG instance: its activity sources, its accounting and its health.

`SOURCES` in `exporter/collect/sources.py` lists the sources, the best first.
"""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import structlog

from exporter.accounting.device import DeviceAccounts, LastWindow
from exporter.accounting.peaks import Peaks, find_peaks
from exporter.accounting.plausibility import (
    Inconsistency,
    Plausibility,
    is_silent,
    without_activity,
)
from exporter.accounting.time_split import REACHABLE_BANDWIDTH
from exporter.collect.dcgm import DcgmSource
from exporter.collect.nvml.gpm import GpmSession
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary
from exporter.collect.nvml.reading import unsupported_capabilities
from exporter.collect.settings import SamplingSettings, headline_precision
from exporter.device_state import DeviceState, SourceHealth, XidCounts
from exporter.readings import (
    ActivityWindow,
    DeviceIdentity,
    FastReading,
    SlowReading,
)


if TYPE_CHECKING:
    from exporter.state import State  # loaded while sampling has begun


log = structlog.get_logger(__name__)

NVML = "nvml"
_CLOCK_SAMPLES = 4  # in a tick, where no source says otherwise
_ACTIVITY = "activity"  # the name under which implausible activities are counted


@dataclass(frozen=True, slots=True)
class GpuContext:
    """What a sampled GPU needs from the daemon around it. Callbacks are cheap and thread-safe."""

    library: DriverLibrary
    settings: Callable[[], SamplingSettings]
    # The last State, for what is known about the device from elsewhere.
    state: "Callable[[], State]"
    xids: Callable[[str], XidCounts]
    on_mismatch: Callable[[], None]
    # Whether the caller may sample the GPU with this UUID: no other caller does.
    claim: Callable[[str, Any], bool]
    dcgm: DcgmSource


class ActivitySource(Protocol):
    """Reports how busy the parts of one device were.

    In every tick the device takes its first source that opens; those after it stand by. The thread
    of the GPU calls all methods. Each may raise NvmlError, but only when the device or the driver
    is gone: any other failure is counted, logged once and retried by the source.
    """

    # Whether windows include the bytes that the links moved, so that NVML need not be read for
    # them.
    counts_traffic: ClassVar[bool] = False
    device: "Device"

    def __init__(self, device: "Device") -> None:
        self.device = device

    @classmethod
    def prepare(cls, sources: Sequence[Self]) -> None:
        """Prepare all sources of this kind, of a GPU and its instances, before each tick.

        For work that costs less once for all of them than in the `open` of each.
        """

    @abstractmethod
    def open(self) -> bool:
        """Get ready if possible; whether the source can be read in this tick."""

    @abstractmethod
    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        """The window that ended with this tick, if one did."""

    @property
    @abstractmethod
    def open_since_seconds(self) -> float | None:
        """Start of the window that a later reading will close; None where none is open."""

    @property
    def max_window_seconds(self) -> float:
        """By how much a window may exceed the usual limit, and how long it may be shown."""
        return 0.0

    @property
    def clock_samples(self) -> int:
        """How many samples of the clock a tick needs, for the mean clock of the window."""
        return _CLOCK_SAMPLES

    def stand_by(self) -> None:
        """A better source is in use: release everything that costs something."""

    def restart(self) -> None:
        """Count nothing of the time since the last window: it was not watched."""

    def close(self, *, driver_is_gone: bool = False) -> None:
        """Release everything, without a driver call if the driver is gone. It may open again."""

    def implausible(self) -> None:
        """Count a window that cannot be true."""

    def health(self, *, up: bool) -> dict[str, SourceHealth]:
        """The source's entry among those of the device, if it has one. `up`: the device answers."""
        return {}


class Device:
    """Measures one device in every tick of its GPU. Used by the thread of that GPU."""

    def __init__(
        self,
        identity: DeviceIdentity,
        context: GpuContext,
        kinds: Sequence[type[ActivitySource]],
        gpu: "Device | None" = None,
    ) -> None:
        """`kinds` of sources, the best first. `gpu` is the GPU that a MIG instance belongs to."""
        self.identity = identity
        self.context = context
        self.gpu = gpu
        self.peaks = find_peaks(identity)
        self.slow = SlowReading(at_seconds=0.0)
        self.calls: DeviceCalls | None = None
        # The methods of taking GPM samples of a MIG instance; empty for a GPU.
        self.gpm_sessions: Sequence[GpmSession] = ()
        # The MIG instances of a GPU, measured before it in every tick.
        self.instances: Sequence[Device] = ()
        self.mig_enabled = False
        # The source of this tick's activities, and the window that it gave, if one ended.
        self.in_use: ActivitySource | None = None
        self.window: ActivityWindow | None = None
        self.sources = tuple(kind(self) for kind in kinds)
        self.accounts = DeviceAccounts(identity, self.peaks)
        self.errors: Counter[str] = Counter()  # of NVML, by reason
        self._succeeded: float | None = None
        self._plausibility = Plausibility()
        self._false: frozenset[Inconsistency] = frozenset()
        self._held: LastWindow | None = None
        self._refused_precision: str | None = None

    def attach(
        self,
        identity: DeviceIdentity,
        peaks: Peaks,
        calls: DeviceCalls,
        gpm_sessions: Sequence[GpmSession] = (),
    ) -> None:
        """Start using the device through `calls`. Its counters continue from their last values."""
        self.identity = identity
        self.calls = calls
        self.calls.errors = self.errors
        self.gpm_sessions = gpm_sessions
        self.revalue(peaks)

    def detach(self, *, driver_is_gone: bool = False) -> None:
        """Stop using the device. Its counters are kept."""
        self.skip_gap()
        for source in self.sources:
            source.close(driver_is_gone=driver_is_gone)
        self.calls = self.in_use = self.window = None

    def revalue(self, peaks: Peaks) -> None:
        """Use these peaks from now on; counters are kept."""
        self.peaks = peaks
        self.accounts.revalue(self.identity, peaks)

    def forget_support(self) -> None:
        """Ask again for everything that was not supported: that may have changed."""
        if self.calls is not None:
            self.calls.forget_claims()
        for source in self.sources:
            source.close()

    @property
    def clock_samples(self) -> int:
        """How many samples of the clock a tick needs."""
        return _CLOCK_SAMPLES if self.in_use is None else self.in_use.clock_samples

    @property
    def is_silent(self) -> bool:
        """Whether earlier ticks found the device busy while its source reported no activity."""
        return Inconsistency.ACTIVITY_SILENT in self._false

    def choose_source(self) -> ActivitySource | None:
        """Choose the first source that opens, for the tick that begins. Raises NvmlError."""
        self.in_use = None
        for source in self.sources:
            if self.in_use is None and source.open():
                self.in_use = source
            elif self.in_use is not None:
                source.stand_by()
        return self.in_use

    def skip_gap(self) -> None:
        """Count nothing of the time since the last tick."""
        self.accounts.forget_open_spans()
        for source in self.sources:
            source.restart()
        self._plausibility.restart()
        self._held = None

    def measure(
        self, fast: FastReading, settings: SamplingSettings
    ) -> tuple[FastReading, ActivityWindow | None]:
        """Read the source in use and drop impossible values. Raises NvmlError."""
        self._succeeded = time.time()
        self.window = None if self.in_use is None else self.in_use.read(fast, settings)
        if self.gpu is not None:
            return fast, self._without_silence(self.window)
        judged = self._plausibility.judge(fast, self.window, self.slow.power_limit_watts)
        self._count_false(judged.false)
        return judged.fast, judged.window

    def account(
        self, fast: FastReading, window: ActivityWindow | None, settings: SamplingSettings
    ) -> DeviceState:
        """Account for the tick and return the state of the device after it."""
        state, uuid = self.context.state(), self.identity.uuid
        headline = headline_precision(
            settings.gpus, state.precisions.get(uuid), self.identity, self.peaks
        )
        self._note_refused(headline.refused)
        source = self.in_use
        longer = 0.0 if source is None else source.max_window_seconds
        last = self.accounts.observe(
            fast,
            window,
            precision=headline.precision,
            max_window_seconds=settings.max_window + longer,
            window_started_seconds=None if source is None else source.open_since_seconds,
            reachable_bandwidth=state.reachable_bandwidth.get(uuid, REACHABLE_BANDWIDTH),
        )
        return self.state(
            up=True,
            at_seconds=fast.at_seconds,
            peaks=self.peaks,
            precision=headline.precision,
            precision_origin=headline.origin,
            fast=fast,
            slow=self.slow,
            last=self._shown(last, fast.at_seconds, longer),
            counters=self.accounts.counters(),
        )

    def state(self, *, up: bool, **fields: Any) -> DeviceState:
        """The state of the device. `fields` are the fields of DeviceState that a tick fills."""
        missing: tuple[str, ...] = ()
        if up and self.calls is not None and self.gpu is None:
            missing = unsupported_capabilities(self.calls)
        sources = {NVML: SourceHealth(up, self._succeeded, dict(self.errors), missing)}
        for source in self.sources:
            sources.update(source.health(up=up))
        fields.setdefault("at_seconds", time.monotonic())
        identity = self.identity
        if self.peaks.sm_count != identity.sm_count:  # configured, or that of the model
            identity = replace(identity, sm_count=self.peaks.sm_count)
        return DeviceState(
            identity=identity,
            up=up,
            max_age_seconds=self.context.settings().max_age,
            sources=sources,
            **fields,
        )

    def _without_silence(self, window: ActivityWindow | None) -> ActivityWindow | None:
        """The window of an instance, without an activity of zero that its GPU contradicts.

        An instance has no power reading of its own, so only the GPU's power shows that it is busy.
        """
        if self.gpu is None or not self.gpu.is_silent or window is None or not is_silent(window):
            return window
        if self.in_use is not None:
            self.in_use.implausible()
        return without_activity(window, None)

    def _count_false(self, false: Mapping[str, Inconsistency]) -> None:
        """Count the values dropped in this tick; one log line for each change."""
        for name in false:
            if name != _ACTIVITY:
                self.errors["implausible"] += 1
            elif self.in_use is not None:
                self.in_use.implausible()
        found = frozenset(false.values())
        for inconsistency in sorted(found - self._false):
            values = [name for name, what in false.items() if what is inconsistency]
            log.warning(
                "implausible",
                gpu=self.identity.index,
                found=inconsistency.value,
                left_out=values,
            )
        for inconsistency in sorted(self._false - found):
            log.info("plausible_again", gpu=self.identity.index, found=inconsistency.value)
        self._false = found

    def _shown(self, last: LastWindow | None, now: float, hold_seconds: float) -> LastWindow | None:
        """The window for the gauges. A source with long windows shows its last one until the next."""
        if last is not None or not hold_seconds:
            self._held = last
        elif self._held is not None and now - self._held.activity.end_seconds > hold_seconds:
            self._held = None
        return self._held

    def _note_refused(self, precision: str | None) -> None:
        """Log once that the device has no unit for a precision that was asked for."""
        if precision is not None and precision != self._refused_precision and self.gpu is None:
            log.warning(
                "precision_not_in_silicon",
                gpu=self.identity.index,
                name=self.identity.name,
                precision=precision,
                used=self.peaks.default_precision,
            )
        self._refused_precision = precision
