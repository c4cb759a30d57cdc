"""Whatever a config.json contains, the result is a description or a one-line error."""

import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from exporter.inference.models import UnknownArchitectureError, count_parameters
from exporter.inference.models.config import describe
from exporter.inference.models.cost import stored_weight_bytes, weight_bytes_per_pass
from exporter.inference.models.families import FAMILIES
from tests.inference.models import test_irregular
from tests.inference.models.shapes import decode_flop, prefill_flop


CONFIGS = [
    json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "configs").iterdir())
]
KEYS = sorted({key for config in CONFIGS for key in config.get("text_config", config)})
MORE = [
    "bits",
    "config_groups",
    "group_size",
    "ignore",
    "input_activations",
    "kv_cache_quant_algo",
    "kv_cache_scheme",
    "lm_head",
    "load_in_4bit",
    "load_in_8bit",
    "num_bits",
    "quant_algo",
    "quantization",
    "type",
    "weights",
]
METHODS = ["gptq", "awq", "fp8", "mxfp4", "bitsandbytes", "modelopt", "compressed-tensors", 3, None]

# Families whose files say more than numbers: each key with any value.
IRREGULAR = [member.CONFIG for member in vars(test_irregular).values() if hasattr(member, "CONFIG")]

unbounded = st.sampled_from([math.inf, -math.inf, math.nan])
small = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.floats(0, 4)
    | unbounded
    | st.text(max_size=4)
)
values = st.recursive(
    small,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(MORE), inner, max_size=4)
    ),
    max_leaves=8,
)
quantization = st.dictionaries(st.sampled_from(MORE), values).flatmap(
    lambda rest: st.sampled_from(METHODS).map(lambda method: {**rest, "quant_method": method})
)


def described_or_none(config):
    try:
        return describe(config)
    except UnknownArchitectureError:
        return None


@given(
    base=st.sampled_from(CONFIGS),
    changes=st.dictionaries(st.sampled_from(KEYS), values, max_size=4),
    model_type=st.sampled_from(sorted(FAMILIES)) | st.text(max_size=5),
    quantized=st.none() | quantization | values,
)
def test_described_or_refused(base, changes, model_type, quantized):
    """Real files with a few fields exchanged: sane numbers or a refusal, never a crash."""
    config = {**base.get("text_config", base), "quantization_config": quantized, **changes}
    config["model_type"] = model_type
    check_sanity(config)


@given(data=st.data(), base=st.sampled_from(IRREGULAR))
def test_irregular_families_described_or_refused(data, base):
    """As above, for the families that describe each layer; parts of their lists change too."""
    config = json.loads(json.dumps(base))
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3)):
        held = config[key]
        if isinstance(held, list | dict) and held and data.draw(st.booleans()):
            places = range(len(held)) if isinstance(held, list) else sorted(held)
            held[data.draw(st.sampled_from(list(places)))] = data.draw(values)
        elif key != "model_type":
            config[key] = data.draw(values)
    check_sanity(config)


def check_sanity(config):
    """A rejection, or plausible numbers."""
    model = described_or_none(config)
    if model is None:
        return

    counts = count_parameters(model)
    assert 0 < counts.active <= counts.total
    assert prefill_flop(model, 10, 5) > 0
    assert decode_flop(model, 10, 100) > 0
    assert weight_bytes_per_pass(model, 3, with_head=False) > 0
    assert stored_weight_bytes(model) > 0
