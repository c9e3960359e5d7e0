"""No array outlives what it was made for: after a thousand steps as many are alive, and as large, as before."""

from __future__ import annotations

import gc
import random

import jax
import pytest

from jaxinfer.sampling_params import SamplingParams
from tests.golden_recipe import load_case
from tests.jaxinfer.harness import Harness, build


def alive() -> tuple[int, int]:
    """Arrays, and their bytes."""
    gc.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


def some_requests(engine: Harness, rng: random.Random) -> None:
    """A few of any length, of which one may be aborted, until the engine is idle."""
    names = []
    for _ in range(rng.randint(1, 6)):
        params = SamplingParams(
            n=rng.choice((1, 1, 2)),
            temperature=rng.choice((0.0, 1.0)),
            max_tokens=rng.randint(1, 30),
            logprobs=rng.choice((None, 2)),
            prompt_logprobs=rng.choice((None, None, 1)),
            frequency_penalty=rng.choice((0.0, 0.5)),
            ignore_eos=True,
        )
        prompt = [rng.randrange(5, 60) for _ in range(rng.randint(1, 60))]
        names.append(engine.submit(prompt, params, seed=rng.getrandbits(30)))
    for _ in range(rng.randrange(10)):
        if not engine.loop.idle:
            engine.step()
    if rng.random() < 0.3:
        engine.loop.scheduler.abort(rng.choice(names))
    engine.run()


@pytest.mark.longer
def test_a_thousand_steps_leave_nothing() -> None:
    rng = random.Random(0)
    engine = build(load_case("llama"), max_num_batched_tokens=16, num_pages=14)  # so few that some are preempted
    for _ in range(10):
        some_requests(engine, rng)
    before, steps = alive(), engine.steps
    while engine.steps < steps + 1000:
        some_requests(engine, rng)
    assert engine.loop.scheduler.stats.preemptions > 0
    assert alive() == before
