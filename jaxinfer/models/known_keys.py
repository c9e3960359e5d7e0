"""Keys of config.json that no family reads, and what `ConfigReader` does about each: check, pass over, or refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Known keys that may only say what every family here does anyway.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "position_embedding_type": ("rope",),
    "use_rope": (True,),
    "rope_interleaved": (False,),
    "pruned_heads": ({},),
    "mlp_only_layers": ([],),
}

# Keys that say nothing about the forward pass at inference: bookkeeping, training, library switches, special tokens
# and generation settings (read elsewhere), tasks other than generation.
_HARMLESS = """
    architectures model_type name_or_path auto_map custom_pipelines is_llama_config transformers.js_config
    torch_dtype dtype torchscript use_bfloat16 use_cache cache_implementation return_dict use_return_dict
    output_attentions output_hidden_states attn_implementation use_flash_attn gradient_checkpointing
    keys_to_ignore_at_inference chunk_size_feed_forward pretraining_tp
    initializer_range initializer_factor neftune_noise_alpha output_router_logits dropout
    is_decoder tie_encoder_decoder decoder_start_token_id finetuning_task problem_type id2label label2id num_labels
    task_specific_params prefix sep_token_id unk_token_id mask_token_id
    max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens tf_legacy_loss
"""
# Other names for the longest sequence: they limit what is served, as in vLLM 0.32, and change no result.
LENGTHS = (
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
HARMLESS = frozenset((*_HARMLESS.split(), *LENGTHS))
_HARMLESS_PREFIXES = ("_", "unsloth_", "tokenizer_")
_HARMLESS_SUFFIXES = ("_version", "_dropout", "_dropout_prob", "_pdrop", "_aux_loss_coef")


def is_harmless(key: str) -> bool:
    """Whether a key says nothing about the forward pass at inference, in any family."""
    return key in HARMLESS or key.startswith(_HARMLESS_PREFIXES) or key.endswith(_HARMLESS_SUFFIXES)


# Keys that give a kind of model away that is not served, so that the message can say which; the first that is there.
KINDS: Mapping[str, str] = {
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "moe_intermediate_size": "a mixture of experts",
    "text_config": "a model of several modalities",
    "vision_config": "a model of several modalities",
    "audio_config": "a model of several modalities",
    "quantization": "a checkpoint quantized by MLX",
    "quantization_config": "a quantized checkpoint",
    "compression_config": "a quantized checkpoint",
}
