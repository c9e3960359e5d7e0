"""`--skip auto`: the matrices that lose most are kept wider.

Ranked by the relative error of their outputs on the calibration samples, or of their weights without any. A matrix is
kept wider if it loses at least twice what the middle one does (3 dB), worst first, and at most a tenth of them are, or
one where there are fewer than ten. int4 and mxfp4 become int8; every other scheme keeps the matrix in the model's type.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from checkpoints.quantizing.policy import Planned

SHARE = 0.1
FACTOR = 2.0


def wider(planned: Planned) -> Planned:
    """What a matrix becomes that loses too much."""
    return Planned("int8" if planned.scheme in ("int4", "mxfp4") else None)


def choose_skipped(errors: Mapping[str, float]) -> list[str]:
    """Names of the matrices to keep wider, worst first. errors: of all that are rounded."""
    if not errors:
        return []
    middle = median(errors.values())
    budget = max(1, int(SHARE * len(errors)))
    worst = sorted(errors, key=lambda name: -errors[name])[:budget]
    return [name for name in worst if errors[name] >= FACTOR * middle and errors[name] > 0]
