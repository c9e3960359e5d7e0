"""`jaxinfer generate`: text on standard output, from a server or from an engine of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc

from checkpoints.files import CheckpointError
from jaxinfer.config import ConfigError
from jaxinfer.errors import BAD_INPUT
from jaxinfer.model_path import resolve_model
from jaxinfer.runtime.buckets import USUAL_OUTPUT, Work
from jaxinfer.text import TokenizerError
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.commands.access_options import (
    add_client_options,
    check_client_options,
    client_channel,
    client_metadata,
)
from serving.commands.local_engine import local_engine
from serving.commands.options import add_model_options, add_runtime_options, runtime_given
from serving.commands.parsing import BAD_INPUT as EXIT_BAD_INPUT
from serving.commands.parsing import FAILURE, INTERRUPTED, CommandError, CommandParser, fail
from serving.commands.requests import add_prompt_options, add_sampling_options, as_json, make_requests
from serving.commands.server_address import server_address, why_not
from serving.engine_process import Build
from serving.errors import Refusal
from serving.grpc_server import replies
from serving.grpc_server.convert import in_names_of_the_client, to_request
from serving.request import ModelContext, prepare

Source = Callable[[pb.GenerateRequest], AsyncIterator[pb.GenerateResponse]]

_NO_LIMIT = 1 << 30  # waiting sequences: all of them are the user's own

# The client's fault: exit code 2. Every other status is 1.
_BAD_INPUT_CODES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.OUT_OF_RANGE,
)


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} generate",
        usage="%(prog)s [OPTION ...] PROMPT [PROMPT ...]",
        description="Generate text and stream it to standard output.",
    )
    add_prompt_options(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--server",
        type=server_address,
        metavar="HOST:PORT",
        help="ask a running server, at its gRPC port (default: a model is run here)",
    )
    where.add_argument(
        "--model",
        metavar="MODEL",
        help="run here: converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the demo)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line for each prompt instead of text")
    parser.add_argument("--usage", action="store_true", help="tokens and speed on standard error")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds (default: never)")
    add_client_options(parser)
    add_sampling_options(parser)
    add_model_options(parser)
    add_runtime_options(parser)
    return parser


def main(
    argv: Sequence[str],
    *,
    hub_cache: Path,
    program: str = "jaxinfer",
    build: Callable[[str, argparse.Namespace], Build] | None = None,
) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for anything else, 130 after Ctrl-C. `build`: see serve."""
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    try:
        _check(arguments)
        if arguments.server is None:
            resolve_model(arguments.model, hub_cache)  # before standard input is waited for
        requests = make_requests(arguments)
        with contextlib.suppress(BrokenPipeError):
            asyncio.run(_generate(arguments, requests, hub_cache, build))
            sys.stdout.flush()
            return 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to tell it
        return 1
    except CommandError as error:
        return fail(parser.prog, str(error), error.code)
    except (CheckpointError, ConfigError, TokenizerError, *BAD_INPUT) as error:
        return fail(parser.prog, str(error), EXIT_BAD_INPUT)
    except Refusal as refusal:
        return fail(parser.prog, refusal.message, _code(refusal.code))
    except grpc.aio.AioRpcError as error:
        return fail(parser.prog, _explain(error, arguments), _code(error.code()))
    except TimeoutError:
        return fail(parser.prog, f"not finished within --timeout {arguments.timeout:g} s", FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _code(status: grpc.StatusCode) -> int:
    return EXIT_BAD_INPUT if status in _BAD_INPUT_CODES else FAILURE


def _explain(error: grpc.aio.AioRpcError, arguments: argparse.Namespace) -> str:
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and arguments.timeout is not None:
        return f"not finished within --timeout {arguments.timeout:g} s"
    return why_not(error, arguments.server, tls=arguments.tls_ca is not None)


def _check(arguments: argparse.Namespace) -> None:
    """Refuses what goes with a server, or without one, only."""
    if arguments.timeout is not None and not 0 < arguments.timeout < math.inf:
        raise CommandError(f"--timeout is {arguments.timeout:g}; it must be a number of seconds above 0")
    check_client_options(arguments)
    if arguments.server is None:
        return
    given = sorted(runtime_given(arguments))
    if arguments.skip_tokenizer_init:
        given.append("skip_tokenizer_init")
    if arguments.generation_config != "auto":
        given.append("generation_config")
    if given:
        raise CommandError(f"--{given[0].replace('_', '-')} is an option of the server; it cannot go with --server")


async def _generate(
    arguments: argparse.Namespace,
    requests: list[tuple[str, pb.GenerateRequest]],
    hub_cache: Path,
    build: Callable[[str, argparse.Namespace], Build] | None,
) -> None:
    source = (
        _server(arguments)
        if arguments.server is not None
        else _local(arguments, [request for _, request in requests], hub_cache, build)
    )
    async with source as generate:
        printer = Printer(requests, as_json=arguments.json, usage=arguments.usage)
        tasks = [asyncio.create_task(_follow(i, request, generate, printer)) for i, (_, request) in enumerate(requests)]
        try:
            async with asyncio.timeout(arguments.timeout):
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            printer.end()


async def _follow(index: int, request: pb.GenerateRequest, generate: Source, printer: Printer) -> None:
    async for event in generate(request):
        printer.take(index, event)


class Printer:
    """Prints the sequences of all prompts one after the other; the first unfinished one as it comes."""

    def __init__(self, requests: list[tuple[str, pb.GenerateRequest]], *, as_json: bool, usage: bool) -> None:
        self._prompts = [prompt for prompt, _ in requests]
        self._json, self._usage = as_json, usage
        self._order = [(i, j) for i, (_, request) in enumerate(requests) for j in range(max(1, request.sampling.n))]
        self._turn = 0
        self._text: dict[tuple[int, int], str] = {}
        self._done: set[tuple[int, int]] = set()
        self._events: list[list[pb.GenerateResponse]] = [[] for _ in requests]
        self._tokens = 0
        self._prompt_tokens = 0
        self._cached = 0
        self._began = time.monotonic()
        self._line_open = False

    def take(self, prompt: int, event: pb.GenerateResponse) -> None:
        if self._json:
            self._events[prompt].append(event)
        if event.HasField("finished"):
            self._prompt_tokens += event.finished.usage.prompt_tokens
            self._cached += event.finished.usage.cached_tokens
            if self._json:
                print(as_json(prompt, self._prompts[prompt], self._events[prompt]), flush=True)
        elif event.HasField("delta"):
            self._tokens += len(event.delta.token_ids)
            key = (prompt, event.delta.index)
            self._text[key] = self._text.get(key, "") + event.delta.text
            if event.delta.finish_reason:
                self._done.add(key)
            if not self._json:
                self._flush()

    def _flush(self) -> None:
        while self._turn < len(self._order):
            key = self._order[self._turn]
            text = self._text.pop(key, "")
            if text or key in self._done:
                if len(self._order) > 1 and not self._line_open:
                    print(self._header(*key))
                self._line_open = True
                print(text, end="", flush=True)
            if key not in self._done:
                return
            print(flush=True)
            self._line_open = False
            self._turn += 1

    def _header(self, prompt: int, index: int) -> str:
        several = sum(1 for i, _ in self._order if i == prompt) > 1
        number = f"{prompt + 1}.{index + 1}" if several else str(prompt + 1)
        shown = " ".join(self._prompts[prompt].split())
        return f"[{number}] {shown if len(shown) <= 60 else shown[:57] + '...'}"

    def end(self) -> None:
        """Ends an unfinished line, and says what it took if that was asked for."""
        if self._line_open:
            print(flush=True)
        if self._usage:
            seconds = time.monotonic() - self._began
            print(
                f"prompt {self._prompt_tokens} tokens ({self._cached} cached), generated {self._tokens} tokens, "
                f"{seconds:.2f} s, {self._tokens / seconds:.1f} tokens/s",
                file=sys.stderr,
            )


@contextlib.asynccontextmanager
async def _server(arguments: argparse.Namespace) -> AsyncIterator[Source]:
    """A running server as the source. Options about how a model runs are the server's."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    metadata = client_metadata(arguments)
    async with client_channel(arguments, options) as channel:
        stub = pb_grpc.InferenceStub(channel)
        yield lambda request: stub.Generate(request, timeout=arguments.timeout, metadata=metadata)


@contextlib.asynccontextmanager
async def _local(
    arguments: argparse.Namespace,
    requests: Sequence[pb.GenerateRequest],
    hub_cache: Path,
    build: Callable[[str, argparse.Namespace], Build] | None,
) -> AsyncIterator[Source]:
    """An engine of its own as the source: the same process and the same checks as behind a server, but no network."""

    def check(context: ModelContext) -> Work:
        with in_names_of_the_client():
            prepared = [prepare(to_request(request), context) for request in requests]
        return Work(
            sum(len(one.token_ids) for one in prepared),
            max((one.params.max_tokens or USUAL_OUTPUT for one in prepared), default=1),
            sum(one.params.n for one in prepared),
        )

    async with local_engine(arguments, hub_cache, build, check=check) as (frontend, _):

        async def generate(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
            with in_names_of_the_client():
                (stream,), _ = await frontend.submit(
                    request.ByteSize(), lambda _, prepare: (prepare([to_request(request)]), None)
                )
            prepared = stream.prepared
            try:
                yield replies.started(prepared.request_id, len(prepared.token_ids))
                while (deltas := await stream.read()) is not None:
                    async for message in replies.messages(deltas):
                        yield message
                yield replies.finished(stream)
            finally:
                frontend.close(stream)

        yield generate
