"""The driver library: opened once per process, called by name, its errors translated once.

pynvml is imported in this package only. ctypes releases the interpreter lock during a call, so a
call that hangs holds up its own thread and no other.
"""

import os
import threading
import time
from collections import Counter
from typing import Any

import pynvml
import structlog

from exporter.collect.nvml.errors import (
    UNKNOWN_CODE,
    NoPermission,
    NotSupported,
    NvmlError,
    Transient,
    error_for,
)


log = structlog.get_logger(__name__)

# With this variable set, NVML shows MPS locality domains, and nearly every call answers
# NOT_SUPPORTED (nvml.h of CUDA 13.5).
_MPS_VARIABLE = "NVML_MPS_DEVICE_ENUMERATION"
# Initialisations refused with «Unknown Error», and for how long, before it is taken for final: a
# driver that is being reset or updated is done by then.
BARRED_TIMES = 5
BARRED_SECONDS = 60.0


def call(function: str, *arguments: Any) -> Any:
    """Call a pynvml function by name.

    Raises the NvmlError that fits. A function that pynvml does not have counts as not supported.
    """
    implementation = getattr(pynvml, function, None)
    if implementation is None:
        raise NotSupported(function, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    try:
        return implementation(*arguments)
    except pynvml.NVMLError as error:
        raise error_for(function, error.value) from None
    except pynvml.NVMLLibraryMismatchError:
        # The driver is older than pynvml and has not this version of the function.
        raise NotSupported(function, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND) from None
    except (ValueError, TypeError, UnicodeDecodeError):
        # pynvml could not make sense of what the driver answered.
        raise Transient(function, pynvml.NVML_ERROR_UNKNOWN) from None


def handle_address(handle: Any) -> int:
    """What a handle points to: pynvml makes a new pointer object for each answer."""
    return int(pynvml.cast(handle, pynvml.c_void_p).value or 0)


class DriverLibrary:
    """The library's initialisation, shared by all devices.

    `epoch` grows with every initialisation: a device that saw an error in an older epoch need not
    initialise again what another already has.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoch = 0
        self._refusals: list[float] = []

    @property
    def epoch(self) -> int:
        """Number of successful initialisations; 0 before the first."""
        return self._epoch

    def open(self) -> None:
        """Initialise the library. Raises NvmlError."""
        self.reopen(self._epoch)

    def reopen(self, seen_epoch: int) -> None:
        """Initialise again, unless somebody has since `seen_epoch`. Raises NvmlError."""
        with self._lock:
            if self._epoch != seen_epoch:
                return
            os.environ.pop(_MPS_VARIABLE, None)
            if self._epoch:
                try:
                    call("nvmlShutdown")
                except NvmlError as error:
                    log.debug("nvml_shutdown_refused", reason=error.reason)
            try:
                call("nvmlInit")
            except NvmlError as error:
                self._note_refusal(error)
                raise
            self._refusals.clear()
            self._epoch += 1

    @property
    def barred(self) -> bool:
        """Whether this process had the driver, and cannot get it again while the driver itself is there.

        So it is in a container whose devices were taken away (a reload of systemd does that to some
        runtimes): NVML answers «Unknown Error» from then on, and only a new container has them again.
        """
        refusals = self._refusals
        return len(refusals) >= BARRED_TIMES and refusals[-1] - refusals[0] >= BARRED_SECONDS

    def _note_refusal(self, error: NvmlError) -> None:
        if not self._epoch or error.code != UNKNOWN_CODE:
            self._refusals.clear()  # not there yet, or unloaded: that may pass
            return
        # The first one, and the newest: as many as are needed to judge.
        if len(self._refusals) >= BARRED_TIMES:
            del self._refusals[1]
        self._refusals.append(time.monotonic())

    def close(self) -> None:
        """Shut the library down, if it is open."""
        with self._lock:
            if self._epoch:
                try:
                    call("nvmlShutdown")
                except NvmlError as error:
                    log.debug("nvml_shutdown_refused", reason=error.reason)

    def device_count(self) -> int:
        """Number of GPUs, inaccessible ones included. Raises NvmlError."""
        return int(call("nvmlDeviceGetCount"))

    def driver_version(self) -> str | None:
        """The driver's version, None where it will not say."""
        try:
            return str(call("nvmlSystemGetDriverVersion"))
        except NvmlError:
            return None


class DeviceCalls:
    """Calls on one device handle: remembers what is not supported, counts what fails.

    Not thread-safe: one thread at a time owns a device.
    """

    def __init__(self, handle: Any, *, device: str) -> None:
        self.handle = handle
        self.errors: Counter[str] = Counter()
        self._device = device
        self._refused: set[Any] = set()
        self._failing: set[Any] = set()

    def ask(self, function: str, *arguments: Any) -> Any:
        """The call's answer, or None when it is refused or fails this time.

        Raises DeviceLost, DriverGone or DriverMismatch: with those nothing more can be asked.
        """
        key = (function, *arguments)
        if key in self._refused:
            return None
        try:
            answer = call(function, self.handle, *arguments)
        except NvmlError as error:
            self.refuse(key, error)
            return None
        self._failing.discard(key)
        return answer

    def refuse(self, key: Any, error: NvmlError) -> None:
        """Book a failed call, or raise it again if the device or the driver is gone."""
        if isinstance(error, NotSupported):
            self._refused.add(key)
            log.debug(
                "nvml_call_not_supported",
                device=self._device,
                function=error.function,
                reason=error.reason,
            )
            return
        self.errors[error.reason] += 1
        if isinstance(error, (Transient, NoPermission)):
            # One line per change of state, not one per tick.
            if key not in self._failing:
                self._failing.add(key)
                log.warning(
                    "nvml_call_failed",
                    device=self._device,
                    function=error.function,
                    reason=error.reason,
                )
            return
        raise error

    def is_refused(self, *key: Any) -> bool:
        """Whether this call, or field, was answered with «not supported»."""
        return key in self._refused

    def implausible(self, what: str) -> None:
        """Book a value that cannot be true; it is left out."""
        self.errors["implausible"] += 1
        if what not in self._failing:
            self._failing.add(what)
            log.warning("nvml_value_implausible", device=self._device, value_of=what)
