"""Tensors that no rule names: those that may be there and mean nothing, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from checkpoints.files import CheckpointError
from checkpoints.language_model import Spelling, of_another_modality
from checkpoints.reader import TensorSource
from jaxinfer.config import ModelConfig

# Patterns of names as a language model alone has them, with the reason that the report gives.
IGNORED: Mapping[str, str] = {
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "computed from the config",
}
# Architectures whose files may have layers behind the last, and what those are.
FURTHER_LAYERS: Mapping[str, str] = {
    "Glm4MoeForCausalLM": "of a layer that predicts further tokens, which is not used",
}
HEAD = "lm_head.weight"
TIED_REASON = "tied to the embedding, which holds the same values"


def ignored_tensors(config: ModelConfig, source: TensorSource, used: set[str], spelling: Spelling) -> dict[str, str]:
    """{tensor: why it is not read} of all that are not used. Raises CheckpointError for one without a reason."""
    ignored: dict[str, str] = {}
    for name in source.names:
        if name in used:
            continue
        reason = of_another_modality(config.architecture, name) or _reason(spelling.plain(name), config)
        if reason is None:
            info = source.info(name)
            raise CheckpointError(
                f"{source.folder / info.file}: tensor {name} {info.shape} is left over: expected no such tensor in a "
                f"{config.architecture} of {config.num_layers} layers with this config.json"
            )
        ignored[name] = reason
    return ignored


def _reason(name: str, config: ModelConfig) -> str | None:
    if name == HEAD and config.tie_word_embeddings:
        return TIED_REASON
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer is not None and int(layer[1]) >= config.num_layers and config.architecture in FURTHER_LAYERS:
        return FURTHER_LAYERS[config.architecture]
    return next((reason for pattern, reason in IGNORED.items() if re.fullmatch(pattern, name)), None)
