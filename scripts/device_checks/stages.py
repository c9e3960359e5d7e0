"""Three stages that fit, with the start of a machine, into a loan of 15 minutes: 240 s at most each, 600 s together.

What is most worth knowing comes first, in the order of the stages and within each. A section's limit counts the start
of its process; what a section does not need, those after it may have. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from device_checks.probe_packages import SERVER_PACKAGES
from device_checks.sections import PROBE, Section

STAGE_SECONDS, ALL_SECONDS = 240.0, 600.0
# Once on a machine: the first stage, or whichever finds nothing of them in the kept cache.
FIRST = (
    dataclasses.replace(PROBE, seconds=15, case_seconds=15),
    Section("ceilings/jax", "ceilings", "device_checks.ceilings_jax", 20, 20),
)


def _attention(backend: str, platform: str, seconds: float, part: str) -> Section:
    options = {"backend": backend, "part": part}
    module = "device_checks.attention_ours"
    return Section(f"attention/{backend}", "attention", module, seconds, min(20, seconds), (platform,), options=options)


def _engine(part: str, seconds: float, case_seconds: float) -> Section:
    return Section(f"engine/{part}", "engine", "device_checks.engine", seconds, case_seconds, options={"part": part})


def _quantized(scheme: str) -> Section:
    options = {"scheme": scheme, "part": "steps"}
    return Section(f"quantized/{scheme}", "quantized", "device_checks.engine_quantized", 28, 26, options=options)


def _peer(name: str, module: str, seconds: float, framework: str, **options: str) -> Section:
    needs = ("torch", "transformers") if name == "engine/transformers" else (framework,)
    group = name.partition("/")[0]
    return Section(name, group, f"device_checks.{module}", seconds, seconds, ("gpu",), framework, needs, options)


STAGES: dict[int, tuple[Section, ...]] = {
    # What works at all, how fast the kernel and a step are, what the step's time goes to, and what a client sees of it.
    1: (
        Section("correctness", "correctness", "device_checks.correctness", 40, 20),
        _attention("mosaic_gpu", "gpu", 30, "first"),
        _attention("mosaic_tpu", "tpu", 30, "first"),
        _engine("steps", 85, 75),
        Section("served", "served", "device_checks.served_step", 50, 45, needs=SERVER_PACKAGES),
    ),
    # Wider steps, prompts and requests, quantized layers, the other kernel, and what flags of XLA change.
    2: (
        _engine("wide", 55, 45),
        *(_quantized(scheme) for scheme in ("int8", "int4", "fp8")),
        _attention("triton_gpu", "gpu", 18, "first"),
        _attention("mosaic_gpu", "gpu", 23, "more"),
        _attention("mosaic_tpu", "tpu", 23, "more"),
        Section("engine/flags", "flags", "device_checks.xla_flags", 25, 20, ("gpu",)),
    ),
    # Every test that needs a device, and what others do on it.
    3: (
        Section("tests", "tests", "device_checks.kernel_tests", 55, 55, needs=("pytest",)),
        _peer("engine/transformers", "engine_peer", 45, "torch", part="wide"),
        _peer("ceilings/torch", "ceilings_torch", 12, "torch"),
        _peer("attention/torch_sdpa", "attention_torch", 12, "torch", peer="torch_sdpa", part="first"),
        _peer("attention/jax_cudnn", "attention_jax_peers", 12, "jax", peer="jax_cudnn", part="first"),
        Section("products/triton_gpu", "products", "device_checks.product_ours", 19, 15, ("gpu",),
                needs=("jax_triton",), options={"backend": "triton_gpu"}),
    ),
}  # fmt: skip


def sections_of(stage: int, known: Collection[str]) -> list[Section]:
    """In their order. known: names of sections that have told what the whole machine is."""
    return [*(section for section in FIRST if section.name not in known), *STAGES[stage]]
