"""NVML's return codes, sorted by what the daemon does about them.

* NvmlError              any call that did not succeed
  + NotSupported         this device or driver has no such call: absent, and not asked again
  + NoPermission         asked again, counted
  + Transient            skipped this time, counted
  + DeviceLost           the device's handle is dead: close it and come back with backoff
  + DriverGone           the library's state is dead: initialise it again, with backoff
  + DriverMismatch       library and kernel module differ: cannot heal in this process
  + DriverAbsent         no driver library, or no driver behind it

nvmlErrorString is a call into the driver, so the codes are named here.
"""

UNKNOWN_CODE = 999

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
    """The error of the tree above for a return code."""
    return _KINDS.get(code, Transient)(function, code)
