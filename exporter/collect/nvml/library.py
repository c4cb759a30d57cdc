"""The driver library: opened once per process, called by name, its errors translated once.

pynvml is imported in this package only. ctypes releases the interpreter lock during a call, so a
call that hangs blocks its own thread and no other.

NVML's return codes are sorted by what the daemon does about them:

* NvmlError              any call that did not succeed
  + NotSupported         this device or driver has no such call: absent, and not asked again
  + NoPermission         asked again, counted
  + Transient            skipped this time, counted
  + DeviceLost           the device's handle is dead: close it and come back with backoff
  + DriverGone           the library's state is dead: initialise it again, with backoff
  + DriverMismatch       library and kernel module differ: cannot heal in this process
  + DriverAbsent         no driver library, or no driver behind it
"""

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pynvml
import structlog


log = structlog.get_logger(__name__)

# With this variable set, NVML shows MPS locality domains, and nearly every call answers
# NOT_SUPPORTED (nvml.h of CUDA 13.5).
_MPS_VARIABLE = "NVML_MPS_DEVICE_ENUMERATION"
# How many initialisations must be refused, and over how long, before that counts as final: a driver
# reset or update is done by then.
BARRED_TIMES = 5
BARRED_SECONDS = 30.0
# All waiting GPUs share one attempt: each may make the driver load its module.
_RETRY_SECONDS = 1.0
_CONTROL_NODE = "/dev/nvidiactl"
# A call that never answered anything but NOT_SUPPORTED is asked again this often.
CLAIM_SECONDS = 600.0

FIELD_VALUES = "nvmlDeviceGetFieldValues"
Key = tuple[Any, ...]  # a call: its function, and what it was asked for

UNKNOWN_CODE = 999
# nvmlErrorString is a call into the driver, so the codes are named here.
CODE_NAMES = {
    1: "uninitialized",
    2: "invalid_argument",
    3: "not_supported",
    4: "no_permission",
    6: "not_found",
    7: "insufficient_size",
    8: "insufficient_power",
    9: "driver_not_loaded",
    10: "timeout",
    11: "irq_issue",
    12: "library_not_found",
    13: "function_not_found",
    14: "corrupted_inforom",
    15: "gpu_is_lost",
    16: "reset_required",
    17: "operating_system",
    18: "driver_mismatch",
    19: "in_use",
    20: "memory",
    21: "no_data",
    22: "vgpu_ecc_not_supported",
    23: "insufficient_resources",
    24: "freq_not_supported",
    25: "argument_version_mismatch",
    26: "deprecated",
    27: "not_ready",
    28: "gpu_not_found",
    29: "invalid_state",
    30: "reset_type_not_supported",
    UNKNOWN_CODE: "unknown",
}


class NvmlError(Exception):
    """A call that did not succeed. `reason` is the code's name in snake case."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function}: {CODE_NAMES.get(code, code)}")
        self.function = function
        self.code = code

    @property
    def reason(self) -> str:
        """The code's name, as the label `reason` carries it."""
        return CODE_NAMES.get(self.code, f"code_{self.code}")


class NotSupported(NvmlError):
    """The device or driver does not support the call."""


class NoPermission(NvmlError):
    """The call needs a privilege that this process lacks."""


class Transient(NvmlError):
    """The call failed this time."""


class DeviceLost(NvmlError):
    """The device is gone or needs a reset; its handle is invalid."""


class DriverGone(NvmlError):
    """The library is not initialised any more, or the driver was unloaded."""


class DriverMismatch(NvmlError):
    """The loaded library and the kernel module are of different versions."""


class DriverAbsent(NvmlError):
    """There is no driver library on this host, or no driver behind it."""


# After these no further call through the device's handle is possible.
GONE = (DeviceLost, DriverGone, DriverMismatch)

_KINDS: dict[int, type[NvmlError]] = {
    1: DriverGone,
    2: NotSupported,  # our arguments are constants: the device would refuse them again
    3: NotSupported,
    4: NoPermission,
    9: DriverGone,
    12: DriverAbsent,
    13: NotSupported,
    15: DeviceLost,
    16: DeviceLost,
    18: DriverMismatch,
    22: NotSupported,
    25: NotSupported,
    26: NotSupported,
    28: DeviceLost,
}


def error_for(function: str, code: int) -> NvmlError:
    """The error for a return code."""
    return _KINDS.get(code, Transient)(function, code)


# The current driver call of each thread: the one that hangs, if one does.
_running: dict[int, str] = {}


def running_call(thread: int | None) -> str | None:
    """The driver call that a thread is in now, by the thread's identifier."""
    return None if thread is None else _running.get(thread)


def call(function: str, *arguments: Any) -> Any:
    """Call a pynvml function by name.

    Raises the matching NvmlError. A function that pynvml does not have counts as not supported.
    """
    implementation = getattr(pynvml, function, None)
    if implementation is None:
        raise NotSupported(function, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    thread = threading.get_ident()
    _running[thread] = function
    try:
        return implementation(*arguments)
    except pynvml.NVMLError as error:
        raise error_for(function, error.value) from None
    except pynvml.NVMLLibraryMismatchError:
        # The driver is older than pynvml and lacks this version of the function.
        raise NotSupported(function, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND) from None
    except (ValueError, TypeError, UnicodeDecodeError):
        # pynvml could not interpret the driver's answer.
        raise Transient(function, pynvml.NVML_ERROR_UNKNOWN) from None
    finally:
        _running.pop(thread, None)


def call_symbol(symbol: str, *arguments: Any) -> int:
    """Call a function of the library by its exported name; its return code.

    For what pynvml has no wrapper for. A missing symbol answers FUNCTION_NOT_FOUND.
    """
    thread = threading.get_ident()
    _running[thread] = symbol
    try:
        return int(pynvml._nvmlGetFunctionPointer(symbol)(*arguments))  # noqa: SLF001
    except pynvml.NVMLError as error:
        return int(error.value)
    finally:
        _running.pop(thread, None)


def handle_address(handle: Any) -> int:
    """What a handle points to: pynvml makes a new pointer object for each answer."""
    return int(pynvml.cast(handle, pynvml.c_void_p).value or 0)


def node_is_barred(node: str = _CONTROL_NODE) -> bool:
    """Whether the device cgroup denies the driver: EPERM, where missing permissions give EACCES."""
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EPERM
    return False


class DriverLibrary:
    """The library's initialisation, shared by all devices.

    `epoch` grows with every initialisation: a device that saw an error in an older epoch need not
    initialise again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoch = 0
        self._was_absent = False
        self._refusals: list[float] = []
        self._failure: tuple[float, NvmlError] | None = None

    @property
    def epoch(self) -> int:
        """Number of successful initialisations; 0 before the first."""
        return self._epoch

    def open(self) -> None:
        """Initialise the library. Raises NvmlError."""
        self.reopen(self._epoch)

    def reopen(self, seen_epoch: int) -> None:
        """Initialise again, unless another thread has done so since `seen_epoch`. Raises NvmlError."""
        with self._lock:
            if self._epoch != seen_epoch:
                return
            if self._failure is not None and time.monotonic() - self._failure[0] < _RETRY_SECONDS:
                raise self._failure[1]
            os.environ.pop(_MPS_VARIABLE, None)
            self._shut_down()
            try:
                call("nvmlInit")
            except NvmlError as error:
                self._note_refusal(error)
                self._failure = (time.monotonic(), error)
                raise
            self._failure = None
            self._refusals.clear()
            self._epoch += 1

    @property
    def barred(self) -> bool:
        """Whether the driver is present but this process, started before it, has no access to it.

        This happens in a container whose devices were taken away (a reload of systemd does that with
        some runtimes), and in a service whose device filter was made before the driver was loaded:
        from then on NVML answers with varying errors, and only a new process has access. A process
        that was refused from the start does not count: a new one would be refused too.
        """
        refusals = self._refusals
        return len(refusals) >= BARRED_TIMES and refusals[-1] - refusals[0] >= BARRED_SECONDS

    def _note_refusal(self, error: NvmlError) -> None:
        absent = isinstance(error, (DriverGone, DriverAbsent)) and not node_is_barred()
        began_before = self._epoch > 0 or self._was_absent
        self._was_absent |= absent
        if absent or not began_before or isinstance(error, DriverMismatch):
            self._refusals.clear()  # not loaded yet, or unloaded: that may pass
            return
        # The first one and the newest ones: as many as the verdict needs.
        if len(self._refusals) >= BARRED_TIMES:
            del self._refusals[1]
        self._refusals.append(time.monotonic())

    def close(self) -> None:
        """Shut the library down, if it is open."""
        with self._lock:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._epoch:
            try:
                call("nvmlShutdown")
            except NvmlError as error:
                log.debug("nvml_shutdown_refused", reason=error.reason)

    def device_count(self) -> int:
        """Number of GPUs, inaccessible ones included. Raises NvmlError."""
        return int(call("nvmlDeviceGetCount"))

    def driver_version(self) -> str | None:
        """The driver's version, None if it does not report one."""
        try:
            return str(call("nvmlSystemGetDriverVersion"))
        except NvmlError:
            return None


class DeviceCalls:
    """Calls on one device handle: remembers what is not supported, counts what fails.

    NOT_SUPPORTED is a claim, not a fact: drivers answer it for a while during a reset, and for a
    whole GPU as long as it is in MIG mode. A call that never answered is asked again every ten
    minutes; one that answered before has failed, is counted, and is asked again every time.
    `forget_claims` asks everything again at once.

    Not thread-safe: one thread at a time owns a device.
    """

    def __init__(
        self, handle: Any, *, device: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.handle = handle
        self.errors: Counter[str] = Counter()
        # Size of the device's memory, once read: no process has more.
        self.memory_total_bytes: int | None = None
        self._device = device
        self._clock = clock
        self._claims: dict[Any, float] = {}  # when to ask again, by call
        self._answered: set[Any] = set()
        self._lost: set[Any] = set()  # answered before, and now NOT_SUPPORTED
        self._failing: set[Key] = set()
        self._false: set[str] = set()

    def ask(self, function: str, *arguments: Any) -> Any:
        """The call's answer, or None when it is refused or fails this time.

        Raises DeviceLost, DriverGone or DriverMismatch: after those no further call is possible.
        """
        return self.ask_by((function, *arguments), partial(call, function, self.handle, *arguments))

    def ask_by(self, key: Key, question: Callable[[], Any]) -> Any:
        """The same for a call that is more than a pynvml function; `key` identifies it."""
        if not self.may_ask(key):
            return None
        try:
            answer = question()
        except NvmlError as error:
            self.refuse(key, error)
            return None
        self.answered(key)
        return answer

    def may_ask(self, key: Key) -> bool:
        """Whether the call is worth making: not within ten minutes of a NOT_SUPPORTED."""
        due = self._claims.get(key)
        return due is None or self._clock() >= due

    def answered(self, key: Key) -> None:
        """Record an answered call."""
        if key in self._answered and not self._lost and not self._failing:
            return  # nothing to take back: a claim is only made for what never answered
        self._answered.add(key)
        self._claims.pop(key, None)
        self._lost.discard(key)
        if key in self._failing:
            self._failing.discard(key)
            if not self._fails(_spoken(key)):
                log.info("nvml_call_answers_again", device=self._device, function=_spoken(key))

    def refuse(self, key: Key, error: NvmlError) -> None:
        """Record a failed call, or raise it again if the device or the driver is gone."""
        if isinstance(error, NotSupported):
            if key not in self._answered:
                if key not in self._claims:
                    log.debug(
                        "nvml_call_not_supported",
                        device=self._device,
                        function=_spoken(key),
                        reason=error.reason,
                    )
                self._claims[key] = self._clock() + CLAIM_SECONDS
                return
            self._lost.add(key)
        self.errors[error.reason] += 1
        if isinstance(error, (Transient, NoPermission, NotSupported)):
            # One line per change of state, not one per tick.
            if not self._fails(_spoken(key)):
                log.warning(
                    "nvml_call_failed",
                    device=self._device,
                    function=_spoken(key),
                    reason=error.reason,
                )
            self._failing.add(key)
            return
        raise error

    def _fails(self, spoken: str) -> bool:
        return any(_spoken(key) == spoken for key in self._failing)

    def is_refused(self, *key: Any) -> bool:
        """Whether this call, or field, has only ever answered 'not supported'."""
        return key in self._claims

    def has_answered(self, *key: Any) -> bool:
        """Whether this call, or field, has ever answered through this handle."""
        return key in self._answered

    def unsupported(self, *key: Any) -> bool:
        """Whether the last answer to this call, or field, was 'not supported'."""
        return key in self._claims or key in self._lost

    def forget_claims(self) -> None:
        """Ask for everything again: the MIG mode has changed, and with it what the device supports."""
        self._claims.clear()
        self._answered.clear()
        self._lost.clear()

    def implausible(self, what: str) -> None:
        """Count an impossible value; it is left out."""
        self.errors["implausible"] += 1
        if what not in self._false:
            self._false.add(what)
            log.warning("nvml_value_implausible", device=self._device, value_of=what)


def _spoken(key: Key) -> str:
    """A call as the log names it: a function whatever it asks for, but each field by itself."""
    return " ".join(map(str, key if key[0] == FIELD_VALUES else key[:1]))
