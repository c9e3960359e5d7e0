"""Matches the tensors of a checkpoint with the decoder's parameters, by the table of its family (`family_tables`).

Parameters are in their canonical layout here, that of one device (`ModelShape` with tp = 1): `attention.qkv` is (K,
G + 2, H, ...) with the G query heads first, then key, then value; `mlp.gate_up` is (2, F, ...); `moe.gate_up` is (E, 2,
F, ...), `moe.down` (E, D, F).

`plan_mapping` is strict both ways: every tensor of the source is used once or ignored by name, every element of every
parameter is set once, shapes and dtypes are checked. It reads headers only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from checkpoints.family_tables import FAMILY_RULES, LOW_RANK
from checkpoints.files import CheckpointError
from checkpoints.language_model import spelling_of
from checkpoints.layouts import Dims, Layout, Placement, Rule, Shape, layout_of
from checkpoints.leftovers import HEAD, ignored_tensors
from checkpoints.reader import TensorInfo, TensorSource
from jaxinfer.config import ModelConfig, MoeConfig

SOURCE_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Entry:
    """One tensor of the source and what becomes of it."""

    source: str
    info: TensorInfo
    target: str
    transform: str
    placements: tuple[Placement, ...]


class Placed(Protocol):
    """Anything of the source that has places in a parameter."""

    @property
    def source(self) -> str: ...
    @property
    def placements(self) -> tuple[Placement, ...]: ...


@dataclass(frozen=True)
class TensorMapping:
    """A checked plan: `targets[path]` lists the tensors that make up the parameter; `ignored` gives name -> reason.

    `tied_head` is the name of an output matrix that the source carries although it is tied: its values must equal the
    embedding's, which only reading them can show (`checkpoints.tensor_assembly.check_tied_head`).
    """

    targets: dict[str, tuple[Entry, ...]]
    shapes: dict[str, Shape]
    ignored: dict[str, str]
    tied_head: str | None


def plan_mapping(
    config: ModelConfig,
    source: TensorSource,
    targets: Mapping[str, Shape],
    taken: frozenset[str] = frozenset(),
) -> TensorMapping:
    """Match the tensors of `source` with the parameters `targets` ({dotted path: canonical shape}).

    taken: tensors that are used elsewhere (`checkpoints.quantized`), for parameters that are not among `targets`.

    Raises:
        CheckpointError: a tensor is missing, left over, misshaped or of a dtype that is not floating point; the
            message names file, tensor, expected and found. Also if the family's table does not cover a parameter.
    """
    found: dict[str, list[Entry]] = {path: [] for path in targets}
    used: set[str] = set(taken)
    for rule in family_rules(config, source.folder, source):
        if rule.target not in targets:
            continue
        entry = _match(source, rule, layout_of(rule, Dims.of(config, rule.target), targets[rule.target]))
        found[rule.target].append(entry)
        used.add(rule.source)
    for path, entries in found.items():
        check_coverage(source, path, targets[path], entries)
    spelling = spelling_of(config.architecture, source)
    ignored = ignored_tensors(config, source, used, spelling)
    tied = head if (head := spelling.of(HEAD)) in ignored else None
    if tied is not None:
        embedding = found["embed.weight"][0]
        _check_shape(source, tied, embedding.info.shape, "the embedding")
        _check_dtype(source, tied)
    return TensorMapping({path: tuple(entries) for path, entries in found.items()}, dict(targets), ignored, tied)


def family_rules(config: ModelConfig, folder: Path, names: Container[str]) -> Iterator[Rule]:
    """The lines of the family's table, written out for every layer, in the spelling of the file's tensors `names`.

    Raises CheckpointError if there is no table.
    """
    rules = FAMILY_RULES.get(config.architecture)
    if rules is None:
        raise CheckpointError(
            f"{folder}: no tensor names for architecture {config.architecture}; known are {', '.join(FAMILY_RULES)}"
        )
    spelling = spelling_of(config.architecture, names)
    for rule in rules:
        source = spelling.of(rule.source)
        if "{i}" not in source:
            yield dataclasses.replace(rule, source=source)
            continue
        for i, layer in enumerate(config.layers):
            target = rule.target.format(i=i)
            if "{e}" not in source:
                yield Rule(source.format(i=i), target, rule.transform)
            elif isinstance(layer.feed_forward, MoeConfig):
                for e in range(layer.feed_forward.num_experts):
                    yield Rule(source.format(i=i, e=e), target, rule.transform, e)
    for i, layer in enumerate(config.layers):
        for rule in LOW_RANK if layer.ranks.given else ():
            if rule not in rules:
                yield Rule(spelling.of(rule.source).format(i=i), rule.target.format(i=i), rule.transform)


def _match(source: TensorSource, rule: Rule, layout: Layout) -> Entry:
    if rule.source not in source:
        raise CheckpointError(
            f"{source.folder}: tensor {rule.source} is missing; expected shape {layout.source_shape} for {rule.target}"
        )
    _check_shape(source, rule.source, layout.source_shape, rule.target)
    _check_dtype(source, rule.source)
    return Entry(rule.source, source.info(rule.source), rule.target, rule.transform, layout.placements)


def _check_shape(source: TensorSource, name: str, expected: Shape, target: str) -> None:
    info = source.info(name)
    if info.shape != expected:
        raise CheckpointError(
            f"{source.folder / info.file}: tensor {name}: expected shape {expected} for {target}, found {info.shape}"
        )


def _check_dtype(source: TensorSource, name: str) -> None:
    info = source.info(name)
    if info.dtype not in SOURCE_DTYPES:
        raise CheckpointError(
            f"{source.folder / info.file}: tensor {name}: expected dtype {', '.join(SOURCE_DTYPES)}, found {info.dtype}"
        )


def check_coverage(source: TensorSource, path: str, shape: Shape, entries: Sequence[Placed]) -> None:
    """Every element of the parameter is set exactly once: the regions are disjoint boxes whose sizes add up."""
    placements = [placement for entry in entries for placement in entry.placements]
    boxes = [_box(placement, path, shape) for placement in placements]
    covered = sum(math.prod(end - begin for begin, end in box) for box in boxes)
    overlap = _any_overlap(sorted(boxes))
    if overlap or covered != math.prod(shape):
        raise CheckpointError(
            f"{source.folder}: parameter {path} {shape}: expected each of its {math.prod(shape)} elements to be set "
            f"once; {covered} are set by {[entry.source for entry in entries]}{', some twice' if overlap else ''}"
        )


def _any_overlap(boxes: Sequence[list[tuple[int, int]]]) -> bool:
    """Whether two of the boxes, which are sorted, have an element in common."""
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            if other[0][0] >= one[0][1]:
                break  # this one and all behind it begin beyond its first axis
            if all(a[0] < b[1] and b[0] < a[1] for a, b in zip(one, other, strict=True)):
                return True
    return False


def _box(placement: Placement, path: str, shape: Shape) -> list[tuple[int, int]]:
    """The region of the target as [begin, end) per axis. A table whose region cannot hold the view is a bug here."""
    full = placement.index + (slice(None),) * (len(shape) - len(placement.index))
    box, region = [], []
    for part, size in zip(full, shape, strict=True):
        begin, end, _ = part.indices(size) if isinstance(part, slice) else (part, part + 1, 1)
        if isinstance(part, slice):
            region.append(end - begin)
        if end > size:
            raise AssertionError(f"{path} {shape}: region {placement.index} ends outside of it")
        box.append((begin, end))
    if tuple(region) != placement.region:
        raise AssertionError(f"{path} {shape}: region {placement.index} cannot hold {placement.view}")
    return box
