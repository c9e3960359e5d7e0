"""`jaxinfer profile`: a trace of a few steps, and where their time went."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from checkpoints.files import CheckpointError
from jaxinfer.config import ConfigError, context_length
from jaxinfer.model_path import resolve_model
from serving.bench.bandwidth import device_read_bandwidth
from serving.bench.profile import Load, Memory, figures, record, shares
from serving.bench.records import ServerTrouble
from serving.bench.trace import NoTrace, busy_seconds, operations, read_events
from serving.commands import bench_values as values
from serving.commands.early import check_model, check_output
from serving.commands.options import add_runtime_options, runtime_config
from serving.commands.parsing import BAD_INPUT, FAILURE, CommandError, CommandParser, fail
from serving.commands.progress import wide_console


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} profile",
        usage="%(prog)s [OPTION ...] [MODEL]",
        description="Record a JAX trace of some decode steps and print where a step's time went.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the shipped demo)",
    )
    for name, default, what in (
        ("--batch-size", 8, "requests that decode at once"),
        ("--input-len", 128, "tokens of each prompt"),
        ("--num-steps", 20, "steps that are recorded"),
        ("--top", 12, "operations that are shown"),
    ):
        parser.add_argument(name, type=values.positive, default=default, metavar="N", help=what)
    parser.add_argument("--seed", type=values.not_negative, default=0, metavar="N", help="of prompts")
    parser.add_argument(
        "--trace-dir",
        type=Path,
        metavar="DIR",
        help="keep the trace there, for TensorBoard or xprof (default: it is read and removed)",
    )
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures there, too")
    add_runtime_options(parser)
    return parser


def main(argv: Sequence[str], *, hub_cache: Path, program: str = "jaxinfer") -> int:
    """Prints two tables; 2 for bad input, 1 when the engine fails."""
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    try:
        _run(arguments, hub_cache)
    except CommandError as error:
        return fail(parser.prog, str(error), error.code)
    except (CheckpointError, ConfigError) as error:
        return fail(parser.prog, str(error), BAD_INPUT)
    except ServerTrouble as error:
        return fail(parser.prog, str(error), FAILURE)
    return 0


def _run(arguments: argparse.Namespace, hub_cache: Path) -> None:
    folder = resolve_model(arguments.model, hub_cache)
    check_output("--output-json", arguments.output_json)
    runtime = runtime_config(arguments)
    length = context_length(check_model(folder, runtime), runtime)
    load = Load(arguments.batch_size, arguments.input_len, arguments.num_steps)

    from jaxinfer.llm import build_engine
    from jaxinfer.runtime.runner import Runner

    with _trace_folder(arguments.trace_dir) as traces:
        engine = build_engine(folder, runtime)
        info, runner = engine.info, engine.runner
        assert isinstance(runner, Runner)
        if load.batch_size > info.max_num_seqs:
            raise CommandError(
                f"--batch-size is {load.batch_size}; it must be at most {info.max_num_seqs}, --max-num-seqs"
            )
        longest = load.input_len + load.output_len(info.max_num_batched_tokens)
        if longest > length:
            raise CommandError(
                f"--input-len and --num-steps need sequences of {longest} tokens; the context has {length}"
            )
        memory = Memory(info.extra["weight_bytes"], runner.sizes.kv_bytes_per_token, device_read_bandwidth())
        recording = record(engine, load, info.vocab_size, info.max_num_batched_tokens, traces, arguments.seed)
        busy: float | None = None
        rows: list[dict[str, Any]] = []
        trouble = ""
        try:
            events = read_events(traces)
            busy, rows = busy_seconds(events), shares(operations(events), recording.steps, arguments.top)
        except NoTrace as error:
            trouble = str(error)
    found = figures(recording, load, memory, busy)
    _show(f"{folder.resolve().name}, {info.dtype}, {info.device}", load, found, rows, trouble)
    if arguments.output_json is not None:
        record_of = {"model": folder.resolve().name, "device": info.device, **found, "operations": rows}
        arguments.output_json.write_text(json.dumps(record_of, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _trace_folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is None:
        with tempfile.TemporaryDirectory(prefix="jaxinfer-profile-") as folder:
            yield Path(folder)
        return
    if not chosen.absolute().parent.is_dir() or (chosen.exists() and not chosen.is_dir()):
        raise CommandError(f"--trace-dir is {str(chosen)!r}; it must be a folder, or a new one in a folder that exists")
    yield chosen


# -- tables -----------------------------------------------------------------------------------------------------------


def _show(title: str, load: Load, found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], trouble: str) -> None:
    console = wide_console()
    told = f"{found['steps']} decode steps of {found['rows']:.0f} rows, prompts of {load.input_len} tokens"
    console.print(f"[bold]{escape(title)}[/bold]: {told}", soft_wrap=True)
    console.print(_parts(found))
    if trouble:
        console.print(f"[yellow]no table of operations: {escape(trouble)}[/yellow]", soft_wrap=True)
        return
    table = Table(header_style="dim")
    for name, side in (("operation", "left"), ("program", "left"), ("calls a step", "right"), ("ms a step", "right")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    table.add_column("of all", justify="right")
    for row in rows:
        cells = (f"{row['calls']:.1f}", f"{row['milliseconds']:.3f}", f"{row['share']:.1%}")
        table.add_row(escape(row["operation"]), escape(row["program"]), *cells)
    console.print(table)


def _parts(found: Mapping[str, Any]) -> Table:
    """Device and host run at the same time: parts do not add up to the step."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    step = found["step_ms"]

    def row(name: str, value: float | None, said: str) -> None:
        table.add_row(f"[dim]{name}[/dim]", "-" if value is None else f"{value:.3f} ms", escape(said))

    def of(value: float | None) -> str:
        return "" if value is None else f"{value / step:.0%}"

    row("a step", step, "")
    row("device", found["device_ms"], f"{of(found['device_ms'])} of the step: some operation ran")
    host = ", ".join(
        f"{name} {found[f'host_{name}_ms']:.3f}" for name in ("schedule", "dispatch", "update", "masks", "messages")
    )
    row("host", found["host_ms"], f"{of(found['host_ms'])}, beside the device: {host}")
    row("wait", found["wait_ms"], f"{of(found['wait_ms'])}: the host waited for the device's results")
    starved = f"the most that the device idled for the host, in {found['starved_steps']:.0f} of the steps"
    row("starved", found["starved_ms"], starved)
    table.add_row("[dim]padding[/dim]", f"{found['padding_share']:.0%}", "of the computed tokens are nobody's")
    read = f"{found['weight_bytes'] / 1e6:,.0f} MB of weights, {found['kv_bytes'] / 1e6:,.1f} MB of keys and values"
    row("memory limit", found["memory_limit_ms"], f"to read {read} at {found['read_bandwidth'] / 1e9:.1f} GB/s")
    table.add_row("", f"{found['of_memory_limit']:.0%}", "of that limit is reached")
    return table
