"""What a model's `generation_config.json` sets here, and what of it is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxinfer.sampling_params import FIELDS

FILE = "generation_config.json"

# The file's fields -> ours, as vLLM 0.32 reads them (config/model.py, get_diff_sampling_param).
_DEFAULTS: Mapping[str, str] = {d.generation_config: name for name, d in FIELDS.items() if d.generation_config}
# What transformers' generate reads beside them, with the values that change nothing (of its own `generate`, 5.24.0);
# null is one of them for every field.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (True,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "early_stopping": (False,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "length_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "use_mtp": (False,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "stop_strings": ([],),
}
# What changes no text: ids that are read elsewhere, how generate computes, what it returns, who wrote the file.
# fmt: off
_WITHOUT_EFFECT = frozenset((
    "_from_model_config", "transformers_version", "_commit_hash", "_name_or_path", "eos_token_id", "bos_token_id",
    "pad_token_id", "decoder_start_token_id", "use_cache", "cache_implementation", "cache_config", "max_cache_len",
    "prefill_chunk_size", "low_memory", "compile_config", "disable_compile", "continuous_batching_config",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "chat_format",
))
# fmt: on
_MAX_SHOWN = 40  # characters of a value


def generation_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling defaults that the file carries, by the names of SamplingParams.

    `do_sample` false means greedy for transformers, but most chat checkpoints leave it out and vLLM does not read it,
    so it is passed over here too.
    """
    found = {ours: generation_config.get(name) for name, ours in _DEFAULTS.items()}
    return {ours: value for ours, value in found.items() if value is not None}


def passed_over(generation_config: Mapping[str, Any]) -> list[str]:
    """The fields that would change what transformers generates and have no effect here, as "name = value"."""
    found = []
    for name, value in generation_config.items():
        if value is None or name in _DEFAULTS or name in _WITHOUT_EFFECT or value in _NEUTRAL.get(name, ()):
            continue
        shown = repr(value)
        found.append(f"{name} = {shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 3] + '...'}")
    return found


def generation_notes(generation_config: Mapping[str, Any]) -> tuple[str, ...]:
    """What an operator should know of the file when a model is loaded: at most one sentence."""
    found = passed_over(generation_config)
    return (f"{FILE}: without effect here: {', '.join(found)}",) if found else ()
