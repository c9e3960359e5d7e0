"""The engine against transformers: every family, through scheduler, pages and ahead-of-time step.

Prompts run together, cut into chunks of at most 8 tokens that cross page borders, with decode rows beside them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from jaxinfer.messages import TokenLogprobs
from jaxinfer.sampling_params import SamplingParams
from tests.golden_recipe import cases, load_case
from tests.jaxinfer.harness import PAGE, Harness, build
from tests.jaxinfer.resized import eight_experts_eight_heads

# float32 against float32 in another order of summation: transformers itself is within 2e-6 of float64 on these.
TOLERANCE = 1e-5
# Steps that differ from a sibling's by sizes, a bias or a rotation, whose logits test_parity_forward.py
# compares with transformers as well. Each compiles an engine, so the longer set has them.
LIKE_A_SIBLING = frozenset(
    (
        "arcee",  # apertus has no gate either
        "arcee_bias",
        "exaone4",  # olmo2, with windows as qwen2_window and layers that are not rotated
        "gemma3_linear",
        "gemma3_whole",  # gemma3 in a checkpoint with a vision tower; so are mistral3, qwen2_5_vl and qwen3_vl
        "granite",  # llama with factors
        "granite_moe",  # gpt_oss chooses by the products, too
        "granite_moe_shared",
        "granite_swa",  # gpt_oss has its sinks, smollm3 layers without positions
        "hunyuan",  # qwen3, with norms behind the rotation
        "hunyuan_bias",
        "llama3_rope",
        "low_rank",  # llama_bias, with more products
        "llama_bias",
        "llama_dynamic",
        "llama_linear",
        "llama_tp8",  # on one device; below on eight
        "llama_yarn",
        "llama_yarn_mscale",
        "ministral3",  # llama_yarn, whose queries are multiplied by one number a token
        "mistral",  # qwen2_window has its window
        "mixtral",  # qwen3_moe without norms of queries and keys
        "mistral3",
        "olmoe",  # qwen3_moe whose norms are olmo2's
        "olmo3",  # olmo2, with windows and two ropes as gemma3
        "phi3",  # phi4_mini
        "phi3_longrope",  # phi4_mini has its two rotations
        "phi3_partial",
        "qwen2",
        "qwen2_moe",  # glm4_moe has a shared expert, too
        "qwen2_5_vl",
        "qwen2_yarn",
        "seed_oss",  # llama_bias
        "qwen3",  # olmo2 norms its queries and keys; on two devices below
        "qwen3_vl",
        "smollm",
        "smollm3",  # llama, with layers that are not rotated
    )
)


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=20, prompt_logprobs=0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def check_logprobs(got: list[TokenLogprobs], logits: np.ndarray, scale: float) -> None:
    """Every reported log-probability against transformers' logits at that position."""
    wanted = log_softmax(logits)
    for entry, row in zip(got, wanted, strict=True):
        assert abs(entry.logprob - row[entry.token_id]) <= 4 * TOLERANCE * scale
        for token, logprob in entry.top:
            assert abs(logprob - row[token]) <= 4 * TOLERANCE * scale
        assert entry.rank == 1 + int((row > row[entry.token_id] + 4 * TOLERANCE * scale).sum())


def check_case(name: str, engine: Harness) -> None:
    case = load_case(name)
    names = [engine.submit(p, greedy(len(g))) for p, g in zip(case.prompts, case.greedy, strict=True)]
    engine.run()
    for i, request_id in enumerate(names):
        heard = engine.heard[request_id, 0]
        assert tuple(heard.tokens) == case.greedy[i], f"{name}, prompt {i}: not the tokens of transformers"
        assert heard.finish_reason == "length"
        entries = {s.start + 1 + j: e for s in engine.prompts.get(request_id, ()) for j, e in enumerate(s.entries)}
        assert sorted(entries) == list(range(1, len(case.prompts[i])))
        if not case.extra.get("stale_cache_differs_at"):
            scale = float(np.abs(case.logits[i]).max())
            check_logprobs([entries[p] for p in sorted(entries)], case.logits[i][:-1], scale)
    scale = float(np.abs(case.decode_logits).max())
    check_logprobs(engine.heard[names[1], 0].logprobs, case.decode_logits, scale)
    pool = engine.loop.scheduler.pool
    assert pool.available == pool.usable_pages
    info = engine.loop.info
    assert info.pool_length > info.max_model_len
    assert (
        info.kv_tokens * info.num_page_tables == pool.usable_pages // info.num_page_tables * info.num_page_tables * PAGE
    )
    assert engine.loop.runner.compilations == 0


def test_siblings_are_there() -> None:
    assert set(cases()) >= LIKE_A_SIBLING


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.longer] * (name in LIKE_A_SIBLING)) for name in cases()]
)
def test_tokens_and_logprobs_equal_transformers(name: str) -> None:
    check_case(name, build(load_case(name)))


@pytest.mark.parametrize(  # two devices: below
    "tp", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.longer), 8]
)
def test_tensor_parallel_gives_the_same_tokens(tp: int) -> None:
    check_case("llama_tp8", build(load_case("llama_tp8"), tensor_parallel_size=tp))


@pytest.mark.longer
@pytest.mark.parametrize(
    ("tensor", "expert"),
    [*(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(1, 2), (2, 1)]), (1, 4), (2, 2), (4, 1)],
)
def test_expert_parallel_gives_the_same_tokens(tensor: int, expert: int) -> None:
    sizes = {"tensor_parallel_size": tensor, "expert_parallel_size": expert}
    check_case("glm4_moe", build(load_case("glm4_moe"), **sizes))


@cache
def tokens_of_eight_experts(**sizes: int) -> list[list[int]]:
    """Of a model with 8 query heads, 2 KV heads, 8 experts and odd widths."""
    case = eight_experts_eight_heads()
    engine = build(case, **sizes)
    names = [engine.submit(prompt, greedy(64)) for prompt in case.prompts]
    engine.run()
    assert engine.loop.runner.compilations == 0
    return [engine.heard[name, 0].tokens for name in names]


EIGHT_DEVICES = [
    {"tensor_parallel_size": 8},
    {"tensor_parallel_size": 8, "enable_expert_parallel": True},
    pytest.param({"tensor_parallel_size": 4, "expert_parallel_size": 2}, marks=pytest.mark.slow),  # as 2 by 4
    {"tensor_parallel_size": 2, "expert_parallel_size": 4},
]


@pytest.mark.longer
@pytest.mark.parametrize("sizes", EIGHT_DEVICES, ids=str)
def test_experts_on_eight_devices_give_the_tokens_of_one(sizes: dict[str, int]) -> None:
    found = tokens_of_eight_experts(**sizes)
    assert [len(tokens) for tokens in found] == [64] * 3
    assert found == tokens_of_eight_experts()


@pytest.mark.parametrize("name", [pytest.param("qwen3", marks=pytest.mark.longer), "gemma2", "phi3"])
def test_tensor_parallel_2_of_other_families(name: str) -> None:
    assert 2 in load_case(name).extra["tensor_parallel"]
    check_case(name, build(load_case(name), tensor_parallel_size=2))
