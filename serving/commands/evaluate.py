"""`jaxinfer eval`: how good a model's answers are, and whether two settings of a model differ."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from checkpoints.files import CheckpointError
from checkpoints.folder import check_weight_files
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.errors import BAD_INPUT
from jaxinfer.evaluation import compare
from jaxinfer.evaluation.items import ItemsError
from jaxinfer.evaluation.local_source import LocalSource
from jaxinfer.evaluation.plot import write_plot
from jaxinfer.evaluation.provenance import answer_records, provenance
from jaxinfer.evaluation.questions import Kinds, Questions, Stories, shipped_kinds, shipped_stories
from jaxinfer.evaluation.run import TaskResult, report, run_tasks, run_texts
from jaxinfer.evaluation.source import Source
from jaxinfer.evaluation.two_sides import SharedQuestions, ask_side, compare_sides
from jaxinfer.llm import LLM, EngineDead
from jaxinfer.model_path import resolve_model
from jaxinfer.text import TokenizerError, load_tokenizer
from serving import json_text
from serving.commands.access_options import add_client_options, client_channel, client_metadata
from serving.commands.early import check_model
from serving.commands.evaluation_questions import check_options, draw, questions
from serving.commands.evaluation_spec import DEMO, ModelSpec, parse_spec
from serving.commands.evaluation_view import EvaluationProgress, print_comparison, print_report
from serving.commands.options import add_runtime_options, runtime_given
from serving.commands.parsing import BAD_INPUT as EXIT_BAD_INPUT
from serving.commands.parsing import FAILURE, CommandError, CommandParser, fail
from serving.commands.server_address import server_address, why_not
from serving.evaluation.server_source import NoTokenizer, ServerSource

Local = Callable[[str, Path, RuntimeConfig], contextlib.AbstractContextManager[Source]]

_BAD_INPUT_CODES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE)


def local_source(name: str, folder: Path, runtime: RuntimeConfig) -> LocalSource:
    """An engine of the model in `folder`, started in this process; it samples without the model's own defaults."""
    settings = {field.name: getattr(runtime, field.name) for field in dataclasses.fields(runtime)}
    engine = LLM(folder, generation_config="none", **settings)
    return LocalSource(name, engine, enable_prefix_caching=runtime.enable_prefix_caching)


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} eval",
        usage="%(prog)s [OPTION ...] [MODEL]",
        description="Measure how good a model's answers are: accuracy on tasks with known answers, recall by depth, "
        "valid JSON and perplexity on stories that no model was trained on.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the shipped demo)",
    )
    parser.add_argument(
        "--server",
        type=server_address,
        metavar="HOST:PORT",
        help="ask a running server, at its gRPC port (default: a model is run here)",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two models, or two settings of one, as MODEL or MODEL@FIELD=VALUE,FIELD=VALUE with RuntimeConfig's "
        "fields: --compare demo demo@dtype=float32. Differences with intervals, KL divergence and agreement",
    )
    what = parser.add_argument_group("what is asked")
    what.add_argument("--tasks", metavar="A,B", help="kinds of tasks (default: all of them)")
    what.add_argument("--limit", type=int, default=1000, metavar="N", help="held-out items of each kind")
    what.add_argument(
        "--items", type=Path, metavar="FILE", help="items of your own, JSON lines; then no other tasks unless --tasks"
    )
    what.add_argument("--texts", type=int, default=100, metavar="N", help="held-out stories for perplexity; 0: none")
    what.add_argument(
        "--positions", type=int, default=2000, metavar="N", help="with --compare: positions whose distributions count"
    )
    what.add_argument("--seed", type=int, default=0, metavar="N", help="draws other items and resamples")
    what.add_argument("--concurrency", type=int, default=64, metavar="N", help="with --server: requests in flight")
    add_client_options(parser)
    out = parser.add_argument_group("where it goes, beside the tables on standard output")
    out.add_argument(
        "--json", type=Path, metavar="FILE", help="everything, under tasks: kind -> accuracy, n, low, high"
    )
    out.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture; needs the extra jaxinfer[eval]")
    out.add_argument("--answers", type=Path, metavar="FILE", help="each item with its response, JSON lines")
    add_runtime_options(parser)
    return parser


def main(
    argv: Sequence[str],
    *,
    hub_cache: Path,
    program: str = "jaxinfer",
    kinds: Kinds = shipped_kinds,
    stories: Stories = shipped_stories,
    local: Local = local_source,
) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for anything else.

    kinds, stories, local: what is asked, and what makes an engine of (name, folder, settings); others for tests.
    """
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        check_options(arguments)
        asked_for = questions(arguments, kinds, stories)
        run, show = (_compare, print_comparison) if arguments.compare else (_evaluate, print_report)
        record = run(arguments, asked_for, hub_cache, local)
        show(console, record)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if arguments.plot is not None:
            _write_plot(record, arguments.plot)
        return 0
    except CommandError as error:
        return fail(parser.prog, str(error), error.code)
    except (CheckpointError, ConfigError, NotImplementedError, TokenizerError) as error:
        return fail(parser.prog, str(error), EXIT_BAD_INPUT)
    except (ItemsError, compare.TokenizersDifferError, *BAD_INPUT) as error:
        return fail(parser.prog, str(error), EXIT_BAD_INPUT)
    except grpc.aio.AioRpcError as error:
        code = EXIT_BAD_INPUT if error.code() in _BAD_INPUT_CODES else FAILURE
        return fail(parser.prog, _explain(error, arguments), code)
    except (EngineDead, OSError) as error:
        return fail(parser.prog, str(error), FAILURE)


def _write_plot(record: Mapping[str, Any], path: Path) -> None:
    try:
        write_plot(record, path)
    except OSError as error:
        raise CommandError(f"--plot {path} cannot be written: {error}", FAILURE) from error


def _explain(error: grpc.aio.AioRpcError, arguments: argparse.Namespace) -> str:
    return why_not(error, arguments.server, tls=arguments.tls_ca is not None)


# -- one model ------------------------------------------------------------------------------------------------------


def _evaluate(arguments: argparse.Namespace, asked_for: Questions, hub_cache: Path, local: Local) -> dict[str, Any]:
    with EvaluationProgress(Console(stderr=True)) as progress:
        source_when_asked = _source(arguments, hub_cache, local, progress)
        progress.waiting("drawing the questions")
        tasks, texts = draw(asked_for), asked_for.texts()
        with source_when_asked() as source:
            results = run_tasks(source, tasks, progress)
            scored = run_texts(source, texts, progress) if texts else None
            record = {**_provenance(arguments), **report(source, results, scored)}
    if arguments.answers is not None:
        _write_answers(arguments.answers, results)
    return record


def _source(
    arguments: argparse.Namespace, hub_cache: Path, local: Local, progress: EvaluationProgress
) -> Callable[[], contextlib.AbstractContextManager[Source]]:
    """What answers, when it is called: a server is asked for its name and a model's files are looked at now."""
    if arguments.server is not None:
        progress.waiting("asking the server")
        metadata = client_metadata(arguments)
        try:
            server = ServerSource(
                arguments.server,
                arguments.concurrency,
                lambda options: client_channel(arguments, options),
                metadata,
            )
        except NoTokenizer as error:
            raise CommandError(str(error)) from error
        return lambda: contextlib.nullcontext(server)
    folder = resolve_model(arguments.model, hub_cache)
    runtime = RuntimeConfig(**runtime_given(arguments))
    check_model(folder, runtime)
    load_tokenizer(folder)  # a model without one is refused before its weights are read

    def make() -> contextlib.AbstractContextManager[Source]:
        progress.waiting("loading and compiling")
        return local(arguments.model or DEMO, folder, runtime)

    return make


def _provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    items = None if arguments.items is None else str(arguments.items)
    asked = {"limit": arguments.limit, "texts": arguments.texts, "seed": arguments.seed, "items": items}
    return provenance(asked)


def _write_answers(path: Path, results: Mapping[str, TaskResult]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in answer_records(results):
            file.write(json_text.line_safe_text(json.dumps(record, ensure_ascii=False)) + "\n")


# -- two models -----------------------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace, asked_for: Questions, hub_cache: Path, local: Local) -> dict[str, Any]:
    common = runtime_given(arguments)
    specs = [parse_spec(spec, common, hub_cache) for spec in arguments.compare]
    for spec in specs:
        check_model(spec.folder, spec.runtime, weights=False)
    texts = asked_for.texts()
    first, second = (load_tokenizer(spec.folder) for spec in specs)
    compare.check_tokenizers(first.encode, second.encode, specs[0].vocab_size, specs[1].vocab_size, texts[:20])
    for spec in specs:
        check_weight_files(spec.folder)
    alternatives = min(spec.alternatives for spec in specs)
    _prepare_devices(specs)
    sides = []
    with EvaluationProgress(Console(stderr=True)) as progress:
        progress.waiting("drawing the questions")
        asked = SharedQuestions(
            draw(asked_for), texts, arguments.positions, alternatives, specs[0].vocab_size, arguments.seed
        )
        for letter, spec in zip("AB", specs, strict=True):
            progress.waiting(f"{letter}: loading and compiling")
            prefixed = functools.partial(_with_prefix, progress, letter)
            with local(spec.name, spec.folder, spec.runtime) as source:
                sides.append(ask_side(source, spec.spec, asked, prefixed))
    return {**_provenance(arguments), **compare_sides(asked, *sides)}


def _with_prefix(progress: EvaluationProgress, letter: str, what: str, done: int, total: int) -> None:
    progress(f"{letter}: {what}", done, total)


def _prepare_devices(specs: Sequence[ModelSpec]) -> None:
    """Virtual CPU devices are counted once, when JAX starts: enough for the larger of the two."""
    from jaxinfer.runtime.engine_builder import configure_jax

    configure_jax(max((spec.runtime for spec in specs), key=lambda runtime: runtime.parallel.num_devices))
