"""`jaxinfer serve`: arguments to a running server."""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from checkpoints.files import CheckpointError
from jaxinfer import __version__
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.errors import InvalidRequest
from jaxinfer.model_path import resolve_model
from jaxinfer.text import TokenizerError
from serving.commands.access_options import access_config, add_access_options, check_access_options
from serving.commands.api_options import add_api_options, api_config
from serving.commands.console import ServeConsole
from serving.commands.early import check_model
from serving.commands.http_options import add_http_options, check_http_options, http_config, store_limits
from serving.commands.options import (
    add_model_options,
    add_observing_options,
    add_runtime_options,
    generation_config_notes,
    model_name,
    observing_config,
    runtime_config,
    runtime_given,
    sampling_defaults,
    tokenizer_of,
)
from serving.commands.parsing import CommandParser, fail, meant
from serving.commands.vllm_options import Listed, add_options_without_effect, notes_of, settle_model
from serving.engine_process import EXIT_REFUSED, Build, EngineProcess, build_model_engine
from serving.gateways.services import GatewayConfig
from serving.grpc_server import names as gateways
from serving.observing.logs import EngineLogs, logging_to, tame_loop
from serving.server import Server, ServerConfig, ServerError
from serving.stable_prefix import StablePrefix

_DEFAULTS = ServerConfig()
DEFAULT_HTTP_PORT = 8000  # vLLM's


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} serve",
        usage="%(prog)s [OPTION ...] [MODEL]",
        description="Serve a model over gRPC (protos/jaxinfer/v1) and over HTTP as OpenAI does (docs/http.md).",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the shipped demo)",
    )
    parser.add_argument("--host", metavar="HOST", default=_DEFAULTS.host, help="address to listen on; see --api-keys")
    parser.add_argument("--port", type=int, metavar="N", default=_DEFAULTS.port, help="of gRPC; 0 takes a free one")
    parser.add_argument(
        "--http-port",
        type=_http_port,
        metavar="N",
        default=argparse.SUPPRESS,
        help=f"of the OpenAI-compatible server; none: no such server (default: {DEFAULT_HTTP_PORT}, or a free one "
        "where --port is 0)",
    )
    parser.add_argument(
        "--gateways",
        type=_gateways,
        metavar="LIST",
        default=",".join(gateways.SERVICES),
        help=f"services of others on the gRPC port: {' and '.join(gateways.SERVICES)}, or none (docs/gateways.md)",
    )
    add_api_options(parser)
    _add_own_options(parser)
    _add_stable_prefix(parser)
    add_http_options(parser)
    add_access_options(parser)
    add_observing_options(parser)
    add_runtime_options(parser)
    add_options_without_effect(parser)
    return parser


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    """What the server is called, and how long it waits for whom."""
    parser.add_argument(
        "--served-model-name",
        action=Listed,
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the model towards clients; answers say the first (default: its hub id or folder)",
    )
    add_model_options(parser)
    parser.add_argument(
        "--chat-template",
        type=_template,
        metavar="FILE",
        help="a Jinja template, or the template itself (default: the model's own)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="makes the seeds of requests without one repeatable (default: drawn)"
    )
    parser.add_argument(
        "--max-waiting",
        type=int,
        metavar="N",
        default=_DEFAULTS.max_waiting,
        help="sequences that may wait for a place",
    )
    parser.add_argument(
        "--grace-seconds",
        type=float,
        metavar="S",
        default=_DEFAULTS.grace_seconds,
        help="for running work on SIGTERM",
    )
    parser.add_argument(
        "--serve-while-warming",
        action="store_true",
        help="answer as soon as the smallest step is compiled, in small steps until all are",
    )
    parser.add_argument(
        "--unready-seconds",
        type=float,
        metavar="S",
        default=_DEFAULTS.unready_seconds,
        help="silence after which a server with a busy engine is not ready, until the engine goes on; 0: never",
    )
    parser.add_argument(
        "--stall-seconds",
        type=float,
        metavar="S",
        default=_DEFAULTS.stall_seconds,
        help="silence after which a busy engine counts as failed; 0: never",
    )


def main(
    argv: Sequence[str],
    *,
    hub_cache: Path,
    program: str = "jaxinfer",
    called: str = "jaxinfer",
    build: Callable[[str, argparse.Namespace], Build] | None = None,
) -> int:
    """Serves until a signal; returns the exit code (see serving.server). called: how a line to paste begins.
    build: another engine, for tests."""
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    settle_model(arguments)
    _check(parser, arguments)
    console = ServeConsole(
        called,
        secure=arguments.tls_cert is not None,
        keys=_has_keys(arguments),
        detailed=arguments.log_level == "debug",
    )
    with logging_to(form=arguments.log_format, level=arguments.log_level, content=arguments.log_content):
        failure = _serve(arguments, console, hub_cache, build)
    # The log is complete: what ended the server is the last that is said.
    console.close()
    return failure if isinstance(failure, int) else _fail(console, parser.prog, failure)


def runtime_of(arguments: argparse.Namespace) -> RuntimeConfig:
    """Raises ConfigError."""
    runtime = replace(runtime_config(arguments), serve_while_warming=arguments.serve_while_warming)
    if _has_keys(arguments) or "max_pinned_ratio_per_tenant" in runtime_given(arguments):
        return runtime
    return replace(runtime, max_pinned_ratio_per_tenant=1.0)  # everybody is one tenant


def _has_keys(arguments: argparse.Namespace) -> bool:
    return arguments.api_keys is not None or bool(arguments.api_key)


def _serve(
    arguments: argparse.Namespace,
    console: ServeConsole,
    hub_cache: Path,
    build: Callable[[str, argparse.Namespace], Build] | None,
) -> int | ServerError:
    """The exit code of a server that ran, or why it did not."""
    try:
        folder = resolve_model(arguments.model, hub_cache)
        runtime = runtime_of(arguments)
        check_model(folder, runtime, weights=build is None)
        if build is None:
            make_engine: Build = functools.partial(build_model_engine, str(folder), runtime)
        else:
            make_engine = build(str(folder), arguments)
        name = model_name(arguments, folder)
        # Who asks for any free port asks for one on both servers.
        http_port = getattr(arguments, "http_port", DEFAULT_HTTP_PORT if arguments.port else 0)
        config = ServerConfig(
            host=arguments.host,
            port=arguments.port,
            name=name,
            aliases=tuple(dict.fromkeys(arguments.served_model_name[1:])),
            max_waiting=arguments.max_waiting,
            grace_seconds=arguments.grace_seconds,
            unready_seconds=arguments.unready_seconds,
            stall_seconds=arguments.stall_seconds,
            sampling_defaults=sampling_defaults(folder, arguments.generation_config),
            notes=(
                *generation_config_notes(folder, arguments.generation_config),
                *notes_of(arguments.without_effect),
            ),
            seed=arguments.seed,
            http_port=http_port,
            http=http_config(arguments),
            api=replace(api_config(arguments), response_store=store_limits(arguments)),
            observing=observing_config(arguments),
            access=access_config(arguments),
            gateways=GatewayConfig(arguments.gateways, folder),
            input_filter=arguments.input_filter,
            output_filter=arguments.output_filter,
            stable_prefix=arguments.stable_prefix,
        )
        console.start(__version__, name, str(folder))
        server = Server(
            config,
            functools.partial(EngineProcess.started, _with_logs(make_engine, arguments)),
            functools.partial(
                tokenizer_of, folder, skip=arguments.skip_tokenizer_init, chat_template=arguments.chat_template
            ),
            console,
        )
        return asyncio.run(_run(server))
    except (CheckpointError, ConfigError, InvalidRequest, TokenizerError) as error:
        return ServerError(str(error), EXIT_REFUSED)
    except ServerError as error:
        return error


def _with_logs(build: Build, arguments: argparse.Namespace) -> Build:
    return EngineLogs(build, arguments.log_format, arguments.log_level, content=arguments.log_content)


async def _run(server: Server) -> int:
    tame_loop(asyncio.get_running_loop())
    return await server.run()


def _add_stable_prefix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stable-prefix",
        type=_stable_prefix,
        nargs="?",
        const=StablePrefix(),
        metavar="REGEX",
        help="moves first lines of system messages that match to the end of the conversation, so that requests which "
        "differ in them share a cached prefix; without REGEX: headers (x-...:) and lines with a date",
    )


def _stable_prefix(text: str) -> StablePrefix:
    try:
        return StablePrefix(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _http_port(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError("it must be a port from 0 to 65535, or none")
    return int(text)


def _template(text: str) -> str:
    """The template of a file; a text with Jinja's marks is one itself, as vLLM takes it."""
    try:
        if not ("{%" in text or "{{" in text):
            return Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise argparse.ArgumentTypeError(f"it must be a file, or a Jinja template ({reason})") from error
    return text.replace("\\n", "\n")


def _gateways(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    for name in names:
        if name not in gateways.SERVICES:
            raise argparse.ArgumentTypeError(
                f"it must be a list of {', '.join(gateways.SERVICES)}, or none{meant(name, gateways.SERVICES)}"
            )
    return names


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses option values that no later check names as an option."""
    if not 0 <= arguments.port <= 65_535:
        parser.error(f"--port is {arguments.port}; it must be from 0 to 65535")
    if arguments.port and getattr(arguments, "http_port", DEFAULT_HTTP_PORT) == arguments.port:
        parser.error(
            f"--port and --http-port are both {arguments.port}; gRPC and HTTP need a port each, and --http-port is "
            "what vLLM calls --port"
        )
    for name in ("max_waiting", "grace_seconds", "unready_seconds", "stall_seconds"):
        if not getattr(arguments, name) >= 0:  # also refuses NaN
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be 0 or more")
    if arguments.trust_request_chat_template and arguments.input_filter:
        parser.error(
            "--trust-request-chat-template cannot go with --input-filter: a template is a program, and what it writes "
            "is not judged"
        )
    check_access_options(parser, arguments)
    check_http_options(parser, arguments)
    if arguments.ledger_max_bytes < 1:
        parser.error(f"--ledger-max-bytes is {arguments.ledger_max_bytes}; it must be positive")


def _fail(console: ServeConsole, program: str, error: ServerError) -> int:
    console.close()
    if error.traceback:
        print(error.traceback.rstrip(), file=sys.stderr)
    return fail(program, str(error), error.code)
