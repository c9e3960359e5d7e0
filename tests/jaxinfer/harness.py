"""Drives a real engine step by step, without threads, and keeps what it said."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from checkpoints.load import load_model
from jaxinfer.config import RuntimeConfig
from jaxinfer.engine import EngineLoop
from jaxinfer.llm import build_engine
from jaxinfer.messages import PromptScored, StepOutputs, Submit, TokenLogprobs
from jaxinfer.model_path import demo_path
from jaxinfer.runtime.engine_builder import assemble_engine
from jaxinfer.runtime.executables import ExecutableSource
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.sharding import make_mesh
from tests.golden_recipe import GoldenCase, write_checkpoint

PAGE = 16
# What most engines of these tests have: an engine of the same model and sizes finds its programs compiled.
SIZES: dict[str, Any] = {
    "dtype": "float32",
    "page_size": PAGE,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 8,
    "num_pages": 64,
    "max_model_len": 192,
    "compilation_cache_dir": None,
}
GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)


@dataclass
class Heard:
    """What one sequence produced."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    cached_tokens: int = 0
    message: str = ""


class Harness:
    """An engine and the requests put to it. `run` steps until it is idle."""

    def __init__(self, loop: EngineLoop) -> None:
        self.loop = loop
        self.heard: dict[tuple[str, int], Heard] = {}
        self.prompts: dict[str, list[PromptScored]] = {}
        self.refused: list[Any] = []
        self.steps = 0
        self._count = 0

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        seed: int = 0,
        priority: int = 0,
        salt: str = "",
        request_id: str | None = None,
        constraint: str = "",
        **more: Any,
    ) -> str:
        """With a constraint it returns when its grammar is compiled. What the engine refuses is in `refused`. more:
        further fields of `Submit`."""
        self._count += 1
        name = request_id or f"r{self._count}"
        submit = Submit(name, tuple(prompt), params, seed, priority, float(self._count), salt, constraint=constraint)
        submit = submit._replace(**more)
        if not submit.guided:
            self.loop.scheduler.add(submit)
            return name
        self.loop._handle(submit, self.refused.append)
        while self.loop.waiting_for_grammars:
            time.sleep(0.001)
            self.loop.admit_compiled(self.refused.append)
        return name

    def step(self) -> None:
        self.steps += 1
        self._listen(self.loop.step())

    def run(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if self.loop.idle:
                return
            self.step()
        raise AssertionError(f"not idle after {max_steps} steps")

    def _listen(self, outputs: StepOutputs | None) -> None:
        ended = self.loop.scheduler.take_ended()
        for output in ended + (outputs.sequences if outputs is not None else []):
            heard = self.heard.setdefault((output.request_id, output.index), Heard())
            heard.tokens += output.token_ids
            heard.logprobs += output.logprobs or ()
            heard.finish_reason = output.finish_reason
            heard.cached_tokens = output.cached_tokens
            heard.message = output.message
        for scored in outputs.prompts if outputs is not None else ():
            self.prompts.setdefault(scored.request_id, []).append(scored)

    def generate(self, prompt: Sequence[int], params: SamplingParams = GREEDY, **options: Any) -> Heard:
        """One request, alone, to its end."""
        name = self.submit(prompt, params, **options)
        self.run()
        return self.heard[name, 0]

    def chunk_by(self, tokens: int) -> None:
        """Changes the token budget; the compiled ladder stays."""
        scheduler = self.loop.scheduler
        scheduler.limits = replace(scheduler.limits, max_num_batched_tokens=tokens)

    def forget_prefixes(self) -> None:
        self.loop.scheduler.pool.clear_cache()


def build_demo(**runtime: Any) -> Harness:
    """An engine for the model that comes with the project, which has a tokenizer."""
    return Harness(build_engine(demo_path(), RuntimeConfig(**{**SIZES, **runtime}), check=True))


def build(
    case: GoldenCase,
    *,
    check: bool = True,
    dtype: str = "float32",
    source: ExecutableSource | None = None,
    **runtime: Any,
) -> Harness:
    """An engine for a golden case, loaded from a folder that looks like a Hugging Face download."""
    longest = min(SIZES["max_model_len"], case.config.get("max_position_embeddings", SIZES["max_model_len"]))
    config = RuntimeConfig(**{**SIZES, "dtype": dtype, "max_model_len": longest, **runtime})
    mesh = make_mesh(config.parallel)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, Path(folder))
        loaded = load_model(Path(folder), dtype=config.dtype, mesh=mesh, quantization=config.quantization)
    model = dataclasses.replace(loaded, name=case.name)
    return Harness(assemble_engine(model, mesh, config, check=check, source=source))
