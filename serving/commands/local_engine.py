"""An engine of a command's own: the process and the checks that a server has, without doors."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.markup import escape

from jaxinfer.model_path import resolve_model
from serving.commands.console import StartUpView
from serving.commands.options import (
    CommandError,
    generation_config_notes,
    model_name,
    runtime_config,
    sampling_defaults,
    tokenizer_of,
)
from serving.engine_client import EngineClient
from serving.engine_process import EXIT_REFUSED, Build, EngineProcess, build_model_engine
from serving.request import ModelContext
from serving.server import ServerConfig, model_context
from serving.status import Refusal

_NO_LIMIT = 1 << 30  # waiting sequences: all of them are the user's own


@contextlib.asynccontextmanager
async def local_engine(
    arguments: argparse.Namespace, hub_cache: Path, build: Callable[[str, argparse.Namespace], Build] | None
) -> AsyncIterator[tuple[EngineClient, ModelContext]]:
    """A client of the engine, ready, and what requests are checked against. `build`: see serve.

    Raises CheckpointError, ConfigError, TokenizerError or CommandError when the model cannot be had.
    """
    folder = resolve_model(arguments.model, hub_cache)
    runtime = runtime_config(arguments)
    defaults = sampling_defaults(folder, arguments.generation_config)
    tokenizer = tokenizer_of(folder, skip=arguments.skip_tokenizer_init)
    make_engine = (
        functools.partial(build_model_engine, str(folder), runtime) if build is None else build(str(folder), arguments)
    )
    link = EngineProcess.started(make_engine)
    console = Console(stderr=True)
    view = StartUpView(console)
    view.start()
    # Only a terminal gets progress here: in a script, standard error is for errors.
    show = view.show if console.is_terminal else lambda _: None
    client = await EngineClient.connect(link, _NO_LIMIT, show)
    try:
        waiters: list[asyncio.Future[Any]] = [client.ready, client.ended]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        view.close()
        if console.is_terminal:
            for note in generation_config_notes(folder, arguments.generation_config):
                console.print(f"[dim]·[/dim] {escape(note)}")
        if not client.ready.done():
            end = client.ended.result()
            if end.traceback:
                print(end.traceback.rstrip(), file=sys.stderr)
            raise CommandError(end.reason, 2 if end.code == EXIT_REFUSED else 1)
        config = ServerConfig(name=model_name(arguments, folder), sampling_defaults=defaults)
        try:
            yield client, model_context(client.ready.result(), tokenizer, config)
        except Refusal as refusal:
            if refusal.code == grpc.StatusCode.INTERNAL and client.failing:
                print((await client.ended).traceback.rstrip(), file=sys.stderr)
            raise
    finally:
        view.close()
        await client.disconnect()
