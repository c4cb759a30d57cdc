"""What a window of work costs, worked by hand on a tiny model."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.inference.models.config import load_description
from exporter.inference.models.locate import locate_config
from exporter.inference.models.work import Cost, Work, cost_of
from tests.inference.models.shapes import TINY


LLAMA = load_description(Path(__file__).parent / "configs" / "llama-3.1-8b.json")
# Two prompts of 6 tokens, 2 of them cached, and answers of 5 tokens each at a mean context of 8,
# in 4 + 2 passes of which the engine counts all.
WORK = Work(
    prefill_tokens=8,
    cached_tokens=4,
    decode_tokens=10,
    prompts=2,
    passes=6,
    prompt_length=6,
    decode_context=8,
)


class TestByHand:
    def test_prefill_flops(self):
        """8·2304 linear, 2 prompts of (4 new after 2 cached: 18 pairs)·64, 2·160 for logits."""
        assert cost_of(TINY, WORK).prefill_flops == 18432 + 2 * 18 * 64 + 320

    def test_decode_flops(self):
        """The first token of each answer is prefill's: 8 tokens of 2304 + 160 + 8·64."""
        assert cost_of(TINY, WORK).decode_flops == 8 * (2304 + 160 + 512)

    def test_bytes(self):
        """6 passes of 2464; 16 tokens written of 32; 8 reads of 8·32; 2 prefixes of 2·32."""
        assert cost_of(TINY, WORK).dram_bytes == 6 * 2464 + 16 * 32 + 8 * 256 + 2 * 64

    def test_speculation_reads_the_cache_once_for_several_tokens(self):
        """Two tokens a pass: half the cache reads; 4 rejected drafts are written, not counted."""
        work = dataclasses.replace(WORK, acceptance_length=2.0, rejected_tokens=4)

        cost = cost_of(TINY, work)

        assert cost.decode_flops == cost_of(TINY, WORK).decode_flops
        assert cost.dram_bytes == 6 * 2464 + 20 * 32 + 4 * 256 + 2 * 64

    def test_passes_that_the_engine_does_not_count(self):
        """Two prompts: two passes; 8 tokens of 4 running sequences: two passes."""
        work = dataclasses.replace(WORK, passes=None, running_requests=4)

        assert cost_of(TINY, work).dram_bytes == 4 * 2464 + 16 * 32 + 8 * 256 + 2 * 64

    def test_passes_counted_by_phase(self):
        """One prefill and four decode passes."""
        work = dataclasses.replace(WORK, passes=None, prefill_passes=1, decode_passes=4)

        assert cost_of(TINY, work).dram_bytes == 5 * 2464 + 16 * 32 + 8 * 256 + 2 * 64

    def test_lengths_that_the_engine_does_not_say(self):
        """12 tokens of 2 prompts: 6 each; context 6 plus half of 5."""
        silent = dataclasses.replace(WORK, prompt_length=None, decode_context=None)
        said = dataclasses.replace(WORK, decode_context=8.5)

        assert cost_of(TINY, silent) == cost_of(TINY, said)

    def test_an_idle_window_costs_nothing(self):
        """No tokens, no FLOPs, no bytes."""
        assert cost_of(TINY, Work()) == Cost(0.0, 0.0, 0.0)

    def test_tokens_without_a_count_of_prompts(self):
        """An engine that says nothing but tokens still gets its linear FLOPs and attention."""
        cost = cost_of(TINY, Work(prefill_tokens=3, decode_tokens=1, decode_context=5))

        assert cost.prefill_flops == 6912 + 384
        assert cost.decode_flops == 2784


class TestProperties:
    @given(factor=st.integers(2, 50))
    def test_twice_the_work_costs_twice_as_much(self, factor):
        """Cost is additive over windows with the same means."""
        scaled = dataclasses.replace(
            WORK,
            prefill_tokens=WORK.prefill_tokens * factor,
            cached_tokens=WORK.cached_tokens * factor,
            decode_tokens=WORK.decode_tokens * factor,
            prompts=WORK.prompts * factor,
            passes=WORK.passes * factor,
        )

        one, many = cost_of(LLAMA, WORK), cost_of(LLAMA, scaled)

        assert many.prefill_flops == pytest.approx(factor * one.prefill_flops)
        assert many.decode_flops == pytest.approx(factor * one.decode_flops)
        assert many.dram_bytes == pytest.approx(factor * one.dram_bytes)

    @given(
        computed=st.floats(0, 1e9),
        cached=st.floats(0, 1e9),
        generated=st.floats(0, 1e9),
        prompts=st.none() | st.floats(0, 1e6),
        passes=st.none() | st.floats(0, 1e6),
    )
    def test_costs_are_never_negative(self, computed, cached, generated, prompts, passes):
        """Whatever counters an engine shows, nothing runs backwards."""
        cost = cost_of(
            LLAMA,
            Work(computed, cached, generated, prompts=prompts, passes=passes),
        )

        assert cost.prefill_flops >= 0
        assert cost.decode_flops >= 0
        assert cost.dram_bytes >= 0


class TestLocate:
    def test_a_local_folder(self, tmp_path):
        """An engine that serves a folder reports its path."""
        (tmp_path / "config.json").write_text("{}")

        assert locate_config(str(tmp_path)) == tmp_path / "config.json"

    def test_the_hub_cache(self, tmp_path):
        """A hub id is looked up in the hub's cache folder."""
        folder = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "abc"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

        found = locate_config("meta-llama/Llama-3.1-8B", {"HF_HUB_CACHE": str(tmp_path)})

        assert found == folder / "config.json"

    @pytest.mark.parametrize("name", ["../../etc", "a/..", "a/b/c", "", "gpt", "/nonexistent"])
    def test_other_names_are_not_looked_up(self, name, tmp_path):
        """A name from another program never leads outside the cache."""
        assert locate_config(name, {"HF_HUB_CACHE": str(tmp_path)}) is None
