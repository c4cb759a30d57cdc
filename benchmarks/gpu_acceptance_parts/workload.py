"""The workloads' process: `python -m benchmarks.gpu_acceptance_parts.workload cuda|cpu`.

One request a line on standard input, one answer a line on standard output, both JSON. Apart from
the product's own worker, it is the only process of the acceptance that runs torch on the device.
Instants in answers are those of the monotonic clock, which all processes of a host share.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_acceptance_parts.torch_workloads import (
    TorchDevice,
    Transformer,
    make_copy,
    make_gemm,
    set_up_precision,
)
from benchmarks.gpu_acceptance_parts.truth import (
    TransformerShape,
    copy_bytes,
    decode_step,
    gemm_flop,
    prefill_step,
)


# Work is enqueued in batches of about this long and then waited for.
_BATCH_SECONDS = 0.01
_WARM_RUNS = 3
_SWEEP_RUNS = 10


class Workloads:
    """One method a request; `device` is opened by the first that needs it."""

    def __init__(self, kind: str) -> None:
        self.device = TorchDevice(kind)
        self._transformer: tuple[dict[str, Any], Transformer] | None = None

    def open(self) -> dict[str, Any]:
        """Open the device's context and say what it is."""
        if self.device.is_cuda:
            torch.zeros(1, device="cuda")
        self.device.wait()
        return self.device.properties()

    def stage(self, precision: str, shape: list[int]) -> dict[str, Any]:
        """Run one GEMM of a precision, and keep only the memory that the libraries keep."""
        run = make_gemm(self.device, precision, _shape(shape))
        run()
        self.device.wait()
        del run
        self.device.free()
        return {}

    def clock(self) -> dict[str, Any]:
        """The SM clock now."""
        return {"hertz": self.device.clock_hertz()}

    def gemm(
        self, precision: str, shape: list[int], seconds: float, duty: float, period: float
    ) -> dict[str, Any]:
        """GEMMs for some seconds, busy for the share `duty` of each period."""
        run = make_gemm(self.device, precision, _shape(shape))
        done = self._loop(run, seconds, duty, period)
        self.device.free()
        return done | {"flop": done["runs"] * gemm_flop(*shape)}

    def copy(self, size_bytes: int, seconds: float, duty: float, period: float) -> dict[str, Any]:
        """Copies in device memory for some seconds."""
        done = self._loop(make_copy(self.device, size_bytes), seconds, duty, period)
        self.device.free()
        return done | {"bytes": done["runs"] * copy_bytes(size_bytes)}

    def transformer(
        self, model: dict[str, Any], prefills: int, decodes: int, seconds: float, stop: str = ""
    ) -> dict[str, Any]:
        """Rounds of prefill and decode steps for some seconds, or until the file `stop` exists."""
        shape = TransformerShape(**model["shape"])
        built = self._built(model, shape)
        prompt = built.prompt(model["prompt_tokens"])
        steps = [*[lambda: built.prefill(prompt)] * prefills, *[built.decode] * decodes]
        for step in steps[: prefills + _WARM_RUNS]:
            step()
        self.device.wait()
        ends: list[float] = []
        rounds, begin = 0, time.monotonic()
        # Looking for the file is a system call of a microsecond; a step takes a thousand.
        while time.monotonic() - begin < seconds and not (stop and Path(stop).exists()):
            for step in steps:
                step()
                # A server samples a token after each step, and so do we: one step is in flight.
                self.device.wait()
                ends.append(time.monotonic())
            rounds += 1
        prefill = prefill_step(shape, model["prompt_tokens"])
        decode = decode_step(shape, model["batch"], model["context_tokens"])
        return {
            "begin": begin,
            "end": ends[-1],
            "ends": ends if prefills == 0 else [],
            "tokens_per_step": decode.tokens,
            # The steps before the loop are work as well, and the counters have counted them.
            "linear_flop": _total(
                prefills, decodes, rounds, prefill.linear_flop, decode.linear_flop
            ),
            "attention_flop": _total(
                prefills, decodes, rounds, prefill.attention_flop, decode.attention_flop
            ),
            "bytes": None
            if prefills
            else (decode.dram_bytes or 0.0) * (decodes * rounds + min(decodes, _WARM_RUNS)),
        }

    def sweep(self, precision: str, sizes: list[int], seconds: float) -> dict[str, Any]:
        """Every (M, N, K) of `sizes`³ in random order until the time is over: rate and clock of each."""
        shapes = [(m, n, k) for m in sizes for n in sizes for k in sizes]
        random.Random(1).shuffle(shapes)
        until = time.monotonic() + seconds
        rows: list[dict[str, Any]] = []
        for shape in shapes:
            if time.monotonic() >= until:
                break
            rows.append({"shape": shape, **self._rate(precision, shape, _SWEEP_RUNS)})
        return {"rows": rows, "shapes": len(shapes)}

    def rate(
        self, precision: str, shape: list[int], seconds: float, zeros: bool = False
    ) -> dict[str, Any]:
        """FLOP/s and clock over some seconds of back-to-back runs on random data or zeros."""
        run = make_gemm(self.device, precision, _shape(shape), zeros=zeros)
        once = self._once(run)
        count = max(3, round(seconds / once))
        total = sum(self.device.seconds_of([run] * count, cold=False))
        clock = self.device.clock_hertz()
        del run
        self.device.free()
        return {"flops": count * gemm_flop(*shape) / total, "hertz": clock, "seconds": total}

    def ramp(self, shape: list[int], rest: float, seconds: float) -> dict[str, Any]:
        """After an idle time, the clock every few milliseconds of bf16 work."""
        run = make_gemm(self.device, "bf16", _shape(shape))
        once = self._once(run)
        batch = [run] * max(1, round(0.002 / once))
        self.device.wait()
        time.sleep(rest)
        samples: list[tuple[float, float]] = []
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < seconds:
            self.device.seconds_of(batch, cold=False)
            hertz = self.device.clock_hertz()
            if hertz is not None:
                samples.append((passed, hertz))
        return {"samples": samples}

    def _rate(self, precision: str, shape: tuple[int, int, int], runs: int) -> dict[str, Any]:
        run = make_gemm(self.device, precision, shape)
        for _ in range(_WARM_RUNS):
            run()
        before = self.device.clock_hertz()
        spans = self.device.seconds_of([run] * runs, cold=True)
        after = self.device.clock_hertz()
        clocks = [hertz for hertz in (before, after) if hertz]
        del run
        self.device.free()
        spans.sort()
        return {
            "flops": gemm_flop(*shape) / spans[len(spans) // 2],
            "hertz": sum(clocks) / len(clocks) if clocks else None,
        }

    def _once(self, run: Callable[[], object]) -> float:
        return min(self.device.seconds_of([run] * _WARM_RUNS, cold=False))

    def _loop(
        self, run: Callable[[], object], seconds: float, duty: float, period: float
    ) -> dict[str, Any]:
        """Batches of runs, each waited for, with pauses; all runs are counted, warm-up included."""
        once = self._once(run)
        busy = _BATCH_SECONDS if duty >= 1 else duty * period
        count = max(1, round(busy / once))
        # As long as when alone: a server's pauses do not grow when its steps take longer.
        rest = count * once * (1 / duty - 1)
        runs, begin = _WARM_RUNS, time.monotonic()
        worked = 0.0
        while (started := time.monotonic()) - begin < seconds:
            for _ in range(count):
                run()
            self.device.wait()
            runs += count
            took = time.monotonic() - started
            worked += took
            if rest > 0:
                time.sleep(rest)
        end = time.monotonic()
        return {"runs": runs, "begin": begin, "end": end, "duty": worked / (end - begin)}

    def _built(self, model: dict[str, Any], shape: TransformerShape) -> Transformer:
        if self._transformer is None or self._transformer[0] != model:
            self._transformer = None
            self.device.free()
            set_up_precision("fp32")
            built = Transformer(self.device, shape, model["batch"], model["context_tokens"])
            self._transformer = (model, built)
        return self._transformer[1]


def _total(prefills: int, decodes: int, rounds: int, of_prefill: float, of_decode: float) -> float:
    """All steps' work, those before the loop included: every prefill once, and up to three decodes."""
    warm = prefills * of_prefill + min(decodes, _WARM_RUNS) * of_decode
    return rounds * (prefills * of_prefill + decodes * of_decode) + warm


def _shape(values: list[int]) -> tuple[int, int, int]:
    m, n, k = values
    return m, n, k


def main() -> None:
    torch.set_grad_enabled(mode=False)
    torch.manual_seed(1)
    # On the host processor one thread: a rehearsal leaves room for the daemon beside it.
    torch.set_num_threads(1)
    workloads = Workloads(sys.argv[1])
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": getattr(workloads, name)(**arguments)}
        except Exception as error:
            text = (str(error).strip().splitlines() or ["no message"])[0]
            answer = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
