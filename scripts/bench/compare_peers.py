"""Ours, vLLM's CPU build, OpenVINO GenAI and transformers on the same weights and requests, in turns on one machine.

    python scripts/bench/compare_peers.py MODEL --vllm-python PYTHON --openvino-python PYTHON
        --openvino-model DIR --openvino-int8-model DIR [--rounds 3] [--out DIR] [--only batch16,single]

MODEL is a Hugging Face folder. Each program runs in a process and an environment of its own (`peer_worker.py`), one
after the other; a round is one process of each. A peer without its --...-python is left out; transformers runs with
--openvino-python. Prints, and with --out writes, a table in Markdown (peers.md), the figures (peers.json) and a picture
(peers.png): medians over the rounds, and our ratio to each peer in the same round, like for like (unquantized weights)
and best (our int8 beside whatever the peer runs). A ratio above 1 is ours being faster; rows that we lose stay.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.peer_worker import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]

Figures = dict[str, dict[str, Any]]  # workload -> what `peer_worker.measure` gives

HIGHER = {"single": "output_tok_s", "batch16": "output_tok_s", "long": "output_tok_s"}
LOWER = {
    "long prompt": ("long", "first_seconds"),
    "prefix": ("prefix", "cached_seconds"),
    "ready": ("ready", "ready_seconds"),
}
ROWS = {
    "single": "single stream: 16 in, 64 out, output tok/s",
    "batch16": "batch16: 16 x 128 in, 64 out, output tok/s",
    "long": "one stream at 4,024 to 4,088 tokens of context, output tok/s",
    "long prompt": "4,024 tokens in, seconds to the first token",
    "prefix": "32 requests, 1,024 of 1,040 tokens cached, seconds to all first tokens",
    "ready": "process start to ready, seconds (ours: a filled compilation cache)",
}
OURS, OURS_BEST = "jaxinfer", "jaxinfer int8"


@dataclass(frozen=True)
class Contender:
    """One program with its weights. like: it computes with unquantized weights."""

    name: str
    peer: str
    python: str
    model: str
    setting: str
    like: bool = True
    kernels: str = "auto"  # ours only


@dataclass
class Measured:
    """Of each contender: figures of each round, and why it has none."""

    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def values(self, name: str, row: str) -> list[float | None]:
        """A row's value in each round; None where the workload was not run."""
        workload, key = LOWER.get(row, (row, HIGHER.get(row, "")))
        return [found.get(workload, {}).get(key) for found in self.rounds.get(name, [])]

    def median(self, name: str, row: str) -> float | None:
        found = [value for value in self.values(name, row) if value is not None]
        return statistics.median(found) if found else None

    def ratio(self, ours: str, other: str, row: str) -> float | None:
        """Median over rounds of how much faster `ours` was in the same round."""
        pairs = zip(self.values(ours, row), self.values(other, row), strict=False)
        found = [b / a if row in LOWER else a / b for a, b in pairs if a and b]
        return statistics.median(found) if found else None


def contenders(args: argparse.Namespace) -> list[Contender]:
    found = [
        Contender(OURS, "jaxinfer", sys.executable, args.model, args.dtype),
        Contender(OURS_BEST, "jaxinfer", sys.executable, args.model, "int8", like=False),
    ]
    for kernels in args.cpu_kernels:
        found += [
            dataclasses.replace(each, name=f"{each.name}, {kernels}", like=False, kernels=kernels) for each in found[:2]
        ]
    if args.vllm_python:
        found.append(Contender("vLLM bfloat16", "vllm", args.vllm_python, args.model, "bfloat16"))
    if args.openvino_python:
        if args.openvino_model:
            found.append(Contender("OpenVINO fp16", "openvino", args.openvino_python, args.openvino_model, "fp16"))
        if args.openvino_int8_model:
            model = args.openvino_int8_model
            found.append(Contender("OpenVINO int8", "openvino", args.openvino_python, model, "int8", like=False))
        found.append(Contender("transformers bfloat16", "transformers", args.openvino_python, args.model, "bfloat16"))
    return [each for each in found if not any(word in each.name for word in args.skip)]


def run_once(contender: Contender, workloads: list[str], seed: int, timeout: float) -> tuple[Figures, str]:
    """(figures, error) of one process; what it printed before it failed counts."""
    command = [contender.python, str(Path(__file__).with_name("peer_worker.py")), contender.peer, contender.model]
    command += ["--setting", contender.setting, "--workloads", ",".join(workloads), "--seed", str(seed)]
    command += ["--cpu-kernels", contender.kernels]
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if contender.peer == "jaxinfer":
        environment["PYTHONPATH"] = str(ROOT)
    out, error = _run(command, environment, timeout)
    found: Figures = {}
    for line in out.splitlines():
        if line.startswith('{"workload"'):
            figures = json.loads(line)
            found[figures.pop("workload")] = figures
    return found, error


def _run(command: list[str], environment: dict[str, str], timeout: float) -> tuple[str, str]:
    """What a program printed, and what went wrong ("": nothing).

    Its output goes to files and it leads a process group of its own, which is killed when it has ended: a program whose
    own processes outlive it (vLLM's engine does) would keep a pipe open for ever.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, env=environment, start_new_session=True)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            error = f"not finished within {timeout:g} s"
        else:
            error = "" if process.returncode == 0 else "no words"
        with contextlib.suppress(ProcessLookupError):  # nothing was left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        out.seek(0)
        log.seek(0)
        if error == "no words":
            error = (log.read().strip().splitlines() or [error])[-1]
        return out.read(), error


def measure(found: list[Contender], workloads: list[str], rounds: int, timeout: float) -> Measured:
    measured = Measured()
    for number in range(rounds):
        order = found if number % 2 == 0 else found[::-1]  # nobody is always the first
        for contender in order:
            figures, error = run_once(contender, workloads, number, timeout)
            measured.rounds.setdefault(contender.name, []).append(figures)
            if error:
                measured.failures[contender.name] = error
            told = ", ".join(f"{name} {_short(values)}" for name, values in figures.items())
            print(f"round {number + 1} {contender.name}: {told or '-'} {error}", file=sys.stderr, flush=True)
    return measured


def _short(figures: dict[str, Any]) -> str:
    return " ".join(f"{value:.4g}" for value in figures.values() if isinstance(value, float))


# -- what is printed --------------------------------------------------------------------------------------------------


def cpu_class() -> str:
    """The CPU's name, how many cores this process may use, and the units that decide which products are fast."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    named = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    units = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni", "avx_vnni") if name in flags
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{named[0] if named else platform.processor()}, {cores} cores, {' '.join(units) or 'no vector units known'}"


def versions(measured: Measured) -> list[str]:
    """One line for each contender."""
    lines = []
    for name, rounds in measured.rounds.items():
        about = next((found["ready"] for found in rounds if "ready" in found), None)
        if about is None:
            lines.append(f"{name}: no figures: {measured.failures.get(name, '')}")
            continue
        others = ", ".join(f"{key} {about[key]}" for key in ("jax", "torch", "openvino", "python") if key in about)
        failed = f"; then failed: {measured.failures[name]}" if name in measured.failures else ""
        lines.append(f"{name}: version {about['version']}, {others}{failed}")
    return lines


def markdown(measured: Measured, found: list[Contender], workloads: list[str], rounds: int) -> str:
    """The tables: medians, then ratios."""
    rows = rows_of(workloads)
    names = [each.name for each in found]
    lines = [f"Machine: {cpu_class()}. Medians of {rounds} rounds.", ""]
    lines += [f"- {line}" for line in versions(measured)]
    lines += ["", f"| workload | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [f"| {ROWS[row]} | {' | '.join(_cell(measured.median(name, row)) for name in names)} |" for row in rows]
    peers = [each for each in found if each.peer != "jaxinfer"]
    pairs = [(OURS, each) for each in peers if each.like] + [(OURS_BEST, each) for each in peers]
    pairs = [(ours, each) for ours, each in pairs if ours in names]
    if pairs:
        heads = [f"{'like for like' if ours == OURS else 'best'}: over {each.name}" for ours, each in pairs]
        lines += ["", "Times as fast as the peer, median of the rounds' ratios; below 1 we lose.", ""]
        lines += [f"| workload | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
        for row in rows:
            cells = [_ratio(measured.ratio(ours, each.name, row)) for ours, each in pairs]
            lines.append(f"| {ROWS[row]} | {' | '.join(cells)} |")
    if "prefix" in workloads:
        lines += ["", f"Cached over uncached, 32 requests: {_prefix(measured, names)}."]
    return "\n".join(lines) + "\n"


def rows_of(workloads: list[str]) -> list[str]:
    wanted = {"ready", *workloads, *(["long prompt"] if "long" in workloads else [])}
    return [row for row in ROWS if row in wanted]


def _prefix(measured: Measured, names: list[str]) -> str:
    said = []
    for name in names:
        ratios = [found["prefix"]["ratio"] for found in measured.rounds.get(name, []) if "prefix" in found]
        if ratios:
            said.append(f"{name} {statistics.median(ratios):.2f}")
    return ", ".join(said) or "nobody has a prefix cache"


def _cell(value: float | None) -> str:
    return (
        "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"**{value:.2f}**" if value < 1 else f"{value:.2f}"


def draw(measured: Measured, found: list[Contender], workloads: list[str], path: Path) -> None:
    """Throughputs of every contender beside each other. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows_of(workloads) if row in HIGHER]
    if not rows:
        return
    figure = Figure(figsize=(4.0 * len(rows), 0.42 * len(found) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    names = [each.name for each in found]
    for axis, row in zip(axes, rows, strict=True):
        values = [measured.median(name, row) or 0.0 for name in names]
        colors = ["#2f6f9f" if each.peer == "jaxinfer" else "#c7c7c7" for each in found]
        axis.barh(range(len(names)), values, height=0.66, color=colors, zorder=2)
        for place, value in enumerate(values):
            axis.text(value, place, f" {_cell(value or None)}", va="center", fontsize=8.5)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names), fontsize=9)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(0, 1.18 * max([*values, 1e-9]))
        axis.set_title(ROWS[row].rpartition(", ")[0].replace(": ", "\n", 1), fontsize=9, loc="left")
        axis.set_xlabel("output tokens per second", fontsize=8.5)
        axis.grid(axis="x", color="#e4e4e4", zorder=0)
        axis.tick_params(length=0, labelsize=8.5)
        for side in ("top", "right", "left", "bottom"):
            axis.spines[side].set_visible(False)
    figure.suptitle(cpu_class(), fontsize=9)
    figure.savefig(path, dpi=130, format="png", facecolor="white")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto", help="of our like-for-like run (default: auto, what serve chooses)")
    parser.add_argument(
        "--cpu-kernels", nargs="*", default=[], metavar="NAME", help="ours with these too: xla, avx2, ..."
    )
    parser.add_argument("--vllm-python", metavar="PYTHON")
    parser.add_argument("--openvino-python", metavar="PYTHON")
    parser.add_argument("--openvino-model", metavar="DIR", help="exported with fp16 weights")
    parser.add_argument("--openvino-int8-model", metavar="DIR", help="exported with int8 weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, with commas")
    parser.add_argument("--skip", nargs="*", default=[], metavar="WORD", help="contenders whose name has such a word")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds of one process")
    parser.add_argument("--out", type=Path, metavar="DIR")
    args = parser.parse_args()
    workloads = args.only.split(",")
    if unknown := [name for name in workloads if name not in WORKLOADS]:
        parser.error(f"--only is {args.only!r}; {unknown[0]!r} is none of {', '.join(WORKLOADS)}")
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; it must be at least 1")
    found = contenders(args)
    measured = measure(found, workloads, args.rounds, args.timeout)
    text = markdown(measured, found, workloads, args.rounds)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "peers.md").write_text(text, encoding="utf-8")
        record = {"cpu": cpu_class(), "rounds": measured.rounds, "failures": measured.failures}
        (args.out / "peers.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        draw(measured, found, workloads, args.out / "peers.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
