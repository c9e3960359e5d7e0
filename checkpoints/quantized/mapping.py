"""Which tensors of a quantized checkpoint make up which matrix of the decoder: from settings, then from headers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from checkpoints.files import HF_CONFIG_FILE, CheckpointError, read_json_object
from checkpoints.files import QUANTIZATION_KEY as KEY
from checkpoints.language_model import is_one_of_several, module_names, spelling_of
from checkpoints.layouts import Dims, Placement, Rule, layout_of
from checkpoints.leftovers import HEAD
from checkpoints.quantized import parse
from checkpoints.quantized.keys import Names
from checkpoints.quantized.protocol import Format, Layer, Shape, Tensors
from checkpoints.reader import TensorSource
from checkpoints.rules import check_coverage, family_rules
from checkpoints.side_files import quantization_settings, tensor_names
from jaxinfer.config import ConfigError, ModelConfig, UnsupportedModelError
from jaxinfer.models.stored_matrix import StoredMatrix, input_axes, matrix_names

WEIGHT, BIAS = ".weight", ".bias"


@dataclass(frozen=True)
class Quantization:
    """What a folder's files say about its weights. `stored`: {path of a matrix: how it is stored}."""

    format: Format
    stored: Mapping[str, StoredMatrix]


@dataclass(frozen=True)
class QuantizedEntry:
    """One linear layer of the source. Its placements are those of outputs: every part has its own last axis."""

    layer: Layer
    tensors: Tensors
    placements: tuple[Placement, ...]

    @property
    def source(self) -> str:
        return self.layer.module


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix of the decoder in its canonical layout: outputs *O, I inputs as one axis."""

    path: str
    stored: StoredMatrix
    outputs: Shape
    inputs: int
    entries: tuple[QuantizedEntry, ...]


@dataclass(frozen=True)
class QuantizedMapping:
    """A checked plan. taken: the tensors that it uses. no_biases: biases that the model lacks; they must be zeros."""

    format: Format
    matrices: Mapping[str, QuantizedMatrix]
    taken: frozenset[str]
    no_biases: tuple[str, ...]


def read_quantization(folder: Path, config: ModelConfig) -> Quantization | None:
    """How a Hugging Face folder stores the matrices of `config`; None if it is not quantized. Reads no weights.

    Raises:
        CheckpointError: see `parse`; or the settings quantize what cannot be, match nothing, or tell apart layers that
            are one matrix here.
    """
    found = quantization_settings(folder, read_json_object(folder / HF_CONFIG_FILE))
    if found is None:
        return None
    try:
        format_ = parse(found.settings)
        return Quantization(format_, MappingProxyType(_stored(format_, config, folder)))
    except ConfigError as error:
        raise found.fault(error) from error


def _stored(format_: Format, config: ModelConfig, folder: Path) -> dict[str, StoredMatrix]:
    names = frozenset(tensor_names(folder))
    head = spelling_of(config.architecture, names).of(HEAD).removesuffix(WEIGHT)
    if format_.head_is_stored(module_names(config.architecture, head)) and not config.tie_word_embeddings:
        raise UnsupportedModelError(f"{KEY} quantizes lm_head; supported are the layers' matrices only")
    layers: dict[str, list[Names]] = {}
    for rule in _matrix_rules(config, folder, names):
        layers.setdefault(rule.target, []).append(_names(config, rule))
    lost = format_.unmatched([module for modules in layers.values() for module in modules])
    if lost and not is_one_of_several(config.architecture):  # where they may mean layers of the others
        raise UnsupportedModelError(f"{KEY} has the targets {lost}, which match no linear layer of this model")
    found = {}
    for path, modules in layers.items():
        stored = {module[0]: format_.stored(module) for module in modules}
        first = stored[modules[0][0]]
        if other := next((name for name, one in stored.items() if one != first), None):
            raise UnsupportedModelError(
                f"{KEY} stores {modules[0][0]} as {first}, and {other} as {stored[other]}; they are one matrix here "
                "and must be stored alike"
            )
        if first is not None:
            found[path] = first
    if not found:
        raise UnsupportedModelError(f"{KEY} quantizes no linear layer of this model")
    return found


def plan_quantized(
    config: ModelConfig, source: TensorSource, targets: Mapping[str, Shape], quantization: Quantization
) -> QuantizedMapping:
    """Match the tensors of `source` with the matrices that are stored quantized. Reads headers only.

    targets: {dotted path: canonical shape} of all parameters.

    Raises:
        CheckpointError: a tensor is missing, misshaped or of another dtype, or a group does not divide the inputs; the
            message names file or folder, and tensor or layer.
    """
    found: dict[str, list[QuantizedEntry]] = {path: [] for path in quantization.stored}
    taken: set[str] = set()
    no_biases = []
    for rule in _matrix_rules(config, source.folder, source):
        if rule.target not in quantization.stored:
            continue
        outputs, inputs = _sizes(rule.target, targets[rule.target])
        # Where the outputs go, as for a bias: the inputs are one axis, of which no transform says anything.
        plain = dataclasses.replace(rule, transform="copy") if rule.transform == "attention_out" else rule
        layout = layout_of(plain, Dims.of(config, rule.target), outputs, tail=())
        module = rule.source.removesuffix(WEIGHT)
        *stacked, rows = layout.source_shape
        layer = Layer(
            _names(config, rule),
            rows,
            inputs,
            quantization.stored[rule.target],
            experts=stacked[0] if stacked else None,
            parameter="weight" if _is_linear(rule) else rule.source.rpartition(".")[2],
        )
        try:
            _check_groups(layer)
            tensors = Tensors(source, layer, quantization.format.parts(layer))
        except ConfigError as error:
            raise CheckpointError(f"{source.folder}: {error}") from error
        found[rule.target].append(QuantizedEntry(layer, tensors, layout.placements))
        taken.update(tensors.names)
        if rule.target.removesuffix(WEIGHT) + BIAS not in targets and module + BIAS in source:
            no_biases.append(module + BIAS)
    matrices = {}
    for path, entries in found.items():
        outputs, inputs = _sizes(path, targets[path])
        check_coverage(source, path, outputs, entries)
        matrices[path] = QuantizedMatrix(path, quantization.stored[path], outputs, inputs, tuple(entries))
    return QuantizedMapping(quantization.format, matrices, frozenset({*taken, *no_biases}), tuple(no_biases))


def _matrix_rules(config: ModelConfig, folder: Path, names: Container[str]) -> list[Rule]:
    there = {f"{name}{WEIGHT}" for name in matrix_names(config)}
    return [rule for rule in family_rules(config, folder, names) if rule.target in there]


def _names(config: ModelConfig, rule: Rule) -> Names:
    """Of a linear layer, or of what has all experts' weights as parameters of its own."""
    module = rule.source.removesuffix(WEIGHT)
    return module_names(config.architecture, module if _is_linear(rule) else module.rpartition(".")[0])


def _is_linear(rule: Rule) -> bool:
    return rule.source.endswith(WEIGHT)


def _sizes(path: str, shape: Shape) -> tuple[Shape, int]:
    """The output axes of a matrix, and its inputs as one."""
    inputs = input_axes(path)
    assert inputs is not None
    return shape[:-inputs], math.prod(shape[-inputs:])


def _check_groups(layer: Layer) -> None:
    group = layer.stored.group
    if group is not None and layer.inputs % group:
        raise ConfigError(f"{layer.module} has {layer.inputs} inputs; groups of {group} must divide them")
