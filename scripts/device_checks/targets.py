"""The targets, stated for an H200, what was predicted of each, and the ceilings that they are shares of.

A prediction was made from compiled programs and counted bytes before any device ran them; it is never a reading.
Standard library only.
"""

from __future__ import annotations

from typing import NamedTuple

from device_checks.records import Record

STATED_FOR = "NVIDIA H200"
DECODE_SHARE = 0.85  # of the copy bandwidth, 32 rows x 8,192 tokens
KV_SPEEDUP = 1.7  # of int8 and float8 pages, over bfloat16 ones
PREFILL_SHARE = 0.60  # of the matrix rate, a prompt of 8,192 tokens
STEP_SHARE = 0.80  # of the byte floor
WEIGHT_SHARE = {"int8": 0.80, "fp8": 0.80, "int4": 0.70}  # of the copy bandwidth, quantized weights alone, 1-16 rows
NARROW_SPEEDUP = 1.6  # of a prompt's products, int8 by int8 and float8 by float8, over bfloat16
QUANTIZED_STEP_SHARE = 0.75  # of the byte floor
OVER_TRANSFORMERS = 3.0  # output tokens a second, over transformers' own continuous batching

PRODUCTS = ("xla", "mosaic_gpu", "triton_gpu")  # our backends of the quantized product
KERNELS = {"gpu": "mosaic_gpu", "tpu": "mosaic_tpu"}
STEP_ROWS = (1, 8, 32, 128)

_KV_BYTES = "at most 1.94 x, by bytes"  # 2 x 128 of bfloat16 over 128 and a scale of 4
_SMALL_KERNELS = "60 to 74 %"  # with 16 launches a layer: some 1 ms of small kernels beside the bytes
_SMALL_KERNELS_QUANTIZED = "28 to 55 %"


class Target(NamedTuple):
    """Attributes:
    fact: the name of the figure that is judged (`device_checks.facts`), {kernel} the platform's own.
    unit: "%" judges the fact's share, "x" its number.
    predicted: "" where nothing was.
    """

    fact: str
    what: str
    at_least: float
    unit: str
    predicted: str = ""


def _attention() -> list[Target]:
    of_bandwidth = "decode attention, 32 x 8192, page {}, of copy bandwidth"
    found = [
        Target(f"attention.{{kernel}}.decode_32_x_8192_page_{page}", of_bandwidth.format(page), DECODE_SHARE, "%")
        for page in (64, 16)
    ]
    found += [
        Target(f"attention.{{kernel}}.speedup_of_{kind}_kv", f"the same with {kind} KV, page 64, times as fast",
               KV_SPEEDUP, "x", _KV_BYTES)
        for kind in ("int8", "fp8")
    ]  # fmt: skip
    what = "prefill attention, 8192 tokens, of the matrix rate"
    return [*found, Target("attention.{kernel}.prefill_1_x_8192", what, PREFILL_SHARE, "%")]


def _steps() -> list[Target]:
    found = []
    for scheme in ("bfloat16", "int8", "int4", "fp8"):
        plain = scheme == "bfloat16"
        least = STEP_SHARE if plain else QUANTIZED_STEP_SHARE
        predicted = _SMALL_KERNELS if plain else "" if scheme == "fp8" else _SMALL_KERNELS_QUANTIZED
        name = "Llama-3-8B decode step" + ("" if plain else f" in {scheme}")
        found += [
            Target(f"step.{scheme}.{rows}_rows", f"{name}, {rows} rows, of its byte floor", least, "%", predicted)
            for rows in STEP_ROWS
        ]
    return found


def _products() -> list[Target]:
    found = [
        Target(f"products.best.{scheme}_{rows}_x_28672_x_4096",
               f"product with {scheme} weights, {rows} rows, of copy bandwidth", least, "%")
        for scheme, least in WEIGHT_SHARE.items()
        for rows in (1, 16)
    ]  # fmt: skip
    return found + [
        Target(f"products.speedup_of_{scheme}", f"{scheme} product, 4096 rows, times as fast as bfloat16",
               NARROW_SPEEDUP, "x")
        for scheme in ("w8a8", "fp8-dynamic")
    ]  # fmt: skip


TARGETS = (
    *_attention(),
    *_steps(),
    *_products(),
    Target("requests.over_transformers_32", "32 requests at once, times transformers' continuous batching",
           OVER_TRANSFORMERS, "x"),
)  # fmt: skip


def targets_of(platform: str) -> dict[str, Target]:
    """{name of the fact: its target}."""
    kernel = KERNELS.get(platform, "mosaic_gpu")
    return {target.fact.format(kernel=kernel): target for target in TARGETS}


class Ceilings(NamedTuple):
    """Bytes a second (read and written), operations a second; None where they were not read."""

    copy: float | None
    matrix: float | None


def ceilings(records: list[Record]) -> Ceilings:
    """The best of what was read, through JAX and torch."""

    def best(field: str) -> float | None:
        return max((r[field] for r in records if r["section"].startswith("ceilings/") and field in r), default=None)

    return Ceilings(best("copy_bytes_per_second"), best("flops_per_second"))


def ceiling_share(record: Record, limits: Ceilings) -> float | None:
    """Of the copy bandwidth where rows decode, of the matrix rate elsewhere."""
    decode = record["kind"] == "decode"
    ceiling = limits.copy if decode else limits.matrix
    if ceiling is None:
        return None
    return float(record["needed_bytes" if decode else "needed_flops"] / record["op_seconds"] / ceiling)


def step_share(record: Record, limits: Ceilings, devices: int) -> float | None:
    """What a step must read or compute, at the ceilings of all devices, over its time."""
    least, ceiling = ("floor_flops", limits.matrix) if "floor_flops" in record else ("floor_bytes", limits.copy)
    return None if ceiling is None else float(record[least] / (ceiling * devices) / record["op_seconds"])


def devices_of(records: list[Record]) -> int:
    """That the engine ran on."""
    engines = (r for r in records if r["section"].startswith(("engine", "quantized/")))
    return next((r["devices"] for r in engines if r.get("devices")), 1)
