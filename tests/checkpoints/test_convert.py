"""The converter: what it writes and reports, what it refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints.convert import convert
from checkpoints.files import REPORT_FILE, CheckpointError, is_converted
from checkpoints.load import load_model
from jaxinfer.config import ConfigError
from jaxinfer.text import load_tokenizer
from serving.commands.convert import main
from tests.checkpoints.folders import edit_json, edit_tensors, raw_safetensors, tree, write_golden, write_small_llama


def report_of(folder: Path) -> dict:
    return json.loads((folder / REPORT_FILE).read_text())


def test_what_a_conversion_contains(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "hf")
    (source / "generation_config.json").write_text('{"top_p": 0.9}')
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("not ours")
    convert(source, tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("*")}
    assert files == {
        "chat_template.jinja", "additional_chat_templates", "config.json", "conversion_report.json",
        "generation_config.json",
        "jaxinfer_config.json", "params", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "generation_config.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["hf", "out"]
    assert load_tokenizer(tmp_path / "out").content_digest == load_tokenizer(source).content_digest


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_report_accounts_for_every_tensor(tmp_path: Path, dtype: str | None) -> None:
    source = write_golden(tmp_path / "hf", "phi3", shards=3)
    extra = {"model.rotary_emb.inv_freq": np.ones(4, np.float32)}
    shard = source / "model-00001-of-00003.safetensors"
    save_file(load_file(shard) | extra, shard)
    index = source / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weight_map | {"model.rotary_emb.inv_freq": shard.name})
    convert(source, tmp_path / "out", dtype=dtype)
    report = report_of(tmp_path / "out")
    stored = dtype or "float32"
    numpy_dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[stored]
    tensors = {name: array for file in sorted(source.glob("*.safetensors")) for name, array in load_file(file).items()}
    assert {entry["source"] for entry in report["tensors"]} | set(report["ignored"]) == set(tensors)
    assert report["ignored"] == {"model.rotary_emb.inv_freq": "computed from the config"}
    assert len(report["tensors"]) == len(tensors) - 1
    for entry in report["tensors"]:
        array = tensors[entry["source"]]
        assert entry["source_shape"] == list(array.shape)
        assert entry["source_dtype"] == "F32"
        assert weight_map[entry["source"]] == entry["file"]
        assert entry["dtype"] == report["dtype"] == stored
        assert entry["checksum"] == hashlib.sha256(array.astype(numpy_dtype).tobytes()).hexdigest()
    (fused,) = (e for e in report["tensors"] if e["source"] == "model.layers.0.self_attn.qkv_proj.weight")
    assert fused["target"] == "layers.0.attention.qkv.weight"
    assert fused["transform"] == "query_key_value"
    assert fused["region"] == "[:, 0:2], [:, 2], [:, 3]"
    assert report["parameter_count"] == sum(array.size for array in tensors.values()) - 4
    assert report["parameter_bytes"] == report["parameter_count"] * np.dtype(numpy_dtype).itemsize
    assert report["verification"] is None


def test_dtype_of_the_conversion_is_that_of_auto(tmp_path: Path) -> None:
    convert(write_small_llama(tmp_path / "hf"), tmp_path / "out", dtype="bfloat16")
    model = load_model(tmp_path / "out")
    assert model.dtype == model.config.dtype == "bfloat16"


def test_float16_becomes_bfloat16(tmp_path: Path) -> None:
    source = write_golden(tmp_path / "hf", "llama", dtype="float16")
    report = convert(source, tmp_path / "out")
    assert report.dtype == "bfloat16"
    assert {entry.source_dtype for entry in report.tensors} == {"F16"}


def test_progress_and_stages_are_told(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    lines: list[str] = []
    report = convert(
        write_small_llama(tmp_path / "hf"),
        tmp_path / "out",
        progress=lambda done, total, path: progress.append((done, total)),
        say=lines.append,
    )
    assert progress[-1] == (report.parameter_bytes, report.parameter_bytes)
    assert progress == sorted(progress)
    assert [line.split()[0] for line in lines] == ["checking", "writing"]


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'int8'; it must be one of float32, bfloat16"):
        convert(write_small_llama(tmp_path / "hf"), tmp_path / "out", dtype="int8")


def test_converting_a_conversion_is_refused(tmp_path: Path) -> None:
    convert(write_small_llama(tmp_path / "hf"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="out: expected a Hugging Face folder; this is a converted checkpoint"):
        convert(tmp_path / "out", tmp_path / "again")


def write_config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text)


def unlink(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def absent_shard(folder: Path) -> None:
    weight_map = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


UP = "model.layers.1.mlp.up_proj.weight"

# The table of bad inputs: what is wrong, and what the one line on stderr must say.
BAD_INPUTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "unknown architecture": (
        lambda folder: edit_json(folder / "config.json", architectures=["MambaForCausalLM"]),
        ("config.json", "architecture 'MambaForCausalLM' is not supported; supported are", "LlamaForCausalLM"),
    ),
    "missing tensor": (
        lambda folder: edit_tensors(folder, {UP: None}),
        (f"tensor {UP} is missing; expected shape (48, 32) for layers.1.mlp.gate_up.weight",),
    ),
    "extra tensor": (
        lambda folder: edit_tensors(folder, {"model.layers.7.mlp.up_proj.weight": np.ones(3, np.float32)}),
        ("model.safetensors", "tensor model.layers.7.mlp.up_proj.weight (3,) is left over"),
    ),
    "misshaped tensor": (
        lambda folder: edit_tensors(folder, {UP: np.ones((32, 48), np.float32)}),
        ("model.safetensors", f"tensor {UP}: expected shape (48, 32)", "found (32, 48)"),
    ),
    "tensor of integers": (
        lambda folder: edit_tensors(folder, {UP: np.ones((48, 32), np.int8)}),
        ("model.safetensors", f"tensor {UP}: expected dtype F32, F16, BF16, found I8"),
    ),
    "truncated safetensors": (truncate, ("model.safetensors: truncated: the last tensor ends at byte",)),
    "corrupt header": (
        lambda folder: (folder / "model.safetensors").write_bytes(raw_safetensors(b"{nonsense")),
        ("model.safetensors: the header is not JSON",),
    ),
    "no weights": (unlink("model.safetensors"), ("expected model.safetensors or model.safetensors.index.json",)),
    "pickle": (only_pickle, ("pytorch_model.bin is a pickle", "expected safetensors")),
    "absent shard": (absent_shard, ("tensor model.norm.weight is in model-00001-of-00002.safetensors; there is no",)),
    "absent tokenizer": (unlink("tokenizer.json"), (": looked for tokenizer.json, tokenizer.model, tekken.json",)),
    "corrupt tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": '),
        ("tokenizer.json is not valid JSON",),
    ),
    "not a tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), ("tokenizer.json",)),
    "corrupt tokenizer config": (
        lambda folder: (folder / "tokenizer_config.json").write_text("["),
        ("tokenizer_config.json is not valid JSON",),
    ),
    "corrupt config": (write_config('{"architectures": ["Llama'), ("config.json: expected JSON", "line 1 column")),
    "config is a list": (write_config("[]"), ("config.json: expected a JSON object; found list",)),
    "config value": (
        lambda folder: edit_json(folder / "config.json", num_key_value_heads=3),
        ("config.json", "num_heads 4 is not a multiple of num_kv_heads 3"),
    ),
    "absent config": (unlink("config.json"), ("expected config.json (Hugging Face)", "found neither")),
    "corrupt generation config": (
        lambda folder: (folder / "generation_config.json").write_text('{"a": 1,}'),
        ("generation_config.json: expected JSON", "line 1 column"),
    ),
    "corrupt index": (
        lambda folder: (
            unlink("model.safetensors")(folder),
            (folder / "model.safetensors.index.json").write_text("{"),
        ),
        ("model.safetensors.index.json: expected JSON",),
    ),
}


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.strip().splitlines()[-1]
    assert re.search(".*".join(re.escape(word) for word in ("error: ", *words)), line), line


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_stops_with_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, words = BAD_INPUTS[name]
    source = write_small_llama(tmp_path / "hf")
    change(source)
    before = tree(tmp_path)
    assert_refused(capsys, [str(source), str(tmp_path / "out")], str(source), *words)
    assert tree(tmp_path) == before


def test_absent_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, [str(tmp_path / "no"), str(tmp_path / "out")], "HF_DIR is ", "no'; there is no such folder")
    assert tree(tmp_path) == []


def test_a_fault_found_late_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another head than the embedding shows only when values are read, when writing has begun."""
    source = write_small_llama(tmp_path / "hf", tie_word_embeddings=True)
    before = tree(tmp_path)
    assert_refused(capsys, [str(source), str(tmp_path / "out")], "tensor lm_head.weight: expected the values of")
    assert tree(tmp_path) == before


def test_unwritable_target_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_small_llama(tmp_path / "hf")
    (tmp_path / "file").write_text("")
    assert_refused(capsys, [str(source), str(tmp_path / "file" / "out")], "file")


def test_command_line_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_small_llama(tmp_path / "hf"), tmp_path / "out"
    assert main([str(source), str(out), "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert re.search(
        r"out: LlamaForCausalLM, 0\.0 M parameters, 0\.1 MB in bfloat16, 21 tensors used, 0 ignored", captured.out
    )
    assert "error" not in captured.err
    assert_refused(capsys, [str(source), str(out)], "out: expected no such folder; it exists")
    assert load_model(out).dtype == "bfloat16"
    assert main([str(source), str(out), "--dtype", "float32", "--overwrite"]) == 0
    assert load_model(out).dtype == "float32"
    assert sorted(os.listdir(tmp_path)) == ["hf", "out"]


def test_usage_errors_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["only-one"])
    assert caught.value.code == 2
    assert "OUT_DIR" in capsys.readouterr().err


def test_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints.convert as module

    def interrupted(folder: Path, params: object) -> None:
        (folder / "params").mkdir()
        raise KeyboardInterrupt

    source = write_small_llama(tmp_path / "hf")
    before = tree(tmp_path)
    monkeypatch.setattr(module, "save_params", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    assert tree(tmp_path) == before


def test_script_is_the_command(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "hf")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "scripts" / "convert_hf.py"), str(source), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    assert is_converted(tmp_path / "out")


KILLED = """
    import os, signal, sys
    from checkpoints.convert import convert
    def say(line):
        if line.startswith(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    convert(sys.argv[1], sys.argv[2], verify=True, say=say)
"""


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_a_killed_conversion_leaves_nothing_that_loads(tmp_path: Path) -> None:
    """Killed when all parameters are written and only the comparison and the report are missing."""
    source, out = write_small_llama(tmp_path / "hf"), tmp_path / "out"
    result = run_python(KILLED, str(source), str(out), "comparing")
    assert result.returncode == -signal.SIGKILL, result.stderr
    (partial,) = set(tmp_path.iterdir()) - {source}
    assert "params" in os.listdir(partial)
    with pytest.raises(CheckpointError, match="never finished"):
        load_model(partial)
    convert(source, out)
    assert sorted(os.listdir(tmp_path)) == ["hf", "out"]
    assert load_model(out).config.num_layers == 2


MEASURED = """
    import sys
    from checkpoints.convert import convert
    convert(sys.argv[1], sys.argv[2], dtype=sys.argv[3])
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see the peak of resident memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_model_the_largest_tensor_and_a_constant(tmp_path: Path, dtype: str) -> None:
    """About 600 MB of float32 weights in three shards; VmHWM counts the libraries too."""
    source = write_small_llama(tmp_path / "hf", layers=11, hidden=1024, mlp=3328)
    tensors = load_file(source / "model.safetensors")
    total = sum(array.nbytes for array in tensors.values())
    assert 550e6 < total < 750e6
    (source / "model.safetensors").unlink()
    weight_map = {}
    for shard in range(3):
        part = {name: array for index, (name, array) in enumerate(tensors.items()) if index % 3 == shard}
        save_file(part, source / f"part-{shard}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{shard}.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    largest = max(array.nbytes for array in tensors.values())
    itemsize = {"float32": 4, "bfloat16": 2}[dtype]
    result = run_python(MEASURED, str(source), str(tmp_path / "out"), dtype)
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout.split()[-1]) * 1024
    model = total * itemsize // 4
    print(f"{dtype}: peak {peak / 1e6:.0f} MB, model {model / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
    assert peak <= model + largest + 500e6
