"""DeepSeek-V4: compressed attention, hyper-connections, experts in every layer.

Source: DeepSeek-AI, "DeepSeek-V4" (2026), and the class in Hugging Face transformers.
"""

from collections.abc import Mapping

from exporter.inference.models.attention import CompressedAttention
from exporter.inference.models.description import Extras, LayerGroup, MixtureOfExperts, Stack
from exporter.inference.models.families import ModelFamily
from exporter.inference.models.fields import ConfigFields, kinds_of, layer_total


_WINDOW, _SPARSE, _HEAVY = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)
# Older files list the ratio of each layer instead of its kind.
_KIND_OF_RATIO = {0: _WINDOW, 4: _SPARSE, 128: _HEAVY}
_RATIOS = {_SPARSE: 4, _HEAVY: 128}
# Hyper-connections are stored and multiplied in 32 bits.
_CONNECTION_BYTES = 4.0


def deepseek_v4_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the layers of a DeepSeek-V4 model."""
    count = layer_total(fields)
    hidden = fields.require("hidden_size")
    window = fields.require("sliding_window")
    kinds = _kinds(fields, count)
    mixture = MixtureOfExperts(
        experts=fields.require("num_experts"),
        active_experts=fields.require("num_experts_per_tok"),
        intermediate_size=fields.require("moe_intermediate_size"),
        shared_intermediate_size=(fields.integer("n_shared_experts") or 0)
        * fields.require("moe_intermediate_size"),
    )
    streams = fields.require("hc_mult")
    attentions = {kind: _attention(fields, kind) for kind in dict.fromkeys(kinds)}
    fields.check()
    layers = tuple(
        LayerGroup(
            count=1,
            attention=attentions[kind],
            window=window,
            intermediate_size=0,
            mixture=mixture,
            extras=_extras(attentions[kind], hidden, streams),
        )
        for kind in kinds
    )
    # At the end one more projection joins the streams.
    head = Extras(streams * streams * hidden, streams + 1, 2 * streams * hidden, _CONNECTION_BYTES)
    return Stack(layers, {"extras": head})


def _kinds(fields: ConfigFields, count: int) -> tuple[str, ...]:
    kinds = kinds_of(fields, "layer_types", count, (_WINDOW, _SPARSE, _HEAVY))
    if kinds is not None:
        return kinds
    ratios = fields.raw("compress_ratios")
    if isinstance(ratios, list) and len(ratios) >= count:
        whole = [fields.whole("compress_ratios", ratio) for ratio in ratios[:count]]
        kinds = tuple(_KIND_OF_RATIO.get(-1 if ratio is None else ratio, "") for ratio in whole)
        if not all(kinds):
            raise fields.error("compress_ratios has ratios other than 0, 4 and 128")
        return kinds
    raise fields.error("the file does not give the attention of each layer")


def _attention(fields: ConfigFields, kind: str) -> CompressedAttention:
    rates = fields.raw("compress_rates")
    ratio = _RATIOS.get(kind, 0)
    if ratio and isinstance(rates, Mapping):
        ratio = fields.whole("compress_rates", rates.get(kind)) or ratio
    sparse = kind == _SPARSE
    return CompressedAttention(
        query_heads=fields.require("num_attention_heads"),
        head_size=fields.require("head_dim"),
        query_rank=fields.require("q_lora_rank"),
        output_groups=fields.require("o_groups"),
        output_rank=fields.require("o_lora_rank"),
        ratio=ratio,
        chosen=fields.require("index_topk") if sparse else 0,
        index_heads=fields.require("index_n_heads") if sparse else 0,
        index_head_size=fields.require("index_head_dim") if sparse else 0,
    )


def _extras(attention: CompressedAttention, hidden: int, streams: int) -> Extras:
    """The compressor, and a hyper-connection before attention and one before the experts.

    Each projects all streams to the weights that join them into one input and mix them with the
    output: `streams` weights to join, as many to distribute, and `streams` squared to mix.
    """
    connection = (2 + streams) * streams
    compressor = attention.compressor_parameters(hidden)
    matrices = 2 * connection * streams * hidden
    mean_bytes = (2.0 * compressor + _CONNECTION_BYTES * matrices) / (compressor + matrices)
    return Extras(
        matrices=compressor + matrices,
        vectors=2 * (connection + 3),
        # Joining the streams, and mixing them.
        token_flop=2 * (2 * streams * hidden + 2 * streams**2 * hidden),
        value_bytes=mean_bytes,
    )
