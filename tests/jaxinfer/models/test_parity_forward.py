"""Logits equal to transformers' for every family, and every setting makes the difference that it makes there.

The goldens hold transformers' float32 logits; errors are max|ours - theirs| / max|theirs| over all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints.load import load_model
from jaxinfer.config import ParallelConfig
from jaxinfer.models.registry import model_config, supported_architectures
from jaxinfer.sharding import make_mesh
from tests.golden_recipe import GoldenCase, build_config, build_tensors, cases, load_case, write_checkpoint
from tests.jaxinfer.models.dense import DenseModel, relative_error

LIMIT = 1e-5  # the goldens' own distance from a float64 run is about 1.5e-6

# Run through one compiled program as the engine does; the others operation by operation, which is quicker to build.
COMPILED = ("gemma3", "granite", "llama_yarn", "olmo2", "phi4_mini")


def errors_of(model: DenseModel, case: GoldenCase, *, compiled: bool = False) -> float:
    return relative_error(model.logits(case.prompts, run=jax.jit(model.apply) if compiled else None), case.logits)


# Which of the goldens `make test` computes; CI computes all.
SOON = ("llama", "llama_yarn", "qwen3", "gemma3", "phi3_longrope", "granite", "mixtral", "gpt_oss", "nemotron_nas")


def mostly_longer(names: Sequence[str]) -> list[Any]:
    return [name if name in SOON else pytest.param(name, marks=pytest.mark.longer) for name in names]


def test_goldens_cover_every_family() -> None:
    assert {load_case(name).config["architectures"][0] for name in cases()} == set(supported_architectures())


@pytest.mark.parametrize("name", mostly_longer(cases()))
def test_logits_equal_transformers(name: str) -> None:
    case = load_case(name)
    model = DenseModel(model_config(build_config(case)), build_tensors(case))
    assert errors_of(model, case, compiled=name in COMPILED) <= LIMIT


@pytest.mark.parametrize("name", cases())
def test_loader_agrees_on_every_parameter(name: str, tmp_path: Path) -> None:
    """The parameters above were mapped by hand in this folder; the real loader must give the same bits."""
    case = load_case(name)
    folder = write_checkpoint(case, tmp_path)
    for tp in case.extra.get("tensor_parallel") or (1,):
        loaded = load_model(folder, mesh=make_mesh(ParallelConfig(tensor=tp)))
        config = model_config(build_config(case), dict(case.generation_config or {}))
        by_hand = DenseModel(config, build_tensors(case), tp=tp)
        assert loaded.graphdef == by_hand.graphdef
        jax.tree.map(np.testing.assert_array_equal, loaded.params, by_hand.params)


@pytest.mark.parametrize("name", [name for name in cases() if load_case(name).config_alt is not None])
def test_other_spelling_means_the_same(name: str) -> None:
    """Equal configs; where they differ on purpose (dynamic rope against none), equal logits."""
    case = load_case(name)
    first, second = model_config(build_config(case)), model_config(build_config(case, alt=True))
    if name == "llama_dynamic":
        assert first.ropes[0].kind == "dynamic"
        assert second.ropes[0].kind == "default"
        assert errors_of(DenseModel(second, build_tensors(case)), case) <= LIMIT
    else:
        assert first == second


@pytest.mark.parametrize("name", mostly_longer(cases()))
def test_every_mistake_shows_as_it_does_in_transformers(name: str) -> None:
    """Each golden lists deliberate mistakes (a wrong config value, a tensor not read) and what they do to
    transformers' logits. The same mistake here must do the same, so no setting is read in vain."""
    case = load_case(name)
    assert case.flags
    for flag in case.flags:
        model = DenseModel(model_config(build_config(case, flag=flag)), build_tensors(case, flag=flag))
        error = errors_of(model, case)
        assert error > 1e-2, f"{flag.name} makes no difference"
        assert error == pytest.approx(flag.error, rel=6e-3), flag.name  # stored with three digits


def test_bfloat16_stays_near_float32() -> None:
    """Three layers of bfloat16 (8 bits, 0.4 % a rounding) on weights that are themselves rounded: a few percent."""
    for name in ("llama", "gemma3", "olmo2"):
        case = load_case(name)
        tensors = build_tensors(case)
        model = DenseModel(model_config(build_config(case)), tensors, dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
        ours = model.logits(case.prompts)
        assert all(np.isfinite(logits).all() for logits in ours)
        assert 1e-4 < relative_error(ours, case.logits) < 0.15
