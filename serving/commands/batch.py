"""`jaxinfer batch`: OpenAI's batch files, answered here without a server."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from checkpoints.files import CheckpointError
from jaxinfer.config import ConfigError
from jaxinfer.errors import BAD_INPUT
from jaxinfer.model_path import resolve_model
from jaxinfer.text import TokenizerError
from serving.batch import BatchError, BatchProgress, BatchRun, Output, read_input
from serving.commands.api_options import add_api_options, api_config
from serving.commands.early import check_model
from serving.commands.local_engine import local_engine
from serving.commands.options import add_model_options, add_runtime_options, runtime_config
from serving.commands.parsing import BAD_INPUT as BAD_INPUT_CODE
from serving.commands.parsing import FAILURE, INTERRUPTED, CommandError, CommandParser, fail
from serving.commands.progress import PlainLines, ProgressView
from serving.engine_process import Build
from serving.http.api import Api

_AHEAD = 2  # requests under way for each sequence of a step, so that the engine never waits


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} batch",
        usage="%(prog)s [OPTION ...] INPUT OUTPUT",
        description="Answer the requests of a file in OpenAI's batch format. After a kill the same command goes on.",
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help='lines {"custom_id", "method", "url", "body"}')
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT", help="gets a line for each; what it has is not done again"
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the demo)",
    )
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="name of the model in the requests (default: its hub id or folder)"
    )
    add_api_options(parser)
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
    """Returns the exit code: 0 when every request has its line, 2 for bad input, 1 for anything else, 130 after
    Ctrl-C. `build`: see serve."""
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    try:
        # The output is made last: what cannot be run leaves none.
        check_model(resolve_model(arguments.model, hub_cache), runtime_config(arguments), weights=build is None)
        entries = read_input(arguments.input, strict=arguments.unknown_fields == "refuse")
        output = Output(arguments.output)
    except (BatchError, CheckpointError, ConfigError) as error:
        return fail(parser.prog, str(error), BAD_INPUT_CODE)
    view = _View(arguments.output)
    try:
        run = BatchRun(arguments.input, entries, output, view.show)
    except BatchError as error:
        output.close()
        return fail(parser.prog, str(error), BAD_INPUT_CODE)
    try:
        if run.left:
            asyncio.run(_run(arguments, run, hub_cache, build, view))
        view.end(run.progress)
        return 0
    except (CheckpointError, ConfigError, TokenizerError, *BAD_INPUT) as error:
        return fail(parser.prog, str(error), BAD_INPUT_CODE)
    except CommandError as error:
        return fail(parser.prog, str(error), error.code)
    except BatchError as error:
        view.close()
        return fail(parser.prog, f"{error}; the same command goes on with them", FAILURE)
    except KeyboardInterrupt:
        view.close()
        print(f"{parser.prog}: stopped with {run.left} requests left; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    finally:
        view.close()
        output.close()


async def _run(
    arguments: argparse.Namespace,
    run: BatchRun,
    hub_cache: Path,
    build: Callable[[str, argparse.Namespace], Build] | None,
    view: _View,
) -> None:
    async with local_engine(arguments, hub_cache, build) as (frontend, context):
        api = Api(frontend, api_config(arguments))
        context = replace(context, trusts_chat_templates=api.config.trust_request_chat_template)
        frontend.open(context)
        api.open(context)
        view.start(run.progress)
        await run.run(api, _AHEAD * context.info.max_num_seqs)


class _View(ProgressView):
    """A bar on a terminal; elsewhere a line now and then. A line at the end for both."""

    def __init__(self, output: Path) -> None:
        super().__init__(Console(stderr=True, highlight=False, soft_wrap=True))
        self._output = output
        self._task: TaskID | None = None
        self._before = 0

    def start(self, progress: BatchProgress) -> None:
        progress.began = time.monotonic()
        self._before = progress.done
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("answering"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("[dim]left[/dim]"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bars.start()
            self._task = self._bars.add_task("", total=progress.total, completed=progress.done, speed="")
        else:
            self._lines = PlainLines(self._console)
            self._tell(self._lines, progress)

    def show(self, progress: BatchProgress) -> None:
        if self._bars is not None and self._task is not None:
            refused = f", {progress.refused} refused" if progress.refused else ""
            speed = f"{progress.completion_tokens / max(time.monotonic() - progress.began, 1e-3):.0f} tokens/s{refused}"
            self._bars.update(self._task, completed=progress.done, speed=speed)
        elif self._lines is not None:
            self._tell(self._lines, progress)

    def _tell(self, lines: PlainLines, progress: BatchProgress) -> None:
        lines.doing(f"answering: {progress.done} of {progress.total} requests")

    def end(self, progress: BatchProgress) -> None:
        self.close()
        here = progress.done - self._before if progress.completion_tokens or progress.refused else 0
        before = progress.total - here
        seconds = time.monotonic() - progress.began
        parts = [f"{here} answered" if not progress.refused else f"{here} answered, {progress.refused} of them refused"]
        if before:
            parts.append(f"{before} had their line already")
        if here:
            parts.append(f"{progress.prompt_tokens} tokens in, {progress.completion_tokens} out, {seconds:.1f} s")
        self._console.print(f"{self._output}: {'; '.join(parts)}", markup=False)
