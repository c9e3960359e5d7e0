"""Speed of an engine in this process: all requests at once, or one batch again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinfer.sampling_params import SamplingParams

if TYPE_CHECKING:
    from jaxinfer.llm import LLM

LATENCY_PERCENTILES = (10, 25, 50, 75, 90, 99)  # those of `vllm bench latency`
_FIRST_ID = 3  # below it lie the special tokens of most vocabularies


def random_prompts(count: int, length: int, vocab_size: int, rng: random.Random) -> list[list[int]]:
    """`count` prompts of `length` token ids each."""
    return [[rng.randrange(_FIRST_ID, vocab_size) for _ in range(length)] for _ in range(count)]


def measure_throughput(
    llm: LLM, prompts: Sequence[Sequence[int]], output_len: int, n: int, warmups: int
) -> dict[str, Any]:
    """Gives all prompts to the engine at once. Token counts and rates are over the whole, padding over its steps.

    Names are those of `vllm bench throughput --output-json`, with more beside them.
    """
    params = SamplingParams(temperature=0 if n == 1 else 1, n=n, max_tokens=output_len, ignore_eos=True)
    rng = random.Random(1)
    if warmups:
        length = len(prompts[0])
        llm.generate(random_prompts(warmups, length, llm.info.vocab_size, rng), params)
    before = llm.stats()
    begin = time.perf_counter()
    outputs = llm.generate(list(prompts), params)
    seconds = time.perf_counter() - begin
    after = llm.stats()
    generated = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    total = generated + sum(len(prompt) for prompt in prompts)
    steps = after.steps - before.steps
    padded, scheduled = after.padded_tokens - before.padded_tokens, after.scheduled_tokens - before.scheduled_tokens
    return {
        "elapsed_time": seconds,
        "num_requests": len(prompts),
        "total_num_tokens": total,
        "requests_per_second": len(prompts) / seconds,
        "tokens_per_second": total / seconds,
        "output_tokens_per_second": generated / seconds,
        "steps": steps,
        "milliseconds_per_step": 1e3 * seconds / steps,
        "padding_share": padded / (padded + scheduled),
        "preemptions": after.preemptions - before.preemptions,
        "compilations_after_ready": after.compilations_after_ready,
    }


def measure_latency(
    llm: LLM,
    prompts: Callable[[], list[list[int]]],
    output_len: int,
    n: int,
    iterations: int,
    warmups: int,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Seconds from giving one batch to its last token, `iterations` times; new prompts each time.

    Names are those of `vllm bench latency --output-json`.
    """
    params = SamplingParams(temperature=0 if n == 1 else 1, n=n, max_tokens=output_len, ignore_eos=True)
    latencies = []
    for i in range(warmups + iterations):
        batch = prompts()
        begin = time.perf_counter()
        llm.generate(batch, params)
        if i >= warmups:
            latencies.append(time.perf_counter() - begin)
        done(i + 1)
    return {
        "avg_latency": float(np.mean(latencies)),
        "latencies": latencies,
        "percentiles": _percentiles(latencies),
        "output_tokens_per_second": len(batch) * n * output_len / float(np.median(latencies)),
        "compilations_after_ready": llm.stats().compilations_after_ready,
    }


def _percentiles(values: Sequence[float]) -> Mapping[str, float]:
    found = np.percentile(values, LATENCY_PERCENTILES).tolist()
    return dict(zip(map(str, LATENCY_PERCENTILES), found, strict=True))
