"""Each op once by each of its backends, on a tiny ragged batch, against XLA's form in float32
(`pallas_kernels.trials`).

The first thing to know on a new device: what computes the right numbers there. A backend that is wrong, hangs or aborts
costs its own case.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax

from device_checks.child import Case
from device_checks.settings import Settings
from pallas_kernels.dispatch import Backend, DeviceTarget, Op
from pallas_kernels.grouped_matmul.api import OP as GROUPED
from pallas_kernels.paged_attention.api import OP as ATTENTION
from pallas_kernels.quantized_matmul.api import OP as MATMUL
from pallas_kernels.trials import TOLERANCE, XLA, AttentionTrial, GroupedTrial, MatmulTrial, Prepared, Trial

BFLOAT16 = "bfloat16"
_HEADS: tuple[int, int, int, int] = (32, 8, 128, 64)  # query heads, KV heads, head_dim, page size

OPS: dict[type[Trial], Op[Any]] = {AttentionTrial: ATTENTION, MatmulTrial: MATMUL, GroupedTrial: GROUPED}


def trials() -> list[tuple[str, Trial]]:
    """(what, trial), of each op the usual forms."""
    found: list[tuple[str, Trial]] = [
        (kind, AttentionTrial(*_HEADS, BFLOAT16, kv_dtype, 128**-0.5))
        for kind, kv_dtype in ((BFLOAT16, BFLOAT16), ("int8-kv", "int8"), ("fp8-kv", "float8_e4m3fn"))
    ]
    window = AttentionTrial(*_HEADS, BFLOAT16, BFLOAT16, 128**-0.5, sliding_window=9, soft_cap=30.0, sinks=True)
    found.append(("window-cap-sinks", window))
    found += [
        ("int8", MatmulTrial("int8", None, BFLOAT16)),
        ("w8a8", MatmulTrial("int8", None, BFLOAT16, "int8")),
        ("int4", MatmulTrial("int4", 128, BFLOAT16)),
        ("fp8", MatmulTrial("fp8", None, BFLOAT16)),
        (BFLOAT16, GroupedTrial(BFLOAT16)),
        ("int4", GroupedTrial(BFLOAT16, "int4", 128)),
        ("mxfp4", GroupedTrial(BFLOAT16, "mxfp4", 32)),
    ]
    return found


def cases(settings: Settings) -> Iterator[Case]:
    """Kernels that are chosen by themselves, those that run by name only, and XLA, which all are compared with."""
    target = DeviceTarget.of(jax.devices()[0])
    endings = {target.platform, XLA, "gpu" if settings.rehearse else XLA}  # rehearsed: how a GPU's kernels refuse
    wanted = []
    for what, trial in trials():
        op = OPS[type(trial)]
        for backend in op.backends:
            if backend.name.split("_")[-1] in endings:  # mosaic_gpu is no TPU's
                name = f"{op.name}.{backend.name}.{what}"
                order = 2 if backend.name == XLA else int(backend.by_name_only)
                wanted.append((order, Case(name, functools.partial(_deviation, trial, backend, target))))
    yield from (case for _, case in sorted(wanted, key=lambda each: each[0]))


@functools.cache
def prepare(trial: Trial, target: DeviceTarget) -> Prepared:
    """Once for all backends, and so is what they should give."""
    prepared = trial.prepare(target)
    return prepared._replace(right=functools.cache(prepared.right))


def _deviation(trial: Trial, backend: Backend[Any], target: DeviceTarget) -> dict[str, Any]:
    """Raises NotImplementedError where the backend says that it does not serve this."""
    prepared = prepare(trial, target)
    if (reason := backend.supports(target, prepared.case)) is not None:
        raise NotImplementedError(reason)
    return {"deviation": prepared.deviation(backend.name), "tolerance": TOLERANCE}
