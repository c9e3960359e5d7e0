"""Whole runs of stages of `scripts/device_check.py` on a CPU: killed ones, a served step, what is not installed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as `python scripts/device_check.py` has it


from device_checks import facts, stages  # noqa: E402
from device_checks.probe_packages import SERVER_PACKAGES  # noqa: E402
from device_checks.records import Records  # noqa: E402
from device_checks.sections import Section  # noqa: E402
from device_checks.settings import Settings  # noqa: E402
from device_checks.supervisor import Supervisor  # noqa: E402

pytestmark = pytest.mark.longer


def test_a_served_step_is_rehearsed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A real server and a real client of it."""
    (section,) = (section for section in stages.STAGES[1] if section.name == "served")
    settings = Settings(tmp_path, tmp_path / "cache", rehearse=True, stage=1)
    Supervisor(settings, time.monotonic() + 200).run(section, left_over=100)
    read = {r["case"]: r for r in Records(tmp_path).read() if r["status"] != "begin"}
    assert {case: r["status"] for case, r in read.items()} == {
        "start-up": "ok", "streams: 32": "ok", "streams: 8": "ok",
    }, (tmp_path / "log.txt").read_text()[-2000:]  # fmt: skip
    assert [read[f"streams: {count}"]["output_tokens"] for count in (32, 8)] == [32 * 16, 8 * 16]
    said = facts.facts_in(capfd.readouterr().out)
    assert {"served.start-up.ready", "served.streams_32.token_p50", "served.streams_8.throughput"} <= set(said)


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "device_check.py"), *map(str, arguments)]


def test_stages_have_their_own_limits(tmp_path: Path) -> None:
    for option in (("--only", "engine"), ("--budget-seconds", "9")):
        done = subprocess.run(
            _command("--stage", "1", *option, "--out", tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert f"{option[0]} cannot go with --stage" in done.stderr
    done = subprocess.run(_command("--report", tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "no results in" in done.stderr) == (2, True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("stage", "until", "how"),
    [
        (1, "machine.device_kind", signal.SIGKILL),
        (1, "ceilings.jax.copy", signal.SIGTERM),
        (2, "step.bfloat16.4_rows", signal.SIGKILL),
    ],
)
def test_a_run_that_is_killed_has_told_all_that_it_knew(
    stage: int, until: str, how: signal.Signals, tmp_path: Path
) -> None:
    """Facts on stdout are those of the folder, its processes are gone, and tables can be made of what is there."""
    out = tmp_path / "out"
    command = _command("--rehearse", "--stage", str(stage), "--out", out, "--cache", tmp_path / "cache")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(f"FACT {until} "):
            process.send_signal(how)
            break
    seen += process.stdout.read()  # ends when no process of the run is left
    assert process.wait(timeout=60) == (-how if how == signal.SIGKILL else 1)
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if _belongs(pid, out)]
    said = facts.facts_in(seen)
    assert until in said
    known = {fact.name: fact.lines().splitlines()[0] for fact in facts.facts(Records(out).read())}
    assert said == known
    report = subprocess.run(_command("--report", out), capture_output=True, text=True, timeout=60, check=False)
    assert report.returncode == 0, report.stderr
    assert facts.facts_in(report.stdout) == said
    assert report.stdout.count("**A rehearsal on a CPU with tiny sizes") == 1
    assert ("| compiled decode step, rows: 4 |" in report.stdout) == (stage == 2)


def test_a_case_that_hangs_ends_with_its_run(tmp_path: Path) -> None:
    """It would hold the device. Killed, the run cannot end it."""
    section = Section("misbehaving", "tests", "tests.scripts.misbehaving", 60, 60, options={"only": ["hangs"]})
    program = (
        "import time\n"
        "from pathlib import Path\n"
        "from device_checks.sections import Section\n"
        "from device_checks.settings import Settings\n"
        "from device_checks.supervisor import Supervisor\n"
        f"settings = Settings(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}), rehearse=True)\n"
        f"Supervisor(settings, time.monotonic() + 60).run(Section.from_json({section.to_json()!r}))\n"
    )
    environment = Settings(tmp_path, tmp_path, rehearse=True).environment()
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    _until(lambda: Records(tmp_path).open_case("misbehaving") == "hangs")
    process.kill()
    process.wait()
    _until(lambda: not [pid for pid in Path("/proc").glob("[0-9]*") if _belongs(pid, tmp_path)])


def _until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _belongs(pid: Path, out: Path) -> bool:
    try:
        return str(out).encode() in (pid / "cmdline").read_bytes()
    except OSError:  # it has ended
        return False


_BLOCKED = """
import importlib.abc, importlib.util, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
"""
# Neither a server nor its packages need be there; some of them the engine, or flax, has anyway.
_KEPT = {"google", "jinja2", "rich", "tokenizers", "sentencepiece"}
_ABSENT = sorted({name.split(".")[0] for name in SERVER_PACKAGES} - _KEPT)


def test_what_is_not_installed_is_told_and_not_needed(tmp_path: Path) -> None:
    absent = [*_ABSENT, "llguidance", "smg_grpc_proto"]
    modules = sorted({section.module for found in stages.STAGES.values() for section in found if "torch" not in
                      (*section.needs, section.framework)})  # fmt: skip
    program = _BLOCKED.format(absent=absent) + (
        "from pathlib import Path\n"
        "from device_checks.probe import _packages\n"
        "from device_checks.settings import Settings\n"
        f"for module in {modules!r}: __import__(module)\n"
        "print(*_packages(Settings(Path(), Path()))['missing'])\n"
    )
    environment = Settings(tmp_path, tmp_path, rehearse=True).environment()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert {"grpc_health", "msgspec", "uvicorn", "starlette"} <= set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stages_are_rehearsed(tmp_path: Path) -> None:
    """Each with a folder of its own, and one cache: the last one's table has what all have read."""
    for stage in stages.STAGES:
        out = tmp_path / str(stage)
        command = _command("--rehearse", "--stage", str(stage), "--out", out, "--cache", tmp_path / "cache")
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
    read = {r["section"] for r in Records(out).read() if r["status"] == "ok"}
    assert read >= {"probe", "ceilings/jax", "correctness", "engine/steps", "served", "engine/wide", "engine/flags",
                    "quantized/int8", "quantized/int4", "quantized/fp8", "tests"}  # fmt: skip
    assert "trace, rows: 4" in done.stdout
    assert "probe: " not in done.stderr  # once was enough
