"""From dense parameters to those of a quantized checkpoint, a layer at a time.

With calibration or `skip`, there are two passes over the source. The first one runs or rounds every layer and keeps
what it chose for each matrix: scales, cut-offs, errors. The second one rounds. The host holds what is finished, one
dense layer, and during the first pass the samples' hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from checkpoints.files import CheckpointError
from checkpoints.quantizing.folding import PRODUCERS, fold, refusal, sharing
from checkpoints.quantizing.layerwise import Layerwise
from checkpoints.quantizing.options import Quantizing
from checkpoints.quantizing.policy import KEEP, Planned
from checkpoints.quantizing.report import MatrixReport, QuantizationReport
from checkpoints.quantizing.rounding import decibels, round_matrix, weight_error
from checkpoints.quantizing.samples import Samples
from checkpoints.quantizing.search import Found, OutputError, search
from checkpoints.quantizing.skipping import choose_skipped, wider
from checkpoints.quantizing.statistics import InputStatistics, sampled_tokens
from checkpoints.reader import TensorSource
from checkpoints.rules import TensorMapping
from checkpoints.tensor_assembly import assemble
from jaxinfer.config import ModelConfig
from jaxinfer.models.stored_matrix import StoredMatrix, input_axes, matrices_of
from pallas_kernels.qtensor import QTensor, scales_are_finite

Layer = Mapping[str, np.ndarray]  # {path in the layer: canonical array}
OnPath = Callable[[str], None]


@dataclass(frozen=True)
class _Choice:
    """What the first pass found for a matrix. wider_error: as `skip` would keep it."""

    planned: Planned
    found: Found
    wider_error: float | None = None
    asked: str | None = None  # its scheme before `skip` changed it


class Pipeline:
    """Rounds the parameters of one source. Call `choose`, then `parameters`, then `report`."""

    def __init__(
        self,
        config: ModelConfig,
        mapping: TensorMapping,
        source: TensorSource,
        dtype: np.dtype,
        asked: Quantizing,
        planned: Mapping[str, Planned],
        samples: Samples | None,
    ) -> None:
        self._config, self._mapping, self._source, self._dtype = config, mapping, source, dtype
        self._asked, self._samples = asked, samples
        self._planned = dict(planned)
        self._choices: dict[str, _Choice] = {}
        self._rows: dict[str, MatrixReport] = {}

    @property
    def passes(self) -> int:
        """How often the source is read."""
        return 2 if self._samples is not None or self._asked.skip else 1

    @property
    def calibrated(self) -> bool:
        return self._samples is not None

    @property
    def stored(self) -> dict[str, StoredMatrix]:
        """{path: how it is stored} of the quantized matrices, as chosen."""
        stored = {f"{name}.weight": planned.stored for name, planned in self._planned.items()}
        return {path: matrix for path, matrix in stored.items() if matrix is not None}

    def choose(self, on_path: OnPath) -> None:
        """The first pass, if there is one. Raises CheckpointError for weights or activations that are not finite."""
        if self.passes == 1:
            return
        runner = None
        if self._samples is not None:
            runner = Layerwise(self._config, self._samples.ids)
            runner.begin(self._assemble("embed.weight", None))
        for index in range(self._config.num_layers):
            layer = self._layer(index, None)
            if runner is None:
                self._measure_weights(index, layer)
            else:
                self._calibrate(index, layer, runner)
            for path in layer:
                on_path(f"layers.{index}.{path}")
        if self._asked.skip:
            self._skip()

    def parameters(self, checksums: dict[str, str], on_path: OnPath) -> Iterator[tuple[str, np.ndarray | QTensor]]:
        """Every parameter in the order of the mapping, rounded or as it was. checksums: as `assemble` fills it."""
        for prefix, paths in groupby(self._mapping.shapes, _layer_of):
            if prefix is None:
                for path in paths:
                    yield path, self._assemble(path, checksums)
                    on_path(path)
                continue
            layer = self._layer(int(prefix.split(".")[1]), checksums)
            for path, array in fold(layer, self._scales(prefix), self._config, self._dtype).items():
                full = f"{prefix}.{path}"
                yield full, self._finished(full, array)
                on_path(full)

    def report(self) -> QuantizationReport:
        samples, asked = self._samples, self._asked
        calibration = None
        if samples is not None and asked.calibrate is not None:
            calibration = {
                "file": asked.calibrate.name,
                "samples": len(samples.ids),
                "tokens": samples.tokens,
                "offered_samples": samples.offered,
                "cut_samples": samples.cut,
            }
        assert asked.scheme is not None
        policy = None if asked.policy is None else asked.policy.name
        rows = tuple(self._rows[name] for name in self._planned)
        return QuantizationReport(asked.scheme, policy, asked.skip, calibration, rows)

    def _assemble(self, path: str, checksums: dict[str, str] | None) -> np.ndarray:
        array = assemble(self._mapping, self._source, path, self._dtype, checksums)
        planned = self._planned.get(path.removesuffix(".weight"))
        if planned is not None and planned.scheme is not None and not np.isfinite(array).all():
            raise CheckpointError(
                f"{self._source.folder}: parameter {path} holds values that are not finite; it has no scale"
            )
        return array

    def _layer(self, index: int, checksums: dict[str, str] | None) -> Layer:
        prefix = f"layers.{index}."
        paths = [path for path in self._mapping.shapes if path.startswith(prefix)]
        return {path.removeprefix(prefix): self._assemble(path, checksums) for path in paths}

    def _measure_weights(self, index: int, layer: Layer) -> None:
        for end in matrices_of(self._config.layers[index]):
            planned = self._planned[f"layers.{index}.{end}"]
            if planned.scheme is not None:
                matrix = _matrix(end, layer)
                error = weight_error(matrix, round_matrix(matrix, planned))
                self._choices[f"layers.{index}.{end}"] = _Choice(planned, Found(None, None, None, error, error))

    def _calibrate(self, index: int, layer: Layer, runner: Layerwise) -> None:
        assert self._samples is not None
        statistics = {end: InputStatistics() for end in matrices_of(self._config.layers[index])}
        sampled = sampled_tokens([len(ids) for ids in self._samples.ids])

        def note(sample: int, inputs: Mapping[str, object]) -> None:
            for end, x in inputs.items():
                statistics[end].add(np.asarray(x), sampled[sample])

        runner.layer(index, layer, note)
        for end in statistics:
            name = f"layers.{index}.{end}"
            if not np.isfinite(statistics[end].largest).all():
                raise CheckpointError(
                    f"{self._source.folder}: the calibration samples give {name} inputs that are not finite"
                )
            if self._planned[name].scheme is not None:
                self._choices[name] = self._choice(name, end, layer, statistics[end])

    def _choice(self, name: str, end: str, layer: Layer, statistics: InputStatistics) -> _Choice:
        planned, weight = self._planned[name], _matrix(end, layer).astype(np.float32)
        weight = weight.reshape(-1, weight.shape[-1])
        error = OutputError(statistics.rows, weight)
        shared = None if refusal(name, self._config, self._dtype) else sharing(name, self._config)
        found = search(statistics, weight, error, planned, shared, self._powers(name, end, layer))
        return _Choice(planned, found, error(wider(planned), found.scales) if self._asked.skip else None)

    def _powers(self, name: str, end: str, layer: Layer) -> bool:
        """Whether scales of these inputs divide numbers that stay in a type that rounds the quotients."""
        if end not in PRODUCERS or self._dtype == np.float32:
            return False
        producer = self._planned.get(f"{name.removesuffix(end)}{PRODUCERS[end]}")
        if producer is None:  # without a gate nothing is divided
            return False
        stays = producer.scheme is None or (self._asked.skip is not None and wider(producer).scheme is None)
        return stays or f"{PRODUCERS[end]}.bias" in layer

    def _skip(self) -> None:
        for name in choose_skipped({name: choice.found.error for name, choice in self._choices.items()}):
            choice = self._choices[name]
            planned = wider(choice.planned)
            found = replace(choice.found, clip=None, error=choice.wider_error or 0.0)
            if planned.scheme is None:
                found = replace(found, alpha=None, scales=None)
            self._planned[name] = planned
            self._choices[name] = _Choice(planned, found, asked=choice.planned.scheme)

    def _scales(self, prefix: str) -> dict[str, np.ndarray]:
        layer = self._config.layers[int(prefix.split(".")[1])]
        chosen = {end: self._choices.get(f"{prefix}.{end}") for end in matrices_of(layer)}
        return {
            end: one.found.scales for end, one in chosen.items() if one is not None and one.found.scales is not None
        }

    def _finished(self, path: str, array: np.ndarray) -> np.ndarray | QTensor:
        name = path.removesuffix(".weight")
        if name not in self._planned:
            return array
        inputs = input_axes(path)
        assert inputs is not None
        planned, choice = self._planned[name], self._choices.get(name)
        before = array.size * self._dtype.itemsize
        if planned.scheme is None:
            self._rows[name] = self._row(name, choice, before, before, None)
            return array.astype(self._dtype, copy=False)
        matrix = array.reshape(*array.shape[:-inputs], math.prod(array.shape[-inputs:]))
        rounded = round_matrix(matrix, planned, _clip(choice, matrix))
        if not scales_are_finite(rounded):
            raise CheckpointError(f"{self._source.folder}: parameter {path} is too large: its scales are not finite")
        error = weight_error(matrix, rounded)
        self._rows[name] = self._row(name, choice, before, rounded.nbytes, error)
        return rounded

    def _row(
        self, name: str, choice: _Choice | None, before: int, after: int, weight_error: float | None
    ) -> MatrixReport:
        planned = self._planned[name]
        found = None if choice is None or self._samples is None else choice.found
        refused = None
        if self._samples is not None and planned.scheme is not None:
            refused = refusal(name, self._config, self._dtype)
        return MatrixReport(
            name=name,
            scheme=planned.scheme or KEEP,
            asked=None if choice is None else choice.asked,
            group=planned.group,
            bytes_before=before,
            bytes_after=after,
            weight_snr=None if weight_error is None else decibels(weight_error),
            output_snr=None if found is None else decibels(found.error),
            plain_output_snr=None if found is None else decibels(found.plain_error),
            alpha=None if found is None else found.alpha,
            clipped=found is not None and found.clip is not None,
            not_scaled=refused,
        )


def _layer_of(path: str) -> str | None:
    return ".".join(path.split(".")[:2]) if path.startswith("layers.") else None


def _matrix(end: str, layer: Layer) -> np.ndarray:
    """(*O, I): the input axes as one."""
    array = layer[f"{end}.weight"]
    inputs = input_axes(f"layers.0.{end}.weight")
    assert inputs is not None
    return array.reshape(*array.shape[:-inputs], -1)


def _clip(choice: _Choice | None, matrix: np.ndarray) -> np.ndarray | None:
    if choice is None or choice.found.clip is None:
        return None
    return choice.found.clip.reshape(*matrix.shape[:-1], -1)
