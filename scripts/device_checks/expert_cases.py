"""What grouped products, of rows with their experts, are measured on, and how much work they need. Standard library.

The wider product of three models, with top-k experts of each token drawn at random and evenly. It must read the weights
of every expert that some token has, once: needed bytes; and multiply each row by one of them: needed operations.
Activations are bfloat16.
"""

from __future__ import annotations

import dataclasses
import random

from device_checks.product_cases import PLAIN, weight_bytes
from device_checks.settings import Settings

SCHEMES = (PLAIN, "int4")


@dataclasses.dataclass(frozen=True)
class Model:
    """`outputs` of one expert: its gate's and as many again."""

    name: str
    experts: int
    chosen: int  # experts of a token
    outputs: int
    inputs: int


QWEN3 = Model("Qwen3-30B-A3B", 128, 8, 1536, 2048)
GPT_OSS = Model("gpt-oss-20b", 32, 4, 5760, 2880)
MIXTRAL = Model("Mixtral-8x7B", 8, 2, 28672, 4096)
TINY = Model("tiny", 16, 2, 64, 128)


@dataclasses.dataclass(frozen=True)
class ExpertCase:
    """One line of the table."""

    scheme: str
    model: Model
    tokens: int
    turns: int

    @property
    def name(self) -> str:
        return f"{self.scheme}, {self.model.name}, tokens: {self.tokens}"

    @property
    def kind(self) -> str:
        return "decode" if self.tokens <= 64 else "prefill"

    @property
    def rows(self) -> int:
        return self.tokens * self.model.chosen

    @property
    def group_sizes(self) -> list[int]:
        """Rows of each expert, always the same ones."""
        draw, sizes = random.Random(self.tokens), [0] * self.model.experts
        for _ in range(self.tokens):
            for expert in draw.sample(range(self.model.experts), self.model.chosen):
                sizes[expert] += 1
        return sizes

    @property
    def needed_bytes(self) -> int:
        touched = sum(size > 0 for size in self.group_sizes)
        return touched * weight_bytes(self.scheme, self.model.outputs, self.model.inputs)

    @property
    def needed_flops(self) -> int:
        return 2 * self.rows * self.model.outputs * self.model.inputs

    @property
    def weights(self) -> int:
        """Layers that are multiplied by in turn, so that a few experts are not found in the cache."""
        return 2

    def fields(self) -> dict[str, object]:
        """Of a record."""
        return {"kind": self.kind, "needed_bytes": self.needed_bytes, "needed_flops": self.needed_flops}


def expert_cases(settings: Settings) -> list[ExpertCase]:
    """All cases. Groups of 128 do not divide gpt-oss' inputs: it has no int4 here."""
    if settings.rehearse:
        return [ExpertCase(scheme, TINY, tokens, 2) for tokens in (1, 96) for scheme in SCHEMES]
    cases = [ExpertCase(scheme, QWEN3, tokens, 20) for tokens in (1, 8, 64) for scheme in SCHEMES]
    cases += [ExpertCase(scheme, MIXTRAL, 8, 10) for scheme in SCHEMES]
    cases += [ExpertCase(PLAIN, GPT_OSS, tokens, 20) for tokens in (8, 64)]
    return cases + [ExpertCase(scheme, QWEN3, 2048, 4) for scheme in SCHEMES]
