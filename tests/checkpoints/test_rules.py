"""Names and layouts: each family's table covers its model exactly, each transform puts values where they belong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoints import rules
from checkpoints.family_tables import FAMILY_RULES
from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.layouts import Rule
from checkpoints.load import canonical_shapes
from checkpoints.reader import open_checkpoint
from checkpoints.rules import TensorMapping, plan_mapping
from checkpoints.tensor_assembly import DTYPES, assemble, check_tied_head
from jaxinfer.models.registry import supported_architectures
from tests.checkpoints.folders import edit_json, edit_tensors, write_small_llama
from tests.golden_recipe import cases, load_case, write_checkpoint

FLOAT32 = DTYPES["float32"]


def plan(folder: Path) -> TensorMapping:
    config, _ = read_config(folder)
    with open_checkpoint(folder) as source:
        mapping = plan_mapping(config, source, canonical_shapes(config, FLOAT32))
        check_tied_head(mapping, source)
        return mapping


def parameters(folder: Path) -> dict[str, np.ndarray]:
    config, _ = read_config(folder)
    with open_checkpoint(folder) as source:
        mapping = plan_mapping(config, source, canonical_shapes(config, FLOAT32))
        return {path: assemble(mapping, source, path, FLOAT32) for path in mapping.shapes}


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError, match=".*".join(re.escape(word) for word in words)):
        plan(folder)


def test_every_supported_architecture_has_a_table_and_a_golden() -> None:
    golden = {load_case(name).config["architectures"][0] for name in cases()}
    assert set(FAMILY_RULES) == set(supported_architectures()) == golden


@pytest.mark.parametrize("name", cases())
def test_every_tensor_is_used_once_and_every_element_set(tmp_path: Path, name: str) -> None:
    case = load_case(name)
    write_checkpoint(case, tmp_path)
    mapping = plan(tmp_path)
    used = [entry.source for entries in mapping.targets.values() for entry in entries]
    other = [name for name in case.tensors if re.match(r"model\.(vision_tower|visual|multi_modal_projector)\.", name)]
    assert sorted(used + other) == sorted(case.tensors)
    assert sorted(mapping.ignored) == sorted(other)
    sizes = {path: int(np.prod(shape)) for path, shape in mapping.shapes.items()}
    assert sum(sizes.values()) == sum(int(np.prod(case.tensors[name])) for name in used)
    # The same from the values: all of them arrive, none is invented.
    loaded = parameters(tmp_path)
    source = load_file(tmp_path / "model.safetensors")
    for path, entries in mapping.targets.items():
        values = np.concatenate([source[entry.source].reshape(-1) for entry in entries])
        np.testing.assert_array_equal(np.sort(loaded[path], axis=None), np.sort(values))


def test_query_key_value_by_head(tmp_path: Path) -> None:
    """9 query and 3 KV heads: query head n is block n of the source's rows and belongs to KV head n // G."""
    case = load_case("smollm")
    write_checkpoint(case, tmp_path)
    config, _ = read_config(tmp_path)
    loaded, source = parameters(tmp_path), load_file(tmp_path / "model.safetensors")
    mixer = config.layers[1].mixer
    heads, kv_heads, size, group = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, mixer.group_size
    assert (heads, kv_heads) == (9, 3)
    qkv = loaded["layers.1.attention.qkv.weight"]
    out = loaded["layers.1.attention.out.weight"]
    theirs = {name: source[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkvo"}
    for n in range(heads):
        rows = slice(n * size, (n + 1) * size)
        np.testing.assert_array_equal(qkv[n // group, n % group], theirs["q"][rows])
        np.testing.assert_array_equal(out[:, n // group, n % group], theirs["o"][:, rows])
    for k in range(kv_heads):
        rows = slice(k * size, (k + 1) * size)
        np.testing.assert_array_equal(qkv[k, group], theirs["k"][rows])
        np.testing.assert_array_equal(qkv[k, group + 1], theirs["v"][rows])


def test_biases_follow_their_heads(tmp_path: Path) -> None:
    write_checkpoint(load_case("llama_bias"), tmp_path)
    config, _ = read_config(tmp_path)
    loaded, source = parameters(tmp_path), load_file(tmp_path / "model.safetensors")
    qkv = loaded["layers.0.attention.qkv.bias"]
    mixer = config.layers[0].mixer
    theirs = {name: source[f"model.layers.0.self_attn.{name}_proj.bias"] for name in "qkvo"}
    np.testing.assert_array_equal(qkv[:, : mixer.group_size].reshape(-1), theirs["q"])
    np.testing.assert_array_equal(qkv[:, mixer.group_size].reshape(-1), theirs["k"])
    np.testing.assert_array_equal(qkv[:, mixer.group_size + 1].reshape(-1), theirs["v"])
    np.testing.assert_array_equal(loaded["layers.0.attention.out.bias"], theirs["o"])
    for row, name in enumerate(("gate", "up")):
        np.testing.assert_array_equal(
            loaded["layers.0.mlp.gate_up.bias"][row], source[f"model.layers.0.mlp.{name}_proj.bias"]
        )


def test_fused_sources_equal_separate_ones(tmp_path: Path) -> None:
    """A Phi-3 whose fused tensors are the concatenation of a Llama's gives the Llama's parameters."""
    case = load_case("phi3")
    write_checkpoint(case, tmp_path)
    config, _ = read_config(tmp_path)
    loaded, source = parameters(tmp_path), load_file(tmp_path / "model.safetensors")
    mixer = config.layers[0].mixer
    queries, keys = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
    fused = source["model.layers.0.self_attn.qkv_proj.weight"]
    qkv = loaded["layers.0.attention.qkv.weight"]
    hidden = config.hidden_size
    np.testing.assert_array_equal(qkv[:, : mixer.group_size].reshape(-1, hidden), fused[:queries])
    np.testing.assert_array_equal(qkv[:, mixer.group_size].reshape(-1, hidden), fused[queries : queries + keys])
    np.testing.assert_array_equal(qkv[:, mixer.group_size + 1].reshape(-1, hidden), fused[queries + keys :])
    gate, up = np.split(source["model.layers.0.mlp.gate_up_proj.weight"], 2)
    np.testing.assert_array_equal(loaded["layers.0.mlp.gate_up.weight"][0], gate)
    np.testing.assert_array_equal(loaded["layers.0.mlp.gate_up.weight"][1], up)


@pytest.mark.parametrize(
    ("case", "theirs", "ours"),
    [
        ("llama", "input_layernorm", "attention_norm"),
        ("llama", "post_attention_layernorm", "mlp_norm"),
        ("gemma3", "input_layernorm", "attention_norm"),
        ("gemma3", "post_attention_layernorm", "attention_post_norm"),
        ("gemma3", "pre_feedforward_layernorm", "mlp_norm"),
        ("gemma3", "post_feedforward_layernorm", "mlp_post_norm"),
        ("gemma3", "self_attn.q_norm", "attention.q_norm"),
        ("gemma3", "self_attn.k_norm", "attention.k_norm"),
        ("olmo2", "post_attention_layernorm", "attention_post_norm"),
        ("olmo2", "post_feedforward_layernorm", "mlp_post_norm"),
        ("olmo2", "self_attn.q_norm", "attention.q_norm"),
        ("olmo2", "self_attn.k_norm", "attention.k_norm"),
    ],
)
def test_norm_names(tmp_path: Path, case: str, theirs: str, ours: str) -> None:
    write_checkpoint(load_case(case), tmp_path)
    source = load_file(tmp_path / "model.safetensors")[f"model.layers.1.{theirs}.weight"]
    np.testing.assert_array_equal(parameters(tmp_path)[f"layers.1.{ours}.weight"].reshape(-1), source)


BAD_TENSORS: dict[str, tuple[Callable[[], dict[str, Any]], tuple[str, ...]]] = {
    "missing": (
        lambda: {"model.layers.1.mlp.up_proj.weight": None},
        (
            "tensor model.layers.1.mlp.up_proj.weight is missing",
            "expected shape (48, 32) for layers.1.mlp.gate_up.weight",
        ),
    ),
    "extra": (
        lambda: {"model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)},
        (
            "model.safetensors: tensor model.layers.0.self_attn.q_norm.weight (8,) is left over",
            "LlamaForCausalLM of 2 layers",
        ),
    ),
    "one layer too many": (
        lambda: {"model.layers.2.input_layernorm.weight": np.ones(32, np.float32)},
        ("tensor model.layers.2.input_layernorm.weight (32,) is left over",),
    ),
    "unexpected bias": (
        lambda: {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)},
        ("tensor model.layers.0.self_attn.q_proj.bias (32,) is left over",),
    ),
    "misshaped": (
        lambda: {"model.layers.0.mlp.down_proj.weight": np.ones((48, 32), np.float32)},
        (
            "model.safetensors: tensor model.layers.0.mlp.down_proj.weight: expected shape (32, 48)",
            "layers.0.mlp.down.weight, found (48, 32)",
        ),
    ),
    "misshaped heads": (
        lambda: {"model.layers.0.self_attn.k_proj.weight": np.ones((32, 32), np.float32)},
        ("tensor model.layers.0.self_attn.k_proj.weight: expected shape (16, 32)", "found (32, 32)"),
    ),
    "short vocabulary": (
        lambda: {"lm_head.weight": np.ones((260, 32), np.float32)},
        ("tensor lm_head.weight: expected shape (261, 32) for lm_head.weight, found (260, 32)",),
    ),
    "integers": (
        lambda: {"model.norm.weight": np.ones(32, np.int32)},
        ("tensor model.norm.weight: expected dtype F32, F16, BF16, found I32",),
    ),
    "doubles": (
        lambda: {"model.norm.weight": np.ones(32, np.float64)},
        ("tensor model.norm.weight: expected dtype F32, F16, BF16, found F64",),
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensor_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, words = BAD_TENSORS[name]
    folder = write_small_llama(tmp_path)
    edit_tensors(folder, change())
    refused(folder, str(folder), *words)


def test_untied_model_without_head_is_refused(tmp_path: Path) -> None:
    edit_tensors(write_small_llama(tmp_path), {"lm_head.weight": None})
    refused(tmp_path, "tensor lm_head.weight is missing; expected shape (261, 32)")


def test_tied_model_ignores_an_equal_head_by_name(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path, tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, {"lm_head.weight": embedding})
    mapping = plan(folder)
    assert list(mapping.ignored) == ["lm_head.weight"]
    assert "tied" in mapping.ignored["lm_head.weight"]
    assert "lm_head.weight" not in mapping.shapes


def test_tied_model_with_another_head_is_refused(tmp_path: Path) -> None:
    """transformers unties such a model; dropping the head would change its logits."""
    folder = write_small_llama(tmp_path, tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].copy()
    embedding[-1, -1] += 1.0
    edit_tensors(folder, {"lm_head.weight": embedding})
    refused(folder, "model.safetensors: tensor lm_head.weight: expected the values of model.embed_tokens.weight")


def test_tied_model_with_a_misshaped_head_is_refused(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path, tie_word_embeddings=True)
    edit_tensors(folder, {"lm_head.weight": np.ones((1, 32), np.float32)})
    refused(folder, "tensor lm_head.weight: expected shape (261, 32) for the embedding, found (1, 32)")


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_rotary_frequencies_are_ignored_by_name(tmp_path: Path, name: str) -> None:
    folder = write_small_llama(tmp_path)
    edit_tensors(folder, {name: np.ones(4, np.float32)})
    assert plan(folder).ignored == {name: "computed from the config"}


def test_hidden_size_of_the_config_is_checked_against_the_tensors(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path)
    edit_json(folder / "config.json", intermediate_size=50)
    refused(folder, "mlp.gate_proj.weight: expected shape (50, 32)", "found (48, 32)")


def without(source: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in FAMILY_RULES["LlamaForCausalLM"] if rule.source != source)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (without("model.layers.{i}.mlp.up_proj.weight"), "each of its 3072 elements to be set once; 1536 are set by"),
        (without("model.norm.weight"), "parameter final_norm.weight (32,)"),
        (
            (
                *without("model.layers.{i}.mlp.up_proj.weight"),
                Rule("model.layers.{i}.mlp.up_proj.weight", "layers.{i}.mlp.gate_up.weight", "gate"),
            ),
            "some twice",
        ),
    ],
)
def test_a_table_with_a_hole_or_an_overlap_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: tuple[Rule, ...], message: str
) -> None:
    monkeypatch.setattr(rules, "FAMILY_RULES", {"LlamaForCausalLM": table})
    refused(write_small_llama(tmp_path), message)


def test_architecture_without_a_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FAMILY_RULES", {"OtherForCausalLM": ()})
    refused(
        write_small_llama(tmp_path), "no tensor names for architecture LlamaForCausalLM; known are OtherForCausalLM"
    )
