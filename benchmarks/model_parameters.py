"""Counts the parameters of every known architecture, and compares with its Hugging Face class.

    python -m benchmarks.model_parameters [--document] [MODEL_TYPE ...]

The class is built on torch's meta device, with its default sizes or the ones below, and its
parameters are the truth. Fails above 0.1 %. Architectures without a class in transformers are left out.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.inference.models import count_parameters
from exporter.inference.models.config import describe
from exporter.inference.models.families import FAMILIES, REFUSED


DOCUMENT = Path("docs/models.md")
BOUND = 0.001
_BEGIN, _END = (
    "<!-- architectures: python -m benchmarks.model_parameters -->\n",
    "<!-- end of architectures -->\n",
)
# Sizes where a class has no usable defaults of its own.
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 16, "moe_topk": 1},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "nemotron_h": {
        "layers_block_type": [
            "linear_attention",
            "moe",
            "linear_attention",
            "full_attention",
            "mlp",
        ]
    },
    "ministral": {"head_dim": 128},
    "gemma4_text": {
        "num_kv_shared_layers": 12,
        "use_double_wide_mlp": True,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 704,
    },
    "minimax_m3_vl_text": {
        "sparse_attention_config": {"sparse_attention_freq": [0, 0, 0] + [1] * 57},
        "moe_layer_freq": [0, 0, 0] + [1] * 57,
    },
    "step3p5": {
        "num_hidden_layers": 12,
        "layer_types": ["full_attention", *["sliding_attention"] * 3] * 3,
        "attention_other_setting": {"num_attention_heads": 96},
        "sliding_window": 512,
        "moe_layers_enum": "3,4,5,6,7,8,9,10,11",
    },
}
# Built by the class but in no checkpoint: it also allocates a part of LongCat's experts for those
# that compute nothing.
_NOT_STORED = {
    "longcat_flash": lambda config: (
        config.num_layers
        * config.zero_expert_num
        * 2
        * config.expert_ffn_hidden_size
        * config.hidden_size
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture."""

    model_type: str
    true: int
    counted: int

    @property
    def error(self) -> float:
        """Relative."""
        return self.counted / self.true - 1


def rows(names: list[str]) -> Iterator[Row]:
    """The architectures that transformers has a class for."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSpeechSeq2Seq
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

    for name in names:
        if name not in CONFIG_MAPPING:
            print(f"{name}: no class in transformers", file=sys.stderr)
            continue
        config = CONFIG_MAPPING[name](**_SIZES.get(name, {}))
        if getattr(config, "text_config", None) is not None:
            print(f"{name}: a language model and a tower, see its part", file=sys.stderr)
            continue
        bare = FAMILIES[name].encoder
        if (
            name == "step3p5"
        ):  # the text part of Step 3.7 in transformers, without a class of its own
            AutoModel.register(type(config), Step3p7TextModel, exist_ok=True)
        whole = AutoModelForSpeechSeq2Seq if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            try:
                model = (AutoModel if bare else whole).from_config(config)
            except ValueError:  # a part of a multimodal model, without an output head
                bare = True
                try:
                    model = AutoModel.from_config(config)
                except ValueError:
                    print(f"{name}: no class of its own in transformers", file=sys.stderr)
                    continue
        true = sum(
            parameter.numel()
            for path, parameter in model.named_parameters()
            # Engines that make embeddings leave BERT's pooler out.
            if not path.startswith("pooler.")
        )
        if name in _NOT_STORED:
            true -= _NOT_STORED[name](config)
        counts = count_parameters(describe(config.to_dict()))
        head = 0 if counts.tied_embeddings or not bare else counts.head
        yield Row(name, true, counts.total - head)


def table(found: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| architecture | parameters of its class | counted | error |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{row.model_type}` | {row.true:,} | {row.counted:,} "
        f"| {'exact' if row.true == row.counted else f'{row.error:+.4%}'} |"
        for row in found
    ]
    others = sorted(set(FAMILIES) - {row.model_type for row in found})
    refused = "; ".join(f"`{name}` ({reason})" for name, reason in sorted(REFUSED.items()))
    return (
        "\n".join(lines)
        + "\n\nWithout a class of their own in transformers, or a part of another model there: "
        + ", ".join(f"`{name}`" for name in others)
        + ". `nemotron-nas` follows the code of its repository and of vLLM; `step3_text` follows vLLM's, and counts "
        "316.3 B parameters, 38.8 B active, of the 316 B and 38 B that StepFun publishes"
        + ".\n\nNot supported, like every architecture that is not listed: "
        + refused
        + ".\n"
    )


def main() -> int:
    """Print the table; 1 when an error is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(FAMILIES))
    parser.add_argument("--document", action="store_true", help="write it into docs/models.md")
    options = parser.parse_args()
    found = list(rows(options.names))
    print(table(found))
    if options.document:
        page = DOCUMENT.read_text()
        before, _, rest = page.partition(_BEGIN)
        DOCUMENT.write_text(
            before + _BEGIN + "\n" + table(found) + "\n" + _END + rest.partition(_END)[2]
        )
    wrong = [row for row in found if abs(row.error) > BOUND]
    for row in wrong:
        print(f"above {BOUND:.1%}: {row.model_type} {row.error:+.3%}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
