"""Proves and measures the kernels and the engine on the device at hand, and prints tables for docs/benchmarks.md.

    python scripts/device_check.py [--only GROUP,GROUP] [--out DIR] [--budget-seconds 540]
    python scripts/device_check.py --rehearse          # every line of it on a CPU, with tiny sizes: no measurement

In this order: what the machine is; the ceilings (copy bandwidth, matrix rate) through JAX and torch; the kernels'
tests, natively; attention of every backend and of its peers; products with quantized weights, of every backend and
of theirs; grouped products, of rows with their experts, likewise; the whole engine with random weights, and
transformers'; its decode steps with quantized layers. Each is a group that --only takes: tests, ceilings, attention,
products, experts, engine, quantized. If ten minutes are too short for all of them, two runs are:
`--only ceilings,tests,attention,engine` and `--only ceilings,products,experts,quantized`.
Each section runs in a process of its own with its own time limit: what crashes, hangs or is missing becomes a cell of a
table and costs nothing else. Results are appended to DIR/results.jsonl as they come, what the sections print goes to
DIR/log.txt, and the tables are printed, and written to DIR/table.md, also when the time is over or the run is stopped.
Exits with 1 if a case failed, crashed, took too long or was not reached, and names each on stderr; what does not exist
on this machine is left out and no fault. Exits with 2 if there is no device or an option is wrong.

Runs from a checkout on an NVIDIA GPU with JAX, and with torch and transformers for the peers; on a TPU VM it leaves out
what is the GPU's. Needs no network. A jax-triton wheel in --wheels (default .whl) is unpacked and used.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from device_checks.child import run_section
from device_checks.records import BEGIN, FILE, LEFT_OUT, SKIPPED, Record, Records, without_proof
from device_checks.report import render
from device_checks.sections import ENGINE_SECONDS, GROUPS, PROBE, SECTIONS, Section
from device_checks.settings import ROOT, Settings, default_out, fresh_cache
from device_checks.supervisor import LOG, Supervisor

BUDGET = 540.0  # seconds that the sections' own limits go with; with more, they grow


class Stopped(Exception):
    """SIGTERM or SIGINT: what is there is still printed."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}; default all")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default $OUT, or ./device_check")
    parser.add_argument("--cache", type=Path, default=None, help="compiled programs; default a new folder")
    parser.add_argument("--budget-seconds", type=float, default=BUDGET, help="of the whole run (default 540)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="folder that may hold a jax-triton wheel")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # a section's own process
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every case was run or refused by name, 1 if one failed or was not reached, 2 for bad input or
    no device."""
    arguments = make_parser().parse_args(argv)
    out = (arguments.out or default_out()).resolve()
    cache = (arguments.cache or fresh_cache()).resolve()
    settings = Settings(out, cache, arguments.rehearse, arguments.wheels.resolve())
    if arguments.section is not None:
        return run_section(Section.from_json(arguments.section), settings)
    wanted = arguments.only.split(",")
    if unknown := sorted(set(wanted) - set(GROUPS)):
        print(f"device_check: error: --only names {', '.join(unknown)}; known: {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    for folder in (out, cache):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (FILE, LOG):
        (out / name).unlink(missing_ok=True)
    _unpack_wheels(settings)
    supervisor = Supervisor(settings, time.monotonic() + arguments.budget_seconds)
    growth = max(1.0, arguments.budget_seconds / BUDGET)
    sections = [section.longer(growth) for section in SECTIONS if section.group in wanted]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    status = 0
    try:
        status = run(supervisor, settings, sections)
    except Stopped:
        supervisor.stop()
        status = 1
    if arguments.cache is None:
        shutil.rmtree(cache, ignore_errors=True)  # a process that cannot be ended may still write there
    records = Records(out).read()
    table = render(records, settings)
    (out / "table.md").write_text(table)
    print(table)
    faults = without_proof(records)
    for record in faults:
        print(_fault(record), file=sys.stderr)
    return status or int(bool(faults))


def run(supervisor: Supervisor, settings: Settings, sections: list[Section]) -> int:
    """The machine first: which sections make sense there."""
    supervisor.run(PROBE)
    records = Records(settings.out)
    platform = next((r["platform"] for r in records.read("probe") if "platform" in r), None)
    missing = [name for r in records.read("probe") for name in r.get("missing", ())]
    if settings.rehearse:
        platform = "gpu"  # everything but the TPU's kernel
        missing = [name for name in missing if name != "triton"]  # flex attention runs on a CPU without it
    if platform not in ("gpu", "tpu"):
        seen = "nothing" if platform is None else f"{platform} only"
        print(f"device_check: error: JAX sees {seen} here, see {settings.out}/log.txt; --rehearse runs on a CPU",
              file=sys.stderr)  # fmt: skip
        return 2
    for section in sections:
        if (reason := _left_out(section, platform, missing)) is not None:
            records.add(section.name, LEFT_OUT, SKIPPED, error=reason)
            continue
        begin = time.monotonic()
        later = any(other.group == "engine" for other in sections) and section.group != "engine"
        supervisor.run(section, ENGINE_SECONDS if later and not settings.rehearse else 0)
        print(f"{section.name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return 0


def _fault(record: Record) -> str:
    how = "did not end" if record["status"] == BEGIN else f"{record['status']}: {record.get('error', '')}"
    return f"device_check: error: {record['section']}, {record['case']}: {how}"


def _left_out(section: Section, platform: str, missing: list[str]) -> str | None:
    if platform not in section.platforms:
        return f"there is nothing of it on a {platform}"
    lacking = [name for name in section.needs if name in missing]
    return f"{', '.join(lacking)}: not installed" if lacking else None


def _unpack_wheels(settings: Settings) -> None:
    for wheel in sorted(settings.wheels.glob("jax_triton-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(settings.cache / "wheels")


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
