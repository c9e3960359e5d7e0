"""`jaxinfer convert`: a Hugging Face folder becomes a checkpoint that loads faster, quantized where asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from checkpoints.files import CheckpointError, is_converted
from checkpoints.folder import check_weight_files, read_config
from checkpoints.quantizing.options import GROUPS, SKIPS, Quantizing
from checkpoints.staging import check_target
from checkpoints.storage import KV_CACHE_DTYPES
from jaxinfer.config import ConfigError, DTypeName, Quantization
from jaxinfer.model_path import resolve_model
from serving.commands.parsing import BAD_INPUT, FAILURE, CommandError, CommandParser, fail
from serving.commands.progress import PlainLines

if TYPE_CHECKING:
    from checkpoints.report import ConversionReport


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} convert",
        usage="%(prog)s [OPTION ...] HF_DIR OUT_DIR",
        description="Convert a Hugging Face folder (safetensors) into a checkpoint that loads faster, sharded too.",
    )
    parser.add_argument(
        "hf_dir", metavar="HF_DIR", help="folder with config.json, safetensors, tokenizer; or hub id in the local cache"
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder to make")
    parser.add_argument(
        "--dtype", choices=get_args(DTypeName), help="type of the stored weights (default: the source's)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare logits, tokenizer and chat template with the transformers library if it is installed; loads "
        "the model twice in full",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a converted checkpoint in OUT_DIR")
    bits = parser.add_argument_group("quantized layers (docs/quantization.md)")
    bits.add_argument("--quantize", choices=get_args(Quantization), help="scheme to round to")
    bits.add_argument("--policy", type=Path, metavar="FILE", help="TOML: rules that give matrices another scheme")
    bits.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="samples, a text a line or JSON lines: search scales"
    )
    bits.add_argument("--skip", choices=SKIPS, help="auto: keep the matrices that lose most wider")
    bits.add_argument(
        "--group",
        type=int,
        choices=GROUPS,
        metavar="N",
        help=f"inputs that share a scale: {', '.join(map(str, GROUPS))} (default: for int4 the most that divide them; "
        "for others all)",
    )
    bits.add_argument(
        "--kv-cache-dtype",
        choices=KV_CACHE_DTYPES,
        help="what keys and values are kept in unless a server is told (default: the weights' type)",
    )
    return parser


def main(argv: Sequence[str], *, hub_cache: Path | None = None, program: str = "jaxinfer") -> int:
    """Returns the exit code: 0, 2 where the input or the comparison is bad, 1 for anything else."""
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    asked = Quantizing(
        arguments.quantize,
        arguments.policy,
        arguments.calibrate,
        arguments.skip,
        arguments.group,
        arguments.kv_cache_dtype,
    )
    try:
        source = resolve_model(arguments.hf_dir, hub_cache, what="HF_DIR")
        _check(source, arguments)
        report = _converted(source, arguments, asked)
    except CommandError as error:
        return fail(parser.prog, str(error), error.code)
    except (CheckpointError, ConfigError) as error:
        return fail(parser.prog, str(error), BAD_INPUT)
    except OSError as error:
        return fail(parser.prog, str(error), FAILURE)
    _tell(report, arguments.out_dir)
    return 0


def _check(source: Path, arguments: argparse.Namespace) -> None:
    """Refuses what can be refused without jax, and before a tensor is read."""
    for name in ("policy", "calibrate", "skip", "group"):
        if arguments.quantize is None and getattr(arguments, name) is not None:
            raise CommandError(f"--{name} goes with --quantize")
    for path in (arguments.policy, arguments.calibrate):
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
    if is_converted(source):
        raise CheckpointError(f"{source}: expected a Hugging Face folder; this is a converted checkpoint already")
    read_config(source)
    check_weight_files(source)
    check_target(arguments.out_dir, arguments.overwrite)


def _converted(source: Path, arguments: argparse.Namespace, asked: Quantizing) -> ConversionReport:
    """Converts behind a bar, or where no terminal is with a line now and then."""
    import jax

    from checkpoints.convert import convert

    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in this: leave its memory alone
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    lines = None if console.is_terminal else PlainLines(console)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    bars = Bars(*columns, console=console, transient=True, disable=lines is not None)
    task = bars.add_task("converting", total=None)

    def progress(done: int, total: int, _: str) -> None:
        bars.update(task, completed=done, total=total)
        if lines is not None:
            lines.doing(f"converting: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def say(line: str) -> Any:
        return bars.console.print(line) if lines is None else lines.doing(line)

    try:
        with bars:
            return convert(
                source,
                arguments.out_dir,
                dtype=arguments.dtype,
                verify=arguments.verify,
                overwrite=arguments.overwrite,
                quantizing=asked,
                progress=progress,
                say=say,
            )
    finally:
        if lines is not None:
            lines.close()


def _tell(report: ConversionReport, out_dir: Path) -> None:
    few = ""
    if report.quantization is not None:
        from checkpoints.quantizing.report import tables

        Console(highlight=False, soft_wrap=True).print(tables(report.quantization))
        few = f"{report.quantization.scheme} and "
    print(
        f"{out_dir}: {report.architecture}, {report.parameter_count / 1e6:.1f} M parameters, "
        f"{report.parameter_bytes / 1e6:.1f} MB in {few}{report.dtype}, {len(report.tensors)} tensors used, "
        f"{len(report.ignored)} ignored"
    )
