"""Models of several modalities: which text models they have, and which keys of their config.json are of the others."""

from __future__ import annotations

from jaxinfer.models.families.gemma import gemma3
from jaxinfer.models.families.mistral import ministral3, mistral
from jaxinfer.models.families.qwen import qwen2_5_vl, qwen3_vl
from jaxinfer.models.wrappers import TextModels

_QWEN = (
    "vision_config",
    "image_token_id",
    "video_token_id",
    "vision_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)

GEMMA3 = TextModels(
    reads={"gemma3_text": gemma3},
    default="gemma3_text",
    others=(
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "boi_token_id",
        "eoi_token_id",
        "image_token_id",
    ),
)
MISTRAL3 = TextModels(
    reads={"mistral": mistral, "ministral3": ministral3},
    default="mistral",
    others=(
        "vision_config",
        "image_token_index",
        "image_token_id",
        "projector_hidden_act",
        "vision_feature_layer",
        "multimodal_projector_bias",
        "spatial_merge_size",
    ),
)
# The text model's own name came with transformers 4.52; before, it had that of the whole.
QWEN2_5_VL = TextModels(
    reads={"qwen2_5_vl_text": qwen2_5_vl, "qwen2_5_vl": qwen2_5_vl},
    default="qwen2_5_vl_text",
    others=_QWEN,
    flat=True,
)
QWEN3_VL = TextModels(reads={"qwen3_vl_text": qwen3_vl, "qwen3_vl": qwen3_vl}, default="qwen3_vl_text", others=_QWEN)
