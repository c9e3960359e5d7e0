"""Runs the workloads of `compare_peers.py` on one program, in its own environment; prints one JSON line each.

    python scripts/bench/peer_worker.py jaxinfer|vllm|openvino|transformers MODEL [--workloads single,batch16]

Imports nothing of ours but for the peer `jaxinfer`, so that any environment runs it. All requests are greedy, prompts
are random token ids, and end-of-sequence is ignored. `single` and `batch16` run once to warm up before they are
measured, always with prompts of their own; rounds are `compare_peers.py`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

# name: (requests, tokens of a prompt, tokens of an answer)
WORKLOADS = {"single": (1, 16, 64), "batch16": (16, 128, 64), "long": (1, 4024, 64), "prefix": (32, 1040, 1)}
SHARED = 1024  # tokens that all prompts of `prefix` begin with
CONTEXT = 4096
_LOW, _HIGH = 300, 15_000  # token ids
_CACHE_GB = 2

Generate = Callable[[list[list[int]], int], int]  # prompts and tokens of each answer -> tokens that came


def jaxinfer(model: str, setting: str, kernels: str) -> tuple[Generate, dict[str, Any]]:
    from jaxinfer import LLM, SamplingParams

    how: dict[str, Any] = {"dtype" if setting in ("auto", "bfloat16", "float32") else "quantization": setting}
    llm = LLM(model, max_model_len=CONTEXT, cpu_kernels=kernels, **how)

    def generate(prompts: list[list[int]], tokens: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return sum(len(output.outputs[0].token_ids) for output in llm.generate(prompts, params))

    return generate, {"jax": metadata.version("jax"), "notes": list(llm.info.notes), "dtype": llm.info.dtype}


def vllm(model: str, setting: str) -> tuple[Generate, dict[str, Any]]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_CACHE_GB))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, dtype=setting, max_model_len=CONTEXT, enable_prefix_caching=True)

    def generate(prompts: list[list[int]], tokens: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate, {"torch": metadata.version("torch"), "dtype": setting}


def openvino(model: str, setting: str) -> tuple[Generate, dict[str, Any]]:
    import numpy as np
    import openvino as ov
    import openvino_genai as og

    scheduler = og.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens = _CACHE_GB, 512
    scheduler.max_num_seqs, scheduler.enable_prefix_caching = 64, True
    pipeline = og.ContinuousBatchingPipeline(model, scheduler, "CPU", {}, {})

    def generate(prompts: list[list[int]], tokens: int) -> int:
        config = og.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        inputs = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, [config] * len(prompts))
        return sum(len(result.m_generation_ids[0]) for result in results)

    return generate, {"openvino": metadata.version("openvino"), "dtype": setting}


def transformers(model: str, setting: str) -> tuple[Generate, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, setting))
    net.generation_config.eos_token_id = None

    def generate(prompts: list[list[int]], tokens: int) -> int:
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            found = net.generate(torch.tensor(prompts), **settings)
        return int((found.shape[1] - len(prompts[0])) * found.shape[0])

    return generate, {"torch": metadata.version("torch"), "dtype": setting}


PEERS: dict[str, Callable[..., tuple[Generate, dict[str, Any]]]] = {
    "jaxinfer": jaxinfer,
    "vllm": vllm,
    "openvino": openvino,
    "transformers": transformers,
}
_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "openvino": ("openvino-genai",), "transformers": ("transformers",)}
_NO_PREFIX_CACHE = ("transformers",)


def version_of(peer: str) -> str:
    for package in _PACKAGES.get(peer, (peer,)):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def measure(generate: Generate, workload: str, rng: random.Random) -> dict[str, float]:
    """Seconds and rates of one workload, with prompts that this process has not seen.

    single, batch16: output tokens per second of the whole. long: seconds to the first token, and tokens per second of
    the others. prefix: seconds of all requests together to their first tokens, without and with a cached prefix.
    """
    count, length, tokens = WORKLOADS[workload]
    if workload == "prefix":
        shared = _ids(SHARED, rng)
        apart = [_ids(length, rng) for _ in range(count)]
        cold, _ = _timed(generate, apart, tokens)
        _timed(generate, [shared + _ids(length - SHARED, rng)], tokens)  # the one that fills the cache
        warm, _ = _timed(generate, [shared + _ids(length - SHARED, rng) for _ in range(count)], tokens)
        return {"uncached_seconds": cold, "cached_seconds": warm, "ratio": warm / cold}
    if workload == "long":
        first, _ = _timed(generate, [_ids(length, rng)], 1)
        whole, made = _timed(generate, [_ids(length, rng)], tokens)
        return {"first_seconds": first, "output_tok_s": (made - 1) / max(whole - first, 1e-9)}
    seconds, made = _timed(generate, [_ids(length, rng) for _ in range(count)], tokens)
    return {"seconds": seconds, "output_tok_s": made / seconds}


def _ids(length: int, rng: random.Random) -> list[int]:
    return [rng.randrange(_LOW, _HIGH) for _ in range(length)]


def _timed(generate: Generate, prompts: list[list[int]], tokens: int) -> tuple[float, int]:
    begin = time.perf_counter()
    made = generate(prompts, tokens)
    seconds = time.perf_counter() - begin
    if made != len(prompts) * tokens:
        raise RuntimeError(f"{made} tokens came, not {len(prompts)} x {tokens}")
    return seconds, made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("model")
    parser.add_argument("--setting", default="bfloat16", help="bfloat16, float32, or a scheme of ours such as int8")
    parser.add_argument("--cpu-kernels", default="auto", help="jaxinfer's option of that name; others have none")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.perf_counter()
    ours = (args.cpu_kernels,) if args.peer == "jaxinfer" else ()
    generate, about = PEERS[args.peer](args.model, args.setting, *ours)
    generate([_ids(16, random.Random(-1))], 1)
    ready = time.perf_counter() - begin
    about |= {"python": sys.version.split()[0], "version": version_of(args.peer), "ready_seconds": ready}
    print(json.dumps({"workload": "ready", **about}), flush=True)
    rng = random.Random(args.seed)
    for workload in args.workloads.split(","):
        if workload == "prefix" and args.peer in _NO_PREFIX_CACHE:
            continue
        if workload in ("single", "batch16"):
            measure(generate, workload, rng)  # warms up; the others compute prompts for longer than that takes
        print(json.dumps({"workload": workload, **measure(generate, workload, rng)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    os._exit(code)  # some peers leave threads behind that would keep the process
