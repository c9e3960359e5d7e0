"""The same logits on several (virtual) devices, with exactly the collectives that the partitioning needs."""

from __future__ import annotations

import re
from collections import Counter

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from jaxinfer.config import ParallelConfig
from jaxinfer.models.parameters import facts_of
from jaxinfer.models.registry import model_config
from jaxinfer.sharding import make_mesh, partition_spec
from tests.golden_recipe import build_config, build_tensors, load_case
from tests.jaxinfer.models.dense import Batch, DenseModel, relative_error

COLLECTIVES = re.compile(
    r"= \w+\[([\d,]*)\]\S* (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)

# (case, devices): padded widths; each KV head on four devices; soft caps and windows; a norm over all heads while each
# KV head is on two devices; biases on split and on replicated axes.
RUNS = [("llama_tp8", 2), ("llama_tp8", 8), ("gemma2", 2), ("olmo2", 4), ("llama_bias", 4)]


@pytest.mark.parametrize(("name", "tp"), RUNS)
def test_logits_and_collectives(name: str, tp: int) -> None:
    case = load_case(name)
    mesh = make_mesh(ParallelConfig(tensor=tp))

    def place(variable: nnx.Param, array: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, partition_spec(facts_of(variable).axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    model = DenseModel(model_config(build_config(case)), build_tensors(case), tp=tp, place=place)
    for leaf in jax.tree.leaves(model.params):
        parts = leaf.size // leaf.addressable_shards[0].data.size
        assert parts == (tp if leaf.sharding.spec != jax.P(*[None] * leaf.ndim) else 1)
        assert parts == tp or leaf.ndim == 1, f"a weight of shape {leaf.shape} is whole on every device"

    with jax.set_mesh(mesh):
        batch = Batch.of(case.prompts, model.config.longrope_border)
        compiled = jax.jit(model.apply).lower(model.params, batch).compile()
        raw = np.asarray(compiled(model.params, batch))
        logits = model.logits(case.prompts, run=compiled)
    assert relative_error(logits, case.logits) <= 1e-5
    assert (raw[:, model.config.vocab_size :] == -np.inf).all()

    found = COLLECTIVES.findall(compiled.as_text())
    kinds = Counter(kind for _, kind in found)
    layers = model.config.num_layers
    assert kinds["all-reduce"] == 2 * layers + 1  # after attention, after the MLP, and for the embedding
    # A norm over all heads gathers one number per token and head; nothing else is ever gathered, weights least of all.
    assert kinds["all-gather"] == (2 * layers if model.config.layers[0].mixer.qk_norm == "whole" else 0)
    assert set(kinds) <= {"all-reduce", "all-gather"}
    for shape, kind in found:
        if kind == "all-gather":
            assert np.prod([int(size) for size in shape.split(",")]) == raw.shape[0] * model.shape.kv_heads
