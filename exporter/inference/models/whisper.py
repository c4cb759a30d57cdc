"""Whisper: an encoder of 30 seconds of audio, and a decoder that attends to its output.

Source: Radford et al., arXiv 2212.04356, and the class in Hugging Face transformers. Shorter audio
is padded to 30 seconds and longer audio is cut, so that the encoder's work is the same for every
prompt.
"""

from exporter.inference.models.attention import GroupedAttention
from exporter.inference.models.description import Beside, LayerGroup, Prologue
from exporter.inference.models.families import ModelFamily
from exporter.inference.models.fields import LARGEST_LAYER_COUNT, ConfigFields
from exporter.inference.models.stack import Stack


_KERNEL = 3


def whisper_stack(fields: ConfigFields, family: ModelFamily) -> Stack:
    """Return the decoder's layers; the encoder is counted per prompt."""
    hidden = fields.require("hidden_size")
    heard = fields.require("max_source_positions")
    count = fields.require("decoder_layers")
    heads = fields.require("decoder_attention_heads")
    size = fields.require("decoder_ffn_dim")
    prologue = _prologue(fields, hidden, heard, count)
    fields.check()
    if count > LARGEST_LAYER_COUNT:
        raise fields.error(f"decoder_layers is {count}")
    attention = GroupedAttention(
        query_heads=heads,
        key_value_heads=heads,
        head_size=hidden // heads,
        query_key_value_bias=True,
        output_bias=True,
    )
    # Cross-attention: its own queries, output and norm. Keys have no bias.
    beside = Beside(
        matrices=2 * hidden * hidden,
        vectors=4 * hidden - hidden,
        token_flop=4 * hidden * heard,
    )
    layer = LayerGroup(1, attention, None, size, beside=beside)
    return Stack(
        (layer,) * count,
        {
            "learned_positions": fields.require("max_target_positions"),
            "prologue": prologue,
        },
    )


def _prologue(fields: ConfigFields, hidden: int, heard: int, decoder_layers: int) -> Prologue:
    """Two convolutions, the encoder's layers, and the keys and values of the decoder's layers."""
    layers = fields.require("encoder_layers")
    size = fields.require("encoder_ffn_dim")
    sounds = fields.require("num_mel_bins")
    layer = 4 * hidden * hidden + 2 * hidden * size
    crossed = decoder_layers * 2 * hidden * hidden
    first, second = _KERNEL * sounds * hidden, _KERNEL * hidden * hidden
    # The second convolution has stride 2.
    flop = 2 * first * 2 * heard + 2 * second * heard
    flop += heard * 2 * (layers * layer + crossed) + layers * 4 * hidden * heard * heard
    return Prologue(
        flop=flop,
        matrices=first + second + layers * layer + crossed,
        # Biases of the convolutions, positions, biases and norms of each layer, the last norm,
        # biases of the decoder's values.
        vectors=2 * hidden
        + heard * hidden
        + layers * (3 * hidden + size + hidden + 4 * hidden)
        + 2 * hidden
        + decoder_layers * hidden,
        cached_values=decoder_layers * 2 * hidden * heard,
    )
