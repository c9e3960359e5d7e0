"""Training state on disk: one npz with every array by its path and the run's numbers as JSON, replaced atomically."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

_META = "__meta__"


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a run needs to go on.

    Attributes:
        params: pure dict of float32 arrays.
        optimizer: optax state.
        step: steps done.
        seconds: training time so far, over all runs.
    """

    params: Any
    optimizer: Any
    step: int
    seconds: float


def _named_leaves(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path((state.params, state.optimizer))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def save(path: Path, state: TrainState, settings: dict[str, Any]) -> None:
    """Writes the state beside the path, flushes it to the disk, then renames: a crash leaves the old file whole."""
    contents: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in _named_leaves(state).items()}
    meta = {"step": state.step, "seconds": state.seconds, "settings": settings}
    contents[_META] = np.array(json.dumps(meta))
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        np.savez(file, **contents)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def restore(path: Path, like: TrainState, settings: dict[str, Any]) -> TrainState:
    """Reads a state with the structure of `like`.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: made with other settings (field, value and expected value are named), or an array is missing, left
            over, or has another shape or dtype.
    """
    if not path.exists():
        raise FileNotFoundError(f"nothing to resume: {path} does not exist")
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file[_META]))
        arrays = {name: file[name] for name in file.files if name != _META}
    for name in sorted({*settings, *meta["settings"]}):
        if meta["settings"].get(name) != settings.get(name):
            found, asked = meta["settings"].get(name), settings.get(name)
            raise ValueError(f"{path}: was trained with {name} = {found}, this run asks for {name} = {asked}")
    expected = _named_leaves(like)
    if arrays.keys() != expected.keys():
        raise ValueError(f"{path}: arrays missing or left over: {sorted(arrays.keys() ^ expected.keys())}")
    for name, leaf in expected.items():
        if arrays[name].shape != leaf.shape or arrays[name].dtype != leaf.dtype:
            found = f"{arrays[name].dtype}{arrays[name].shape}"
            raise ValueError(f"{path}: {name} is {found}, expected {leaf.dtype}{tuple(leaf.shape)}")
    structure = jax.tree.structure((like.params, like.optimizer))
    leaves = [jax.numpy.asarray(arrays[name]) for name in expected]
    params, optimizer = jax.tree.unflatten(structure, leaves)
    return TrainState(params, optimizer, meta["step"], meta["seconds"])
