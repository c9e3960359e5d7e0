"""`--verify` of a quantizing conversion: what was stored is what was rounded, and how far its answers are from the
original's.

The matrices are widened again and the network runs in float32, activations rounded where the scheme says so: that is
what the file means, without what a device adds (a CPU, say, keeps every matrix in int8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.files import CheckpointError
from checkpoints.load import canonical_parts
from checkpoints.quantizing.layerwise import Layerwise
from checkpoints.store import StoredParams, named_parts
from checkpoints.tensor_assembly import DTYPES
from checkpoints.verify import VerifyLimits, compare_with_transformers
from jaxinfer.config import ModelConfig
from jaxinfer.models.stored_matrix import StoredMatrix, matrices_of
from pallas_kernels.qtensor import FOUR_BITS as FOUR_BIT_KINDS
from pallas_kernels.qtensor import dequantize

# Mean divergence in nats. A trained model loses hundredths with 8 bits and some tenths with 4; a wrong layout or a
# scale at the wrong place costs whole nats.
EIGHT_BITS, FOUR_BITS = VerifyLimits(divergence=0.05), VerifyLimits(divergence=0.5)


def digest(array: np.ndarray) -> str:
    """SHA-256 (hex) of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


class StoredModel:
    """A quantized conversion in `folder`, read a layer at a time. shapes: canonical, of all parameters."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        shapes: Mapping[str, tuple[int, ...]],
        stored: Mapping[str, StoredMatrix],
    ) -> None:
        self._config, self._shapes, self._stored = config, shapes, stored
        self._dtype = DTYPES[config.dtype]
        self._plain = {path: shape for path, shape in shapes.items() if path not in stored}
        self._params = StoredParams(folder, self._plain, self._dtype, canonical_parts(shapes, stored))

    def check(self, digests: Mapping[str, str]) -> None:
        """Raises CheckpointError, naming the array, if one is not what was written. digests: {array in params/:
        digest}."""
        for path in self._shapes:
            if path in self._stored:
                arrays = named_parts(path, self._params.read_matrix(path))
            else:
                arrays = {path: self._params.read(path, self._dtype)}
            for name, array in arrays.items():
                if (found := digest(np.asarray(array))) != digests[name]:
                    raise CheckpointError(
                        f"{self._params.folder}: parameter {name}: expected SHA-256 {digests[name]}, found {found}"
                    )

    def logits(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits after every token of each prompt, float32 (tokens, vocab_size)."""
        runner = Layerwise(self._config, prompts)
        runner.begin(self._wide("embed.weight"))
        for index in range(self._config.num_layers):
            prefix = f"layers.{index}."
            params = {path.removeprefix(prefix): self._wide(path) for path in self._shapes if path.startswith(prefix)}
            stored = {end: self._stored.get(f"{prefix}{end}.weight") for end in matrices_of(self._config.layers[index])}
            activations = {end: None if matrix is None else matrix.activations for end, matrix in stored.items()}
            runner.layer(index, params, activations=activations)
        return runner.logits({path: self._wide(path) for path in self._plain if not path.startswith("layers.")})

    def _wide(self, path: str) -> np.ndarray:
        """A parameter in a floating type."""
        if path not in self._stored:
            return self._params.read(path, self._dtype)
        return np.asarray(dequantize(self._params.read_matrix(path))).reshape(self._shapes[path])


def verify_quantized(
    hf_dir: Path,
    folder: Path,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, StoredMatrix],
    digests: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compare a conversion that lies in `folder` with its source; returns what the report says about it.

    Raises CheckpointError when a stored value differs from what was rounded, or a limit is passed.
    """
    model = StoredModel(folder, config, shapes, stored)
    model.check(digests)
    limits = FOUR_BITS if any(matrix.kind in FOUR_BIT_KINDS for matrix in stored.values()) else EIGHT_BITS
    return compare_with_transformers(hf_dir, folder, config, model.logits, limits, say)
