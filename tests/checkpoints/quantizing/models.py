"""Folders that the tests of this room convert: tiny families, and one whose activations have outlier channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.checkpoints.folders import write_tokenizer
from tests.checkpoints.quantized.models import tiny, write_folder

OUTLIERS = (5, 40, 57)  # channels of the hidden state that are far larger than the others
TEXT = "The quick brown fox jumps over the lazy dog number {}; 3.14159, naïve café.\n"


def write_family(root: Path, family: str = "llama", layers: int = 1, *, outliers: float | None = None) -> Path:
    """A golden family with a byte tokenizer. outliers: the weights of norms there, what rows of v and up grow by."""
    model = tiny(family, layers)
    tensors = dict(model.tensors)
    if outliers is not None:
        before_mlp = "pre_feedforward" if family.startswith("gemma") else "post_attention"
        for name, array in tensors.items():
            if name.endswith(("input_layernorm.weight", f"{before_mlp}_layernorm.weight")):
                tensors[name] = array.copy()
                tensors[name][list(OUTLIERS)] = outliers
            elif name.endswith(("up_proj.weight", "v_proj.weight")):
                tensors[name] = array.copy()
                tensors[name][list(OUTLIERS)] *= outliers
    config = model.config | {"vocab_size": 261}
    rows = np.random.default_rng(3).uniform(-1, 1, (261, tensors["model.embed_tokens.weight"].shape[1]))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = rows.astype(np.float32)
    write_folder(root, config, tensors)
    write_tokenizer(root)
    return root


def write_samples(path: Path, count: int = 6) -> Path:
    path.write_text("".join(TEXT.format(index) for index in range(count)))
    return path
