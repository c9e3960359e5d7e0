"""What can be refused before anything long runs: no weights are read here, and jax is not imported."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from checkpoints.folder import check_weight_files, read_config
from checkpoints.storage import read_storage
from jaxinfer.config import ConfigError, ModelConfig, RuntimeConfig, context_length, require
from jaxinfer.models.shape import ModelShape
from jaxinfer.models.stored_matrix import check_stored
from jaxinfer.runtime.bundle_files import check_folder
from jaxinfer.scheduling.cache_shape import CacheShape
from serving.commands.parsing import CommandError


def check_model(folder: Path, runtime: RuntimeConfig, *, weights: bool = True) -> ModelConfig:
    """The model's configuration, if it can be run as asked for, as far as its files alone can say.

    weights: whether they must be there. Raises CheckpointError or ConfigError, as the engine would after its start.
    """
    config, _ = read_config(folder)
    length = context_length(config, runtime)
    devices = runtime.parallel.num_devices
    shape = ModelShape.of(config, devices, runtime.parallel.expert)
    if runtime.quantization is not None or devices > 1:
        check_stored(read_storage(folder, config).matrices, runtime.quantization, config, shape)
    if runtime.num_pages is not None:
        _check_pool(config, runtime, runtime.num_pages, length)
    _check_cache(runtime.compilation_cache_dir)
    if runtime.bundle is not None:
        check_folder(runtime.bundle)
    if weights:
        check_weight_files(folder)
    return config


def _check_pool(config: ModelConfig, runtime: RuntimeConfig, num_pages: int, length: int) -> None:
    """Whether a pool sized by hand holds a sequence. Where windows give pages back it depends on the tokens of a step;
    those that the engine would choose are the device's, so that here they are one at least."""
    shape = CacheShape(config.cache_groups, runtime.page_size, runtime.max_num_batched_tokens or 1, length)
    least = 1 + shape.each  # one page is nobody's
    require(num_pages >= least, f"num_pages is {num_pages}; at least {least} are needed, as one holds nothing")
    holds = shape.longest(num_pages - 1) * runtime.page_size
    require(
        runtime.max_model_len is None or holds >= length,
        f"max_model_len is {length}, but the KV pool holds {holds} tokens (num_pages = {num_pages}); lower "
        "max_model_len",
    )


def _check_cache(name: str | os.PathLike[str] | None) -> None:
    """Whether the folder is there or can be made; it is not made here."""
    if name is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = Path(name).expanduser().absolute()
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
        if nearest.is_dir() and os.access(nearest, os.W_OK):
            return
    raise ConfigError(f"compilation_cache_dir is {name!r}; it must be a folder that can be written, or none")


def check_output(name: str, path: Path | None) -> None:
    """Raises CommandError unless the file of option `name` can be made or overwritten."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise CommandError(f"{name} is {str(path)!r}; it must be a file in a folder that exists")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise CommandError(f"{name} is {str(path)!r}; it may not be written")
