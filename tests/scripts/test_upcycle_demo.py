"""The demo made into a mixture of experts: the same function, with tokens of one text at both groups of experts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytestmark = pytest.mark.longer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as `python scripts/upcycle_demo.py` has it

from upcycle_demo import ACTIVE, GROUPS, upcycle  # noqa: E402

from checkpoints.load import load_model  # noqa: E402
from jaxinfer.model_path import demo_path  # noqa: E402
from jaxinfer.models.context import StepContext, by_table  # noqa: E402
from jaxinfer.models.layers import moe  # noqa: E402
from tests.jaxinfer.models.dense import Batch, dense_attention  # noqa: E402

TOKENS = np.random.default_rng(0).integers(4, 4000, 48).tolist()


def logits(folder: Path) -> np.ndarray:
    model = load_model(folder, dtype="float32")

    @jax.jit
    def run(params: Any, batch: Batch) -> jax.Array:
        decoder, attention = nnx.merge(model.graphdef, params), by_table([dense_attention(batch.sequences)])
        context = StepContext.of(model.config.ropes, batch.positions, batch.sequences, batch.rope_variants, attention)
        empty = [(jnp.zeros(0), jnp.zeros(0))] * model.config.num_layers
        return decoder.logits(decoder.hidden_states(batch.token_ids, context, empty)[0])

    return np.asarray(run(model.params, Batch.of([TOKENS], None)))


def test_the_mixture_computes_what_the_demo_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upcycle(tmp_path / "mixture")
    original, seen = moe.route, []

    def seeing(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen, weights = original(*args)
        jax.debug.callback(lambda *arrays: seen.append(tuple(map(np.asarray, arrays))), chosen, weights)
        return chosen, weights

    monkeypatch.setattr(moe, "route", seeing)
    found, expected = logits(tmp_path / "mixture"), logits(demo_path())
    jax.effects_barrier()
    assert len(seen) == 6  # layers
    for chosen, weights in seen:
        assert set((chosen // ACTIVE).flat) == set(range(GROUPS))
        assert (np.sort(chosen % ACTIVE, axis=1) == np.arange(ACTIVE)).all()  # each expert of one group
        np.testing.assert_allclose(weights, 1.0, rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
