"""The same request gives the same tokens and the same bytes of log-probabilities, whoever shares the engine.

Alone, among 32, chunked by 7, 23 and 64, on a prefix hit (alone and in company) and after a preemption.
"""

from __future__ import annotations

import random
import struct

import pytest

from jaxinfer.sampling_params import SamplingParams
from tests.golden_recipe import load_case
from tests.jaxinfer.harness import PAGE, Harness, Heard, build
from tests.pallas_kernels.native_cpu.loaded import target_for

PROMPT_LENGTH = 70
SAMPLED = SamplingParams(
    temperature=0.9,
    top_p=0.95,
    top_k=40,
    repetition_penalty=1.1,
    frequency_penalty=0.2,
    max_tokens=24,
    ignore_eos=True,
    logprobs=5,
)


def fingerprint(heard: Heard) -> tuple[list[int], bytes]:
    """Tokens, and every log-probability as the bytes of a float32."""
    values: list[float] = []
    for entry in heard.logprobs:
        values += [entry.logprob, *(logprob for _, logprob in entry.top)]
    return heard.tokens, struct.pack(f"{len(values)}f", *values)


# Model, dtype, type of the KV cache, quantization, and what computes products and attention: "auto" is what an engine
# takes here. Tests of the kernels and of the layers ask about bfloat16 and windows as well. Those that are slow run on
# one of the two JAX lines alone.
CASES = [
    ("llama", "float32", "auto", None, "auto"),
    pytest.param(("llama", "float32", "auto", None, "xla"), marks=pytest.mark.longer),
    pytest.param(("llama", "bfloat16", "auto", None, "avx2"), marks=pytest.mark.longer),
    pytest.param(("llama", "bfloat16", "int8", "int8", "auto"), marks=pytest.mark.longer),
    pytest.param(("gemma3", "bfloat16", "auto", None, "auto"), marks=pytest.mark.longer),
    pytest.param(("gemma3", "bfloat16", "auto", None, "xla"), marks=pytest.mark.longer),
    pytest.param(("gemma2", "float32", "auto", None, "auto"), marks=pytest.mark.longer),
    pytest.param(("qwen3_moe", "float32", "auto", None, "auto"), marks=pytest.mark.slow),
    pytest.param(("qwen3_moe", "float32", "auto", None, "xla"), marks=pytest.mark.longer),
    pytest.param(("gpt_oss", "bfloat16", "auto", None, "auto"), marks=pytest.mark.longer),
    pytest.param(("gpt_oss", "float32", "auto", None, "xla"), marks=pytest.mark.slow),
    pytest.param(("gpt_oss", "bfloat16", "int8", "int8", "auto"), marks=pytest.mark.slow),
    pytest.param(("ministral3", "bfloat16", "auto", None, "auto"), marks=pytest.mark.slow),
    pytest.param(("nemotron_nas", "bfloat16", "auto", None, "auto"), marks=pytest.mark.slow),
    pytest.param(("low_rank", "bfloat16", "auto", None, "auto"), marks=pytest.mark.longer),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def engine(request: pytest.FixtureRequest) -> Harness:
    name, dtype, kv_cache_dtype, quantization, kernels = request.param
    if kernels not in ("auto", "xla"):
        target_for(kernels)  # or this machine has none, and the test is skipped
    sizes = {"max_num_seqs": 32, "max_num_batched_tokens": 64, "num_pages": 400}
    types = {
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "quantization": quantization,
        "cpu_kernels": kernels,
    }
    return build(load_case(name), **types, check=False, **sizes)


@pytest.fixture
def prompt(engine: Harness) -> list[int]:
    rng = random.Random(7)
    return [rng.randrange(engine.loop.info.vocab_size) for _ in range(PROMPT_LENGTH)]


@pytest.fixture
def alone(engine: Harness, prompt: list[int]) -> tuple[list[int], bytes]:
    engine.chunk_by(64)
    engine.forget_prefixes()
    return fingerprint(engine.generate(prompt, SAMPLED, seed=5))


def crowd(engine: Harness, count: int) -> None:
    """Other requests of many lengths and settings."""
    rng = random.Random(11)
    for i in range(count):
        ids = [rng.randrange(engine.loop.info.vocab_size) for _ in range(rng.randint(1, 90))]
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_p=rng.choice([1.0, 0.8]),
            min_p=rng.choice([0.0, 0.05]),
            presence_penalty=rng.choice([0.0, 0.5]),
            max_tokens=rng.randint(1, 40),
            ignore_eos=True,
        )
        engine.submit(ids, params, seed=i)


def test_among_32(engine: Harness, prompt: list[int], alone: tuple[list[int], bytes]) -> None:
    engine.forget_prefixes()
    crowd(engine, 20)
    engine.step()
    name = engine.submit(prompt, SAMPLED, seed=5)
    crowd(engine, 11)
    engine.run()
    assert fingerprint(engine.heard[name, 0]) == alone


@pytest.mark.parametrize("chunk", [7, 23, 64])  # 23: the last token of the prompt has a step of its own
def test_chunked(engine: Harness, prompt: list[int], alone: tuple[list[int], bytes], chunk: int) -> None:
    engine.forget_prefixes()
    engine.chunk_by(chunk)
    assert fingerprint(engine.generate(prompt, SAMPLED, seed=5)) == alone


def test_prefix_hit(engine: Harness, prompt: list[int], alone: tuple[list[int], bytes]) -> None:
    heard = engine.generate(prompt, SAMPLED, seed=5)
    assert heard.cached_tokens == (PROMPT_LENGTH - 1) // PAGE * PAGE
    assert fingerprint(heard) == alone


def test_prefix_hit_among_others(engine: Harness, prompt: list[int], alone: tuple[list[int], bytes]) -> None:
    engine.forget_prefixes()
    engine.generate(prompt, SAMPLED, seed=5)
    engine.chunk_by(23)
    crowd(engine, 6)
    engine.step()
    name = engine.submit(prompt, SAMPLED, seed=5)
    crowd(engine, 6)
    engine.run()
    assert engine.heard[name, 0].cached_tokens == (PROMPT_LENGTH - 1) // PAGE * PAGE
    assert fingerprint(engine.heard[name, 0]) == alone


def test_after_preemption(engine: Harness, prompt: list[int], alone: tuple[list[int], bytes]) -> None:
    engine.forget_prefixes()
    scheduler = engine.loop.scheduler
    before = scheduler.stats.preemptions
    name = engine.submit(prompt, SAMPLED, seed=5)
    for _ in range(9):
        engine.step()
    (sequence,) = scheduler._running
    scheduler._preempt(sequence)
    engine.forget_prefixes()  # so that all of it is computed again
    engine.run()
    assert scheduler.stats.preemptions == before + 1
    assert fingerprint(engine.heard[name, 0]) == alone


def test_preempted_for_lack_of_pages(engine: Harness, prompt: list[int], alone: tuple[list[int], bytes]) -> None:
    engine.forget_prefixes()
    scheduler, pool = engine.loop.scheduler, engine.loop.scheduler.pool
    before = scheduler.stats.preemptions
    engine.submit(prompt[::-1], SAMPLED, seed=1)
    engine.submit(prompt[::-1][:40], SAMPLED, seed=2)
    name = engine.submit(prompt, SAMPLED, seed=5)
    while not engine.heard.get((name, 0), Heard()).tokens:
        engine.step()
    held = pool.allocate(pool.available)  # all three run, and none of them has pages to its end
    engine.run()
    pool.release(reversed(held))
    assert scheduler.stats.preemptions > before
    assert fingerprint(engine.heard[name, 0]) == alone


def test_whole_prompt_in_one_step_equals_transformers(engine: Harness) -> None:
    case = load_case("llama")
    if (engine.loop.info.model, engine.loop.info.dtype) != (case.name, "float32"):
        pytest.skip("one family is enough: the parity of all others runs in chunks")
    engine.chunk_by(64)
    engine.forget_prefixes()
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    assert tuple(engine.generate(case.prompts[1], params).tokens) == case.greedy[1]


def test_nothing_was_compiled(engine: Harness) -> None:
    assert engine.loop.runner.compilations == 0
