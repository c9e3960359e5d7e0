"""Goldens computed by Hugging Face transformers, and the recipe that rebuilds their weights without torch.

`tests/goldens/NAME.json` holds configs, prompts, greedy tokens and the recipe, `NAME.npz` the logits; no weights are
stored. `write_checkpoint` turns a case into a folder that looks like a Hugging Face download. The files are made by
`scripts/make_goldens.py`; this module needs only numpy (and safetensors and ml_dtypes to write).

A `Flag` is one deliberate mistake: a changed config key or changed tensors. Its `error` is what the mistake does to
transformers' own logits, so a test can make the same mistake here and assert that the comparison would have seen it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"

# kind -> (centre, half width) of the uniform distribution at scale 1. A matrix of scale s has standard deviation s;
# every 1-D kind stays clear of the value it is initialised to (1 for norms, 0 for Gemma's (1 + w) norms and biases
# on average only, but never all of them), so that a norm or bias that is skipped shows in the logits.
KINDS: Mapping[str, tuple[float, float]] = {
    "matrix": (0.0, math.sqrt(3.0)),
    "norm": (1.0, 0.5),
    "norm_offset": (0.0, 0.5),
    "bias": (0.0, 0.3),
}


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is drawn from: `shape` in elements, `kind` a key of `KINDS`, `scale` multiplies the half width."""

    shape: tuple[int, ...]
    kind: str
    scale: float = 1.0


@dataclass(frozen=True)
class Flag:
    """One deliberate mistake and the error that transformers itself shows for it.

    `error` = max|wrong - golden| / max|golden| over all positions of all prompts; always above 1e-2.
    `set` maps dotted config keys to wrong values, `unset` removes keys; `tensor_ones` and `tensor_zeros` are regular
    expressions (`re.search`) for tensor names that are overwritten; `add` and `drop` change the list of tensors.
    """

    name: str
    error: float
    set: Mapping[str, Any]
    unset: tuple[str, ...]
    tensor_ones: str | None
    tensor_zeros: str | None
    add: Mapping[str, TensorSpec]
    drop: tuple[str, ...]


@dataclass(frozen=True)
class GoldenCase:
    """One tiny model with transformers' answers. Lengths in tokens; `vocab` is the config's vocabulary size.

    `logits[i]` is float32 (len(prompts[i]), vocab): the logits after each prompt token. `greedy[i]` are the tokens that
    greedy decoding appends to prompts[i] with EOS disabled. `decode_logits`, float32 (tokens, vocab), are those from
    which greedy[1] was taken, step by step. `min_margin` is the smallest gap between the best and the second best logit
    over all greedy steps. `config_alt`, where there is one, spells the same model differently. `extra`:
    `tensor_parallel` (degrees to test); `float32_error` (the logits against a float64 run of transformers, as a share
    of max|logits|: what rounding alone costs); `stale_cache_differs_at` (for each prompt, the greedy step at which a
    decoder that never drops its cache goes astray, or null: only longrope has any); `made_by` (versions, arguments).
    """

    name: str
    config: Mapping[str, Any]
    config_alt: Mapping[str, Any] | None
    generation_config: Mapping[str, Any] | None
    seed: int
    specs: Mapping[str, TensorSpec]
    prompts: tuple[tuple[int, ...], ...]
    logits: tuple[np.ndarray, ...]
    greedy: tuple[tuple[int, ...], ...]
    decode_logits: np.ndarray
    min_margin: float
    flags: tuple[Flag, ...]
    extra: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face tensor names and shapes, in the order in which the checkpoint lists them."""
        return {name: spec.shape for name, spec in self.specs.items()}

    def flag(self, name: str) -> Flag:
        for flag in self.flags:
            if flag.name == name:
                return flag
        raise KeyError(f"case {self.name} has no flag {name!r}; it has {[flag.name for flag in self.flags]}")


def tensor(seed: int, name: str, shape: tuple[int, ...], kind: str, scale: float = 1.0) -> np.ndarray:
    """A float32 array of `shape`, a function of its arguments alone.

    Uses only the raw uniform doubles of PCG64: numpy keeps the bit stream of a seeded bit generator for good, but not
    the algorithms behind normal() and friends. The float64 value is rounded once, to float32.
    """
    if kind not in KINDS:
        raise ValueError(f"tensor {name}: kind is {kind!r}; it must be one of {sorted(KINDS)}")
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    uniform = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little"))).random(shape)
    centre, half_width = KINDS[kind]
    return np.asarray(centre + scale * half_width * (2.0 * uniform - 1.0), np.float32)


def cases() -> list[str]:
    """The names of all stored cases, sorted."""
    return sorted(path.stem for path in GOLDENS.glob("*.json"))


def load_case(name: str, folder: Path = GOLDENS) -> GoldenCase:
    """Read one case. Raises FileNotFoundError (with the names there are) for an unknown one."""
    path = folder / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no golden {name!r} in {folder}; there are {cases()}")
    data = json.loads(path.read_text())
    with np.load(folder / f"{name}.npz") as arrays:
        logits = tuple(arrays[f"prompt_{index}"] for index in range(len(data["prompts"])))
        decode_logits = arrays["decode_1"]
    return GoldenCase(
        name=name,
        config=data["config"],
        config_alt=data.get("config_alt"),
        generation_config=data.get("generation_config"),
        seed=data["seed"],
        specs=specs_from_json(data["tensors"]),
        prompts=tuple(map(tuple, data["prompts"])),
        logits=logits,
        greedy=tuple(map(tuple, data["greedy"])),
        decode_logits=decode_logits,
        min_margin=data["min_margin"],
        flags=tuple(flag_from_json(flag) for flag in data["flags"]),
        extra=data["extra"],
    )


def specs_from_json(data: Mapping[str, list[Any]]) -> dict[str, TensorSpec]:
    """{name: [shape, kind, scale]} -> {name: TensorSpec}."""
    return {name: TensorSpec(tuple(shape), kind, scale) for name, (shape, kind, scale) in data.items()}


def flag_from_json(data: Mapping[str, Any]) -> Flag:
    """Read one entry of the `flags` list; absent keys mean "no change of this sort"."""
    known = {field.name for field in dataclasses.fields(Flag)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"flag {data.get('name')}: unknown keys {unknown}; known are {sorted(known)}")
    return Flag(
        name=data["name"],
        error=data.get("error", 0.0),
        set=data.get("set", {}),
        unset=tuple(data.get("unset", ())),
        tensor_ones=data.get("tensor_ones"),
        tensor_zeros=data.get("tensor_zeros"),
        add=specs_from_json(data.get("add", {})),
        drop=tuple(data.get("drop", ())),
    )


def build_config(case: GoldenCase, *, alt: bool = False, flag: Flag | None = None) -> dict[str, Any]:
    """The case's config.json as a dict: `alt` takes the other spelling, `flag` applies a deliberate mistake to it."""
    if alt and flag is not None:
        raise ValueError(f"case {case.name}: flags are written in the first spelling; alt must be False with a flag")
    if alt and case.config_alt is None:
        raise ValueError(f"case {case.name} has no second spelling of its config")
    config = copy.deepcopy(dict(case.config_alt if alt and case.config_alt is not None else case.config))
    if flag is None:
        return config
    for dotted, value in flag.set.items():
        *parents, last = dotted.split(".")
        target = config
        for parent in parents:
            target = target[parent]
        target[last] = copy.deepcopy(value)
    for dotted in flag.unset:
        *parents, last = dotted.split(".")
        target = config
        for parent in parents:
            target = target[parent]
        del target[last]
    return config


def build_tensors(case: GoldenCase, *, flag: Flag | None = None) -> dict[str, np.ndarray]:
    """All tensors of the checkpoint in float32, {Hugging Face name: array}, with the mistake of `flag` if given."""
    specs = dict(case.specs)
    if flag is not None:
        specs |= flag.add
        for name in flag.drop:
            del specs[name]
    arrays = {name: tensor(case.seed, name, spec.shape, spec.kind, spec.scale) for name, spec in specs.items()}
    if flag is None:
        return arrays
    for pattern, value in ((flag.tensor_ones, 1.0), (flag.tensor_zeros, 0.0)):
        if pattern is None:
            continue
        names = [name for name in arrays if re.search(pattern, name)]
        if not names:
            raise ValueError(f"case {case.name}, flag {flag.name}: pattern {pattern!r} matches no tensor")
        for name in names:
            arrays[name] = np.full_like(arrays[name], value)
    return arrays


def write_checkpoint(
    case: GoldenCase,
    folder: str | Path,
    *,
    dtype: str = "float32",
    shards: int = 1,
    alt: bool = False,
    flag: Flag | None = None,
) -> Path:
    """Write the case as a Hugging Face folder and return it: config.json, safetensors, generation_config.json if any.

    `dtype` is float32, float16 or bfloat16 (rounded to nearest even; the config's dtype key says so too); `shards` > 1
    gives numbered files and model.safetensors.index.json. `alt` and `flag` as in `build_config`.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; it must be float32, float16 or bfloat16")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = build_config(case, alt=alt, flag=flag)
    for key in ("torch_dtype", "dtype"):
        if key in config:
            config[key] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if case.generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(case.generation_config, indent=2) + "\n")
    arrays = build_tensors(case, flag=flag)
    if dtype == "float16":
        arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    elif dtype == "bfloat16":
        import ml_dtypes  # only here: the environment that makes the goldens has no need of it

        arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    _write_safetensors(arrays, folder, shards)
    return folder


def _write_safetensors(arrays: dict[str, np.ndarray], folder: Path, shards: int) -> None:
    """One model.safetensors, or `shards` numbered files (in order of the names given, none empty) with an index."""
    from safetensors.numpy import save_file

    metadata = {"format": "pt"}  # what transformers writes, and what it asks for when it reads
    if shards == 1:
        save_file(arrays, folder / "model.safetensors", metadata=metadata)
        return
    names = list(arrays)
    if not 1 <= shards <= len(names):
        raise ValueError(f"shards is {shards}; it must be between 1 and the number of tensors, {len(names)}")
    weight_map: dict[str, str] = {}
    for index, part in enumerate(np.array_split(np.array(names, dtype=object), shards)):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: arrays[name] for name in part}, folder / file, metadata=metadata)
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in arrays.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n")
