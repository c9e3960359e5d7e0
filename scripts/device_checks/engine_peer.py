"""transformers' own continuous batching on the same shape, prompts and lengths, with random weights in torch.

Its attention is the paged form of torch's `scaled_dot_product_attention`: flash-attn is not a part of it. It is asked
for as many tokens as ours. A case that takes longer than its time says so instead of a figure.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator
from typing import Any

import torch

from device_checks.child import Case
from device_checks.engine_sizes import EngineSizes, engine_sizes
from device_checks.settings import Settings

ATTENTION = "paged|sdpa"


def cases(settings: Settings, part: str = "whole") -> Iterator[Case]:
    sizes = engine_sizes(settings, part)
    peer = Peer(sizes)
    yield Case("start-up", peer.start_up)
    for count in sizes.requests:
        if count == 1:
            continue  # nothing is batched
        yield Case(f"requests: {count}", functools.partial(peer.serve, count))


class Peer:
    """Makes one model, when it is first needed."""

    def __init__(self, sizes: EngineSizes) -> None:
        self.sizes = sizes
        self._made: Any = None

    def start_up(self) -> dict[str, Any]:
        begin = time.perf_counter()
        model = self._model()
        return {
            "weights_seconds": time.perf_counter() - begin,
            "parameters": sum(p.numel() for p in model.parameters()),
            "device": str(model.device),
        }

    def _model(self) -> Any:
        if self._made is None:
            from transformers import AutoModelForCausalLM, LlamaConfig

            shape = {
                key: value for key, value in self.sizes.shape.items() if key not in ("architectures", "model_type")
            }
            shape["dtype"] = getattr(torch, shape.pop("torch_dtype"))
            torch.manual_seed(0)
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), attn_implementation=ATTENTION)
            self._made = model.to(torch.bfloat16).eval()
        return self._made

    def serve(self, count: int) -> dict[str, Any]:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        model, sizes = self._model(), self.sizes
        prompts = [_prompt(seed, sizes.prompt, model.config.vocab_size) for seed in range(count)]
        # No token ends a text: -1 is none.
        wanted = GenerationConfig(max_new_tokens=sizes.output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        batching = ContinuousBatchingConfig(max_batch_tokens=sizes.budget, allow_block_sharing=False)
        # transformers 5.17 gave it another name, and left None under the old one.
        block_tokens = getattr(batching, "page_size", None) or batching.block_size
        batching.num_blocks = 1 + count * (-(-sizes.length // block_tokens) + 1)
        begin = time.perf_counter()
        results = model.generate_batch(
            prompts, generation_config=wanted, continuous_batching_config=batching, progress_bar=False
        )
        seconds = time.perf_counter() - begin
        tokens = sum(len(result.generated_tokens) for result in results.values())
        if tokens != count * sizes.output:
            errors = {str(result.error) for result in results.values() if result.error}
            raise RuntimeError(
                f"{tokens} tokens came out instead of {count * sizes.output}; {errors or 'no error told'}"
            )
        return {"requests": count, "output_tokens": tokens, "wall_seconds": seconds, "attention": ATTENTION}


def _prompt(seed: int, length: int, vocab: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocab) for _ in range(length)]
