"""From a Hugging Face folder to a converted checkpoint: `convert`, and the command line around it.

Parameters are assembled one at a time in their target type and kept until Orbax has written them: the host holds the
model in that type, one block of a source tensor, and Orbax's bounded buffers.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from checkpoints.assemble import DTYPES, assemble, check_tied_head
from checkpoints.folder import (
    CHAT_TEMPLATE_FOLDER,
    CONFIG_FILE,
    FORMAT_VERSION,
    GENERATION_CONFIG_FILE,
    HF_CONFIG_FILE,
    TEXT_FILES,
    CheckpointError,
    is_converted,
    read_config,
    write_json,
)
from checkpoints.load import Progress, canonical_shapes
from checkpoints.quantized.mapping import read_quantization
from checkpoints.reader import TensorSource, open_checkpoint
from checkpoints.report import ConversionReport, tensor_reports
from checkpoints.rules import TensorMapping, plan_mapping
from checkpoints.staging import staged
from checkpoints.store import save_params
from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.text.errors import TokenizerError
from jaxinfer.text.loading import load_tokenizer

EXIT_BAD_INPUT = 2
Say = Callable[[str], None]


def convert(
    hf_dir: str | Path,
    out_dir: str | Path,
    *,
    dtype: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> ConversionReport:
    """Convert `hf_dir` into the new folder `out_dir`; nothing appears there unless all of it has been written.

    dtype: "float32" or "bfloat16"; None keeps the checkpoint's (float16 becomes bfloat16). verify: compare with the
    transformers library before the folder appears (`checkpoints.verify`). overwrite: replace a converted checkpoint in
    `out_dir`. progress: called per parameter. say: called with one line per stage.

    Raises:
        CheckpointError: bad input, an existing `out_dir`, or a comparison beyond its limits.
        ConfigError: an unknown `dtype`.
    """
    hf_dir, out_dir = Path(hf_dir), Path(out_dir)
    say = say or (lambda line: None)
    if is_converted(hf_dir):
        raise CheckpointError(f"{hf_dir}: expected a Hugging Face folder; this is a converted checkpoint already")
    config, _ = read_config(hf_dir)
    if read_quantization(hf_dir, config) is not None:
        raise CheckpointError(
            f"{hf_dir / HF_CONFIG_FILE}: expected no quantization_config; a quantized checkpoint is served as it is"
        )
    config = dataclasses.replace(config, dtype=_chosen_dtype(dtype, config))
    copied = _files_to_copy(hf_dir)
    with open_checkpoint(hf_dir) as source:
        mapping = plan_mapping(config, source, canonical_shapes(config, DTYPES[config.dtype]))
        with staged(out_dir, overwrite) as folder:
            say("checking and assembling the tensors")
            checksums = _write_params(folder, config, mapping, source, progress, say)
            _copy(hf_dir, folder, copied)
            verification = None
            if verify:
                from checkpoints.verify import verify_conversion

                say("comparing with transformers")
                verification = verify_conversion(hf_dir, folder, config, mapping, checksums, say)
            count = sum(math.prod(shape) for shape in mapping.shapes.values())
            report = ConversionReport(
                architecture=config.architecture,
                dtype=config.dtype,
                parameter_count=count,
                parameter_bytes=count * DTYPES[config.dtype].itemsize,
                tensors=tensor_reports(mapping, source, config.dtype, checksums),
                ignored=mapping.ignored,
                copied_files=copied,
                verification=verification,
            )
            report.write(folder)  # last: it makes the folder a checkpoint
    return report


def _chosen_dtype(dtype: str | None, config: ModelConfig) -> Any:
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return dtype or config.dtype


def _files_to_copy(hf_dir: Path) -> tuple[str, ...]:
    """Files that the copy needs beside the weights. Loading the tokenizer finds an absent or corrupt one now."""
    try:
        load_tokenizer(hf_dir)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error
    templates = sorted((hf_dir / CHAT_TEMPLATE_FOLDER).glob("*.jinja"))
    names = (GENERATION_CONFIG_FILE, *TEXT_FILES, *(f"{CHAT_TEMPLATE_FOLDER}/{path.name}" for path in templates))
    return tuple(name for name in names if (hf_dir / name).is_file())


def _copy(hf_dir: Path, folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(hf_dir / name, folder / name)


def _write_params(
    folder: Path,
    config: ModelConfig,
    mapping: TensorMapping,
    source: TensorSource,
    progress: Progress | None,
    say: Say,
) -> dict[str, str]:
    """Assemble and store all parameters and our config; returns {source tensor: checksum}."""
    check_tied_head(mapping, source)
    cpu = jax.local_devices(backend="cpu")[0]
    dtype = DTYPES[config.dtype]
    total = sum(math.prod(shape) for shape in mapping.shapes.values()) * dtype.itemsize
    done = 0
    checksums: dict[str, str] = {}
    params: dict[str, jax.Array] = {}
    for path in mapping.shapes:
        host = assemble(mapping, source, path, dtype, checksums)
        params[path] = jax.device_put(host, cpu)  # no copy: the memory is aligned
        done += host.nbytes
        del host
        if progress is not None:
            progress(done, total, path)
    say(f"writing {total / 1e6:.0f} MB")
    files = save_params(folder, params)
    origin = {
        "folder": source.folder.resolve().name,
        "files": {name: (source.folder / name).stat().st_size for name in source.files},
    }
    stored = {"format_version": FORMAT_VERSION, "model": config.to_dict(), "source": origin, "files": files}
    write_json(folder / CONFIG_FILE, stored)
    return checksums


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 2 with one line on stderr when the input or the comparison is bad."""
    parser = argparse.ArgumentParser(
        prog="convert",
        description="Convert a Hugging Face folder (safetensors) into a checkpoint for jaxinfer.",
    )
    parser.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="folder with config.json, safetensors, tokenizer")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder to make")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="type of the stored weights (default: the source's)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare logits, tokenizer and chat template with the transformers library if it is installed "
        "(loads the model twice in full)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a converted checkpoint in OUT_DIR")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in this: leave its memory alone
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        report = _convert_with_bar(arguments, console)
    except (CheckpointError, ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(
        f"{arguments.out_dir}: {report.architecture}, {report.parameter_count / 1e6:.1f} M parameters, "
        f"{report.parameter_bytes / 1e6:.1f} MB in {report.dtype}, {len(report.tensors)} tensors used, "
        f"{len(report.ignored)} ignored"
    )
    return 0


def _convert_with_bar(arguments: argparse.Namespace, console: Any) -> ConversionReport:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("converting", total=None)
        return convert(
            arguments.hf_dir,
            arguments.out_dir,
            dtype=arguments.dtype,
            verify=arguments.verify,
            overwrite=arguments.overwrite,
            progress=lambda done, total, path: bar.update(task, completed=done, total=total),
            say=bar.console.print,
        )
