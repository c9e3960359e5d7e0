"""The figures of each section's records, under names without spaces. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from device_checks.records import LEFT_OUT, OK, Record
from device_checks.targets import KERNELS, PRODUCTS, Ceilings, ceiling_share, ceilings, devices_of, step_share

_PYTEST = "pytest"  # the case that stands for the whole run of the tests
_DECODE = "decode 32 x 8192, page 64"


class Figure(NamedTuple):
    """name, value: as printed. share: of a ceiling. number: the value, for a target that is a factor. passed: a verdict
    of its own, without a target."""

    name: str
    value: str
    share: float | None = None
    number: float | None = None
    passed: bool | None = None
    why: str = ""


class Known(NamedTuple):
    """What figures are shares of."""

    limits: Ceilings
    devices: int
    platform: str

    @classmethod
    def of(cls, records: list[Record]) -> Known:
        platform = next((r["platform"] for r in records if r["section"] == "probe" and "platform" in r), "gpu")
        return cls(ceilings(records), devices_of(records), platform)


Reader = Callable[[Record, Known], Iterator[Figure]]


def slug(text: str) -> str:
    """A name's part: letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.-]+", "_", text.lower()).strip("_")


def name_of(record: Record) -> str:
    """Of a case, by which its fact is known whether it has a figure or not."""
    group, _, rest = record["section"].partition("/")
    case = record["case"]
    if group in ("engine", "quantized"):
        return _engine_name(group, rest, case)
    parts = [group, rest.replace("/", "."), "" if case == LEFT_OUT else slug(case)]
    return ".".join(part for part in parts if part)


def _engine_name(group: str, rest: str, case: str) -> str:
    scheme = rest if group == "quantized" else "bfloat16"
    if case.startswith("compiled decode step, rows: "):
        return f"step.{scheme}.{case.rpartition(' ')[2]}_rows"
    if case == "compiled prompt step":
        return f"prompt_step.{scheme}"
    if case.startswith("requests: "):
        return f"requests.{'transformers' if rest == 'transformers' else 'jaxinfer'}_{case.rpartition(' ')[2]}"
    if rest == "flags" and case != "start-up":
        return f"flags.{slug(case)}"
    parts = [group, rest, "" if case == LEFT_OUT else slug(case)]
    return ".".join(part for part in parts if part)


def reader_of(section: str) -> Reader:
    return _READERS.get(section.partition("/")[0], _ended)


def _ended(record: Record, known: Known) -> Iterator[Figure]:
    """Of a section that has no figures: that it ended."""
    del known
    yield Figure(name_of(record), OK)


def _probe(record: Record, known: Known) -> Iterator[Figure]:
    del known
    if record.get("rehearsal"):
        yield Figure("machine.rehearsal", "no_measurement", why="tiny sizes on a CPU: no figure here says anything")
    for name in ("device_kind", "count", "compute_capability", "python"):
        if record.get(name) not in (None, "None"):
            yield Figure(f"machine.{name}", str(record[name]))
    if record.get("bytes_limit"):
        yield Figure("machine.usable_memory", f"{record['bytes_limit'] / 1e9:.1f}GB")
    if smi := record.get("nvidia_smi"):
        yield Figure("machine.driver", str(smi.get("driver_version", "unknown")))
    for name, version in (record.get("versions") or {}).items():
        if version is not None:
            yield Figure(f"version.{name}", str(version))
    for name, reason in (record.get("missing") or {}).items():
        yield Figure(f"missing.{name}", "not_installed", why=reason)


def _ceilings(record: Record, known: Known) -> Iterator[Figure]:
    del known
    library = record["section"].partition("/")[2]
    if "copy_bytes_per_second" in record:
        yield Figure(f"ceilings.{library}.copy", f"{record['copy_bytes_per_second'] / 1e9:.0f}GB/s")
    if "flops_per_second" in record:
        yield Figure(f"ceilings.{library}.matrix", f"{record['flops_per_second'] / 1e12:.1f}TFLOP/s")


def _correctness(record: Record, known: Known) -> Iterator[Figure]:
    del known
    off, allowed = record["deviation"], record["tolerance"]
    yield Figure(name_of(record), f"{off:.1e}", off / allowed, passed=off <= allowed)


def _timed_op(record: Record, known: Known) -> Iterator[Figure]:
    yield Figure(name_of(record), _milliseconds(record["op_seconds"]), ceiling_share(record, known.limits))


def _engine(record: Record, known: Known) -> Iterator[Figure]:
    name, case = name_of(record), record["case"]
    if "ready_seconds" in record:
        yield Figure(f"{name}.ready", f"{record['ready_seconds']:.1f}s")
        yield Figure(f"{name}.attention", str(record["attention"]))
    elif case.startswith("compiled "):
        yield Figure(name, _milliseconds(record["op_seconds"]), step_share(record, known.limits, known.devices))
        yield Figure(f"{name}.host_call", _milliseconds(record["call_seconds"]))
    elif "wall_seconds" in record:
        yield Figure(name, f"{record['output_tokens'] / record['wall_seconds']:.0f}tok/s")
        if record.get("decode_step_seconds") is not None:
            yield Figure(f"{name}.decode_step", _milliseconds(record["decode_step_seconds"]))
    elif "loop_seconds" in record:
        gap = record["loop_seconds"] - record["op_seconds"]
        yield Figure(name, _milliseconds(record["loop_seconds"]))
        yield Figure(f"{name}.host_gap", _milliseconds(gap), gap / record["loop_seconds"])
    elif "kernels" in record:
        yield from _trace(name, record)
    elif "times_as_fast" in record:
        yield Figure(name, f"{record['times_as_fast']:.3f}x")
    else:
        yield Figure(name, OK)


def _trace(name: str, record: Record) -> Iterator[Figure]:
    """Shares are of the time from the first kernel's begin to the last one's end."""
    span = record["span_ms"]
    yield Figure(f"{name}.step", f"{span:.3f}ms")
    yield Figure(f"{name}.gaps", f"{record['gap_ms']:.3f}ms", record["gap_ms"] / span)
    yield Figure(f"{name}.kernels", f"{record['kernels_a_step']:.1f}_a_step")
    if record.get("graph_launches_a_step") is not None:
        yield Figure(f"{name}.graph_launches", f"{record['graph_launches_a_step']:.2f}_a_step")
        yield Figure(f"{name}.kernel_launches", f"{record['kernel_launches_a_step']:.2f}_a_step")
    for number, each in enumerate(record["kernels"], 1):
        value = f"{each['milliseconds']:.4f}ms_in_{each['calls']:.1f}"
        yield Figure(f"{name}.{number:02}.{slug(each['operation'])[:80]}", value, each["milliseconds"] / span)
    for number, each in enumerate(record["gaps"], 1):
        between = f"{slug(each['after'])[:40]}..{slug(each['before'])[:40]}"
        yield Figure(f"{name}.gap_{number}.{between}", f"{each['milliseconds']:.4f}ms", each["milliseconds"] / span)


def _served(record: Record, known: Known) -> Iterator[Figure]:
    del known
    name = name_of(record)
    if "ready_seconds" in record:
        yield Figure(f"{name}.ready", f"{record['ready_seconds']:.1f}s")
    else:
        yield Figure(f"{name}.token_p50", f"{record['itl_p50_ms']:.3f}ms")
        yield Figure(f"{name}.token_p99", f"{record['itl_p99_ms']:.3f}ms")
        yield Figure(f"{name}.first_token_p50", f"{record['ttft_p50_ms']:.1f}ms")
        yield Figure(f"{name}.throughput", f"{record['tokens_per_second']:.0f}tok/s")


def _tests(record: Record, known: Known) -> Iterator[Figure]:
    """Tests that passed are counted when all have ended (`derived`)."""
    del record, known
    yield from ()


_READERS: dict[str, Reader] = {
    "probe": _probe, "ceilings": _ceilings, "correctness": _correctness, "attention": _timed_op,
    "products": _timed_op, "experts": _timed_op, "engine": _engine, "quantized": _engine, "served": _served,
    "tests": _tests,
}  # fmt: skip


# -- what follows from several records --------------------------------------------------------------------------------


def derived(records: list[Record], known: Known) -> Iterator[Figure]:
    read = {(r["section"], r["case"]): r for r in records if r["status"] == OK}
    kernel = f"attention/{KERNELS.get(known.platform, 'mosaic_gpu')}"
    for kind, name in (("int8", "int8"), ("fp8", "float8")):
        plain, narrow = read.get((kernel, _DECODE)), read.get((kernel, f"{_DECODE}, {name} KV"))
        yield from _speedup(f"{kernel.replace('/', '.')}.speedup_of_{kind}_kv", plain, narrow)
    best = best_products(records)
    for case, record in best.items():
        share = ceiling_share(record, known.limits)
        yield Figure(f"products.best.{slug(case)}", _milliseconds(record["op_seconds"]), share)
    plain = best.get("bfloat16, 4096 x 28672 x 4096")
    for scheme in ("w8a8", "fp8-dynamic"):
        yield from _speedup(f"products.speedup_of_{scheme}", plain, best.get(f"{scheme}, 4096 x 28672 x 4096"))
    for (section, case), record in read.items():
        peer = read.get(("engine/transformers", case))
        if case.startswith("requests: ") and section != "engine/transformers" and peer is not None:
            times = _rate(record) / _rate(peer)
            yield Figure(f"requests.over_transformers_{case.rpartition(' ')[2]}", f"{times:.2f}x", number=times)
    yield from _counted_tests([r for r in records if r["section"] == "tests"])


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


def _counted_tests(records: list[Record]) -> Iterator[Figure]:
    if not any(r["case"] == _PYTEST for r in records):
        return
    for status in ("ok", "failed", "crashed", "unsupported"):
        count = sum(r["status"] == status and r["case"] != _PYTEST for r in records)
        bad = status in ("failed", "crashed")
        yield Figure(f"tests.{status}", str(count), passed=(count == 0) if bad else None)


def _speedup(name: str, base: Record | None, narrow: Record | None) -> Iterator[Figure]:
    if base is not None and narrow is not None:
        times = base["op_seconds"] / narrow["op_seconds"]
        yield Figure(name, f"{times:.2f}x", number=times)


def _rate(record: Record) -> float:
    return float(record["output_tokens"] / record["wall_seconds"])


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}ms"
