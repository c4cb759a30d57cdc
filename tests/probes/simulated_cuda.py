"""CUDA as `probes.cuda` sees it, on a host and a device whose times are known. No GPU is touched.

The host enqueues work, 3 µs a call; the device executes it in order. What the events say on a real
GPU is tested there only (`-m gpu`).
"""

import types

import torch


CALL_SECONDS = 3e-6
# From a call on an idle stream to the start of its work.
START_SECONDS = 6e-6
# Between two pieces of work that are enqueued already.
GAP_SECONDS = 1e-6
CONTEXT_BYTES = 400_000_000


class SimulatedCuda:
    """Replaces `torch.cuda`."""

    def __init__(self, units=132, capability=(9, 0)):
        self.units, self.capability = units, capability
        self.clock_hertz = 1.8e9
        self.host = self.free_at = 0.0
        self.longest = 0.0
        # Moments at which a tenant takes the device, and for how long; each happens once.
        self.slices = []
        # Names of calls before which the host is delayed, with the seconds.
        self.stalls = []
        self.broken = None
        self.selected = []
        self.total_bytes = 80_000_000_000
        self.outside_bytes = CONTEXT_BYTES
        self.reserved_bytes = 0
        outer = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                outer.call("record")
                self.at = max(outer.free_at, outer.host)

            def synchronize(self):
                outer.host = max(outer.host, self.at)

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        self.Event = Event

    def call(self, name):
        """The host's part of a call."""
        if self.stalls and self.stalls[0][0] == name:
            self.host += self.stalls.pop(0)[1]
        self.host += CALL_SECONDS

    def enqueue(self, seconds, name="launch"):
        """Work of this many seconds, after what is enqueued already."""
        self.call(name)
        start = max(self.free_at + GAP_SECONDS, self.host + START_SECONDS)
        self.longest = max(self.longest, seconds)
        end = start + seconds
        while self.slices and self.slices[0][0] < end:
            at, taken = self.slices.pop(0)
            end += taken if at >= start else max(0.0, at + taken - start)
        self.free_at = end

    def perf_counter(self):
        return self.host

    def perf_counter_ns(self):
        return round(self.host * 1e9)

    def set_device(self, ordinal):
        self.selected.append(ordinal)

    def init(self):
        pass

    def device_count(self):
        return 1

    def mem_get_info(self, ordinal):
        return (self.total_bytes - self.outside_bytes - self.reserved_bytes, self.total_bytes)

    def memory_reserved(self, ordinal):
        return self.reserved_bytes

    def get_device_properties(self, ordinal):
        return types.SimpleNamespace(
            multi_processor_count=self.units,
            major=self.capability[0],
            minor=self.capability[1],
            L2_cache_size=50 * 2**20,
        )

    def current_stream(self, ordinal):
        return self

    def synchronize(self):
        """Of the current stream."""
        if self.broken is not None:
            raise self.broken
        self.host = max(self.host, self.free_at) + CALL_SECONDS

    def _sleep(self, cycles):
        self.enqueue(cycles / self.clock_hertz, "spin")

    def install(self, monkeypatch, module):
        """Make `module` see this CUDA, and tensors in host memory."""
        stub = types.SimpleNamespace(
            cuda=self,
            device=lambda kind, ordinal=0: torch.device("cpu"),
            version=types.SimpleNamespace(cuda="13.0"),
            __version__="2.13",
        )
        monkeypatch.setattr(module, "torch", stub)
        monkeypatch.setattr(module, "time", self)
        real = module.Arena

        def arena(place, size, *, pinned=False):
            # The allocator's segments are of 2 MiB, and of 20 for what is below 10.
            step = 20 * 2**20 if size < 10 * 2**20 else 2 * 2**20
            if not pinned:
                self.reserved_bytes += -(-size // step) * step
            return real(place, size)

        monkeypatch.setattr(module, "Arena", arena)
        return self
