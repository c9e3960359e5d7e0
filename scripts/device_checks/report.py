"""The results as markdown, for docs/benchmarks.md: whatever is there, also after a run that was cut short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from device_checks.attention_cases import AttentionCase, attention_cases
from device_checks.expert_cases import ExpertCase, expert_cases
from device_checks.facts import facts
from device_checks.markdown import Notes, percent, table
from device_checks.product_cases import ProductCase, product_cases
from device_checks.records import (
    BEGIN,
    CRASHED,
    FAILED,
    LEFT_OUT,
    OK,
    SKIPPED,
    TIMEOUT,
    UNSUPPORTED,
    Record,
    last_of_each,
)
from device_checks.report_stages import correctness, flags, served, traces
from device_checks.settings import Settings
from device_checks.targets import (
    STATED_FOR,
    Ceilings,
    Target,
    ceiling_share,
    ceilings,
    devices_of,
    step_share,
    targets_of,
)

_ENGINES = ("engine", "engine/steps", "engine/wide")
MeasuredCase = AttentionCase | ProductCase | ExpertCase


def render(records: list[Record], settings: Settings) -> str:
    """All tables. Cells say what was not read and why."""
    records = _ended(records)
    probe = {key: value for r in records if r["section"] == "probe" for key, value in r.items()}
    limits, notes = ceilings(records), Notes()
    parts = []
    if settings.rehearse:
        parts.append("**A rehearsal on a CPU with tiny sizes: nothing here is a measurement.**")
    parts += [_machine(probe, limits), _targets([] if settings.rehearse else records, probe)]
    parts += [correctness(records, notes), _tests(records, notes)]
    parts += [_attention(records, settings, limits, notes), _products(records, settings, limits, notes)]
    parts += [_experts(records, settings, limits, notes)]
    parts += [_engine(records, limits, notes), traces(records, notes), served(records, notes)]
    parts += [_quantized(records, limits, notes), flags(records, notes), _left_out(records)]
    if notes.lines:
        parts.append("\n".join(f"[{number}] {line}" for number, line in enumerate(notes.lines, 1)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _ended(records: list[Record]) -> list[Record]:
    """The last record of every case; one that only began was cut off with the whole run."""
    return [
        r | {"status": SKIPPED, "error": "the run ended in the middle of it"} if r["status"] == BEGIN else r
        for r in last_of_each(records)
    ]


def _machine(probe: dict[str, Any], limits: Ceilings) -> str:
    smi = probe.get("nvidia_smi") or {}
    versions = {name: version for name, version in (probe.get("versions") or {}).items() if version}
    lines = [
        f"{probe.get('device_kind', 'device unknown')}, {probe.get('count', '?')} of them, driver "
        f"{smi.get('driver_version', '-')}; Python {probe.get('python', '?')}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". {probe.get('date', '')}"
    ]
    lines += [f"{name} is not installed: {reason}." for name, reason in (probe.get("missing") or {}).items()]
    copy = "not read" if limits.copy is None else f"{limits.copy / 1e9:,.0f} GB/s, bytes read and written"
    matrix = "not read" if limits.matrix is None else f"{limits.matrix / 1e12:,.1f} TFLOP/s on random bfloat16"
    return "\n".join([*lines, f"Ceilings of this run: copy {copy}; matrix product {matrix}."])


def _targets(records: list[Record], probe: dict[str, Any]) -> str:
    known = {fact.name: fact for fact in facts(records)}
    rows = []
    for name, target in targets_of(probe.get("platform", "gpu")).items():
        fact = known.get(name)
        figure = None if fact is None else fact.share if target.unit == "%" else fact.number
        word = "not read" if figure is None or fact is None else fact.verdict
        rows.append([target.what, _in_unit(figure, target), _in_unit(target.at_least, target),
                     target.predicted or "-", word])  # fmt: skip
    return table([f"target (stated for {STATED_FOR})", "read", "at least", "predicted", ""], rows)


def _in_unit(figure: float | None, target: Target) -> str:
    scale, digits = (100, 0) if target.unit == "%" else (1, 2)
    return "-" if figure is None else f"{figure * scale:.{digits}f} {target.unit}"


def _tests(records: list[Record], notes: Notes) -> str:
    tests = [r for r in records if r["section"] == "tests" and r["case"] not in ("pytest", "rest")]
    run = [r for r in records if r["section"] == "tests" and r not in tests and r["status"] != OK]
    count = {status: sum(r["status"] == status for r in tests) for status in (OK, FAILED, CRASHED, UNSUPPORTED)}
    if not tests and not run:
        return ""
    lines = [
        f"Tests on the device: {count[OK]} passed, {count[FAILED]} failed, {count[CRASHED]} took their process down, "
        f"{count[UNSUPPORTED]} skipped."
    ]
    lines += [
        f"- {r['case']}: {notes.mark(r['status'], r['error'])}" for r in tests if r["status"] in (FAILED, CRASHED)
    ]
    lines += [f"- {r['case']}: {notes.mark(r['status'], r.get('error', ''))}" for r in run]
    return "\n".join(lines)


def _attention(records: list[Record], settings: Settings, limits: Ceilings, notes: Notes) -> str:
    cases = attention_cases(settings)
    heads = cases[0].heads
    heading = (
        f"Attention, heads {heads.query}/{heads.kv} x {heads.dim}, bfloat16: milliseconds, rate, and share of the copy "
        "bandwidth (decode: GB/s of the keys and values that are needed) or of the matrix rate (else: TFLOP/s)."
    )
    return _backends("attention/", heading, cases, records, limits, notes)


def _products(records: list[Record], settings: Settings, limits: Ceilings, notes: Notes) -> str:
    heading = (
        "Products, tokens x outputs x inputs: milliseconds, rate, and share of the copy bandwidth (a few tokens: GB/s "
        "of the weight and its scales) or of the matrix rate of bfloat16 (else: TFLOP/s, or as many operations)."
    )
    return _backends("products/", heading, product_cases(settings), records, limits, notes)


def _experts(records: list[Record], settings: Settings, limits: Ceilings, notes: Notes) -> str:
    heading = (
        "Grouped products, of rows with their experts, gate and up of one layer: milliseconds, rate, and share of the "
        "copy bandwidth (a few tokens: GB/s of the weights of experts that have rows) or of the matrix rate of "
        "bfloat16. Peers have bfloat16 weights only."
    )
    return _backends("experts/", heading, expert_cases(settings), records, limits, notes)


def _backends(
    group: str,
    heading: str,
    cases: Sequence[MeasuredCase],
    records: list[Record],
    limits: Ceilings,
    notes: Notes,
) -> str:
    """A line for each case, a column for each backend of which there are records."""
    read = {
        (r["section"].removeprefix(group), r["case"]): r
        for r in records
        if r["section"].startswith(group) and r["case"] != LEFT_OUT
    }
    backends = list(dict.fromkeys(backend for backend, _ in read))
    if not backends:
        return ""
    rows = [
        [case.name, _size(case), *(_cell(_of(read, backend, case.name), limits, notes) for backend in backends)]
        for case in cases
    ]
    return heading + "\n\n" + table(["case", "needs", *backends], rows)


def _size(case: MeasuredCase) -> str:
    if case.kind == "decode":
        return f"{case.needed_bytes / 1e6:,.3g} MB"
    return f"{case.needed_flops / 1e9:,.3g} GFLOP"


def _of(read: dict[tuple[str, str], Record], backend: str, case: str) -> Record | None:
    """The record of a cell; a section that died before its first case, or refused all, speaks for every cell."""
    for name in (case, "all", "start"):
        if (backend, name) in read:
            return read[backend, name]
    return None


def _cell(record: Record | None, limits: Ceilings, notes: Notes) -> str:
    if record is None:
        return "-"
    if record["status"] != OK:
        return notes.mark(record["status"], record.get("error", ""))
    seconds, share = record["op_seconds"], ceiling_share(record, limits)
    decode = record["kind"] == "decode"
    rate = record["needed_bytes"] / seconds / 1e9 if decode else record["needed_flops"] / seconds / 1e12
    return f"{seconds * 1e3:.4g} ms, {rate:,.0f}" + ("" if share is None else f", {share:.0%}")


def _engine(records: list[Record], limits: Ceilings, notes: Notes) -> str:
    starts = [r for r in records if r["section"] in _ENGINES and r["case"] in ("start-up", "start")]
    ours = {r["case"]: r for r in records if r["section"] in _ENGINES}
    peer = {r["case"]: r for r in records if r["section"] == "engine/transformers"}
    if not ours and not peer:
        return ""
    devices = devices_of(records)
    parts = [*(_start_up({r["case"]: r}, notes) for r in starts), _compiled_steps(ours, limits, devices, notes)]
    parts += [_requests(ours, peer, limits, devices, notes)]
    return "\n\n".join(part for part in parts if part)


def _quantized(records: list[Record], limits: Ceilings, notes: Notes) -> str:
    """Decode steps of the engine with its layers quantized, one table for all schemes."""
    parts = []
    for section in dict.fromkeys(r["section"] for r in records if r["section"].startswith("quantized/")):
        steps = {r["case"]: r for r in records if r["section"] == section and r["case"] != LEFT_OUT}
        found = [_start_up(steps, notes), _compiled_steps(steps, limits, devices_of(records), notes)]
        if any(found):
            parts += [f"Layers in {section.removeprefix('quantized/')}:", *found]
    return "\n\n".join(part for part in parts if part)


def _start_up(ours: dict[str, Record], notes: Notes) -> str:
    record = ours.get("start-up") or ours.get("start")
    if record is None:
        return ""
    if record["status"] != OK:
        return f"Engine: {notes.mark(record['status'], record.get('error', ''))}"
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in record["executables"])
    return (
        f"Engine, random weights of the shape {record['model']}, attention {record['attention']}, "
        f"{record['devices']} device(s): ready in {record['ready_seconds']:.1f} s, "
        f"{record['weights_seconds']:.1f} s of them for weights; compiled: {steps}."
    )


def _compiled_steps(ours: dict[str, Record], limits: Ceilings, devices: int, notes: Notes) -> str:
    rows = []
    for case, record in ours.items():
        if not case.startswith("compiled "):
            continue
        if record["status"] != OK:
            rows.append([case, notes.mark(record["status"], record.get("error", "")), "", "", ""])
            continue
        share = step_share(record, limits, devices)
        if "floor_flops" in record:
            least = f"{record['floor_flops'] / 1e12:,.1f} TFLOP"
        else:
            least = f"{record['floor_bytes'] / 1e9:,.2f} GB"
        times = [f"{record['op_seconds'] * 1e3:.3f}", f"{record['call_seconds'] * 1e3:.3f}"]
        rows.append([case, *times, least, percent(share)])
    if not rows:
        return ""
    return table(["", "ms", "ms of it in the call on the host", "least work", "share of the floor"], rows)


def _requests(ours: dict[str, Record], peer: dict[str, Record], limits: Ceilings, devices: int, notes: Notes) -> str:
    rows = []
    for name, group in (("jaxinfer", ours), ("transformers", peer)):
        for case, record in group.items():
            if case == LEFT_OUT:
                continue
            if case.startswith("requests: "):
                compiled = ours.get(f"compiled decode step, rows: {case.removeprefix('requests: ')}", {})
                rows.append([f"{name}, {case}", *_request_cells(record, compiled, limits, devices, notes)])
            elif record["status"] != OK and name == "transformers":
                rows.append([f"{name}, {case}", notes.mark(record["status"], record.get("error", "")), *[""] * 6])
    if not rows:
        return ""
    headings = ["", "output tok/s", "of the floor", "prompts' share of the matrix rate", "decode step ms",
                "compiled step ms", "host gap ms", "compilations after ready"]  # fmt: skip
    return table(headings, rows)


def _request_cells(record: Record, compiled: Record, limits: Ceilings, devices: int, notes: Notes) -> Iterable[str]:
    if record["status"] != OK:
        return [notes.mark(record["status"], record.get("error", "")), *[""] * 6]
    cells = [f"{record['output_tokens'] / record['wall_seconds']:,.0f}"]
    if "floor_bytes" not in record:  # the peer tells no more
        return [*cells, *[""] * 6]
    floor = prompts = None
    if limits.copy is not None and limits.matrix is not None:
        prompt_floor = record["prompt_flops"] / (limits.matrix * devices)
        decode_floor = record["decode_steps"] * record["floor_bytes"] / (limits.copy * devices)
        floor = (prompt_floor + decode_floor) / record["wall_seconds"]
        prompts = prompt_floor / record["prompt_seconds"]
    step, alone = record.get("decode_step_seconds"), compiled.get("op_seconds")
    gap = None if step is None or alone is None else step - alone
    times = ["-" if value is None else f"{value * 1e3:.3f}" for value in (step, alone, gap)]
    return [*cells, percent(floor), percent(prompts), *times, str(record["compilations"])]


def _left_out(records: list[Record]) -> str:
    """Sections that were cut short or never came to their turn."""
    lines = [
        f"- {r['section']}: {r.get('error', '')}"
        for r in records
        if r["case"] in ("rest", LEFT_OUT) or (r["status"] == TIMEOUT and r["case"] == "start")
    ]
    return "Left out:\n" + "\n".join(lines) if lines else ""
