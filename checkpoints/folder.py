"""What a checkpoint folder is: its kind, its JSON files, its configuration. Standard library only, no weights, no jax.

Two kinds are served: a plain Hugging Face folder (`config.json`, safetensors) and a converted checkpoint, which has

    jaxinfer_config.json     format version, ModelConfig, where it came from, the size of every file of `params/`, and
                             what is not as the model's dtype says (`checkpoints.stored`)
    params/                  the arrays (Orbax), in the layout of one device
    generation_config.json   config.json, tokenizer and chat template files: copies of the source's
    conversion_report.json   what became of every tensor; written last: without it the folder is not a checkpoint
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxinfer.config import ConfigError, ModelConfig

FORMAT_VERSION = 1
STORAGE_FORMAT_VERSION = 2  # of folders with matrices in few bits or a type for the KV cache, which version 1 has not
QUANTIZATION_KEY = "quantization_config"  # of config.json
HF_CONFIG_FILE = "config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CONFIG_FILE = "jaxinfer_config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
REPORT_FILE = "conversion_report.json"
PARAMS_FOLDER = "params"
PARTIAL_SUFFIX = ".partial"  # of folders that are being written
# What the text layer reads; all of them come along into a converted checkpoint. config.json is among them because the
# rules of a tokenizer can depend on the model type.
TEXT_FILES = (
    HF_CONFIG_FILE,
    "tokenizer.json",
    "tokenizer.model",
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
CHAT_TEMPLATE_FOLDER = "additional_chat_templates"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the tensor, what was expected and found."""


def plain_file_name(name: str) -> bool:
    """True for the name of a file in the folder itself: no separators, no parent, nothing hidden."""
    return bool(name) and not name.startswith(".") and not any(char in name for char in "/\\\0")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises CheckpointError naming the file and the place of the fault."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected this file; it is not there") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # an integer of too many digits is a bare ValueError
        raise CheckpointError(f"{path}: expected JSON; found a fault: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object; found {type(data).__name__}")
    return data


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def is_converted(folder: str | Path) -> bool:
    """True for a finished converted checkpoint. A folder that is still being written, or was left behind, is none."""
    folder = Path(folder)
    finished = (folder / CONFIG_FILE).is_file() and (folder / REPORT_FILE).is_file()
    return finished and not folder.name.endswith(PARTIAL_SUFFIX)


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
    from checkpoints import side_files
    from jaxinfer.models.registry import model_config

    side_files.check_weights(folder)
    if not (folder / HF_CONFIG_FILE).exists():
        raise CheckpointError(
            f"{folder}: expected {HF_CONFIG_FILE} (Hugging Face) or {CONFIG_FILE} (converted); found neither"
        )
    hf_config = read_json_object(folder / HF_CONFIG_FILE)
    quantization_keys = (QUANTIZATION_KEY, side_files.COMPRESSION_KEY)
    described = {key: value for key, value in hf_config.items() if key not in quantization_keys}
    try:
        if all(described.get(key) in (None, "auto") for key in ("dtype", "torch_dtype")):
            described["dtype"] = _stored_dtype(folder)
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


def _stored_dtype(folder: Path) -> str | None:
    """The type of the tensors, for a config.json that does not name one, as in vLLM; None where there are none."""
    from checkpoints.side_files import common_dtype

    names = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16", None: None}
    return names[common_dtype(folder)]


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


def read_stored(folder: Path) -> dict[str, Any]:
    """jaxinfer_config.json of a converted checkpoint, its format version and the sizes of its files checked."""
    path = folder / CONFIG_FILE
    data = read_json_object(path)
    version = data.get("format_version")
    if version not in (FORMAT_VERSION, STORAGE_FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format_version is {version!r}; expected {FORMAT_VERSION} or {STORAGE_FORMAT_VERSION}: "
            "convert the source again"
        )
    files = data.get("files")
    if not isinstance(files, dict) or not isinstance(data.get("model"), dict):
        raise CheckpointError(f"{path}: expected the objects model and files; found {sorted(data)}")
    for name, expected in files.items():
        file = folder / PARAMS_FOLDER / name
        found = file.stat().st_size if file.is_file() else None
        if found != expected:
            state = "it is not there" if found is None else f"found {found}"
            raise CheckpointError(f"{file}: expected {expected} bytes; {state}")
    return data


def _stored_config(folder: Path) -> ModelConfig:
    from checkpoints.stored import parse_storage

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
