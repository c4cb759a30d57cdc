"""A real llama.cpp on this host's processor, and what a default flopwatch says of it, as one table.

    python benchmarks/engine_cpu.py        about two minutes; the first time it also builds llama.cpp

* flopwatch gets no address: it finds the engine and its model by the engine's process, and the
  processor as its device;
* useful FLOP and bytes against the sum over every token, as llama.cpp's answers say: within 3 % and 5 %;
* MFU and MBU over the whole load: those FLOP and bytes over the time, over the peaks that flopwatch
  exports. The gauges' largest values meanwhile are printed beside them.

The model is a Llama of about 150 million random weights in bf16, which no cache holds. The load of the
host is printed, because it is part of every figure. The exit code is 1 when a target is missed.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gguf
from benchmarks.engine_accuracy.environments import llama_server
from benchmarks.engine_accuracy.servers import Server, running, wait_for
from benchmarks.programs import free_port
from flopwatch.processor import read_processor


MODEL = gguf.Llama()
_CACHED = MODEL.key_value_heads * MODEL.head_size
_QUERIES = MODEL.heads * MODEL.head_size
# Multiplications of one token in all layers: q, k and v, output, and the three of the MLP.
_LAYER = MODEL.hidden * (2 * _QUERIES + 2 * _CACHED) + 3 * MODEL.hidden * MODEL.intermediate
LINEAR_FLOP = 2 * MODEL.layers * _LAYER
LOGITS_FLOP = 2 * MODEL.hidden * MODEL.vocabulary
# Of one query and one key: their product, and that of the weight and the value.
PAIR_FLOP = MODEL.layers * 4 * _QUERIES
WEIGHT_BYTES = 2 * (MODEL.layers * _LAYER + MODEL.hidden * MODEL.vocabulary)
CACHE_BYTES = MODEL.layers * 2 * _CACHED * 2
UBATCH = 512  # llama.cpp's default: a longer prompt takes several passes
REQUESTS = ((400, 20), (30, 60), (600, 15))
FLOP_TOLERANCE, BYTES_TOLERANCE = 0.03, 0.05
FIND_SECONDS = 180.0


class Truth:
    """The work that the answers report."""

    def __init__(self) -> None:
        self.tokens = self.flop = self.bytes = 0.0

    def add(self, new: int, cached: int, answer: int) -> None:
        """A request: `new` of its prompt computed, `cached` found, `answer` tokens generated."""
        whole = new + cached
        pairs = new * cached + new * (new + 1) // 2
        decoded = answer - 1  # the prompt's last pass yields the first token
        decode_pairs = decoded * whole + decoded * answer // 2
        passes = -(-new // UBATCH)
        prompt_reads = cached * passes + UBATCH * passes * (passes - 1) // 2
        self.tokens += new + answer
        self.flop += (new + decoded) * LINEAR_FLOP + (1 + decoded) * LOGITS_FLOP
        self.flop += (pairs + decode_pairs) * PAIR_FLOP
        self.bytes += (passes + decoded) * WEIGHT_BYTES
        self.bytes += (new + decoded + prompt_reads + decode_pairs) * CACHE_BYTES


class Watched:
    """A daemon with a default configuration."""

    def __init__(self, folder: Path, engine_port: int) -> None:
        # Other engines of this host are found as well.
        self._workload = f'workload="llama_cpp-{engine_port}"'
        self._port = free_port()
        config = folder / "flopwatch.yaml"
        settings = {
            "state_file": str(folder / "state.json"),
            "sources": {"nvml": "off"},
        }
        config.write_text(json.dumps(settings))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "flopwatch", "serve", "--config.file", str(config)),
                *("--web.listen-address", f"127.0.0.1:{self._port}"),
            ],
            stderr=(folder / "flopwatch.log").open("wb"),
        )

    def series(self) -> dict[str, dict[str, float]]:
        """All samples except those of other engines: labels as written, by family."""
        found: dict[str, dict[str, float]] = {}
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                foreign = 'workload="' in line and self._workload not in line
                if not line.startswith("#") and not foreign:
                    name, _, value = line.rpartition(" ")
                    family, _, labels = name.partition("{")
                    found.setdefault(family, {})[labels] = float(value)
        return found

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def ask(server: Server, prompt: int, answer: int, truth: Truth, source: random.Random) -> None:
    """Send a request of random tokens and add what its answer says."""
    tokens = [source.randrange(3, MODEL.vocabulary) for _ in range(prompt)]
    body = {"prompt": tokens, "n_predict": answer, "ignore_eos": True, "cache_prompt": False}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.request("POST", "/completion", json.dumps(body))
    said = json.loads(connection.getresponse().read())["timings"]
    connection.close()
    truth.add(said["prompt_n"], said["cache_n"], said["predicted_n"])


def total(series: dict[str, dict[str, float]], family: str) -> float:
    """The sum over a family; 0 where there is none."""
    return sum(series.get(family, {}).values())


def ready(series: dict[str, dict[str, float]]) -> bool:
    """Whether the model is described, and both peaks of the processor are known."""
    return (
        total(series, "flopwatch_model_described") == 1
        and "flopwatch_peak_dram_bandwidth_bytes_per_second" in series
        and "flopwatch_probe_flops" in series
    )


def until_ready(watched: Watched) -> float | None:
    """Seconds until flopwatch has discovered everything; None if it does not."""
    started = time.monotonic()
    while time.monotonic() - started < FIND_SECONDS:
        try:
            if ready(watched.series()):
                return time.monotonic() - started
        except OSError:
            pass
        time.sleep(0.5)
    return None


def measured(server: Server, watched: Watched, seconds: float) -> list[tuple[str, str, str, str]]:
    """Load the engine for this many seconds, one request at a time, and compare."""
    truth, source, mfu, mbu = Truth(), random.Random(1), [], []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(1.0):
            series = watched.series()
            mfu.extend(series.get("flopwatch_model_flops_utilization_ratio", {}).values())
            mbu.extend(series.get("flopwatch_model_bandwidth_utilization_ratio", {}).values())

    before, began = watched.series(), time.monotonic()
    looking = threading.Thread(target=look)
    looking.start()
    while time.monotonic() - began < seconds:
        for prompt, answer in REQUESTS:
            ask(server, prompt, answer, truth, source)
    took = time.monotonic() - began
    time.sleep(3)  # the scrape of the last request
    ended.set()
    looking.join()
    after = watched.series()
    grown = {
        family: total(after, family) - total(before, family)
        for family in ("flopwatch_model_flop_total", "flopwatch_model_dram_bytes_total")
    }
    (precision,) = (
        labels.partition('precision="')[2].partition('"')[0]
        for labels in after["flopwatch_model_info"]
    )
    peak = next(
        value
        for labels, value in after["flopwatch_peak_flops"].items()
        if f'precision="{precision}"' in labels
    )
    bandwidth = total(after, "flopwatch_peak_dram_bandwidth_bytes_per_second")
    rows = []
    for what, family, true, tolerance in (
        ("useful FLOP", "flopwatch_model_flop_total", truth.flop, FLOP_TOLERANCE),
        ("bytes", "flopwatch_model_dram_bytes_total", truth.bytes, BYTES_TOLERANCE),
    ):
        error = grown[family] / true - 1
        met = abs(error) <= tolerance
        rows.append(
            (
                f"{what} counted over true",
                f"{error:+.2%}",
                f"within {tolerance:.0%}",
                "met" if met else "MISSED",
            )
        )
    highest = lambda values: f"{max(values):.1%}" if values else "absent"  # noqa: E731
    middle = lambda values: f"{statistics.median(values):.1%}" if values else "absent"  # noqa: E731
    flops, rate = truth.flop / took, truth.bytes / took
    return [
        ("load", f"{truth.tokens:.0f} tokens in {took:.0f} s", "", ""),
        *rows,
        ("useful FLOP/s", f"{flops / 1e9:.1f} GFLOP/s", "", ""),
        (f"peak, {precision}", f"{peak / 1e9:.0f} GFLOP/s", "", ""),
        ("MFU by the answers", f"{flops / peak:.1%}", "", ""),
        ("MFU, gauge: median, highest", f"{middle(mfu)}, {highest(mfu)}", "present", _there(mfu)),
        ("bytes/s", f"{rate / 1e9:.1f} GB/s", "", ""),
        ("peak, memory", f"{bandwidth / 1e9:.1f} GB/s", "", ""),
        ("MBU by the answers", f"{rate / bandwidth:.1%}", "", ""),
        ("MBU, gauge: median, highest", f"{middle(mbu)}, {highest(mbu)}", "present", _there(mbu)),
    ]


def _there(values: list[float]) -> str:
    return "met" if values else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.gguf"
        gguf.write(model, MODEL, words=True)
        port = free_port()
        command = [
            *(str(llama_server()), "--model", str(model), "--metrics", "--port", str(port)),
            *("--parallel", "1", "--ctx-size", "4096"),
            *("--threads", str(read_processor().threads)),
        ]
        with running(command, dict(os.environ), folder / "llama.log") as process:
            server = Server(port, str(model), folder, folder / "llama.log", process)
            wait_for(server, "/health")
            watched = Watched(folder, port)
            try:
                took = until_ready(watched)
                if took is None:
                    print((folder / "flopwatch.log").read_text()[-3000:], file=sys.stderr)
                    sys.exit("flopwatch did not find the engine, its model and the peaks by itself")
                gpus = ", ".join(watched.series()["flopwatch_workload_gpu_info"])
                rows = [
                    ("found: engine, model, peaks", f"{took:.1f} s", "", ""),
                    ("its device", gpus.partition('gpu="')[2].partition('"')[0], "cpu0", ""),
                    *measured(server, watched, arguments.seconds),
                ]
            finally:
                watched.close()
    rows.append(("load before and after", f"{before:.1f}, {os.getloadavg()[0]:.1f}", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    return 1 if any(row[3] == "MISSED" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
