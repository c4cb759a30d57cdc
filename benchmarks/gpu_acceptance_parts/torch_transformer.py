"""A decoder of matrix products whose FLOP are counted in `truth`. Imports torch.

Attention is written out as two products and a softmax: a fused kernel would skip what a causal mask
hides, in blocks of its own choosing, and its FLOP would be unknown.
"""

from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu_acceptance_parts.torch_device import TorchDevice
from benchmarks.gpu_acceptance_parts.truth import TransformerShape


_SCALE = 0.02  # of the weights: keeps activations finite over many steps


class Transformer:
    """Weights of every layer, and a KV cache of fixed length for decoding."""

    def __init__(
        self, device: TorchDevice, shape: TransformerShape, batch: int, context_tokens: int
    ) -> None:
        self._shape = shape
        self._where = device.torch_device
        width = shape.heads * shape.head_width
        self._layers = [
            (
                self._weights(3 * width, shape.hidden),
                self._weights(shape.hidden, width),
                self._weights(2 * shape.intermediate, shape.hidden),
                self._weights(shape.hidden, shape.intermediate),
            )
            for _ in range(shape.layers)
        ]
        self._head = self._weights(shape.vocabulary, shape.hidden)
        self._batch = batch
        self._cache = [
            self._weights(2, batch, shape.heads, context_tokens, shape.head_width)
            for _ in range(shape.layers)
        ]
        self._tokens = self._weights(batch, shape.hidden) / _SCALE

    def decode(self) -> Any:
        """One token of each sequence; the newest keys and values replace the cache's last ones."""
        x = self._tokens
        for (qkv, output, gate_up, down), cache in zip(self._layers, self._cache, strict=True):
            q, k, v = self._heads(functional.linear(self._norm(x), qkv), self._batch)
            cache[0, :, :, -1], cache[1, :, :, -1] = k, v
            scores = torch.matmul(q.unsqueeze(2), cache[0].transpose(2, 3))
            mixed = torch.matmul(self._softmax(scores), cache[1]).squeeze(2)
            x = x + functional.linear(mixed.reshape(self._batch, -1), output)
            x = x + self._feed_forward(x, gate_up, down)
        return functional.linear(self._norm(x), self._head).argmax(dim=-1)

    def prefill(self, prompt: Any) -> Any:
        """A whole prompt (tokens, hidden) of one sequence; the last token's logits."""
        x, tokens = prompt, prompt.shape[0]
        for qkv, output, gate_up, down in self._layers:
            q, k, v = self._heads(functional.linear(self._norm(x), qkv), tokens)
            q, k, v = (each.transpose(0, 1) for each in (q, k, v))
            mixed = torch.matmul(self._softmax(torch.matmul(q, k.transpose(1, 2))), v)
            x = x + functional.linear(mixed.transpose(0, 1).reshape(tokens, -1), output)
            x = x + self._feed_forward(x, gate_up, down)
        return functional.linear(self._norm(x[-1:]), self._head)

    def prompt(self, tokens: int) -> Any:
        """A random prompt, already embedded."""
        return self._weights(tokens, self._shape.hidden) / _SCALE

    def _heads(self, projected: Any, rows: int) -> Any:
        shape = (rows, 3, self._shape.heads, self._shape.head_width)
        return projected.view(shape).unbind(dim=1)

    def _softmax(self, scores: Any) -> Any:
        return torch.softmax(scores * self._shape.head_width**-0.5, dim=-1)

    def _norm(self, x: Any) -> Any:
        return functional.rms_norm(x, (x.shape[-1],))

    def _feed_forward(self, x: Any, gate_up: Any, down: Any) -> Any:
        gate, up = functional.linear(self._norm(x), gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, down)

    def _weights(self, *sizes: int) -> Any:
        return _SCALE * torch.randn(sizes, dtype=torch.bfloat16, device=self._where)
