"""What the engine and its peer are measured on, and the least work that it takes. Standard library only."""

from __future__ import annotations

import dataclasses
from typing import Any

from model_shapes import SHAPES

from device_checks.product_cases import PLAIN, weight_bytes
from device_checks.settings import Settings


@dataclasses.dataclass(frozen=True)
class EngineSizes:
    """Requests of `prompt` tokens that generate `output` more.

    Attributes:
        rows: of the decode steps that are timed, each compiled.
        requests: how many at once go through the engine, one number after the other.
        budget: tokens of the prompts' step; 0 where no prompt is computed.
        steps: timed together.
        layers: instead of the model's.
    """

    model: str
    prompt: int
    output: int
    rows: tuple[int, ...]
    requests: tuple[int, ...]
    budget: int
    page_size: int
    steps: int
    layers: int | None = None

    @property
    def shape(self) -> dict[str, Any]:
        shape = SHAPES[self.model]
        return shape if self.layers is None else shape | {"num_hidden_layers": self.layers}

    @property
    def most(self) -> int:
        return max((*self.rows, *self.requests))

    @property
    def length(self) -> int:
        """Tokens of a finished request."""
        return self.prompt + self.output

    @property
    def depth(self) -> int:
        """Tokens of a sequence in the middle of its generation: what a decode step is measured at."""
        return self.prompt + self.output // 2


# (rows, requests, budget) of a part of the engine's check, and of its rehearsal.
_PARTS: dict[str, tuple[tuple[tuple[int, ...], tuple[int, ...], int], tuple[tuple[int, ...], tuple[int, ...], int]]] = {
    "whole": (((1, 32, 128), (1, 32, 128), 2048), ((1, 2, 4), (1, 2, 4), 32)),
    "steps": (((32, 8), (), 0), ((4, 2), (), 0)),
    "wide": (((128,), (32,), 2048), ((4,), (2,), 32)),
    "flags": (((32,), (), 0), ((2,), (), 0)),
}
_FLAGS_LAYERS = 2  # enough to see what a flag changes, and little to compile many times


def engine_sizes(settings: Settings, part: str = "whole") -> EngineSizes:
    """Of a part: "whole", "steps" (the least to compile), "wide" (many rows, prompts, requests) or "flags"."""
    real, rehearsed = _PARTS[part]
    rows, requests, budget = rehearsed if settings.rehearse else real
    if settings.rehearse:
        return EngineSizes("tiny", 24, 8, rows, requests, budget, 16, 2)
    layers = _FLAGS_LAYERS if part == "flags" else None
    return EngineSizes("llama3-8b", 1024, 256, rows, requests, budget, 64, 20, layers)


@dataclasses.dataclass(frozen=True)
class LeastWork:
    """Bytes and operations that a model of this shape needs at least, in bfloat16 or with its layers quantized.

    A decode step reads every weight but the embedding table, of which it reads one row for a token, and the keys and
    values of every row. A prompt's token is multiplied with every weight of the layers, and attends to those before it;
    only a row's last token is multiplied with the vocabulary.
    """

    layers: int
    model: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    scheme: str = PLAIN

    @classmethod
    def of(cls, shape: dict[str, Any], scheme: str = PLAIN) -> LeastWork:
        heads = shape["num_attention_heads"]
        return cls(
            layers=shape["num_hidden_layers"], model=shape["hidden_size"], heads=heads,
            kv_heads=shape["num_key_value_heads"], head_dim=shape.get("head_dim") or shape["hidden_size"] // heads,
            mlp=shape["intermediate_size"], vocab=shape["vocab_size"], scheme=scheme,
        )  # fmt: skip

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of those of a layer."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return ((query + 2 * kv, self.model), (self.model, query), (2 * self.mlp, self.model), (self.model, self.mlp))

    @property
    def layer_weights(self) -> int:
        """Of all layers."""
        return self.layers * sum(outputs * inputs for outputs, inputs in self.matrices)

    @property
    def layer_bytes(self) -> int:
        """Of all layers, with scales."""
        return self.layers * sum(weight_bytes(self.scheme, *matrix) for matrix in self.matrices)

    def decode_bytes(self, rows: int, depth: int) -> int:
        """Of one step of `rows` sequences of `depth` tokens."""
        weights = self.layer_bytes + 2 * self.model * self.vocab
        return weights + rows * depth * self.layers * 2 * self.kv_heads * self.head_dim * 2

    def prompt_flops(self, rows: int, length: int) -> int:
        """Of `rows` prompts of `length` tokens."""
        attention = 4 * self.layers * self.heads * self.head_dim * (length * (length + 1) // 2)
        return rows * (2 * self.layer_weights * length + attention + 2 * self.model * self.vocab)
