"""Whole models on the device itself: `pytest -m gpu`, `pytest -m tpu`. Elsewhere everything skips."""

from __future__ import annotations

import numpy as np
import pytest

from jaxinfer import LLM, SamplingParams
from jaxinfer.messages import TokenLogprobs
from tests.golden_recipe import load_case
from tests.jaxinfer.harness import build
from tests.jaxinfer.test_parity_engine import greedy, log_softmax

pytestmark = [pytest.mark.gpu, pytest.mark.tpu, pytest.mark.usefixtures("device")]

# Of the largest logit, float32 against float32. Products are asked for in full precision, so what differs from a CPU
# (1e-5) is the order of sums and the device's own exp, rsqrt, sin and cos, whose last bits are its own affair. A
# product in TF32 or bfloat16 that slipped in would cost 1e-3.
TOLERANCE = 1e-4
# How much further from float32 than XLA's attention another backend may be in bfloat16: both round the same numbers to
# 8 bits, at other places.
FURTHER = 1.5
TEXT = (
    "The river was wide and cold. Anna looked at the old bridge and counted the stones: one, two, three, four. "
    "She had seven apples and gave two of them to her brother. How many apples did she have left? "
)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "phi3_longrope"])
def test_tokens_and_logprobs_equal_transformers(name: str) -> None:
    case = load_case(name)
    engine = build(case)
    requests = [engine.submit(p, greedy(len(g))) for p, g in zip(case.prompts, case.greedy, strict=True)]
    engine.run()
    for request, tokens in zip(requests, case.greedy, strict=True):
        assert tuple(engine.heard[request, 0].tokens) == tokens
    allowed = 4 * TOLERANCE * float(np.abs(case.decode_logits).max())
    for entry, row in zip(engine.heard[requests[1], 0].logprobs, log_softmax(case.decode_logits), strict=True):
        assert abs(entry.logprob - row[entry.token_id]) <= allowed
        for token, logprob in entry.top:
            assert abs(logprob - row[token]) <= allowed
    assert engine.loop.runner.compilations == 0


def test_the_first_backend_is_as_near_to_float32_as_xla() -> None:
    """The demo in bfloat16, whose head_dim of 64 the kernels serve, scores a text like the demo in float32."""
    exact = scores("float32", "xla")
    xla = distance(scores("bfloat16", "xla"), exact)
    first = distance(scores("bfloat16", None), exact)
    assert first <= FURTHER * xla, f"{first:.4f} from float32; through XLA {xla:.4f}"


def scores(dtype: str, backend: str | None) -> np.ndarray:
    """Log-probabilities of the text's tokens from the second on."""
    sizes = {"page_size": 32, "max_num_seqs": 8, "max_num_batched_tokens": 16, "num_pages": 64, "max_model_len": 1024}
    with LLM(dtype=dtype, attention_backend=backend, compilation_cache_dir=None, **sizes) as llm:  # type: ignore[arg-type]
        (output,) = llm.generate(TEXT * 2, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    entries: list[TokenLogprobs | None] = list(output.prompt_logprobs or [])
    return np.array([entry.logprob for entry in entries if entry is not None])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean squared difference."""
    assert len(a) == len(b) > 50
    return float(np.sqrt(np.mean((a - b) ** 2)))
