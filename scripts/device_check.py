"""Proves and measures the kernels and the engine on the device at hand, and prints tables for docs/benchmarks.md.

    python scripts/device_check.py --stage 1 [--out DIR]   # then 2, then 3: at most four minutes each
    python scripts/device_check.py [--only GROUP,GROUP] [--out DIR] [--budget-seconds 540]
    python scripts/device_check.py --rehearse ...          # every line of it on a CPU, with tiny sizes: no measurement
    python scripts/device_check.py --report DIR [DIR ...]  # facts and tables of runs, also of those that were cut

Three stages fit into the loan of a machine for 15 minutes, its start included. The first says what computes the right
numbers, how fast the kernel and steps of 8 and 32 rows are, what the time of a step goes to, and what a client sees of
it; the second has 128 rows, prompts and requests, quantized layers, the other kernel and flags of XLA; the third has
the tests, torch and transformers. Compiled programs and what earlier stages read stay in --cache (by default a folder
in the user's cache), so a stage may have a new --out. Without --stage all sections run that --only names, of tests,
ceilings, attention, products, experts, engine, quantized: with more time than a loan has, or on a TPU. If ten minutes
are too short for all of them, two runs are: `--only ceilings,tests,attention,engine` and `--only
ceilings,products,experts,quantized`.

Whatever is known is printed at once: `FACT name value share verdict`, share of the ceiling (or of the target, where
that is a factor), verdict ok, miss or "no target"; `WHY name reason` follows what has no figure. Each section runs in
a process of its own with its own time limit: what crashes, hangs or is missing becomes a cell of a table and costs
nothing else. Results are appended to DIR/results.jsonl as they come, what the sections print goes to DIR/log.txt, and
the tables are printed, and written to DIR/table.md, also when the time is over or the run is stopped. Exits with 1 if
a case failed, crashed, took too long or was not reached, and names each on stderr; what does not exist on this
machine is left out and no fault. Exits with 2 if there is no device or an option is wrong.

Runs from a checkout on an NVIDIA GPU with JAX, and with torch and transformers for the peers; on a TPU VM it leaves out
what is the GPU's. Needs no network. Wheels in --wheels (default .whl) are unpacked and used, not installed: jax-triton
for the Triton kernels, and what a server needs.
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

from device_checks import carried
from device_checks.child import end_with_parent, run_section
from device_checks.facts import facts
from device_checks.records import BEGIN, FILE, LEFT_OUT, SKIPPED, Record, Records, without_proof
from device_checks.report import render
from device_checks.sections import ENGINE_SECONDS, GROUPS, PROBE, SECTIONS, Section
from device_checks.settings import ROOT, Settings, default_out, fresh_cache, kept_cache
from device_checks.stages import STAGE_SECONDS, STAGES, sections_of
from device_checks.supervisor import LOG, Supervisor

BUDGET = 540.0  # seconds that the sections' own limits go with; with more, they grow


class Stopped(Exception):
    """SIGTERM or SIGINT: what is there is still printed."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=tuple(STAGES), help="a part that takes at most four minutes")
    parser.add_argument("--report", type=Path, nargs="+", metavar="DIR", help="run nothing: tell what runs have found")
    parser.add_argument("--only", help=f"of {', '.join(GROUPS)}; default all")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default $OUT, or ./device_check")
    parser.add_argument(
        "--cache", metavar="DIR", help="compiled programs; with --stage the user's cache by default, else a new folder"
    )
    parser.add_argument("--budget-seconds", type=float, help="of the whole run (default 540); a stage has its own")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / ".whl", help="folder of wheels to use beside what is installed"
    )
    parser.add_argument("--section", help=argparse.SUPPRESS)  # a section's own process
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every case was run or refused by name, 1 if one failed or was not reached, 2 for bad input or
    no device."""
    arguments = make_parser().parse_args(argv)
    if arguments.report:
        return report(arguments.report)
    settings = _settings(arguments)
    if arguments.section is not None:
        end_with_parent(Records(settings.out))
        return run_section(Section.from_json(arguments.section), settings)
    wanted = (arguments.only or ",".join(GROUPS)).split(",")
    if (fault := _fault_of(arguments, wanted)) is not None:
        print(f"device_check: error: {fault}", file=sys.stderr)
        return 2
    for folder in (settings.out, settings.cache):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (LOG,) if settings.stage else (FILE, LOG):
        (settings.out / name).unlink(missing_ok=True)
    unpack_wheels(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    seconds = STAGE_SECONDS if settings.stage else arguments.budget_seconds or BUDGET
    supervisor = Supervisor(settings, time.monotonic() + seconds)
    try:
        if settings.stage:
            status = run_stage(supervisor, settings)
        else:
            growth = max(1.0, seconds / BUDGET)
            status = run(supervisor, settings, [s.longer(growth) for s in SECTIONS if s.group in wanted])
    except Stopped:
        supervisor.stop()
        status = 1
    if settings.stage:
        carried.keep(settings)
    elif arguments.cache is None:
        shutil.rmtree(settings.cache, ignore_errors=True)  # a process that cannot be ended may still write there
    return _tables(settings, status)


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.cache is not None and arguments.cache != "default":
        cache = Path(arguments.cache)
    elif arguments.stage or arguments.cache:
        cache = kept_cache(arguments.rehearse)
    else:
        cache = fresh_cache()
    out = (arguments.out or default_out()).resolve()
    return Settings(out, cache.resolve(), arguments.rehearse, arguments.wheels.resolve(), arguments.stage or 0)


def _fault_of(arguments: argparse.Namespace, wanted: list[str]) -> str | None:
    """What is wrong with the options."""
    if unknown := sorted(set(wanted) - set(GROUPS)):
        return f"--only names {', '.join(unknown)}; known: {', '.join(GROUPS)}"
    if arguments.stage and (arguments.only or arguments.budget_seconds):
        given = "--only" if arguments.only else "--budget-seconds"
        return f"{given} cannot go with --stage, which has its own sections and limits"
    return None


def _tables(settings: Settings, status: int) -> int:
    """Prints and writes the tables; the exit status, with what lacks proof."""
    records = Records(settings.out).read()
    table = render(records, settings)
    (settings.out / "table.md").write_text(table)
    print(table)
    faults = without_proof([r for r in records if r.get("stage", 0) == settings.stage])
    for record in faults:
        print(_fault(record), file=sys.stderr)
    return status or int(bool(faults))


def report(folders: Sequence[Path]) -> int:
    """Prints facts and tables of runs in these folders, the later ones' before the earlier ones'; 2 without a
    result."""
    records = [record for folder in folders for record in Records(folder).read()]
    if not records:
        print(f"device_check: error: no results in {', '.join(map(str, folders))}", file=sys.stderr)
        return 2
    rehearsed = any(record.get("rehearsal") for record in records)
    for fact in facts(records):
        print(fact.lines(), end="")
    print(render(records, Settings(folders[0], folders[0], rehearsed)))
    return 0


def run_stage(supervisor: Supervisor, settings: Settings) -> int:
    """The sections of a stage, each with its own time and what those before it left over."""
    known = carried.begin(settings)
    planned = time.monotonic()
    for section in sections_of(settings.stage, carried.told(known)):
        if section.name != PROBE.name:
            platform, missing = _machine(settings)
            if platform not in ("gpu", "tpu"):
                return _no_device(settings, platform)
            if platform not in section.platforms:
                continue
            if (reason := _left_out(section, platform, missing)) is not None:
                supervisor.records.add(section.name, LEFT_OUT, SKIPPED, error=reason)
                planned += section.seconds
                continue
        planned += section.seconds
        begin = time.monotonic()
        supervisor.run(section, left_over=max(0.0, planned - begin - section.seconds))
        carried.keep(settings)
        print(f"{section.name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return 0


def run(supervisor: Supervisor, settings: Settings, sections: list[Section]) -> int:
    """The machine first: which sections make sense there."""
    supervisor.run(PROBE)
    platform, missing = _machine(settings)
    if platform not in ("gpu", "tpu"):
        return _no_device(settings, platform)
    for section in sections:
        if (reason := _left_out(section, platform, missing)) is not None:
            supervisor.records.add(section.name, LEFT_OUT, SKIPPED, error=reason)
            continue
        begin = time.monotonic()
        later = any(other.group == "engine" for other in sections) and section.group != "engine"
        supervisor.run(section, ENGINE_SECONDS if later and not settings.rehearse else 0)
        print(f"{section.name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return 0


def _machine(settings: Settings) -> tuple[str | None, list[str]]:
    """Platform and missing packages, as the probe has found them; None before it has."""
    probe = Records(settings.out).read("probe")
    platform = next((r["platform"] for r in probe if "platform" in r), None)
    missing = [name for r in probe for name in r.get("missing", ())]
    if settings.rehearse:
        platform = "gpu"  # everything but the TPU's kernel
        missing = [name for name in missing if name != "triton"]  # flex attention runs on a CPU without it
    return platform, missing


def _no_device(settings: Settings, platform: str | None) -> int:
    seen = "nothing" if platform is None else f"{platform} only"
    print(f"device_check: error: JAX sees {seen} here, see {settings.out}/log.txt; --rehearse runs on a CPU",
          file=sys.stderr)  # fmt: skip
    return 2


def _fault(record: Record) -> str:
    how = "did not end" if record["status"] == BEGIN else f"{record['status']}: {record.get('error', '')}"
    return f"device_check: error: {record['section']}, {record['case']}: {how}"


def _left_out(section: Section, platform: str, missing: list[str]) -> str | None:
    if platform not in section.platforms:
        return f"there is nothing of it on a {platform}"
    lacking = [name for name in section.needs if name in missing]
    return f"{', '.join(lacking)}: not installed" if lacking else None


def unpack_wheels(settings: Settings) -> None:
    """Those for this Python; what an earlier run unpacked there goes."""
    folder = settings.cache / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    for wheel in sorted(settings.wheels.glob("*.whl")):
        python, abi, _ = wheel.stem.split("-")[-3:]
        if (
            "py3" in python.split(".")
            or abi == "abi3"
            or python == f"cp{sys.version_info.major}{sys.version_info.minor}"
        ):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
