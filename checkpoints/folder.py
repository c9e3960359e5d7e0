"""What a checkpoint folder of either kind says of its model (`files` has the kinds). No weights are read, no jax."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints import side_files
from checkpoints.files import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    HF_CONFIG_FILE,
    QUANTIZATION_KEY,
    REPORT_FILE,
    TOKENIZER_CONFIG_FILE,
    CheckpointError,
    is_converted,
    read_json_object,
    read_stored,
)
from checkpoints.language_model import has_head
from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.models.wrappers import DTYPES, TEXT_CONFIG, text_settings


def read_config(folder: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model's configuration and its generation_config.json ({} without one), of either kind of folder.

    How a quantized Hugging Face folder stores its matrices is not part of it, but must be known. `eos_token_ids` are
    what the folder's JSON files say now, in a converted checkpoint too; the tokenizer's is not among them
    (`checkpoints.end_tokens`).

    Raises:
        CheckpointError: no such folder, neither kind, an unfinished conversion, corrupt JSON, another format version,
            an architecture or a value that is not supported. The message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder with a model; there is none")
    generation_path = folder / GENERATION_CONFIG_FILE
    generation = read_json_object(generation_path) if generation_path.exists() else {}
    if is_converted(folder):
        stored = replace(_stored_config(folder), tokenizer_length=_tokenizer_length(folder))
        return _with_end_tokens(stored, folder, generation), generation
    if (folder / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{folder}: expected {REPORT_FILE} beside {CONFIG_FILE}; this conversion was never finished, run it again"
        )
    return _hf_config(folder, generation), generation


def _hf_config(folder: Path, generation: dict[str, Any]) -> ModelConfig:
    """The configuration of a Hugging Face folder. What the network is comes first, how it is quantized second."""
    from jaxinfer.models.registry import family_of, model_config

    side_files.check_weights(folder)
    if not (folder / HF_CONFIG_FILE).exists():
        raise CheckpointError(
            f"{folder}: expected {HF_CONFIG_FILE} (Hugging Face) or {CONFIG_FILE} (converted); found neither"
        )
    hf_config = read_json_object(folder / HF_CONFIG_FILE)
    quantization_keys = (QUANTIZATION_KEY, side_files.COMPRESSION_KEY)
    described = _without(hf_config, quantization_keys)
    text = described.get(TEXT_CONFIG)
    if isinstance(text, dict):
        described[TEXT_CONFIG] = _without(text, quantization_keys)
    try:
        said = [part.get(key) for part in (text_settings(described), described) for key in DTYPES]
        if all(dtype in (None, "auto") for dtype in said):
            described["dtype"] = _stored_dtype(folder)
        if family_of(described).text_models is not None:
            described |= _tied_or_not(folder, described, family_of(described).architecture)
        config = model_config(described, generation)
    except ConfigError as error:
        raise CheckpointError(f"{folder / HF_CONFIG_FILE}: {error}") from error
    found = side_files.quantization_settings(folder, hf_config)
    if found is not None:
        from checkpoints.quantized import parse  # brings numpy, which a server's own process does without

        try:
            parse(found.settings)  # `checkpoints.quantized.mapping.read_quantization` says what it means
        except ConfigError as error:
            raise found.fault(error) from error
    return replace(config, notes=(*config.notes, *side_files.notes(folder)), tokenizer_length=_tokenizer_length(folder))


def _without(settings: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _tied_or_not(folder: Path, hf_config: dict[str, Any], architecture: str) -> dict[str, bool]:
    """`tie_word_embeddings` of a model of several modalities, where its config.json does not say it, or says both.

    The classes' defaults inside and around text_config differ, and which of them counts does too from release to
    release of transformers. All of them agree on this: an output matrix that the file has is not the embedding.
    """
    key = "tie_word_embeddings"
    said = {part[key] for part in (text_settings(hf_config), hf_config) if isinstance(part.get(key), bool)}
    names = side_files.tensor_names(folder)
    return {} if len(said) == 1 or not names else {key: not has_head(architecture, frozenset(names))}


def _stored_dtype(folder: Path) -> str | None:
    """The type of the tensors, for a config.json that does not name one, as in vLLM; None where there are none."""
    names = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16", None: None}
    return names[side_files.common_dtype(folder)]


def _tokenizer_length(folder: Path) -> int | None:
    """tokenizer_config.json's model_max_length, tokens. Huge numbers stand for "no limit" there, as does anything else
    that is no count."""
    path = folder / TOKENIZER_CONFIG_FILE
    try:
        length = read_json_object(path).get("model_max_length") if path.is_file() else None
    except CheckpointError:
        return None  # whoever loads the tokenizer says what is wrong with the file
    if not isinstance(length, int | float) or isinstance(length, bool) or not 1 <= length < 2**53:
        return None
    return int(length)


def check_weight_files(folder: Path) -> None:
    """Raises CheckpointError when a folder of either kind lacks its weights. Looks at names, not into the files."""
    index = folder / "model.safetensors.index.json"
    if is_converted(folder):
        read_stored(folder)  # knows the size of every file
        return
    if index.is_file():
        named = read_json_object(index).get("weight_map")
        there = isinstance(named, dict) and named and all((folder / str(file)).is_file() for file in named.values())
    else:
        there = (folder / "model.safetensors").is_file()
    if not there:
        from checkpoints.reader import open_checkpoint  # brings numpy; says what is missing, and what to do

        open_checkpoint(folder).close()


def _stored_config(folder: Path) -> ModelConfig:
    from checkpoints.storage import parse_storage

    data = read_stored(folder)
    try:
        config = ModelConfig.from_dict(data["model"])
        parse_storage(data, config)
        return config
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def _with_end_tokens(config: ModelConfig, folder: Path, generation: dict[str, Any]) -> ModelConfig:
    """A stored configuration with the end tokens that the copies of the source's files name: they may be edited."""
    from jaxinfer.models.registry import end_tokens

    path = folder / HF_CONFIG_FILE
    # Whoever takes that copy away has what the source said.
    hf_config: dict[str, Any] = {"eos_token_id": list(config.eos_token_ids)}
    if path.exists():
        hf_config = read_json_object(path)
    hf_config["architectures"] = [config.architecture]
    try:
        return replace(config, eos_token_ids=end_tokens(hf_config, generation, config.vocab_size))
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
