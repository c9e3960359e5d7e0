"""The targets, stated for an H200, and the ceilings that they are shares of. Standard library only."""

from __future__ import annotations

from typing import Any, NamedTuple

from device_checks.records import OK, Record

STATED_FOR = "NVIDIA H200"
DECODE_SHARE = 0.85  # of the copy bandwidth, 32 rows x 8,192 tokens
INT8_SPEEDUP = 1.7  # over bfloat16 pages
PREFILL_SHARE = 0.60  # of the matrix rate, a prompt of 8,192 tokens
STEP_SHARE = 0.80  # of the byte floor, 1, 32 and 128 rows

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


def attention_share(record: Record, limits: Ceilings) -> float | None:
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
    return next((r["devices"] for r in records if r["section"] == "engine" and r.get("devices")), 1)


def verdicts(records: list[Record], platform: str) -> list[Verdict]:
    """Every target, with the figure that was read."""
    limits = ceilings(records)
    section = f"attention/{KERNELS.get(platform, 'mosaic_gpu')}"
    read = {r["case"]: r for r in records if r["section"] == section and r["status"] == OK}
    found = []
    for page in (64, 16):
        case = read.get(f"decode 32 x 8192, page {page}")
        share = None if case is None else attention_share(case, limits)
        found.append(Verdict(f"decode attention, 32 x 8192, page {page}, of copy bandwidth", share, DECODE_SHARE, "%"))
    plain, int8 = read.get("decode 32 x 8192, page 64"), read.get("decode 32 x 8192, page 64, int8 KV")
    speedup = plain["op_seconds"] / int8["op_seconds"] if plain and int8 else None
    found.append(Verdict("the same with int8 KV, page 64, times as fast", speedup, INT8_SPEEDUP, "x"))
    case = read.get("prefill 1 x 8192")
    share = None if case is None else attention_share(case, limits)
    found.append(Verdict("prefill attention, 8192 tokens, of the matrix rate", share, PREFILL_SHARE, "%"))
    steps: dict[str, Any] = {r["case"]: r for r in records if r["section"] == "engine" and r["status"] == OK}
    for rows in (1, 32, 128):
        step = steps.get(f"compiled decode step, rows: {rows}")
        share = None if step is None or "depth" not in step else step_share(step, limits, devices_of(records))
        found.append(Verdict(f"Llama-3-8B decode step, {rows} rows, of its byte floor", share, STEP_SHARE, "%"))
    return found
