"""FLOPs and bytes, worked by hand, and compared with vLLM's documented formulas."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.inference.models import LayerGroup, ModelDescription
from exporter.inference.models.attention import (
    GroupedAttention,
    block_pairs,
    causal_pairs,
    compressed_pairs,
)
from exporter.inference.models.cost import (
    cache_bytes_per_token,
    cache_bytes_read,
    decode_attention_flop,
    experts_touched,
    head_flop_per_token,
    linear_flop_per_token,
    prefill_attention_flop,
    stored_weight_bytes,
    weight_bytes_per_pass,
)
from exporter.inference.models.files import load_model
from tests.inference.models.shapes import MIXTURE, TINY, WINDOWED, decode_flop, prefill_flop


CONFIGS = Path(__file__).parent / "configs"
LLAMA = load_model(CONFIGS / "llama-3.1-8b.json")
DEEPSEEK = load_model(CONFIGS / "deepseek-v3.json")
SPARSE = load_model(CONFIGS / "deepseek-v3.2.json")
tokens = st.integers(min_value=1, max_value=5000)


class TestCausalPairs:
    def test_a_fresh_prompt(self):
        """Three tokens see 1 + 2 + 3 keys."""
        assert causal_pairs(3) == 6

    def test_after_a_cached_prefix(self):
        """Two tokens after three cached ones see 4 + 5 keys."""
        assert causal_pairs(2, 3) == 9

    def test_within_a_window(self):
        """Five tokens with a window of three see 1 + 2 + 3 + 3 + 3 keys."""
        assert causal_pairs(5, 0, 3) == 12

    def test_window_reached_while_decoding_on(self):
        """Three tokens after two cached ones, window four, see 3 + 4 + 4 keys."""
        assert causal_pairs(3, 2, 4) == 11

    @given(new=st.integers(1, 60), cached=st.integers(0, 60), window=st.integers(1, 80))
    def test_the_closed_form_is_the_sum(self, new, cached, window):
        """The formula equals the sum over tokens of min(position, window)."""
        assert causal_pairs(new, cached, window) == sum(
            min(cached + token, window) for token in range(1, new + 1)
        )

    @given(first=tokens, second=tokens, cached=st.integers(0, 5000))
    def test_a_prompt_in_two_chunks_costs_the_same(self, first, second, cached):
        """Chunked prefill neither adds nor saves pairs."""
        whole = causal_pairs(first + second, cached)

        assert whole == causal_pairs(first, cached) + causal_pairs(second, cached + first)


class TestByHand:
    def test_prefill(self):
        """3 tokens: 3·2·1152 linear, 6 pairs · 2 layers · 4·2·4, logits 2·8·10: 7456."""
        assert prefill_flop(TINY, 3) == 6912 + 384 + 160

    def test_prefill_after_a_prefix_cache_hit(self):
        """2 tokens after 3 cached: 2·2304 + 9·64 + 160; the cached ones cost nothing."""
        assert prefill_flop(TINY, 2, 3) == 4608 + 576 + 160

    def test_decode(self):
        """One token at context 5: 2304 + 160 + 5·64 = 2784; ten cost ten times that."""
        assert decode_flop(TINY, 1, 5) == 2784
        assert decode_flop(TINY, 10, 5) == 27840

    def test_windowed_decode(self):
        """At context 10 the full layer sees 10 keys, the windowed one 4: 14·32."""
        assert decode_attention_flop(WINDOWED, 10) == 448

    def test_experts(self):
        """192 + 2 of 4 experts (240) + router 32 = 464 multiply-adds a token."""
        assert linear_flop_per_token(MIXTURE) == 928

    def test_sparse_attention(self):
        """DeepSeek-V3.2 at 10 000 tokens: 2048 keys attended, all of them scored by 64 heads."""
        layers = 61
        attended = 2 * 128 * (2 * 512 + 64) * 2048
        scored = (2 * 64 * 128 + 2 * 64) * 10_000

        assert decode_attention_flop(SPARSE, 10_000) == layers * (attended + scored)

    def test_sparse_attention_below_its_choice_adds_only_the_scores(self):
        """At 1000 tokens every key is attended."""
        scores = 61 * (2 * 64 * 128 + 2 * 64) * 1000

        assert decode_attention_flop(SPARSE, 1000) == scores + decode_attention_flop(DEEPSEEK, 1000)


class TestBytesByHand:
    def test_dense_weights_are_read_once_a_pass(self):
        """1152 parameters and the head's 80 in two bytes, whatever the batch."""
        assert weight_bytes_per_pass(TINY, 1, with_head=True) == 2 * (1152 + 80)
        assert weight_bytes_per_pass(TINY, 999, with_head=False) == 2 * 1152

    def test_experts_are_read_where_tokens_go(self):
        """One token reads 2 experts; two read 4·(1 - 1/4) = 3 on average; many all four."""
        dense = 192 + 32

        assert weight_bytes_per_pass(MIXTURE, 1, with_head=False) == 2 * (dense + 2 * 120)
        assert weight_bytes_per_pass(MIXTURE, 2, with_head=False) == 2 * (dense + 3 * 120)
        assert weight_bytes_per_pass(MIXTURE, 999, with_head=False) == pytest.approx(
            2 * (dense + 4 * 120)
        )

    def test_the_cache(self):
        """Two layers of 2·1·4 numbers in two bytes: 32 bytes a token, copied by TP beyond 1 head."""
        assert cache_bytes_per_token(TINY) == 32
        assert cache_bytes_read(TINY, 10) == 320
        assert cache_bytes_read(TINY, 10, tensor_parallel=4) == 1280

    def test_a_windowed_layer_reads_its_window(self):
        """At context 10: 16 bytes · (10 + 4)."""
        assert cache_bytes_read(WINDOWED, 10) == 16 * 14

    def test_a_latent_is_read_by_every_gpu(self):
        """DeepSeek-V3 at TP 8: 61 layers · 576 numbers · 2 bytes · 8 copies."""
        assert cache_bytes_per_token(DEEPSEEK, 8) == 61 * 576 * 2 * 8

    def test_a_sparse_cache_is_read_where_it_was_chosen(self):
        """DeepSeek-V3.2: 2048 latents of 576 in bf16, and 132 bytes of index for every token."""
        assert cache_bytes_read(SPARSE, 10_000) == 61 * (576 * 2048 * 2 + 132 * 10_000)
        assert cache_bytes_per_token(SPARSE) == 61 * (576 * 2 + 132)

    def test_stored_weights(self):
        """Llama 3.1 8B in bf16 occupies two bytes for each of its 8 030 261 248 parameters."""
        assert stored_weight_bytes(LLAMA) == 2 * 8_030_261_248

    def test_gpt_oss_fits_its_published_size(self):
        """GPT-OSS-120B's checkpoint is 60.8 GiB (model card), experts in MXFP4."""
        model = load_model(CONFIGS / "gpt-oss-120b.json")

        assert stored_weight_bytes(model) / 2**30 == pytest.approx(60.8, rel=0.01)


class TestAgainstVllm:
    """The formulas of vllm/v1/metrics/perf.py: TC = new tokens x context, no causal halving."""

    def test_decode_of_llama_is_the_same_to_the_last_flop(self):
        """T=1, context 1024: qkv, QK, AV, out, FFN 6TDI, unembed 2TDV."""
        qkv = 2 * 4096 * (32 + 2 * 8) * 128 * 32
        scores_and_values = 2 * (2 * 32 * 1024 * 128 * 32)
        out = 2 * 4096 * 32 * 128 * 32
        feed_forward = 2 * 4096 * 3 * 14336 * 32
        unembed = 2 * 4096 * 128256

        assert decode_flop(LLAMA, 1, 1024) == (
            qkv + scores_and_values + out + feed_forward + unembed
        )

    def test_prefill_attention_is_about_half(self):
        """vLLM charges n² pairs for a fresh prompt, we n(n+1)/2: the causal mask."""
        vllm = 2 * (2 * 32 * 2048 * 2048 * 128 * 32)

        assert prefill_attention_flop(LLAMA, 2048) == vllm * 2049 / 4096

    def test_latent_projections(self):
        """DeepSeek-V3: q_a, q_b, kv_a, kv_b and out, 2·T·rows·columns each."""
        attention = DEEPSEEK.layers[0].attention

        assert 2 * attention.matrix_parameters(7168) == 2 * (
            7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
        )

    def test_expanded_latent_pairs(self):
        """Prefill: per pair and head 192 for the scores and 128 for the values, twice."""
        assert DEEPSEEK.layers[0].attention.prefill_pair_flop == 2 * 128 * (192 + 128)

    def test_absorbed_latent_pairs(self):
        """Decode: scores over 512 + 64, values over 512, where vLLM's formula stays expanded."""
        assert DEEPSEEK.layers[0].attention.decode_pair_flop == 2 * 128 * (576 + 512)

    def test_cache_writes(self):
        """vLLM's own test: 100 tokens of 128 heads of 128, one layer, bf16: 6 553 600 bytes."""
        attention = GroupedAttention(128, 128, 128)
        model = ModelDescription("mha", 7168, 1, (LayerGroup(1, attention, None, 1),))

        assert 100 * cache_bytes_per_token(model) == 6_553_600

    def test_hybrid_windows(self):
        """vLLM's own test: two full layers and two of window 1024 at context 4096: 10 240 keys."""
        attention = GroupedAttention(16, 16, 128)
        layers = (LayerGroup(2, attention, None, 1), LayerGroup(2, attention, 1024, 1))
        model = ModelDescription("hybrid", 2048, 1, layers)

        assert decode_attention_flop(model, 4096) == 4 * 16 * 128 * 10_240

    @given(count=st.integers(1, 4096))
    def test_experts_touched_never_exceed_vllms_bound(self, count):
        """vLLM reads min(T·k, E) experts; uniform routing collides, so the mean is lower."""
        touched = experts_touched(128, 8, count)

        assert touched + 1e-9 >= 8
        assert touched <= min(count * 8, 128) + 1e-9


class TestProperties:
    @given(new=tokens, cached=st.integers(0, 5000))
    def test_more_cache_never_makes_a_prompt_more_expensive(self, new, cached):
        """For a prompt of fixed length, more cached tokens mean less computation."""
        whole = prefill_flop(LLAMA, new + cached, 0)

        assert prefill_flop(LLAMA, new, cached) <= whole

    @given(count=tokens, first=tokens, second=tokens)
    def test_decode_grows_with_context(self, count, first, second):
        """Attention is paid per key."""
        low, high = sorted((first, second))

        assert decode_flop(LLAMA, count, low) <= decode_flop(LLAMA, count, high)

    @given(length=st.integers(1, 300), cached=st.integers(0, 300))
    def test_one_by_one_costs_what_a_prefill_costs(self, length, cached):
        """Decoding tokens at growing context needs the FLOPs of prefilling them, logits apart."""
        decoded = sum(decode_flop(TINY, 1, cached + token) for token in range(1, length + 1))
        logits = (length - 1) * head_flop_per_token(TINY)

        assert decoded - logits == prefill_flop(TINY, length, cached)


COUNTS = st.integers(0, 90)


class TestCompressedEntries:
    def test_by_hand(self):
        """Entries of 4 tokens: tokens 1 to 3 see none, 4 to 7 one, 8 and 9 two: 4 + 4 = 8."""
        assert compressed_pairs(9, 0, 4) == 8

    def test_after_cached_tokens(self):
        """Tokens 8 and 9 alone: 4."""
        assert compressed_pairs(2, 7, 4) == 4

    def test_at_most_the_selected_keys(self):
        """Tokens 4 to 12 see one at most: 9."""
        assert compressed_pairs(12, 0, 4, 1) == 9

    @given(new=COUNTS, cached=COUNTS, ratio=st.integers(1, 9), limit=st.integers(1, 9))
    def test_every_token(self, new, cached, ratio, limit):
        """The sum over tokens, with and without a limit."""
        seen = [token // ratio for token in range(cached + 1, cached + new + 1)]

        assert compressed_pairs(new, cached, ratio) == sum(seen)
        assert compressed_pairs(new, cached, ratio, limit) == sum(min(n, limit) for n in seen)


class TestBlocks:
    def test_by_hand(self):
        """2 blocks of 3: tokens 1 to 6 see all, 21 pairs; 7, 8, 9 see 3 + 1, 3 + 2, 3 + 3 keys."""
        assert block_pairs(9, 0, 3, 2) == 21 + 15

    @given(new=COUNTS, cached=COUNTS, size=st.integers(1, 9), blocks=st.integers(1, 5))
    def test_every_token(self, new, cached, size, blocks):
        """The sum over tokens."""
        seen = 0
        for token in range(cached + 1, cached + new + 1):
            own = (token - 1) % size + 1
            seen += token if token <= size * blocks else (blocks - 1) * size + own

        assert block_pairs(new, cached, size, blocks) == seen


def test_fractions_lie_between_whole_tokens():
    """Mean lengths are not whole numbers."""
    middle = (compressed_pairs(8, 0, 4) + compressed_pairs(9, 0, 4)) / 2

    assert compressed_pairs(8.5, 0, 4) == pytest.approx(middle)
