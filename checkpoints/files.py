"""What a checkpoint folder consists of: its kinds, the names of its files, its JSON. Standard library only.

Two kinds are served: a plain Hugging Face folder (`config.json`, safetensors) and a converted checkpoint, which has

    jaxinfer_config.json     format version, ModelConfig, where it came from, the size of every file of `params/`, and
                             what is not as the model's dtype says (`checkpoints.storage`)
    params/                  the arrays (Orbax), in the layout of one device
    generation_config.json   config.json, tokenizer and chat template files: copies of the source's
    conversion_report.json   what became of every tensor; written last: without it the folder is not a checkpoint
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
STORAGE_FORMAT_VERSION = 2  # of folders with quantized matrices or a type for the KV cache, which version 1 has not
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
    "tekken.json",
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
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
