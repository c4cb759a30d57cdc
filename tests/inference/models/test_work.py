"""What a window of work costs, worked by hand on a tiny model."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.inference.launch import locate_config, locate_in_process
from exporter.inference.models.cost import Cost, Stretch, Work, cost_of
from exporter.inference.models.files import load_model
from tests.inference.models.shapes import MIXTURE, TINY, WINDOWED


LLAMA = load_model(Path(__file__).parent / "configs" / "llama-3.1-8b.json")
# Two prompts of 6 tokens, 2 of them cached, and answers of 5 tokens each, of which the first comes
# out of the prompt's pass, in 2 passes with a prompt and 4 without.
WORK = Work(
    prefill_tokens=8,
    decode_tokens=10,
    prompts=2,
    prefills=(Stretch(2, 2, 4),),
    decodes=(Stretch(2, 6, 4),),
    prefill_passes=2,
    decode_passes=4,
)


class TestByHand:
    def test_prefill_flop(self):
        """8·2304 linear, 2 prompts of (4 new after 2 cached: 18 pairs)·64, 2·160 for logits."""
        assert cost_of(TINY, WORK).prefill_flop == 18432 + 2 * 18 * 64 + 320

    def test_decode_flop(self):
        """8 tokens of 2304 + 160; each answer attends to 7 + 8 + 9 + 10 = 34 keys."""
        assert cost_of(TINY, WORK).decode_flop == 8 * (2304 + 160) + 2 * 34 * 64

    def test_bytes(self):
        """6 passes of 2464; 16 tokens written of 32; 2·34 read; 2 prefixes of 2."""
        assert cost_of(TINY, WORK).dram_bytes == 6 * 2464 + (16 + 68 + 4) * 32

    def test_a_window_looks_back_four_tokens(self):
        """One full layer (32 FLOPs a pair) and one of 4 keys: 34 and 16 pairs; each half the cache."""
        cost = cost_of(WINDOWED, dataclasses.replace(WORK, prefills=()))

        assert cost.decode_flop == 8 * (2304 + 160) + 2 * (34 + 16) * 32
        assert cost.dram_bytes == 6 * 2464 + 16 * 32 + 2 * (34 + 16) * 16

    def test_speculation_reads_the_cache_once_for_several_tokens(self):
        """Two tokens a pass: half the cache reads; 4 rejected drafts are written, not counted."""
        work = dataclasses.replace(WORK, acceptance_length=2.0, rejected_tokens=4)

        cost = cost_of(TINY, work)

        assert cost.decode_flop == cost_of(TINY, WORK).decode_flop
        assert cost.dram_bytes == 6 * 2464 + (20 + 34 + 4) * 32

    def test_chunks_read_what_the_chunks_before_them_wrote(self):
        """4 new tokens in two chunks after 2 cached: 2 and 4 tokens are read."""
        work = dataclasses.replace(WORK, chunk_tokens=2)

        assert cost_of(TINY, work).dram_bytes == 6 * 2464 + (16 + 68 + 2 * (2 + 4)) * 32

    def test_an_encoder_computes_no_logits(self):
        """No token was generated: the head is not multiplied."""
        work = Work(prefill_tokens=4, prompts=1, prefills=(Stretch(1, 0, 4),))

        assert cost_of(TINY, work).prefill_flop == 4 * 2304 + 10 * 64

    def test_ranks_share_the_experts(self):
        """Two ranks of a pass each, a token each: the experts of two tokens, read once for both."""
        alone = Work(decode_tokens=2, decode_passes=2)
        together = dataclasses.replace(alone, ranks=2)

        # Of 4 experts one token meets 2, two tokens meet 3 on average; 240 bytes an expert.
        assert cost_of(MIXTURE, alone).dram_bytes - cost_of(
            MIXTURE, together
        ).dram_bytes == pytest.approx((2 * 2 - 3) * 240)

    def test_work_that_is_taken_back(self):
        """The excess of an estimate is subtracted in a later window."""
        half = Stretch(-1, 6, 4)

        assert cost_of(TINY, Work(decodes=(half,))).decode_flop == -34 * 64

    def test_an_idle_window_costs_nothing(self):
        """No tokens, no FLOPs, no bytes."""
        assert cost_of(TINY, Work()) == Cost(0.0, 0.0, 0.0)


class TestProperties:
    @given(
        parts=st.lists(
            st.tuples(st.integers(0, 5000), st.integers(1, 5000)), min_size=1, max_size=6
        )
    )
    def test_a_sequence_costs_the_same_in_any_number_of_pieces(self, parts):
        """Attention of a prompt computed in two stretches is that of one: pairs add up."""
        whole = sum(new for _cached, new in parts)
        pieces, before = [], 0
        for _cached, new in parts:
            pieces.append(Stretch(1, before, new))
            before += new

        one = cost_of(LLAMA, Work(prefills=(Stretch(1, 0, whole),))).prefill_flop
        many = cost_of(LLAMA, Work(prefills=tuple(pieces))).prefill_flop

        assert many == pytest.approx(one)

    @given(
        computed=st.floats(0, 1e9),
        generated=st.floats(0, 1e9),
        prompts=st.floats(0, 1e6),
        passes=st.floats(0, 1e6),
    )
    def test_costs_of_whole_requests_are_never_negative(self, computed, generated, prompts, passes):
        """Whatever counters an engine shows, nothing decreases."""
        cost = cost_of(LLAMA, Work(computed, generated, prompts, decode_passes=passes))

        assert min(cost.prefill_flop, cost.decode_flop, cost.dram_bytes) >= 0


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


class TestLocateInAProcess:
    """A container's files are read as its own process sees them."""

    def process(self, tmp_path, **environment):
        root = tmp_path / "7" / "root"
        root.mkdir(parents=True)
        lines = "\0".join(f"{name}={value}" for name, value in environment.items())
        (tmp_path / "7" / "environ").write_text(f"SECRET=x\0{lines}\0")
        (tmp_path / "7" / "cwd").symlink_to("/work")
        return root

    def test_a_folder_of_the_container(self, tmp_path):
        """/models/chat of the process, not of the host."""
        root = self.process(tmp_path)
        (root / "models/chat").mkdir(parents=True)
        (root / "models/chat/config.json").write_text("{}")

        found = locate_in_process(7, "/models/chat", str(tmp_path))

        assert found == root / "models/chat/config.json"

    def test_a_path_from_its_working_folder(self, tmp_path):
        """llama-server -m model.gguf, started in /work."""
        root = self.process(tmp_path)
        (root / "work").mkdir()
        (root / "work/model.gguf").write_text("GGUF")

        assert locate_in_process(7, "model.gguf", str(tmp_path)) == root / "work/model.gguf"

    def test_its_hub_cache(self, tmp_path):
        """Where its own environment says, with links from snapshots to blobs."""
        root = self.process(tmp_path, HF_HOME="/cache")
        folder = root / "cache/hub/models--acme--tiny"
        (folder / "snapshots/1").mkdir(parents=True)
        (folder / "blobs").mkdir()
        (folder / "blobs/x").write_text("{}")
        (folder / "snapshots/1/config.json").symlink_to("../../blobs/x")

        assert locate_in_process(7, "acme/tiny", str(tmp_path)) == folder / "blobs/x"

    def test_links_do_not_lead_to_the_host(self, tmp_path):
        """An absolute link means a place in the container."""
        root = self.process(tmp_path)
        secret = tmp_path / "host-config.json"
        secret.write_text("{}")
        (root / "models").mkdir()
        (root / "models/config.json").symlink_to(secret)
        (root / "up").mkdir()
        (root / "up/config.json").symlink_to("../../../host-config.json")

        assert locate_in_process(7, "/models", str(tmp_path)) is None
        assert locate_in_process(7, "/up", str(tmp_path)) is None

    def test_a_link_to_itself(self, tmp_path):
        """Followed for a while, then given up."""
        root = self.process(tmp_path)
        (root / "loop").symlink_to("loop")

        assert locate_in_process(7, "/loop", str(tmp_path)) is None
