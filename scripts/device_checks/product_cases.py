"""What quantized products are measured on, and how much work that needs. Standard library only: torch reads it too.

Shapes of Llama-3-8B's widest matrices. A decode product must read its weight once, with its scales: needed bytes. A
prompt's product must compute: needed operations. Activations are bfloat16; a scheme says how the weight is kept.
"""

from __future__ import annotations

import dataclasses

from device_checks.settings import Settings

PLAIN = "bfloat16"
WEIGHT_ONLY = ("int8", "int4", "fp8")
BOTH_FACTORS = ("w8a8", "fp8-dynamic")
GROUP = 128  # inputs of an int4 scale
_BITS = {PLAIN: 16, "int8": 8, "int4": 4, "fp8": 8, "w8a8": 8, "fp8-dynamic": 8}
_READ_IN_TURN = 400_000_000  # bytes of all weights of a program: several times a device's cache


def weight_bytes(scheme: str, outputs: int, inputs: int) -> int:
    """Of a weight (outputs, inputs), with its float32 scales."""
    groups = max(1, inputs // GROUP) if scheme == "int4" else 0 if scheme == PLAIN else 1
    return outputs * (inputs * _BITS[scheme] // 8 + 4 * groups)


@dataclasses.dataclass(frozen=True)
class ProductCase:
    """One line of the table: `tokens` activations (tokens, inputs) times a weight (outputs, inputs)."""

    scheme: str
    tokens: int
    outputs: int
    inputs: int
    turns: int

    @property
    def name(self) -> str:
        return f"{self.scheme}, {self.tokens} x {self.outputs} x {self.inputs}"

    @property
    def kind(self) -> str:
        return "decode" if self.tokens <= 64 else "prefill"

    @property
    def needed_bytes(self) -> int:
        return weight_bytes(self.scheme, self.outputs, self.inputs)

    @property
    def needed_flops(self) -> int:
        return 2 * self.tokens * self.outputs * self.inputs

    @property
    def weights(self) -> int:
        """How many are multiplied by in turn, so that none is found in the cache."""
        return max(2, min(16, -(-_READ_IN_TURN // self.needed_bytes)))

    def fields(self) -> dict[str, object]:
        """Of a record."""
        return {"kind": self.kind, "needed_bytes": self.needed_bytes, "needed_flops": self.needed_flops}


def product_cases(settings: Settings) -> list[ProductCase]:
    """All cases, the ones that have a target first."""
    if settings.rehearse:
        return [ProductCase(scheme, tokens, 256, 128, 2) for tokens in (1, 96) for scheme in _BITS]
    wide, deep = (28672, 4096), (4096, 14336)
    cases = [ProductCase(scheme, rows, *wide, 20) for rows in (16, 1) for scheme in (PLAIN, *WEIGHT_ONLY)]
    cases += [ProductCase(scheme, 4096, *wide, 4) for scheme in (PLAIN, *BOTH_FACTORS, *WEIGHT_ONLY)]
    cases += [ProductCase(scheme, 16, *deep, 20) for scheme in (PLAIN, *WEIGHT_ONLY)]
    return cases
