"""A family is added as docs/models.md says: one function, its registration, and a table of tensor names."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import rules
from checkpoints.folder import read_config
from checkpoints.layouts import Rule
from checkpoints.load import canonical_shapes
from checkpoints.reader import open_checkpoint
from checkpoints.rules import TensorMapping, plan_mapping
from checkpoints.tensor_assembly import DTYPES
from jaxinfer.config import ModelConfig, UnsupportedModelError
from jaxinfer.models import registry
from jaxinfer.models.registry import model_config, supported_architectures
from tests.golden_recipe import load_case, write_checkpoint

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> registry.ReadFamily:
    """The example of docs/models.md, run as it stands there; and its tensors' names."""
    (code,) = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))
    names: dict[str, Any] = {}
    exec(compile(code, EXAMPLE, "exec"), names)
    table = [Rule(rule.source.replace("model.", "toy."), rule.target, rule.transform) for rule in _llama_rules()]
    monkeypatch.setitem(rules.FAMILY_RULES, "ToyForCausalLM", tuple(table))
    read: registry.ReadFamily = names["toy"]
    return read


def _llama_rules() -> tuple[Rule, ...]:
    return rules.FAMILY_RULES["LlamaForCausalLM"]


def write_toy(llama: Path, folder: Path, skip_scale: float) -> Path:
    """The folder of a Llama as the toy's publisher would have written it."""
    folder.mkdir()
    config = json.loads((llama / "config.json").read_text())
    assert not any(config.pop(key) for key in ("attention_bias", "mlp_bias")), "the toy has no biases"
    config |= {"architectures": ["ToyForCausalLM"], "model_type": "toy", "skip_scale": skip_scale}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(llama / "model.safetensors")
    save_file({name.replace("model.", "toy."): value for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def plan(folder: Path) -> tuple[ModelConfig, TensorMapping]:
    config, _ = read_config(folder)
    with open_checkpoint(folder) as source:
        return config, plan_mapping(config, source, canonical_shapes(config, DTYPES["float32"]))


def places(mapping: TensorMapping) -> dict[str, list[Any]]:
    return {path: [entry.placements for entry in entries] for path, entries in mapping.targets.items()}


def test_a_folder_of_the_new_family_is_the_network_that_its_function_says(tmp_path: Path) -> None:
    llama = write_checkpoint(load_case("llama"), tmp_path / "llama")
    (llama / "generation_config.json").unlink()
    expected, theirs = plan(llama)
    config, ours = plan(write_toy(llama, tmp_path / "toy", 0.25))
    assert config == dataclasses.replace(expected, architecture="ToyForCausalLM", residual_multiplier=0.25)
    assert (ours.shapes, places(ours)) == (theirs.shapes, places(theirs))
    used = {entry.source for entries in ours.targets.values() for entry in entries}
    assert used == set(load_file(tmp_path / "toy" / "model.safetensors"))


def test_the_new_family_is_found_by_its_names() -> None:
    assert "ToyForCausalLM" in supported_architectures()
    for config in ({"model_type": "toy"}, {"architectures": ["ToyForCausalLM"]}):
        read = model_config(config)
        assert (read.architecture, read.num_layers, read.ropes[0].theta) == ("ToyForCausalLM", 2, 500.0)
        assert registry.end_tokens(config, {}, 1000) == read.eos_token_ids == (7,)


def test_keys_that_the_function_does_not_read_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"depth_scale = 0\.5, which is not known for ToyForCausalLM"):
        model_config({"model_type": "toy", "depth_scale": 0.5})
    with pytest.raises(UnsupportedModelError, match="parallel_layers is True; ToyForCausalLM supports"):
        model_config({"model_type": "toy", "parallel_layers": True})
    with pytest.raises(UnsupportedModelError, match="attention_bias = True"):
        model_config({"model_type": "toy", "attention_bias": True})


@pytest.mark.parametrize(
    ("architecture", "model_type", "aliases"),
    [
        ("ToyForCausalLM", "toy2", ()),
        ("LLaMAForCausalLM", "toy2", ()),
        ("Toy2ForCausalLM", "toy2", ("ToyForCausalLM",)),
        ("Toy2ForCausalLM", "llama", ()),
    ],
)
def test_a_name_belongs_to_one_family(
    architecture: str, model_type: str, aliases: tuple[str, ...], toy: registry.ReadFamily
) -> None:
    with pytest.raises(ValueError, match="is registered already, for "):
        registry.register(architecture, model_type, toy, aliases)
    assert "Toy2ForCausalLM" not in supported_architectures()
