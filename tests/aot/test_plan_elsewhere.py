"""`jaxinfer plan` for devices that are not here, against the programs that are compiled for them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.aot.compilers import needs_cuda, needs_libtpu
from tests.aot.elsewhere import ROOT, run_elsewhere

sys.path.insert(0, str(ROOT / "scripts"))  # as `python scripts/compile_for.py` has it

from published_models import write_config

SIZES = ["--max-num-seqs", "8", "--max-num-batched-tokens", "16", "--max-model-len", "1024"]
# Of the temporaries, or bytes: a plan compiles the step with a pool of a few pages, which a compiler may move about.
MARGIN, MARGIN_BYTES = 0.05, 1 << 20
PAIRS = [
    pytest.param("small-moe-128", "v5e:2x2", ["--enable-expert-parallel"], marks=needs_libtpu),
    pytest.param("Qwen3-30B-A3B", "hopper:1", ["--quantization", "mxfp4"], marks=[needs_cuda, pytest.mark.slow]),
]

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(("name", "topology", "more"), PAIRS)
def test_a_plan_says_what_the_compiled_programs_need(name: str, topology: str, more: list[str], tmp_path: Path) -> None:
    """Of two layers of each."""
    folder = write_config(name, tmp_path, layers=2)
    asked = ["--topology", topology, *more, *SIZES]
    done = run_elsewhere("scripts/compile_for.py", "--model", str(folder), *asked, "--buckets", "largest", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    compiled: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    done = run_elsewhere("jaxinfer", "plan", str(folder), *asked, "--json", "--compilation-cache-dir", "none")
    assert done.returncode == 0, done.stderr[-4000:]
    plan: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert plan["weight_bytes"] == compiled["weights"]
    assert plan["memory_bytes"] == compiled["memory"]
    assert plan["slot_bytes"] == compiled["resident"] - compiled["weights"] - compiled["pool"]
    needed = max(program["peak"] for program in compiled["programs"]) - compiled["resident"]
    if topology.startswith("hopper"):  # XLA's trials of products while it compiles may take more than a step
        assert plan["temporary_bytes"] >= needed * (1 - MARGIN) - MARGIN_BYTES
    else:
        assert plan["temporary_bytes"] == pytest.approx(needed, rel=MARGIN, abs=MARGIN_BYTES)
    parts = ("weight_bytes", "slot_bytes", "temporary_bytes", "pool_bytes")
    assert sum(plan[part] for part in parts) <= compiled["memory"]


REFUSALS = [
    pytest.param("gpt-oss-20b", [], "inputs, stored in groups of 32: .*; --expert-parallel-size 4 with", id="not cut"),
    pytest.param("GLM-4.5-Air", [], r"does not fit: 10\.7\d GiB \([\d,]{14} bytes\) are missing", id="too large"),
    pytest.param(
        "GLM-4.5-Air", ["--quantization", "int4"], "at most 2 of the 8 devices can share its 10944 inputs", id="no way"
    ),
]


@needs_libtpu
@pytest.mark.parametrize(("name", "more", "text"), REFUSALS)
def test_what_does_not_fit_a_slice_is_refused(name: str, more: list[str], text: str, tmp_path: Path) -> None:
    folder = str(write_config(name, tmp_path))
    done = run_elsewhere("jaxinfer", "plan", folder, "--topology", "v5e:2x4", *more, "--compilation-cache-dir", "none")
    assert done.returncode == 2, done.stderr[-4000:]
    assert re.search(text, done.stderr), done.stderr[-4000:]
