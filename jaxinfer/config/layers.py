"""What the layers of a network are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxinfer.config.errors import require

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
QkNorm = Literal["none", "head", "whole"]


@dataclass(frozen=True)
class RopeConfig:
    """One rotary embedding. Lengths in tokens, `rotary_dim` in elements of the head (partial rotary: < head_dim).

    Fields beyond `theta` and `rotary_dim` are read only by the kinds that define them (names as in Hugging Face
    `rope_parameters`). `attention_factor` multiplies cos and sin; it is always resolved by the registry, never None.
    """

    kind: RopeKind
    theta: float
    rotary_dim: int
    factor: float = 1.0
    attention_factor: float = 1.0  # for longrope: the one that goes with the factors in use (equal for both)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    original_max_position_embeddings: int = 0  # llama3, yarn, longrope, dynamic: the trained length
    short_factor: tuple[float, ...] = ()  # longrope, up to original_max_position_embeddings
    long_factor: tuple[float, ...] = ()  # longrope, beyond it

    def __post_init__(self) -> None:
        require(self.theta > 0, f"rope theta is {self.theta}; it must be positive")
        require(
            self.rotary_dim > 0 and self.rotary_dim % 2 == 0,
            f"rotary_dim is {self.rotary_dim}; it must be even and positive",
        )
        require(self.factor > 0, f"rope factor is {self.factor}; it must be positive")
        if self.kind in ("llama3", "yarn", "longrope", "dynamic"):
            require(
                self.original_max_position_embeddings > 0,
                f"rope type {self.kind} needs original_max_position_embeddings > 0",
            )
        if self.kind == "longrope":
            for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
                require(
                    len(factors) == self.rotary_dim // 2,
                    f"longrope {name} has {len(factors)} values; rotary_dim / 2 = {self.rotary_dim // 2} are needed",
                )


@dataclass(frozen=True)
class LayerConfig:
    """What differs between layers. `rope` indexes `ModelConfig.ropes`, None means no positional rotation (NoPE)."""

    sliding_window: int | None = None  # tokens a query sees, itself included
    rope: int | None = 0
