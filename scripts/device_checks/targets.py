"""The targets, stated for an H200, and the ceilings that they are shares of. Standard library only."""

from __future__ import annotations

from typing import Any, NamedTuple

from device_checks.records import OK, Record

STATED_FOR = "NVIDIA H200"
DECODE_SHARE = 0.85  # of the copy bandwidth, 32 rows x 8,192 tokens
KV_SPEEDUP = 1.7  # of int8 and float8 pages, over bfloat16 ones
PREFILL_SHARE = 0.60  # of the matrix rate, a prompt of 8,192 tokens
STEP_SHARE = 0.80  # of the byte floor, 1, 32 and 128 rows
WEIGHT_SHARE = {"int8": 0.80, "fp8": 0.80, "int4": 0.70}  # of the copy bandwidth, quantized weights alone, 1-16 rows
NARROW_SPEEDUP = 1.6  # of a prompt's products, int8 by int8 and float8 by float8, over bfloat16
QUANTIZED_STEP_SHARE = 0.75  # of the byte floor

PRODUCTS = ("xla", "mosaic_gpu", "triton_gpu")  # our backends of the quantized product
KERNELS = {"gpu": "mosaic_gpu", "tpu": "mosaic_tpu"}


class Ceilings(NamedTuple):
    """Bytes a second (read and written), operations a second; None where they were not read."""

    copy: float | None
    matrix: float | None


class Verdict(NamedTuple):
    what: str
    figure: float | None
    at_least: float
    unit: str  # "%" or "x"

    @property
    def word(self) -> str:
        if self.figure is None:
            return "not read"
        return "pass" if self.figure >= self.at_least else "miss"


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
    return record["needed_bytes" if decode else "needed_flops"] / record["op_seconds"] / ceiling


def step_share(record: Record, limits: Ceilings, devices: int) -> float | None:
    """What a decode step must read, at the copy bandwidth of all devices, over its time."""
    if limits.copy is None:
        return None
    return record["floor_bytes"] / (limits.copy * devices) / record["op_seconds"]


def devices_of(records: list[Record]) -> int:
    """That the engine ran on."""
    engines = (r for r in records if r["section"] == "engine" or r["section"].startswith("quantized/"))
    return next((r["devices"] for r in engines if r.get("devices")), 1)


def verdicts(records: list[Record], platform: str) -> list[Verdict]:
    """Every target, with the figure that was read."""
    limits = ceilings(records)
    section = f"attention/{KERNELS.get(platform, 'mosaic_gpu')}"
    read = {r["case"]: r for r in records if r["section"] == section and r["status"] == OK}
    found = []
    for page in (64, 16):
        case = read.get(f"decode 32 x 8192, page {page}")
        share = None if case is None else ceiling_share(case, limits)
        found.append(Verdict(f"decode attention, 32 x 8192, page {page}, of copy bandwidth", share, DECODE_SHARE, "%"))
    plain = read.get("decode 32 x 8192, page 64")
    for kind, name in (("int8", "int8"), ("fp8", "float8")):
        narrow = read.get(f"decode 32 x 8192, page 64, {name} KV")
        speedup = plain["op_seconds"] / narrow["op_seconds"] if plain and narrow else None
        found.append(Verdict(f"the same with {kind} KV, page 64, times as fast", speedup, KV_SPEEDUP, "x"))
    case = read.get("prefill 1 x 8192")
    share = None if case is None else ceiling_share(case, limits)
    found.append(Verdict("prefill attention, 8192 tokens, of the matrix rate", share, PREFILL_SHARE, "%"))
    steps: dict[str, Any] = {r["case"]: r for r in records if r["section"] == "engine" and r["status"] == OK}
    for rows in (1, 32, 128):
        step = steps.get(f"compiled decode step, rows: {rows}")
        share = None if step is None or "depth" not in step else step_share(step, limits, devices_of(records))
        found.append(Verdict(f"Llama-3-8B decode step, {rows} rows, of its byte floor", share, STEP_SHARE, "%"))
    return found + _products(records, limits) + _quantized_steps(records, limits)


def best_products(records: list[Record]) -> dict[str, Record]:
    """{case: the record of our fastest backend}."""
    best: dict[str, Record] = {}
    for record in records:
        backend = record["section"].removeprefix("products/")
        if record["section"].startswith("products/") and backend in PRODUCTS and record["status"] == OK:
            known = best.get(record["case"])
            if known is None or record["op_seconds"] < known["op_seconds"]:
                best[record["case"]] = record
    return best


def _products(records: list[Record], limits: Ceilings) -> list[Verdict]:
    read, found = best_products(records), []
    for scheme, least in WEIGHT_SHARE.items():
        for rows in (1, 16):
            case = read.get(f"{scheme}, {rows} x 28672 x 4096")
            share = None if case is None else ceiling_share(case, limits)
            found.append(Verdict(f"product with {scheme} weights, {rows} rows, of copy bandwidth", share, least, "%"))
    plain = read.get("bfloat16, 4096 x 28672 x 4096")
    for scheme in ("w8a8", "fp8-dynamic"):
        narrow = read.get(f"{scheme}, 4096 x 28672 x 4096")
        speedup = plain["op_seconds"] / narrow["op_seconds"] if plain and narrow else None
        found.append(Verdict(f"{scheme} product, 4096 rows, times as fast as bfloat16", speedup, NARROW_SPEEDUP, "x"))
    return found


def _quantized_steps(records: list[Record], limits: Ceilings) -> list[Verdict]:
    found = []
    for scheme in ("int8", "int4", "fp8"):
        section = f"quantized/{scheme}"
        steps = {r["case"]: r for r in records if r["section"] == section and r["status"] == OK}
        for rows in (1, 32, 128):
            step = steps.get(f"compiled decode step, rows: {rows}")
            share = None if step is None or "depth" not in step else step_share(step, limits, devices_of(records))
            what = f"Llama-3-8B decode step in {scheme}, {rows} rows, of its byte floor"
            found.append(Verdict(what, share, QUANTIZED_STEP_SHARE, "%"))
    return found
