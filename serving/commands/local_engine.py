"""An engine of a command's own: the process and the checks that a server has, without servers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.markup import escape

from jaxinfer.config import MAX_NUM_SEQS, ModelConfig, RuntimeConfig, context_length
from jaxinfer.messages import EngineInfo
from jaxinfer.model_path import resolve_model
from jaxinfer.runtime.buckets import Work, only_bucket
from serving.commands.console import StartUpView
from serving.commands.early import check_model
from serving.commands.options import (
    generation_config_notes,
    model_name,
    runtime_config,
    sampling_defaults,
    tokenizer_of,
)
from serving.commands.parsing import CommandError
from serving.engine_process import EXIT_REFUSED, Build, EngineProcess, build_model_engine
from serving.errors import Refusal
from serving.frontend.frontend import Frontend
from serving.request import ModelContext
from serving.server import ServerConfig, model_context
from serving.text_worker import TextWorker

_MAX_REQUEST_BYTES = 64 << 20
_NO_LIMIT = 1 << 30  # waiting sequences: all of them are the user's own


@contextlib.asynccontextmanager
async def local_engine(
    arguments: argparse.Namespace,
    hub_cache: Path,
    build: Callable[[str, argparse.Namespace], Build] | None,
    *,
    check: Callable[[ModelContext], Work | None] = lambda _: None,
) -> AsyncIterator[tuple[Frontend, ModelContext]]:
    """A frontend of an engine, ready, and what requests are checked against. `build`: see serve. check: is shown
    what requests will be checked against before the engine starts, to refuse them then; its limits are upper bounds.
    It returns what is known of all that will run: one step is compiled then, where the user has said nothing of its
    size. None compiles the whole ladder.

    Raises CheckpointError, ConfigError, TokenizerError or CommandError when the model cannot be had, and what `check`
    raises.
    """
    folder = resolve_model(arguments.model, hub_cache)
    runtime = runtime_config(arguments)
    defaults = sampling_defaults(folder, arguments.generation_config)
    model = check_model(folder, runtime, weights=build is None)
    tokenizer = tokenizer_of(folder, skip=arguments.skip_tokenizer_init)
    config = ServerConfig(name=model_name(arguments, folder), sampling_defaults=defaults)
    runtime = _for_work(check(model_context(_expected(model, runtime), tokenizer, config)), runtime)
    make_engine = (
        functools.partial(build_model_engine, str(folder), runtime) if build is None else build(str(folder), arguments)
    )
    engine = EngineProcess.started(make_engine)
    console = Console(stderr=True)
    view = StartUpView(console, brief=True)
    view.start()
    worker = TextWorker(_MAX_REQUEST_BYTES)
    frontend = Frontend(_NO_LIMIT, worker)
    try:
        await frontend.connect([engine], view.show)
        waiters: list[asyncio.Future[Any]] = [frontend.ready, frontend.ended]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        view.close()
        if console.is_terminal:
            for note in generation_config_notes(folder, arguments.generation_config):
                console.print(f"[dim]·[/dim] {escape(note)}")
        if not frontend.ready.done():
            end = frontend.ended.result()
            if end.traceback:
                print(end.traceback.rstrip(), file=sys.stderr)
            raise CommandError(end.reason, 2 if end.code == EXIT_REFUSED else 1)
        try:
            context = model_context(frontend.ready.result(), tokenizer, config)
            frontend.open(context)
            yield frontend, context
        except Refusal as refusal:
            if refusal.code == grpc.StatusCode.INTERNAL and frontend.failing:
                print((await frontend.ended).traceback.rstrip(), file=sys.stderr)
            raise
    finally:
        view.close()
        await frontend.disconnect()
        worker.close()


def _for_work(work: Work | None, runtime: RuntimeConfig) -> RuntimeConfig:
    """With one step that suits the work; a bundle's steps are all there already."""
    if (
        work is None
        or runtime.bundle is not None
        or runtime.max_num_seqs is not None
        or runtime.max_num_batched_tokens is not None
    ):
        return runtime
    bucket = only_bucket(work, MAX_NUM_SEQS["cpu"])
    return replace(runtime, max_num_seqs=bucket.rows, max_num_batched_tokens=bucket.tokens, step_sizes=(bucket.tokens,))


def _expected(model: ModelConfig, runtime: RuntimeConfig) -> EngineInfo:
    """What the engine will say of itself, as far as requests are checked against it. The pool's size is not known yet:
    any prompt fits that fits the context."""
    length = context_length(model, runtime)
    return EngineInfo(
        model="",
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        max_model_len=length,
        max_num_seqs=runtime.max_num_seqs or 1,
        max_num_batched_tokens=runtime.max_num_batched_tokens or 1,
        page_size=runtime.page_size,
        num_pages=2 + length // runtime.page_size,
        dtype=model.dtype,
        tensor_parallel_size=runtime.parallel.tensor,
        expert_parallel_size=runtime.parallel.expert,
        device="",
        backends={},
        eos_token_ids=model.eos_token_ids,
        notes=(),
        executables=(),
        extra={},
        max_logprobs=model.vocab_size if runtime.max_logprobs == -1 else runtime.max_logprobs,
    )
