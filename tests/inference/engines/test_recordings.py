"""Recorded expositions of real engines, with the right values worked by hand.

The model of the vLLM recordings: hidden 256, 4 layers, 8 query and 2 key-value heads of 32, MLP 704,
vocabulary 1024, bf16. So 5,636,096 FLOPs a token, 524,288 for its logits, 4096 for a query and key;
6,160,384 bytes of weights a pass, 1024 bytes of cache a token.
"""

from pathlib import Path

import pytest

from exporter.errors import Reason
from exporter.inference.account import Account
from exporter.inference.config import WorkloadConfig
from exporter.inference.engines import ENGINES
from exporter.inference.scraper import Scraper


RECORDINGS = Path(__file__).parent / "recordings"
MODEL = Path(__file__).parent / "recorded-model.json"
LINEAR, LOGITS, PAIR, WEIGHTS, CACHE = 5_636_096, 524_288, 4096, 6_160_384, 1024


class Replay:
    """Scrapes recordings in turn and accounts for them."""

    def __init__(self, engine="vllm"):
        self.account = Account(WorkloadConfig("chat", model=MODEL), locate=lambda _name: MODEL)
        self.texts, self.now, self.reading = [], 0.0, None
        self.scraper = Scraper(
            "chat",
            ENGINES[engine],
            "http://127.0.0.1:1/metrics",
            self.add,
            fetch=lambda _url, _timeout: self.texts.pop(0),
            clock=lambda: self.now,
            wall_clock=lambda: 1.8e9 + self.now,
        )

    def add(self, reading):
        self.reading = reading
        self.account.add(reading, 1)

    def scrape(self, name, **replaced):
        text = (RECORDINGS / f"{name}.prom").read_text()
        for old, new in replaced.items():
            text = text.replace(old, new)
        self.texts.append(text)
        self.now += 15
        self.scraper.scrape()
        return self.account.models()


def requests(count, prompt, answer, passes):
    """Prefill FLOPs, decode FLOPs and bytes of equal requests."""
    prefill = prompt * LINEAR + prompt * (prompt + 1) // 2 * PAIR + LOGITS
    pairs = (answer - 1) * prompt + (answer - 1) * answer // 2
    decode = (answer - 1) * (LINEAR + LOGITS) + pairs * PAIR
    cache = (prompt + answer - 1 + pairs) * CACHE
    return count * prefill, count * decode, passes * WEIGHTS + count * cache


class TestVllm:
    @pytest.mark.parametrize(("name", "passes"), [("api-server-count-2", 201), ("dp2", 2 * 201)])
    def test_several_api_servers(self, name, passes):
        """16 requests of 100 and 200 tokens: 401 counts of 201 passes; 802 with two ranks."""
        replay = Replay()
        replay.scrape(f"vllm-0.32.0-{name}-idle")
        (totals,) = replay.scrape(f"vllm-0.32.0-{name}-loaded")

        prefill, decode, dram_bytes = requests(16, 100, 200, passes)
        assert (totals.prefill_tokens, totals.decode_tokens) == (1600, 3200)
        assert totals.cost.prefill_flop == pytest.approx(prefill, rel=1e-3)
        assert totals.cost.decode_flop == pytest.approx(decode, rel=1e-3)
        assert totals.cost.dram_bytes == pytest.approx(dram_bytes, rel=0.01)

    def test_speculation(self):
        """Two requests of 160 and 125 tokens; 245 drafts, 173 accepted, 72 thrown away."""
        replay = Replay()
        replay.scrape("vllm-0.32.0-cpu-idle", **{"/models/llama": "acme/tiny-llama"})
        (totals,) = replay.scrape(
            "vllm-0.32.0-ngram-spec-alias",
            **{"process_start_time_seconds 1.79601016118e+09": "process_start_time_seconds 1.9e9"},
        )

        assert (totals.prefill_tokens, totals.decode_tokens) == (320, 250)
        assert totals.rejected_tokens == 72
        prefill, _decode, _bytes = requests(2, 160, 125, 84)
        assert totals.cost.prefill_flop == pytest.approx(prefill, rel=0.01)

    def test_embeddings(self):
        """10 texts of 200 tokens and no answer: no logits, no decoding."""
        replay = Replay()
        replay.scrape("vllm-0.32.0-cpu-idle", **{"/models/llama": "/models/qwen3"})
        (totals,) = replay.scrape(
            "vllm-0.32.0-embeddings",
            **{"process_start_time_seconds 1.79601038137e+09": "process_start_time_seconds 1.9e9"},
        )

        assert (totals.prefill_tokens, totals.decode_tokens) == (2000, 0)
        right = 2000 * LINEAR + 10 * 200 * 201 // 2 * PAIR
        assert totals.cost.prefill_flop == pytest.approx(right, rel=0.01)
        assert totals.cost.decode_flop == 0

    def test_an_aborted_request(self):
        """One prompt of 200 tokens never ended; nothing runs: nothing is under way."""
        replay = Replay()
        replay.scrape("vllm-0.32.0-cpu-idle")
        replay.scrape(
            "vllm-0.32.0-cpu-after-load",
            **{"process_start_time_seconds 1.79600842126e+09": "process_start_time_seconds 1.9e9"},
        )
        (totals,) = replay.account.models()

        assert (totals.prefill_tokens, totals.cached_tokens) == (20_362, 1408)
        assert totals.progress.aborted.requests == 1
        assert totals.progress.prefills == ()

    def test_an_estimate_that_stays_0_is_absent(self):
        """The counter is exposed before anything was served, and where it is off."""
        replay = Replay()
        (totals,) = replay.scrape("vllm-0.32.0-cpu-idle")

        assert totals.reading.engine_flop is None

    def test_behind_ray(self):
        """The sums of its histograms are built from midpoints: counters are read, lengths are not."""
        (totals,) = Replay("vllm").scrape("ray-2.60.0-vllm-names")

        assert totals.reading.in_flight is None
        assert (totals.reading.passes, totals.reading.observed_passes) == (0, None)


class TestSglang:
    def test_priorities_are_not_added_to_their_sum(self):
        """4 requests run: 3 of priority 0 and 1 of priority 1."""
        (totals,) = Replay("sglang").scrape("sglang-0.5.23-collector-priority-1")

        assert (totals.reading.running_requests, totals.reading.waiting_requests) == (4, 2)

    def test_requests_that_ended(self):
        """4 requests of 1000 prompt tokens, 200 of them cached, and 200 answered; none is left."""
        replay = Replay("sglang")
        replay.scrape("sglang-0.5.23-collector-plain-0")
        (totals,) = replay.scrape("sglang-0.5.23-collector-plain-1")

        assert (totals.prefill_tokens, totals.decode_tokens, totals.cached_tokens) == (
            800,
            200,
            200,
        )
        assert (totals.reading.finished.requests, totals.reading.in_flight.requests) == (4, 0)
        assert (totals.reading.prefill_passes, totals.reading.decode_passes) == (1, 49)
        assert totals.reading.role == "both"

    def test_a_decode_server_prefills_nothing(self):
        """Its prompts were computed by another server."""
        replay = Replay("sglang")
        decode = {'engine_type="unified"': 'engine_type="decode"'}
        replay.scrape("sglang-0.5.23-collector-plain-0", **decode)
        (totals,) = replay.scrape("sglang-0.5.23-collector-plain-1", **decode)

        assert (totals.prefill_tokens, totals.external_tokens) == (0, 1000)
        assert totals.reading.role == "decode"
        assert totals.cost.prefill_flop == 4 * LOGITS

    def test_retracted_requests_are_computed_once(self):
        """The effective counter leaves out what is computed again, and wins once it counts."""
        effective = 'sglang:prefill_effective_tokens_total{engine_type="unified",mode='
        rest = ',model_name="/models/llama",moe_ep_rank="0",pp_rank="0",tp_rank="0"} '
        replay = Replay("sglang")
        replay.scrape("sglang-0.5.23-collector-plain-0")
        (totals,) = replay.scrape(
            "sglang-0.5.23-collector-plain-1",
            **{
                f'{effective}"input"{rest}0.0': f'{effective}"input"{rest}700.0',
                f'{effective}"device_hit"{rest}0.0': f'{effective}"device_hit"{rest}200.0',
            },
        )

        assert (totals.prefill_tokens, totals.cached_tokens) == (700, 200)


class TestTensorRtLlm:
    def test_label_names_of_its_source(self):
        """8 GPUs, 8-way tensor parallel, fp8 weights and cache."""
        (totals,) = Replay("tensorrt_llm").scrape("trtllm-label-names-from-source")

        said = totals.reading
        assert (said.tensor_parallel, said.pipeline_parallel, said.gpus) == (8, 1, 8)
        assert (said.precision, said.cache_data_type) == ("fp8", "fp8")


def test_llama_cpp_is_not_vllm():
    """Another engine's metrics under a configured address are a failure with a reason."""
    replay = Replay("vllm")
    replay.scrape("llama.cpp-b11434-loaded")

    assert replay.scraper.state().reason is Reason.WRONG_ENGINE
