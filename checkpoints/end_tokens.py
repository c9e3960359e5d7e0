"""The tokens that end a text when a folder is served."""

from __future__ import annotations

from pathlib import Path

from jaxinfer.config import ModelConfig
from jaxinfer.text import VOCABULARY_FILES, Tokenizer, TokenizerError, load_tokenizer


def served_end_tokens(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer | None = None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """End tokens of a served model, and notes for its operator. tokenizer: the folder's, where it is loaded already.

    The tokenizer's own comes first, then those of generation_config.json; where that names none, config.json's
    (`config.eos_token_ids`, see `read_config`). vLLM 0.32 takes the same (SamplingParams.update_from_generation_config,
    and GenerationConfig.from_model_config where the file is missing). All are read when the model is loaded. A folder
    without a tokenizer, or with one that cannot be read here, has the files' alone.
    """
    if not any((folder / name).exists() for name in VOCABULARY_FILES):
        return config.eos_token_ids, ()
    try:
        own = (tokenizer or load_tokenizer(folder)).eos_token_id
    except TokenizerError as error:
        return config.eos_token_ids, (f"the tokenizer's end token is not known: {error}",)
    named = [] if own is None or own >= config.vocab_size else [own]
    return tuple(dict.fromkeys([*named, *config.eos_token_ids])), ()
