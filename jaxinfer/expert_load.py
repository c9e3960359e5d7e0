"""How many tokens each expert of a mixture has computed, and how unevenly. Plain data, without jax."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Counts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Tokens that each expert has computed.

    A token counts once for each expert that its router chose; one that is computed again, after a preemption, counts
    again; one that was found in the prefix cache does not, and neither does padding.

    Attributes:
        layers: the model's layers that have experts, counted from 0; none in a model without.
        tokens: of each of these layers, its experts' tokens, in the experts' order.
        steps: which of the engine's steps are in it: all up to this one, counted from 1.
    """

    layers: tuple[int, ...] = ()
    tokens: Counts = ()
    steps: int = 0

    @classmethod
    def zeros(cls, expert_layers: Sequence[tuple[int, int]]) -> ExpertLoad:
        """Before the first step. expert_layers: see `EngineInfo`."""
        return cls(tuple(layer for layer, _ in expert_layers), tuple((0,) * count for _, count in expert_layers))

    @property
    def total(self) -> int:
        """Tokens of all experts of all layers."""
        return sum(map(sum, self.tokens))

    @property
    def imbalance(self) -> tuple[float | None, ...]:
        """Of each layer, its busiest expert's tokens over the mean of its experts: 1.0 is even, the number of experts
        the most there can be. None where no expert had a token."""
        return tuple(max(row) * len(row) / sum(row) if any(row) else None for row in self.tokens)

    @property
    def overall_imbalance(self) -> float | None:
        """The sum over layers of the busiest expert's tokens, over that of the means: what `imbalance` is of a model's
        whole step, whose layers wait for their busiest part one after the other. None where there are no tokens."""
        means = sum(sum(row) / len(row) for row in self.tokens)
        return sum(map(max, self.tokens)) / means if means else None

    def of_devices(self, devices: int) -> ExpertLoad:
        """The same with a device's experts taken together, in place of each expert. devices: that experts are dealt to
        (`--expert-parallel-size`), each of which has as many, one behind the other. Raises ValueError if it does not
        divide the experts of every layer."""
        for row in self.tokens:
            if devices < 1 or len(row) % devices:
                raise ValueError(f"devices is {devices}; it must divide the {len(row)} experts of a layer")
        shares = tuple(_in_parts(row, len(row) // devices) for row in self.tokens)
        return ExpertLoad(self.layers, shares, self.steps)

    def since(self, before: ExpertLoad) -> ExpertLoad:
        """What has come since an earlier load of the same engine."""
        return self._combined(before, operator.sub)

    def plus(self, other: ExpertLoad) -> ExpertLoad:
        """This and another engine's, which serves the same model."""
        return self._combined(other, operator.add)

    def _combined(self, other: ExpertLoad, combine: Callable[[int, int], int]) -> ExpertLoad:
        if self.layers != other.layers:
            raise ValueError(f"layers with experts are {self.layers} here and {other.layers} there; they must be equal")
        rows = zip(self.tokens, other.tokens, strict=True)
        tokens = tuple(tuple(map(combine, one, two)) for one, two in rows)
        return ExpertLoad(self.layers, tokens, self.steps)


def _in_parts(row: tuple[int, ...], size: int) -> tuple[int, ...]:
    return tuple(sum(row[i : i + size]) for i in range(0, len(row), size))
