"""`jaxinfer bench throughput`, `latency` and `startup`: a model that runs here, without a server between."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxinfer.config import context_length
from jaxinfer.model_path import resolve_model
from serving.bench import offline
from serving.bench.startup import measure_startup
from serving.commands import bench_values as values
from serving.commands.early import check_model, check_output
from serving.commands.options import add_runtime_options, runtime_config, runtime_given
from serving.commands.parsing import CommandError
from serving.commands.progress import PlainLines, wide_console

if TYPE_CHECKING:
    from jaxinfer.llm import LLM


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the shipped demo)",
    )
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures there, too")


def _add_lengths(parser: argparse.ArgumentParser, input_len: int, output_len: int) -> None:
    for name, default, what in (
        ("--input-len", input_len, "tokens of a prompt"),
        ("--output-len", output_len, "tokens of an answer"),
        ("--n", 1, "answers of a prompt; more than one are sampled"),
    ):
        parser.add_argument(name, type=values.positive, default=default, metavar="N", help=what)
    parser.add_argument("--seed", type=values.not_negative, default=0, metavar="N", help="of prompts")


def add_throughput_options(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_lengths(parser, 128, 64)
    parser.add_argument("--num-prompts", type=values.positive, default=100, metavar="N", help="requests, all at once")
    parser.add_argument("--num-warmups", type=values.not_negative, default=1, metavar="N", help="requests before")
    add_runtime_options(parser)


def add_latency_options(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_lengths(parser, 32, 128)
    for name, kind, default, what in (
        ("--batch-size", values.positive, 8, "requests of a batch"),
        ("--num-iters-warmup", values.not_negative, 10, "batches before, which do not count"),
        ("--num-iters", values.positive, 30, "batches"),
    ):
        parser.add_argument(name, type=kind, default=default, metavar="N", help=what)
    add_runtime_options(parser)


def add_startup_options(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    for name, kind, default, what in (
        ("--num-iters-cold", values.not_negative, 3, "starts with an empty compilation cache each"),
        ("--num-iters-warmup", values.positive, 1, "starts that fill a cache"),
        ("--num-iters-warm", values.not_negative, 3, "starts that find it full"),
    ):
        parser.add_argument(name, type=kind, default=default, metavar="N", help=what)
    add_runtime_options(parser)


# -- running ----------------------------------------------------------------------------------------------------------


def run_throughput(arguments: argparse.Namespace, hub_cache: Path) -> int:
    with _llm(arguments, hub_cache, enable_prefix_caching=True) as llm:
        rng = random.Random(arguments.seed)
        prompts = offline.random_prompts(arguments.num_prompts, arguments.input_len, llm.info.vocab_size, rng)
        figures = offline.measure_throughput(llm, prompts, arguments.output_len, arguments.n, arguments.num_warmups)
        rows = [
            ("requests", f"{figures['num_requests']} in {figures['elapsed_time']:.2f} s"),
            ("requests per second", f"{figures['requests_per_second']:.2f}"),
            ("all tokens per second", f"{figures['tokens_per_second']:,.1f}"),
            ("output tokens per second", f"{figures['output_tokens_per_second']:,.1f}"),
            ("a step", f"{figures['milliseconds_per_step']:.2f} ms, of {figures['steps']}"),
            ("padding", f"{figures['padding_share']:.0%} of the computed tokens"),
            ("preemptions", str(figures["preemptions"])),
            ("compilations after ready", str(figures["compilations_after_ready"])),
        ]
        _finish(arguments, figures, rows, _of(llm))
    return 0


def run_latency(arguments: argparse.Namespace, hub_cache: Path) -> int:
    view = PlainLines(Console(stderr=True))
    with _llm(arguments, hub_cache, enable_prefix_caching=False) as llm:
        rng = random.Random(arguments.seed)
        total = arguments.num_iters_warmup + arguments.num_iters
        try:
            figures = offline.measure_latency(
                llm,
                lambda: offline.random_prompts(arguments.batch_size, arguments.input_len, llm.info.vocab_size, rng),
                arguments.output_len,
                arguments.n,
                arguments.num_iters,
                arguments.num_iters_warmup,
                lambda count: view.doing(f"batch {count} of {total}"),
            )
        finally:
            view.close()
        rows = [("average", f"{figures['avg_latency']:.3f} s")]
        rows += [(f"p{p}", f"{value:.3f} s") for p, value in figures["percentiles"].items()]
        rows.append(("output tokens per second, of the median", f"{figures['output_tokens_per_second']:,.1f}"))
        rows.append(("compilations after ready", str(figures["compilations_after_ready"])))
        _finish(arguments, figures, rows, _of(llm))
    return 0


def run_startup(arguments: argparse.Namespace, hub_cache: Path) -> int:
    if not arguments.num_iters_cold and not arguments.num_iters_warm:
        raise CommandError("--num-iters-cold and --num-iters-warm are both 0; there is nothing to measure")
    folder = resolve_model(arguments.model, hub_cache)
    given = runtime_given(arguments)
    if "compilation_cache_dir" in given:
        raise CommandError("--compilation-cache-dir cannot be given: empty and filled caches are what is measured")
    check_output("--output-json", arguments.output_json)
    check_model(folder, runtime_config(arguments))
    view = PlainLines(Console(stderr=True))
    options = [str(folder), *as_options(given)]
    try:
        figures = measure_startup(
            options, arguments.num_iters_cold, arguments.num_iters_warmup, arguments.num_iters_warm, view.doing
        )
    finally:
        view.close()
    rows = [
        (f"{name} cache", _starts(figures[f"{key}_times"]))
        for name, key in (("empty", "cold_startup"), ("filled", "warm_startup"))
        if f"{key}_times" in figures
    ]
    _finish(arguments, figures, rows, f"{folder.resolve().name}: seconds from the command to the ready line")
    return 0


def _starts(times: list[float]) -> str:
    median = sorted(times)[len(times) // 2]
    return f"median {median:.1f} s (runs: {' '.join(f'{seconds:.1f}' for seconds in times)})"


def as_options(given: Mapping[str, Any]) -> list[str]:
    """Runtime options as another process of ours takes them."""
    found = []
    for name, value in given.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", str(value)]
    return found


def _llm(arguments: argparse.Namespace, hub_cache: Path, *, enable_prefix_caching: bool) -> LLM:
    """The engine, once what can be refused has been."""
    folder = resolve_model(arguments.model, hub_cache)
    check_output("--output-json", arguments.output_json)
    runtime = runtime_config(arguments)
    length = context_length(check_model(folder, runtime), runtime)
    if arguments.input_len + arguments.output_len > length:
        raise CommandError(
            f"--input-len and --output-len are {arguments.input_len} and {arguments.output_len}; together they must be "
            f"at most {length}, the context"
        )
    from jaxinfer.llm import LLM

    return LLM(folder, **{"enable_prefix_caching": enable_prefix_caching, **runtime_given(arguments)})


def _of(llm: LLM) -> str:
    info = llm.info
    return f"{llm.model_path.resolve().name}, {info.dtype}, {info.device}, {info.max_num_seqs} sequences a step"


def _finish(arguments: argparse.Namespace, figures: Mapping[str, Any], rows: list[tuple[str, str]], title: str) -> None:
    console = wide_console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for label, value in rows:
        table.add_row(f"[dim]{label}[/dim]", escape(value))
    console.print(table)
    if arguments.output_json is not None:
        arguments.output_json.write_text(json.dumps(dict(figures), indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {arguments.output_json}", soft_wrap=True)
