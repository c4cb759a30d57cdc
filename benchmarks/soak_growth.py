"""The growth during a soak, and how much of it is a leak."""

from dataclasses import dataclass


GROWTH_MAX_BYTES = 2_000_000


@dataclass(frozen=True, slots=True)
class Growth:
    """What a run used after its warm-up and at its end."""

    bytes_before: int
    bytes_after: int
    descriptors_before: int
    descriptors_after: int
    threads_before: int
    threads_after: int
    # GPUs that were lost are watched for XIDs on a thread of their own afterwards.
    threads_to_spare: int = 0

    @property
    def bytes(self) -> int:
        """Growth of resident memory."""
        return self.bytes_after - self.bytes_before

    @property
    def is_leak(self) -> bool:
        """Whether anything has grown, memory by more than its normal variation."""
        return (
            self.bytes > GROWTH_MAX_BYTES
            or self.descriptors_after > self.descriptors_before
            or self.threads_after > self.threads_before + self.threads_to_spare
        )

    def __str__(self) -> str:
        return (
            f"resident {self.bytes_before / 1e6:.1f} -> {self.bytes_after / 1e6:.1f} MB, "
            f"descriptors {self.descriptors_before} -> {self.descriptors_after}, "
            f"threads {self.threads_before} -> {self.threads_after}"
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process uses at one moment of the simulated clock."""

    day: float
    bytes: int
    descriptors: int
    threads: int
    state_file_bytes: int
    series: int

    def __str__(self) -> str:
        return (
            f"day {self.day:5.2f}  resident {self.bytes / 1e6:6.2f} MB  descriptors "
            f"{self.descriptors}  threads {self.threads}  state file {self.state_file_bytes / 1e3:5.1f} kB  "
            f"series {self.series}"
        )
