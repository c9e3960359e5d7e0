"""Experts dealt to several (virtual) devices: logits and counts of one device, no collective but the two of each layer.

The model on one device is compared with transformers by `test_parity_forward.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from jaxinfer.config import MoeConfig, ParallelConfig
from jaxinfer.models.parameters import facts_of
from jaxinfer.models.registry import model_config
from jaxinfer.runtime.topology import collectives
from jaxinfer.sharding import EXPERT_AXIS, make_mesh, partition_spec
from tests.golden_recipe import GoldenCase, build_config, build_tensors
from tests.jaxinfer.models.dense import Batch, DenseModel, relative_error
from tests.jaxinfer.resized import eight_experts_eight_heads, eight_experts_with_biases

SHARED = eight_experts_eight_heads  # 2 KV heads: on 4 or 8 devices each lies on several
BIASES = eight_experts_with_biases

# Case, devices along the tensor axis, devices along the expert axis.
RUNS = [
    (SHARED, 2, 2),
    *(pytest.param(SHARED, *sizes, marks=pytest.mark.longer) for sizes in [(1, 2), (1, 8), (2, 4), (4, 2)]),
    *(pytest.param(BIASES, *sizes, marks=pytest.mark.longer) for sizes in [(1, 4), (2, 2), (4, 1)]),
]


@cache
def on_one_device(case_of: Callable[[], GoldenCase]) -> tuple[list[np.ndarray], np.ndarray]:
    """Logits of each prompt, and tokens of each expert."""
    case = case_of()
    one = DenseModel(model_config(build_config(case)), build_tensors(case))
    run = jax.jit(one.counted)
    counts = np.asarray(run(one.params, Batch.of(case.prompts, one.config.longrope_border))[1])
    return one.logits(case.prompts, run=lambda *args: run(*args)[0]), counts


@pytest.mark.parametrize(("case_of", "tensor", "expert"), RUNS)
def test_logits_and_collectives(case_of: Callable[[], GoldenCase], tensor: int, expert: int) -> None:
    case = case_of()
    config, tensors = model_config(build_config(case)), build_tensors(case)
    mesh, devices = make_mesh(ParallelConfig(tensor=tensor, expert=expert)), tensor * expert

    def place(variable: nnx.Param, array: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, partition_spec(facts_of(variable).axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    model = DenseModel(config, tensors, tp=devices, ep=expert, place=place)
    for path, leaf in jax.tree.leaves_with_path(model.params):
        parts = leaf.size // leaf.addressable_shards[0].data.size
        if EXPERT_AXIS in leaf.sharding.spec:
            assert leaf.addressable_shards[0].data.shape[0] == 8 // expert
        small = leaf.ndim == 1 or "router" in jax.tree_util.keystr(path)
        bias_of_experts = EXPERT_AXIS in leaf.sharding.spec and leaf.ndim == 2
        assert parts == devices or small or (bias_of_experts and parts == expert), f"{path} lies {parts} times"

    with jax.set_mesh(mesh):
        batch = Batch.of(case.prompts, config.longrope_border)
        compiled = jax.jit(model.counted).lower(model.params, batch).compile()
        logits = model.logits(case.prompts, run=lambda *args: compiled(*args)[0])
        counts = np.asarray(compiled(model.params, batch)[1])
    wanted, wanted_counts = on_one_device(case_of)
    assert relative_error(logits, wanted) <= 1e-5
    np.testing.assert_array_equal(counts, wanted_counts)

    # After attention, after what follows it, and for the embedding, each of all tokens in float32. What shared experts
    # add is reduced beside what the others do, in one operation.
    mixtures = [layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, MoeConfig)]
    shared = sum(moe.shared is not None for moe in mixtures)
    reduced = batch.token_ids.size * config.hidden_size * 4
    found = collectives(compiled.as_text())
    assert found == {
        "all-reduce": (2 * config.num_layers + 1, (2 * config.num_layers + shared + 1) * reduced),
    }
