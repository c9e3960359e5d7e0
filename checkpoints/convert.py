"""From a Hugging Face folder to a converted checkpoint: `convert`.

Parameters are assembled one at a time in their target type and kept until Orbax has written them: the host holds the
model in that type, one block of a source tensor, and Orbax's bounded buffers. Where it quantizes
(`checkpoints.quantizing`) that type is theirs, and the host holds one dense layer beside it.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from checkpoints.files import (
    CHAT_TEMPLATE_FOLDER,
    CONFIG_FILE,
    FORMAT_VERSION,
    GENERATION_CONFIG_FILE,
    HF_CONFIG_FILE,
    STORAGE_FORMAT_VERSION,
    TEXT_FILES,
    CheckpointError,
    is_converted,
    write_json,
)
from checkpoints.folder import read_config
from checkpoints.load import Progress, canonical_shapes
from checkpoints.quantized.mapping import read_quantization
from checkpoints.quantizing.options import Quantizing
from checkpoints.quantizing.pipeline import Pipeline
from checkpoints.quantizing.policy import plan_matrices
from checkpoints.quantizing.samples import read_samples
from checkpoints.quantizing.verify import digest
from checkpoints.reader import TensorSource, open_checkpoint
from checkpoints.report import ConversionReport, tensor_reports
from checkpoints.rules import TensorMapping, plan_mapping
from checkpoints.staging import staged
from checkpoints.storage import KEY as STORAGE_KEY
from checkpoints.storage import Storage
from checkpoints.store import named_parts, save_params
from checkpoints.tensor_assembly import DTYPES, assemble, check_tied_head
from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.models.parameters import parameter_dtype
from jaxinfer.text.errors import TokenizerError
from jaxinfer.text.loading import load_tokenizer
from pallas_kernels.qtensor import QTensor

Say = Callable[[str], None]


def convert(
    hf_dir: str | Path,
    out_dir: str | Path,
    *,
    dtype: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    quantizing: Quantizing | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> ConversionReport:
    """Convert `hf_dir` into the new folder `out_dir`; nothing appears there unless all of it has been written.

    dtype: "float32" or "bfloat16"; None keeps the checkpoint's (float16 becomes bfloat16). verify: compare with the
    transformers library before the folder appears (`checkpoints.verify`). overwrite: replace a converted checkpoint in
    `out_dir`. quantizing: of the layers' matrices, a type for keys and values. progress: called per
    parameter. say: called with one line per stage.

    Raises:
        CheckpointError: bad input, an existing `out_dir`, or a comparison beyond its limits.
        ConfigError: an unknown `dtype`, or what is asked of the quantization cannot be.
    """
    hf_dir, out_dir = Path(hf_dir), Path(out_dir)
    say = say or (lambda line: None)
    config = _dense_config(hf_dir, dtype)
    asked = quantizing or Quantizing()
    asked.check()
    planned = plan_matrices(config, asked) if asked.scheme is not None else None
    copied = _files_to_copy(hf_dir)
    samples = None if asked.calibrate is None else read_samples(asked.calibrate, hf_dir, config)
    with open_checkpoint(hf_dir) as source, jax.default_device(jax.local_devices(backend="cpu")[0]):
        mapping = plan_mapping(config, source, canonical_shapes(config, DTYPES[config.dtype]))
        with staged(out_dir, overwrite) as folder:
            say("checking and assembling the tensors")
            check_tied_head(mapping, source)
            pipeline = None
            if planned is not None:
                pipeline = Pipeline(config, mapping, source, DTYPES[config.dtype], asked, planned, samples)
            written = _write_params(folder, config, mapping, source, asked, pipeline, progress, say)
            _copy(hf_dir, folder, copied)
            verification = None
            if verify:
                say("comparing with transformers")
                verification = _verify(hf_dir, folder, config, mapping, pipeline, written, say)
            report = ConversionReport(
                architecture=config.architecture,
                dtype=config.dtype,
                parameter_count=sum(math.prod(shape) for shape in mapping.shapes.values()),
                parameter_bytes=written.num_bytes,
                tensors=tensor_reports(mapping, source, config.dtype, written.checksums),
                ignored=mapping.ignored,
                copied_files=copied,
                verification=verification,
                quantization=None if pipeline is None else pipeline.report(),
            )
            report.write(folder)  # last: it makes the folder a checkpoint
    return report


def _dense_config(hf_dir: Path, dtype: str | None) -> ModelConfig:
    """The configuration, with the type to store. Raises CheckpointError unless the folder can be converted."""
    if is_converted(hf_dir):
        raise CheckpointError(f"{hf_dir}: expected a Hugging Face folder; this is a converted checkpoint already")
    config, _ = read_config(hf_dir)
    if read_quantization(hf_dir, config) is not None:
        raise CheckpointError(
            f"{hf_dir / HF_CONFIG_FILE}: expected no quantization_config, and no file of a quantizer beside it; a "
            "quantized checkpoint is served as it is"
        )
    return dataclasses.replace(config, dtype=_chosen_dtype(dtype, config))


def _verify(
    hf_dir: Path,
    folder: Path,
    config: ModelConfig,
    mapping: TensorMapping,
    pipeline: Pipeline | None,
    written: _Written,
    say: Say,
) -> dict[str, Any]:
    if pipeline is None:
        from checkpoints.verify import verify_conversion

        return verify_conversion(hf_dir, folder, config, mapping, written.checksums, say)
    from checkpoints.quantizing.verify import verify_quantized

    return verify_quantized(hf_dir, folder, config, mapping.shapes, pipeline.stored, written.digests, say)


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


@dataclass(frozen=True)
class _Written:
    """checksums: {source tensor: checksum}. digests: {array in params/: digest}, of quantized conversions."""

    checksums: dict[str, str]
    digests: dict[str, str]
    num_bytes: int


def _write_params(
    folder: Path,
    config: ModelConfig,
    mapping: TensorMapping,
    source: TensorSource,
    asked: Quantizing,
    pipeline: Pipeline | None,
    progress: Progress | None,
    say: Say,
) -> _Written:
    """Assemble, round and store all parameters, and our config."""
    cpu = jax.local_devices(backend="cpu")[0]
    checksums: dict[str, str] = {}
    digests: dict[str, str] = {}
    params: dict[str, jax.Array] = {}
    for path, finished in _parameters(config, mapping, source, pipeline, checksums, progress, say):
        arrays = named_parts(path, finished) if isinstance(finished, QTensor) else {path: finished}
        if pipeline is not None:
            digests |= {name: digest(np.asarray(array)) for name, array in arrays.items()}
        params |= {name: jax.device_put(array, cpu) for name, array in arrays.items()}  # no copy: memory is aligned
        del finished, arrays
    num_bytes = sum(array.nbytes for array in params.values())
    say(f"writing {num_bytes / 1e6:.0f} MB")
    files = save_params(folder, params)
    origin = {
        "folder": source.folder.resolve().name,
        "files": {name: (source.folder / name).stat().st_size for name in source.files},
    }
    stored: dict[str, Any] = {"format_version": FORMAT_VERSION, "model": config.to_dict(), "source": origin}
    storage = Storage({} if pipeline is None else pipeline.stored, asked.kv_cache_dtype)
    if storage.matrices or storage.kv_cache_dtype is not None:  # what readers of version 1 would pass over
        stored |= {"format_version": STORAGE_FORMAT_VERSION, STORAGE_KEY: storage.to_dict()}
    write_json(folder / CONFIG_FILE, stored | {"files": files})
    return _Written(checksums, digests, num_bytes)


def _parameters(
    config: ModelConfig,
    mapping: TensorMapping,
    source: TensorSource,
    pipeline: Pipeline | None,
    checksums: dict[str, str],
    progress: Progress | None,
    say: Say,
) -> Iterator[tuple[str, np.ndarray | QTensor]]:
    """Every parameter in its target type. Progress counts the dense bytes, as often as they are read."""
    dtype = DTYPES[config.dtype]
    sizes = {path: math.prod(shape) * dtype.itemsize for path, shape in mapping.shapes.items()}
    first = 0 if pipeline is None or pipeline.passes == 1 else sum(sizes[path] for path in sizes if _in_layer(path))
    total, done = first + sum(sizes.values()), 0

    def on_path(path: str) -> None:
        nonlocal done
        done += sizes[path]
        if progress is not None:
            progress(done, total, path)

    if pipeline is not None:
        if first:
            say("calibrating" if pipeline.calibrated else "ranking the matrices")
        pipeline.choose(on_path)
        yield from pipeline.parameters(checksums, on_path)
        return
    for path in mapping.shapes:
        yield path, assemble(mapping, source, path, parameter_dtype(path, dtype), checksums)
        on_path(path)


def _in_layer(path: str) -> bool:
    return path.startswith("layers.")
