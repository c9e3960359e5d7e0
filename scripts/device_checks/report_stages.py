"""Tables of what stages alone read: right results, traces, a served step, flags of XLA."""

from __future__ import annotations

from device_checks.markdown import Notes, percent, table
from device_checks.records import LEFT_OUT, OK, UNSUPPORTED, Record


def correctness(records: list[Record], notes: Notes) -> str:
    """What was not right by name; what was, in number and with the largest deviation."""
    found = [r for r in records if r["section"] == "correctness" and r["case"] != LEFT_OUT]
    if not found:
        return ""
    good = [r for r in found if r["status"] == OK]
    refused = sum(r["status"] == UNSUPPORTED for r in found)
    most = max((r["deviation"] / r["tolerance"] for r in good), default=0.0)
    lines = [
        f"Each op by each backend against XLA in float32: {len(good)} right (at most {most:.0%} of the tolerance), "
        f"{refused} not served here."
    ]
    lines += [
        f"- {r['case']}: {notes.mark(r['status'], r.get('error', ''))}"
        for r in found
        if r["status"] not in (OK, UNSUPPORTED)
    ]
    return "\n".join(lines)


def traces(records: list[Record], notes: Notes) -> str:
    """Where a step's time goes."""
    parts = []
    for record in (r for r in records if r["case"].startswith("trace, ")):
        if record["status"] != OK:
            parts.append(f"{record['case']}: {notes.mark(record['status'], record.get('error', ''))}")
            continue
        span, launches = record["span_ms"], record.get("graph_launches_a_step")
        told = "" if launches is None else (
            f", {launches:.2f} launches of graphs and {record['kernel_launches_a_step']:.2f} of kernels by the host"
        )  # fmt: skip
        parts.append(
            f"{record['case']} at {record['depth']} tokens: {span:.3f} ms a step, {record['kernels_a_step']:.1f} "
            f"kernels, {record['gap_ms']:.3f} ms without any ({record['gap_ms'] / span:.0%}){told}."
        )
        rows = [
            [
                each["operation"],
                f"{each['calls']:.1f}",
                f"{each['milliseconds']:.4f}",
                percent(each["milliseconds"] / span),
            ]
            for each in record["kernels"]
        ]
        rows += [
            [f"gap: {each['after']} .. {each['before']}", f"{each['calls']:.1f}", f"{each['milliseconds']:.4f}",
             percent(each["milliseconds"] / span)]
            for each in record["gaps"]
        ]  # fmt: skip
        parts.append(table(["kernel", "a step", "ms a step", "share"], rows))
    return "\n\n".join(parts)


def served(records: list[Record], notes: Notes) -> str:
    rows = []
    for record in (r for r in records if r["section"] == "served" and r["case"].startswith("streams: ")):
        if record["status"] != OK:
            rows.append([record["case"], notes.mark(record["status"], record.get("error", "")), "", "", ""])
            continue
        times = [f"{record[name]:.3f}" for name in ("itl_p50_ms", "itl_p99_ms", "ttft_p50_ms")]
        rows.append([record["case"], *times, f"{record['tokens_per_second']:,.0f}"])
    if not rows:
        return ""
    return table(["through a server, Llama-3.2-1B shape", "between tokens ms, p50", "p99", "first token ms, p50",
                  "output tok/s"], rows)  # fmt: skip


def flags(records: list[Record], notes: Notes) -> str:
    rows = []
    for record in (r for r in records if r["section"] == "engine/flags" and r["case"] not in ("start-up", LEFT_OUT)):
        if record["status"] != OK:
            rows.append([record["case"], notes.mark(record["status"], record.get("error", "")), "", ""])
            continue
        times = [f"{record[name] * 1e3:.4f}" for name in ("base_seconds", "flag_seconds")]
        rows.append([f"{record['case']}: {record['why']}", *times, f"{record['times_as_fast']:.3f}"])
    if not rows:
        return ""
    return table(["flag of XLA, on two layers", "ms without", "ms with", "times as fast"], rows)
