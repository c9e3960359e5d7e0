"""Policies: the first rule that matches decides, and what cannot be is refused by name before weights are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from checkpoints.convert import convert
from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from checkpoints.quantizing.options import Quantizing
from checkpoints.quantizing.policy import Planned, plan_matrices
from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.models.stored_matrix import matrices_of
from pallas_kernels.qtensor import QTensor
from serving.commands.convert import main
from tests.checkpoints.folders import tree, write_small_llama
from tests.checkpoints.quantizing.models import write_family


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    """Two layers; 64 inputs, and 96 of `down`."""
    return read_config(write_small_llama(tmp_path / "hf", hidden=64, mlp=96))[0]


def policy(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return path


def test_the_first_rule_that_matches_decides(tmp_path: Path, config: ModelConfig) -> None:
    rules = policy(
        tmp_path,
        r"""
        [[rule]]
        match = 'layers\.0\.attention\..*'
        use = "keep"
        [[rule]]
        match = '.*\.(qkv|out)'
        use = "int4"
        group = 32
        [[rule]]
        match = 'layers\.1\.mlp\.down'
        use = "w8a8"
        """,
    )
    planned = plan_matrices(config, Quantizing("int8", policy=rules))
    assert list(planned) == [f"layers.{layer}.{end}" for layer in (0, 1) for end in matrices_of(config.layers[layer])]
    assert list(planned.values()) == [
        Planned(None), Planned(None), Planned("int8"), Planned("int8"),
        Planned("int4", 32), Planned("int4", 32), Planned("int8"), Planned("w8a8"),
    ]  # fmt: skip


def test_groups_of_a_scheme(config: ModelConfig) -> None:
    """int4 takes the largest that divides, mxfp4 has one; int8 has a scale for each output unless it is told."""
    ends = matrices_of(config.layers[0])
    assert plan_matrices(config, Quantizing("mxfp4"))["layers.0.attention.qkv"] == Planned("mxfp4", 32)
    assert {end: plan_matrices(config, Quantizing("int4"))[f"layers.0.{end}"].group for end in ends} == {
        "attention.qkv": 64, "attention.out": 64, "mlp.gate_up": 64, "mlp.down": 32,
    }  # fmt: skip
    assert plan_matrices(config, Quantizing("int8"))["layers.0.mlp.down"] == Planned("int8")
    assert plan_matrices(config, Quantizing("int8", group=32))["layers.0.mlp.down"] == Planned("int8", 32)


RULE = "[[rule]]\nmatch = '{match}'\nuse = '{use}'\n"

BAD = {
    "no pattern": ("[[rule]]\nuse = 'int8'", "rule 1: match is None; it must be a regular expression"),
    "unknown key": (
        RULE.format(match=".*", use="int8") + "bits = 4",
        r"rule 1: has the unknown keys \['bits'\]; allowed",
    ),
    "unknown table": ("[rules]\na = 1", r"has the keys \['rules'\]; it must have \[\[rule\]\] tables only"),
    "no rules": ("", r"rule is \[\]; it must be one \[\[rule\]\] table or more"),
    "unknown scheme": (RULE.format(match=".*", use="int3"), "rule 1: use is 'int3'; it must be one of int8, int4, fp8"),
    "bad pattern": (RULE.format(match="layers.(", use="int8"), r"rule 1: match is 'layers.\('; it must be a regular"),
    "no match": (
        RULE.format(match="layers.0.mlp.dwn", use="int8"),
        r"'layers.0.mlp.dwn'; it must match the whole name",
    ),
    "part of a name": (
        RULE.format(match="mlp.down", use="int8"),
        r"'mlp.down'; it must match the whole name of a matrix",
    ),
    "dead rule": (
        RULE.format(match=".*", use="int8") + RULE.format(match=".*down", use="keep"),
        r"rule 2: match is '\.\*down'; earlier rules decide for all it matches",
    ),
    "group does not divide": (
        RULE.format(match=".*down", use="int4") + "group = 64",
        "rule 1: group is 64; it must divide the 96 inputs of layers.0.mlp.down",
    ),
    "odd group": (
        RULE.format(match=".*", use="int4") + "group = 48",
        "rule 1: group is 48; it must be one of 32, 64, 128",
    ),
    "group of activations": (
        RULE.format(match=".*", use="w8a8") + "group = 32",
        "rule 1: group is 32; it goes with int8, int4, fp8, not with w8a8",
    ),
    "group of nothing": (
        RULE.format(match=".*", use="keep") + "group = 32",
        "group is 32; it does not go with use = 'keep'",
    ),
    "not TOML": ("[[rule", "rules.toml: expected TOML; found a fault"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(tmp_path: Path, config: ModelConfig, name: str) -> None:
    text, message = BAD[name]
    with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
        plan_matrices(config, Quantizing("int8", policy=policy(tmp_path, text)))
    assert "rules.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"scheme": "int3"},
            "quantize is 'int3'; it must be one of int8, int4, fp8, w8a8, fp8-dynamic, mxfp4, or None",
        ),
        ({"policy": Path("a.toml")}, "policy is 'a.toml'; it goes with quantize, which is None"),
        ({"skip": "auto"}, "skip is 'auto'; it goes with quantize"),
        ({"scheme": "int8", "skip": "all"}, "skip is 'all'; it must be one of auto, or None"),
        ({"scheme": "int4", "group": 16}, "group is 16; it must be one of 32, 64, 128"),
        ({"scheme": "fp8-dynamic", "group": 32}, "group is 32; it goes with int8, int4, fp8, not with fp8-dynamic"),
        ({"scheme": "mxfp4", "group": 32}, "group is 32; it goes with int8, int4, fp8, not with mxfp4"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype is 'int4'; it must be one of int8, fp8, or None"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    source = write_small_llama(tmp_path / "hf")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        convert(source, tmp_path / "out", quantizing=Quantizing(**asked))
    assert tree(tmp_path) == before


def test_a_policy_is_judged_before_weights_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_family(tmp_path / "hf")
    (source / "model.safetensors").write_bytes(b"")
    rules = policy(tmp_path, RULE.format(match="x", use="int8"))
    assert main([str(source), str(tmp_path / "out"), "--quantize", "int4", "--policy", str(rules)]) == 2
    assert "rules.toml: rule 1: match is 'x'" in capsys.readouterr().err


def test_a_mixed_model_loads(tmp_path: Path) -> None:
    rules = policy(
        tmp_path, RULE.format(match=r".*\.qkv", use="keep") + RULE.format(match=".*down", use="int4") + "group = 64"
    )
    report = convert(write_family(tmp_path / "hf"), tmp_path / "out", quantizing=Quantizing("fp8", policy=rules))
    assert report.quantization is not None
    rows = {row.name: (row.scheme, row.group) for row in report.quantization.matrices}
    assert rows == {
        "layers.0.attention.qkv": ("keep", None), "layers.0.attention.out": ("fp8", None),
        "layers.0.mlp.gate_up": ("fp8", None), "layers.0.mlp.down": ("int4", 64),
    }  # fmt: skip
    layer = load_model(tmp_path / "out").params["layers"][0]
    assert not isinstance(layer["attention"]["qkv"]["weight"], QTensor)
    assert isinstance(layer["mlp"]["down"]["weight"], QTensor)
