"""The command: what it prints and leaves behind, its comparison with transformers, and that it leaves no half of a
folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

import checkpoints.quantizing.verify as verify
from checkpoints.convert import convert
from checkpoints.files import REPORT_FILE, CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import canonical_shapes, load_model
from checkpoints.quantizing.layerwise import rounded_activations
from checkpoints.quantizing.options import Quantizing
from checkpoints.quantizing.report import WORST, MatrixReport, QuantizationReport, tables
from checkpoints.quantizing.verify import StoredModel
from checkpoints.storage import read_storage
from checkpoints.tensor_assembly import DTYPES
from checkpoints.verify import dense_logits
from pallas_kernels.qtensor import FP8
from serving.commands.convert import main
from tests.checkpoints.folders import tree, write_small_llama
from tests.checkpoints.quantized.models import PROMPT
from tests.checkpoints.quantizing.models import write_family, write_samples

LLAMAS = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")


def test_the_command_converts_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_family(tmp_path / "hf"), tmp_path / "out"
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\nmatch = '.*out'\nuse = 'keep'\n")
    options = ["--quantize", "int4", "--group", "64", "--policy", str(rules), "--kv-cache-dtype", "fp8"]
    assert main([str(source), str(out), *options, "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"out: LlamaForCausalLM, 0\.2 M parameters, 0\.\d MB in int4 and bfloat16, 12 tensors used", printed
    )
    assert re.search(r"layers\.0\.mlp\.down +int4/64 ", printed)
    assert re.search(r"attention\.out +keep +1 ", printed)
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    report = json.loads((out / REPORT_FILE).read_text())
    rows = {row["name"]: row for row in report["quantization"]["matrices"]}
    assert rows["layers.0.attention.out"]["bytes_after"] == rows["layers.0.attention.out"]["bytes_before"]
    assert rows["layers.0.mlp.down"]["group"] == 64
    assert 15 < rows["layers.0.mlp.down"]["weight_snr"] < 25  # 15 levels of a uniform weight
    totals = report["quantization"]["totals"]
    assert totals["bytes_after"] == sum(row["bytes_after"] for row in rows.values())
    assert report["parameter_count"] * 2 - totals["bytes_before"] + totals["bytes_after"] == report["parameter_bytes"]


def test_bad_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_family(tmp_path / "hf")
    before = tree(tmp_path)
    assert main([str(source), str(tmp_path / "out"), "--skip", "auto"]) == 2
    assert capsys.readouterr().err == "jaxinfer convert: error: --skip goes with --quantize\n"
    assert main([str(source), str(tmp_path / "out"), "--quantize", "w8a8", "--group", "32"]) == 2
    assert "error: group is 32; it goes with int8, int4, fp8, not with w8a8" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_report_of_many_layers_stays_short() -> None:
    row = MatrixReport("", "int4", None, 128, 400_000_000, 103_000_000, 18.5, 20.5, 19.5, 0.3, True, None)
    rows = tuple(
        dataclasses.replace(row, name=f"layers.{layer}.{end}", output_snr=20 + layer / 10, scheme="int4")
        for layer in range(80)
        for end in LLAMAS
    )
    used = {"samples": 128, "tokens": 60_000, "offered_samples": 400}
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(tables(QuantizationReport("int4", None, "auto", used, rows)))
    lines = console.export_text().splitlines()
    assert len(lines) < 30
    worst = [line.split()[0] for line in lines if line.startswith("layers.")]
    assert len(worst) == WORST
    assert worst[:5] == [*(f"layers.0.{end}" for end in LLAMAS), "layers.1.attention.qkv"]
    assert any(re.match(r"all +int4 +320 +128\.0 +33\.0 +18\.5", line) for line in lines)
    assert not any("…" in line for line in lines)


KILLED = """
    import os, signal, sys
    from checkpoints.convert import convert
    from checkpoints.quantizing.options import Quantizing
    def say(line):
        if line.startswith(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    convert(sys.argv[1], sys.argv[2], quantizing=Quantizing("int4"), verify=True, say=say)
"""


@pytest.mark.longer
def test_a_killed_conversion_leaves_nothing_that_loads(tmp_path: Path) -> None:
    source, out = write_family(tmp_path / "hf"), tmp_path / "out"
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(out), "comparing"],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr
    (partial,) = set(tmp_path.iterdir()) - {source}
    assert "params" in os.listdir(partial)
    with pytest.raises(CheckpointError, match="never finished"):
        load_model(partial)
    convert(source, out, quantizing=Quantizing("int4"))
    assert sorted(os.listdir(tmp_path)) == ["hf", "out"]


@pytest.mark.longer
def test_what_the_file_means_is_what_is_served(tmp_path: Path) -> None:
    """On a CPU w8a8 is served as it is stored, so that the two agree but for the order of sums, and for activations
    that it moves to the next step."""
    source = write_small_llama(tmp_path / "hf", hidden=64, mlp=96)
    convert(source, tmp_path / "out", quantizing=Quantizing("w8a8"))
    config, _ = read_config(tmp_path / "out")
    stored = read_storage(tmp_path / "out", config).matrices
    model = StoredModel(tmp_path / "out", config, canonical_shapes(config, DTYPES["float32"]), stored)
    (found,) = model.logits([PROMPT])
    served = dense_logits(load_model(tmp_path / "out"), PROMPT)
    assert np.linalg.norm(found - served) / np.linalg.norm(served) < 5e-3
    dense = dense_logits(load_model(source), PROMPT)
    assert np.linalg.norm(found - dense) / np.linalg.norm(dense) > 1e-2


@pytest.mark.parametrize(("kind", "largest", "dtype"), [("int8", 127, np.int8), ("fp8", 448, FP8)])
def test_activations_are_rounded_inside_a_program_too(kind: Any, largest: int, dtype: Any) -> None:
    """XLA drops a conversion to float8 that meets one back."""
    x = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    scales = np.abs(x).max(axis=1, keepdims=True) / largest
    scaled = x / scales
    numbers = (np.round(scaled) if kind == "int8" else scaled).astype(dtype).astype(np.float32)
    found = jax.jit(rounded_activations, static_argnums=1)(x, kind)
    steps = np.abs(np.asarray(found) - numbers * scales) / np.abs(x).max()
    assert np.mean(steps > 1e-6) < 0.02  # a tie may go the other way
    assert np.mean(np.abs(np.asarray(found) - x) > 1e-5) > 0.5


def test_values_that_differ_from_what_was_rounded_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_family(tmp_path / "hf")
    real = verify.StoredModel.check

    def check(self: StoredModel, digests: dict[str, str]) -> None:
        real(self, digests | {"layers.0.mlp.down.weight.scales": "0" * 64})

    monkeypatch.setattr(verify.StoredModel, "check", check)
    with pytest.raises(CheckpointError, match=r"parameter layers\.0\.mlp\.down\.weight\.scales: expected SHA-256 000"):
        convert(source, tmp_path / "out", quantizing=Quantizing("int8"), verify=True)
    assert sorted(os.listdir(tmp_path)) == ["hf"]


@pytest.mark.longer
def test_verification_against_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreement with the dense original is reported; beyond the limit the folder does not appear."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source = write_family(tmp_path / "hf", "qwen2")
    samples = write_samples(tmp_path / "samples.txt")
    asked = Quantizing("int8", calibrate=samples)
    report = convert(source, tmp_path / "out", quantizing=asked, verify=True)
    assert report.verification is not None
    assert report.verification["stored_checksums"] == "equal"
    found: dict[str, Any] = report.verification["logits"]
    assert 0 < found["divergence"] < 0.02
    assert 0.8 < found["agreement"] <= 1
    limits = dataclasses.replace(verify.EIGHT_BITS, divergence=found["divergence"] / 2)
    monkeypatch.setattr(verify, "EIGHT_BITS", limits)
    with pytest.raises(CheckpointError, match=r"mean divergence \(nats\) is"):
        convert(source, tmp_path / "again", quantizing=asked, verify=True)
    assert sorted(os.listdir(tmp_path)) == ["hf", "out", "samples.txt"]
