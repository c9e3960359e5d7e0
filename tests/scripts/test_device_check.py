"""`scripts/device_check.py` without a device: what hangs or dies costs one cell, the tables come out whatever happened,
and the whole of it can be rehearsed."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.longer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as `python scripts/device_check.py` has it


from device_checks import attention_cases, sections  # noqa: E402
from device_checks.facts import facts  # noqa: E402
from device_checks.records import Records  # noqa: E402
from device_checks.report import render  # noqa: E402
from device_checks.sections import Section  # noqa: E402
from device_checks.settings import Settings  # noqa: E402
from device_checks.supervisor import Supervisor  # noqa: E402

MISBEHAVING = Section("misbehaving", "tests", "tests.scripts.misbehaving", 60, 4)
# What the machines that the script is for have, beside the standard library. Some are asked for by name only.
INSTALLED = {
    "jax", "jaxlib", "numpy", "ml_dtypes", "flax", "orbax", "rich", "jinja2", "tokenizers", "sentencepiece",
    "safetensors", "chex", "hypothesis", "pytest", "torch", "transformers", "triton", "jax_triton", "tokamax",
}  # fmt: skip
OURS = {"pallas_kernels", "jaxinfer", "checkpoints", "serving", "protos", "tests", "device_checks", "model_shapes",
        "served", "make_random_model"}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path, tmp_path / "cache", rehearse=True)


def test_what_dies_or_hangs_costs_its_own_case(settings: Settings) -> None:
    Supervisor(settings, time.monotonic() + 100).run(MISBEHAVING)
    ends = {r["case"]: r for r in Records(settings.out).read() if r["status"] != "begin"}
    assert {case: r["status"] for case, r in ends.items()} == {
        "fine": "ok",
        "refuses": "unsupported",
        "raises": "failed",
        "aborts": "crashed",
        "hangs": "timeout",
        "exits": "crashed",
        "after": "ok",
    }
    assert ends["fine"]["figure"] == ends["after"]["figure"] == 1
    assert ends["raises"]["error"] == "ValueError: a bad number"
    assert ends["aborts"]["error"].startswith("killed by SIGABRT; ")
    assert "Check failed" in (settings.out / "log.txt").read_text()


def test_no_time_left(settings: Settings) -> None:
    supervisor = Supervisor(settings, time.monotonic() + 30)
    supervisor.run(MISBEHAVING, reserved=29)
    (record,) = Records(settings.out).read()
    assert record["status"] == "skipped"
    assert record["error"] == "the time of the whole run was over, but for 29 s that later sections need"


def test_a_test_that_dies_costs_itself(tmp_path: Path) -> None:
    """The plugin's records of a pytest run in several processes, as `kernel_tests` starts it."""
    (tmp_path / "test_on_device.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.parametrize('what', ['pass', 'die', 'fail', 'skip', 'again'])\n"
        "def test_it(what):\n"
        "    if what == 'die': os.abort()\n"
        "    if what == 'fail': assert 1 == 2\n"
        "    if what == 'skip': pytest.skip('not served')\n"
    )
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-q", "-n", "2", "-p", "device_checks.pytest_records",
               "-p", "no:cacheprovider", "--device-records", str(tmp_path), "--max-worker-restart", "9"]  # fmt: skip
    environment = Settings(tmp_path, tmp_path, rehearse=True).environment()
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    ends = {r["case"].split("[")[-1]: r for r in Records(tmp_path).read()}
    assert {case: r["status"] for case, r in ends.items()} == {
        "pass]": "ok",
        "die]": "crashed",
        "fail]": "failed",
        "skip]": "unsupported",
        "again]": "ok",
    }, done.stdout
    assert ends["fail]"]["error"] == "assert 1 == 2"
    assert ends["skip]"]["error"] == "not served"


def test_a_section_crosses_to_its_process() -> None:
    for section in sections.SECTIONS:
        assert Section.from_json(section.to_json()) == section


def _attention(case: str, seconds: float, **fields: Any) -> dict[str, Any]:
    known = {c.name: c for c in attention_cases.attention_cases(Settings(Path(), Path()))}[case]
    work = {"kind": known.kind, "needed_bytes": known.needed_bytes, "needed_flops": known.needed_flops}
    record = {"section": "attention/mosaic_gpu", "case": case, "status": "ok", "op_seconds": seconds}
    return {**record, **work, **fields}


CEILINGS = [
    {"section": "ceilings/jax", "case": "copy", "status": "ok", "copy_bytes_per_second": 4.0e12},
    {"section": "ceilings/torch", "case": "copy", "status": "ok", "copy_bytes_per_second": 4.3e12},
    {"section": "ceilings/jax", "case": "matrix", "status": "ok", "flops_per_second": 7.9e14},
]
DECODE = "decode 32 x 8192, page 64"


def test_a_target_is_met_or_missed() -> None:
    floor = 32 * 8192 * 2 * 8 * 128 * 2 / 4.3e12
    records = [*CEILINGS, _attention(DECODE, floor / 0.86), _attention(f"{DECODE}, int8 KV", floor / 0.86 / 1.69)]
    step = {"section": "engine", "case": "compiled decode step, rows: 1", "status": "ok", "depth": 1152,
            "floor_bytes": 4.3e9, "op_seconds": 1.3e-3, "call_seconds": 1e-4}  # fmt: skip
    quantized = step | {"section": "quantized/int8", "floor_bytes": 2.15e9}
    weight = 28672 * 4096 + 4 * 28672
    products = [
        {"section": f"products/{backend}", "case": "int8, 16 x 28672 x 4096", "status": "ok", "kind": "decode",
         "needed_bytes": weight, "op_seconds": seconds}
        for backend, seconds in (("xla", 1e-4), ("triton_gpu", weight / 4.3e12 / 0.81), ("torch", 1e-9))
    ]  # fmt: skip
    read = {fact.name: fact for fact in facts([*records, step, quantized, *products])}
    kernel = "attention.mosaic_gpu"
    assert read[f"{kernel}.decode_32_x_8192_page_64"][2:4] == (pytest.approx(0.86), "ok")
    assert read[f"{kernel}.speedup_of_int8_kv"].number == pytest.approx(1.69)
    assert read[f"{kernel}.speedup_of_int8_kv"].verdict == "miss"
    assert read["step.bfloat16.1_rows"][2:4] == (pytest.approx(1 / 1.3), "miss")
    assert read["step.int8.1_rows"][2:4] == (pytest.approx(0.5 / 1.3), "miss")
    assert read["products.best.int8_16_x_28672_x_4096"][2:4] == (pytest.approx(0.81), "ok")
    assert f"{kernel}.decode_32_x_8192_page_16" not in read
    assert "products.speedup_of_w8a8" not in read


def test_tables_of_a_run_that_was_cut_short(tmp_path: Path) -> None:
    records = [
        *CEILINGS,
        _attention(DECODE, 3e-4),
        {"section": "attention/xla", "case": DECODE, "status": "crashed", "error": "killed by SIGSEGV; last | words"},
        {"section": "attention/triton_gpu", "case": "all", "status": "unsupported", "error": "jax-triton is missing"},
        {"section": "engine", "case": "start-up", "status": "begin"},
    ]
    text = render(records, Settings(tmp_path, tmp_path))
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {DECODE} |")]
    assert line == f"| {DECODE} | 1.07e+03 MB | 0.3 ms, 3,579, 83% | crashed [1] | unsupported [2] |"
    assert "[1] killed by SIGSEGV; last / words" in text
    assert "Engine: skipped [3]" in text
    assert "[3] the run ended in the middle of it" in text
    assert "decode attention, 32 x 8192, page 64, of copy bandwidth | 83 % | 85 % | - | miss" in text
    assert render([], Settings(tmp_path, tmp_path)).startswith("device unknown")


def test_it_imports_what_such_a_machine_has() -> None:
    """The script, what it runs, and the tests that need a device. Evaluation is no part of the engine, and structured
    output imports its compiler when somebody asks for it."""
    folders = ("pallas_kernels", "jaxinfer", "checkpoints", "scripts/device_checks", "tests/goldens_lib")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "evaluation" not in path.parts]
    files += [ROOT / "scripts/device_check.py", ROOT / "scripts/model_shapes.py", ROOT / "tests/conftest.py"]
    files += [ROOT / "scripts/served.py", ROOT / "serving/append_file.py", ROOT / "serving/bench/trace.py"]
    files += [*(ROOT / "tests/pallas_kernels/paged_attention").glob("*.py"), *(ROOT / "tests/jaxinfer").glob("*.py")]
    for path in [*files, ROOT / "tests/golden_recipe.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS
            tops -= {"llguidance"} if node not in tree.body else set()
            assert tops <= INSTALLED, f"{path.relative_to(ROOT)} imports {tops - INSTALLED}"


def _run(*arguments: str, timeout: float, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "device_check.py"), *arguments]
    env = {name: value for name, value in os.environ.items() if name != "OUT"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=env)


def test_bad_input_is_named(tmp_path: Path) -> None:
    done = _run("--only", "kernels", "--out", str(tmp_path), timeout=30)
    assert done.returncode == 2
    assert (
        "--only names kernels; known: ceilings, tests, attention, products, experts, engine, quantized" in done.stderr
    )


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    done = _run("--only", "ceilings", "--out", str(tmp_path), timeout=60, JAX_PLATFORMS="cpu")
    assert done.returncode == 2
    assert "JAX sees cpu only here" in done.stderr
    assert (tmp_path / "table.md").exists()


def test_ceilings_are_rehearsed(tmp_path: Path) -> None:
    done = _run("--rehearse", "--only", "ceilings", timeout=100, OUT=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "\n**A rehearsal on a CPU with tiny sizes" in done.stdout
    read = {(r["section"], r["case"]): r for r in map(json.loads, (tmp_path / "results.jsonl").open())}
    assert read["ceilings/jax", "copy"]["copy_bytes_per_second"] > 0
    assert read["ceilings/jax", "matrix"]["flops_per_second"] > 0
    assert "Ceilings of this run: copy" in done.stdout
    assert "not read |" in done.stdout  # no target of a rehearsal is


def test_a_stopped_run_prints_its_tables(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "device_check.py"), "--rehearse", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not Records(tmp_path).read("ceilings/jax") and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Ceilings of this run" in out
    assert (tmp_path / "table.md").read_text() in out


@pytest.mark.parametrize(
    ("cases", "status", "fault"),
    [
        (["fine", "refuses"], 0, ""),
        (["fine", "raises"], 1, "misbehaving, raises: failed: ValueError: a bad number"),
        (["aborts", "after"], 1, "misbehaving, aborts: crashed: killed by SIGABRT"),
        (["hangs"], 1, "misbehaving, hangs: timeout: stopped after 4 s"),
    ],
)
def test_a_failed_case_is_the_exit_status(cases: list[str], status: int, fault: str, tmp_path: Path) -> None:
    """The whole script, over sections that end so, the machine's left out."""
    section = Section("misbehaving", "tests", "tests.scripts.misbehaving", 60, 4, options={"only": cases})
    absent = Section("absent", "tests", "tests.scripts.misbehaving", 60, 4, needs=("a_package",))
    probe = tmp_path / "machine.py"
    probe.write_text(
        "from device_checks.child import Case\n"
        "def cases(settings): yield Case('device', lambda: {'platform': 'cpu', 'missing': {'a_package': 'no need'}})\n"
    )
    program = tmp_path / "check.py"
    program.write_text(
        "import sys, device_check\n"
        "from device_checks.sections import Section\n"
        "device_check.PROBE = Section('probe', 'probe', 'machine', 60, 50)\n"
        f"device_check.SECTIONS = [Section.from_json({section.to_json()!r}), Section.from_json({absent.to_json()!r})]\n"
        f"sys.exit(device_check.main(['--rehearse', '--only', 'tests', '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts"), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("device_check: error: ")]
    assert len(errors) == status, errors
    assert fault in "".join(errors)
    assert "- absent: a_package: not installed" in done.stdout


def test_what_was_not_reached_is_the_exit_status(tmp_path: Path) -> None:
    done = _run("--rehearse", "--only", "ceilings", "--budget-seconds", "1", "--out", str(tmp_path), timeout=60)
    assert done.returncode == 1
    assert "ceilings/jax, rest: skipped: the time of the whole run was over" in done.stderr


@pytest.mark.timeout(300)
def test_the_engine_is_rehearsed(tmp_path: Path) -> None:
    """Start-up, timed steps and requests, as a device runs them: what they call of the engine is still there."""
    done = _run("--rehearse", "--only", "engine", "--out", str(tmp_path), timeout=280)
    assert done.returncode == 0, done.stderr
    read = {r["case"]: r for r in Records(tmp_path).read("engine") if r["status"] == "ok"}
    assert {"start-up", "compiled prompt step", "compiled decode step, rows: 4", "requests: 4"} <= set(read)
    assert read["requests: 4"]["compilations"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_is_rehearsed(tmp_path: Path) -> None:
    """Torch's part only where torch is; cuDNN and the GPU kernels say why not."""
    done = _run("--rehearse", "--out", str(tmp_path), "--budget-seconds", "800", timeout=880)
    assert done.returncode == 0, done.stderr
    records = [r for r in Records(tmp_path).read() if r["status"] not in ("begin", "skipped")]
    found = {r["section"] for r in records if r["status"] == "ok"}
    assert found >= {"probe", "ceilings/jax", "tests", "attention/xla", "attention/jax_xla", "engine"}
    assert found >= {
        "products/xla",
        "experts/xla",
        "experts/jax_ragged_dot",
        "quantized/int8",
        "quantized/int4",
        "quantized/fp8",
    }
    assert any(r["case"] == "requests: 4" and r["compilations"] == 0 for r in records if r["section"] == "engine")
    assert "jaxinfer, requests: 4" in done.stdout
