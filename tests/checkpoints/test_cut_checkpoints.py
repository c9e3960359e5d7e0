"""Pruned and factored checkpoints: rounded at load and while they are converted, layer by layer, planned, refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from checkpoints.convert import convert
from checkpoints.files import CheckpointError
from checkpoints.load import canonical_shapes, load_model
from checkpoints.quantizing.layerwise import Layerwise
from checkpoints.quantizing.options import Quantizing
from checkpoints.reader import open_checkpoint
from checkpoints.rules import plan_mapping
from checkpoints.tensor_assembly import DTYPES, assemble
from checkpoints.verify import dense_logits
from jaxinfer.config import RuntimeConfig
from jaxinfer.memory_plan import abstract_model, make_plan
from jaxinfer.models.model import Model
from jaxinfer.models.stored_matrix import matrix_names
from jaxinfer.sharding import make_mesh
from pallas_kernels.qtensor import QTensor, dequantize
from tests.checkpoints.folders import edit_json, edit_tensors, write_golden, write_tokenizer
from tests.golden_recipe import load_case

PROMPT = [3, 17, 5, 60, 2, 41, 9, 30, 11]
CASES = ("nemotron_nas", "low_rank", "arcee_bias")


def is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, QTensor)


def rounded_names(model: Model) -> list[str]:
    found = jax.tree_util.tree_flatten_with_path(model.params, is_leaf=is_quantized)[0]
    named = {".".join(str(getattr(part, "key", part)) for part in path): leaf for path, leaf in found}
    return sorted(name.removesuffix(".weight") for name, leaf in named.items() if is_quantized(leaf))


@pytest.mark.longer
@pytest.mark.parametrize("case", CASES)
def test_every_matrix_and_every_factor_is_rounded_by_itself(tmp_path: Path, case: str) -> None:
    """Against the same model with its rounded weights widened; and a conversion that rounds holds the same bits."""
    source = write_golden(tmp_path / "hf", case)
    plain, rounded = load_model(source), load_model(source, quantization="int8")
    assert rounded_names(rounded) == sorted(matrix_names(plain.config))

    def widen(weight: Any, like: Any) -> Any:
        return dequantize(weight).reshape(like.shape) if is_quantized(weight) else weight

    params = jax.tree.map(widen, rounded.params, plain.params, is_leaf=is_quantized)
    widened, got = (dense_logits(model, PROMPT) for model in (dataclasses.replace(plain, params=params), rounded))
    # Activations have 8 bits on a CPU: half a step of 1/127 a product, over two dozen of them.
    assert np.linalg.norm(got - widened) < 0.05 * np.linalg.norm(widened)
    assert np.linalg.norm(widened - dense_logits(plain, PROMPT)) > 0

    write_tokenizer(source)
    convert(source, tmp_path / "out", quantizing=Quantizing("int8"))
    stored = load_model(tmp_path / "out")
    assert jax.tree.structure(stored.params) == jax.tree.structure(rounded.params)
    for one, other in zip(jax.tree.leaves(stored.params), jax.tree.leaves(rounded.params), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("case", ["nemotron_nas", pytest.param("low_rank", marks=pytest.mark.longer)])
def test_layer_by_layer_is_the_decoder(tmp_path: Path, case: str) -> None:
    """What calibration runs: layers with their own KV heads, without copies, and those that lack a part."""
    folder = write_golden(tmp_path / "hf", case)
    model = load_model(folder)
    with open_checkpoint(folder) as source:
        mapping = plan_mapping(model.config, source, canonical_shapes(model.config, DTYPES["float32"]))
        params = {path: assemble(mapping, source, path, DTYPES["float32"]) for path in mapping.shapes}
    runner = Layerwise(model.config, [PROMPT])
    runner.begin(params["embed.weight"])
    seen: list[str] = []
    for index in range(model.config.num_layers):
        prefix = f"layers.{index}."
        inputs: list[str] = []
        layer = {path.removeprefix(prefix): array for path, array in params.items() if path.startswith(prefix)}
        runner.layer(index, layer, lambda _, found, inputs=inputs: inputs.extend(found))
        seen += [f"{prefix}{end}" for end in inputs]
    (logits,) = runner.logits({path: array for path, array in params.items() if not path.startswith("layers.")})
    expected = dense_logits(model, PROMPT)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert sorted(seen) == sorted(matrix_names(model.config))


def test_the_plan_counts_layers_as_they_are(tmp_path: Path) -> None:
    """Four of six layers keep keys and values, of 4 heads each, where their own are 2, 1, 4 and 2."""
    model = load_model(write_golden(tmp_path / "hf", "nemotron_nas"))
    sizes = RuntimeConfig(max_num_seqs=8, max_num_batched_tokens=8, num_pages=20, max_model_len=64)
    report = make_plan("cut", model.config, sizes, make_mesh())
    head_dim = model.config.attentions[0].head_dim
    assert report.kv_bytes_per_token == 4 * 2 * 4 * head_dim * 4
    assert report.weight_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    abstract = abstract_model("cut", model.config, model.dtype, make_mesh())
    assert [x.shape for x in jax.tree.leaves(abstract.params)] == [x.shape for x in jax.tree.leaves(model.params)]


@pytest.mark.parametrize(
    ("case", "name", "value", "message"),
    [
        ("low_rank", "model.layers.0.self_attn.q_proj.BLinear.weight", None, r"q_proj\.BLinear\.weight is missing"),
        ("low_rank", "model.layers.0.mlp.down_proj.ALinear.weight", np.zeros((64, 28)), r"expected shape \(64, 29\)"),
        (
            "low_rank",
            "model.layers.2.mlp.up_proj.ALinear.weight",
            np.zeros((145, 9)),
            r"up_proj\.ALinear.* is left over",
        ),
        ("low_rank", "model.layers.0.mlp.up_proj.weight", np.zeros((145, 64)), r"mlp\.up_proj\.weight .* is left over"),
        ("nemotron_nas", "model.layers.2.input_layernorm.weight", np.ones(64), r"input_layernorm.* is left over"),
        ("nemotron_nas", "model.layers.4.self_attn.linear_attn.weight", None, r"linear_attn\.weight is missing"),
        ("nemotron_nas", "model.layers.1.mlp.up_proj.weight", np.zeros((145, 64)), r"expected shape \(77, 64\)"),
        ("apertus", "model.layers.0.mlp.act_fn.beta", None, r"act_fn\.beta is missing"),
        ("apertus", "model.layers.0.mlp.act_fn.eps", np.zeros(1), r"act_fn\.eps: expected shape \(\)"),
        ("arcee", "model.layers.0.mlp.gate_proj.weight", np.zeros((145, 64)), r"gate_proj\.weight .* is left over"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, case: str, name: str, value: np.ndarray | None, message: str
) -> None:
    source = write_golden(tmp_path / "hf", case)
    edit_tensors(source, {name: None if value is None else value.astype(np.float32)})
    with pytest.raises(CheckpointError, match=message):
        load_model(source)


def test_another_rank_than_the_files_is_named(tmp_path: Path) -> None:
    source = write_golden(tmp_path / "hf", "low_rank")

    ranks = dict(load_case("low_rank").config["truncation_ranks"])
    ranks["model.layers.0.self_attn.k_proj"] += 1
    edit_json(source / "config.json", truncation_ranks=ranks)
    with pytest.raises(CheckpointError, match=r"k_proj\.BLinear\.weight: expected shape \(20, 64\).*found \(19, 64\)"):
        load_model(source)
