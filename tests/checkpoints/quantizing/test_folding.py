"""Scales that are folded leave the float model as it was, in every family, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from checkpoints.folder import read_config
from checkpoints.load import canonical_shapes, load_model
from checkpoints.quantizing.folding import PRODUCERS, fold, powers_of_two, refusal, sharing
from checkpoints.quantizing.layerwise import Layerwise
from checkpoints.reader import open_checkpoint
from checkpoints.rules import plan_mapping
from checkpoints.tensor_assembly import DTYPES, assemble
from checkpoints.verify import dense_logits
from jaxinfer.config import ModelConfig
from jaxinfer.models.stored_matrix import matrices_of
from tests.checkpoints.quantized.models import PROMPT
from tests.checkpoints.quantizing.models import write_family

pytestmark = pytest.mark.longer

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def read(folder: Path, dtype: str) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    config, _ = read_config(folder)
    with open_checkpoint(folder) as source:
        mapping = plan_mapping(config, source, canonical_shapes(config, DTYPES[dtype]))
        return config, {path: assemble(mapping, source, path, DTYPES[dtype]) for path in mapping.shapes}


def logits(config: ModelConfig, params: dict[str, np.ndarray]) -> np.ndarray:
    runner = Layerwise(config, [PROMPT])
    runner.begin(params["embed.weight"])
    for index in range(config.num_layers):
        prefix = f"layers.{index}."
        runner.layer(index, {p.removeprefix(prefix): a for p, a in params.items() if p.startswith(prefix)})
    return runner.logits({path: array for path, array in params.items() if not path.startswith("layers.")})[0]


def drawn(end: str, config: ModelConfig, powers: bool) -> np.ndarray:
    """Scales from 1/20 to 20, shared as they must be."""
    blocks, copies, size = sharing(f"layers.0.{end}", config)
    scales = np.exp(np.random.default_rng(len(end)).uniform(-3, 3, (blocks, 1, size))).astype(np.float32)
    scales = np.broadcast_to(scales, (blocks, copies, size)).reshape(-1)
    return powers_of_two(scales) if powers else scales


# (1 + w) norms with norms behind as well; biases; QK norms; norms behind only; one fused source; plain.
LONGER = [pytest.param(family, marks=pytest.mark.longer) for family in ("llama", "qwen3", "gemma3", "phi3", "apertus")]


# relu^2 and xIELU stand between mlp.up and mlp.down, where a gate would leave a linear way.
NOT_SCALED = {"arcee": {"mlp.down"}, "apertus": {"mlp.down"}}


@pytest.mark.parametrize("family", ["llama_bias", "qwen2", "gemma2", "olmo2", "arcee", *LONGER])
def test_the_float_model_stays_the_same(tmp_path: Path, family: str) -> None:
    """To float32's rounding, 1e-5 of the largest logit: matrices stay in float32 here, norms and biases keep theirs."""
    folder = write_family(tmp_path / "hf", family)
    for dtype in ("float32", "bfloat16"):
        config, params = read(folder, dtype)
        ends = matrices_of(config.layers[0])
        scales = {
            end: drawn(end, config, powers=dtype == "bfloat16" and end in PRODUCERS)
            for end in ends
            if refusal(f"layers.0.{end}", config, DTYPES[dtype]) is None
        }
        scaled = set(ends) - NOT_SCALED.get(family, set())
        assert set(scales) == (set(PRODUCERS) if family == "olmo2" else scaled)
        prefix = "layers.0."
        layer = {path.removeprefix(prefix): array for path, array in params.items() if path.startswith(prefix)}
        folded = fold(layer, scales, config, DTYPES[dtype])
        assert folded.keys() == layer.keys()
        for end in scales:
            assert not np.allclose(folded[f"{end}.weight"], layer[f"{end}.weight"].astype(np.float32), rtol=0.01)
        for path, array in folded.items():
            assert (
                array.dtype == (np.float32 if path.removesuffix(".weight") in scaled else DTYPES[dtype])
                or path not in layer
            )
        found = logits(config, params | {f"{prefix}{path}": array for path, array in folded.items()})
        expected = logits(config, params)
        assert np.max(np.abs(found - expected)) <= 1e-5 * np.max(np.abs(expected))


def test_layer_by_layer_is_the_decoder(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "gemma2", layers=2)
    config, params = read(folder, "float32")
    expected = dense_logits(load_model(folder), PROMPT)
    np.testing.assert_allclose(logits(config, params), expected, atol=1e-5 * np.abs(expected).max())


def test_a_norm_that_cannot_hold_a_scale_keeps_its_weight(tmp_path: Path) -> None:
    """A weight of 0 stands for any scale; one less one, in bfloat16, may round to it."""
    config, params = read(write_family(tmp_path / "hf", "gemma2"), "bfloat16")
    layer = {path.removeprefix("layers.0."): array for path, array in params.items() if path.startswith("layers.0.")}
    layer["attention_norm.weight"] = layer["attention_norm.weight"].copy()
    layer["attention_norm.weight"][:2] = [-1, 0]
    scale = np.full(config.hidden_size, 4096, np.float32)
    folded = fold(layer, {"attention.qkv": scale}, config, BFLOAT16)
    np.testing.assert_array_equal(folded["attention_norm.weight"][:2], layer["attention_norm.weight"][:2])
    np.testing.assert_array_equal(folded["attention.qkv.weight"][..., :2], layer["attention.qkv.weight"][..., :2])


def test_where_there_is_no_place_it_is_said(tmp_path: Path) -> None:
    config, _ = read_config(write_family(tmp_path / "hf", "olmo2"))
    assert refusal("layers.0.attention.qkv", config, BFLOAT16) == "no norm before it to take the scale"
    assert refusal("layers.0.mlp.down", config, BFLOAT16) is None
    config, _ = read_config(write_family(tmp_path / "ungated", "arcee"))
    assert refusal("layers.0.mlp.up", config, BFLOAT16) is None
    assert "no gate" in str(refusal("layers.0.mlp.down", config, BFLOAT16))
