"""What is static about paged attention beside shapes: how scores are made and which keys a query sees."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """Options of one call of paged attention; hashable, so that calls with equal options share a compiled program.

    Attributes:
        scale: multiplies q . k.
        sliding_window: a query at position p sees p - sliding_window + 1 .. p only; None: all up to p.
        soft_cap: scores become soft_cap * tanh(score / soft_cap), after `scale`; None: they stay.

    Raises:
        ValueError: an option outside its range.
    """

    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", float(self.scale))  # NumPy's numbers would promote what they multiply
        object.__setattr__(self, "soft_cap", None if self.soft_cap is None else float(self.soft_cap))
        if not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}; it must be finite")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}; it must be at least 1, or None")
        if self.soft_cap is not None and not (math.isfinite(self.soft_cap) and self.soft_cap > 0):
            raise ValueError(f"soft_cap is {self.soft_cap}; it must be finite and above 0, or None")
