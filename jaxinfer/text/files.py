"""Reads the tokenizer files of a Hugging Face model folder. Nothing is interpreted here beyond JSON and UTF-8.

Each file is read once into memory, so that what is parsed is what the content digest was computed from.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.text.errors import TokenizerError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_MODEL = "tokenizer.model"
TEKKEN = "tekken.json"
# Where the vocabulary is; the first that a folder has is read.
VOCABULARY_FILES = (TOKENIZER_JSON, TOKENIZER_MODEL, TEKKEN)
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
MODEL_CONFIG = "config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"  # of models of several modalities: {"chat_template": "..."}
CHAT_TEMPLATE_FOLDER = "additional_chat_templates"

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that is a character only together with another

# Vocabulary files of other tokenizer libraries: named in the error, so that a user sees what the folder does hold.
_OTHER_VOCABULARIES = ("tiktoken.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of one tokenizer folder.

    Attributes:
        folder: where the files lie.
        tokenizer_json, tokenizer_model, tekken: raw bytes of the first of them that is there, None of the others.
        tokenizer_config: parsed tokenizer_config.json, {} when absent.
        special_tokens_map, added_tokens: parsed files, None when absent.
        model_config: parsed config.json, {} when absent; only `model_type` and `tokenizer_class` of it are used.
        chat_templates: template name -> Jinja source, from chat_template.jinja ("default") and the .jinja files
            of additional_chat_templates/.
        whole_template: `chat_template` of chat_template.json, which is for the whole of a model of several modalities;
            None when absent.
        digest: sha256 over the names and bytes of the files above except config.json.
    """

    folder: Path
    tokenizer_json: bytes | None
    tokenizer_model: bytes | None
    tekken: bytes | None
    tokenizer_config: dict[str, Any]
    special_tokens_map: dict[str, Any] | None
    added_tokens: dict[str, Any] | None
    model_config: dict[str, Any]
    chat_templates: dict[str, str]
    whole_template: str | None
    digest: str


def read_folder(folder: Path) -> TokenizerFiles:
    """Reads a folder.

    Raises:
        TokenizerError: the folder or all vocabulary files are absent, or a file is unreadable or not valid JSON/UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(f"tokenizer folder {folder} does not exist or is not a folder")
    raw: dict[str, bytes] = {}
    for name in VOCABULARY_FILES:
        if not raw:
            _read_into(raw, folder, name)
    if not raw:
        raise TokenizerError(_nothing_found(folder))
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, CHAT_TEMPLATE, CHAT_TEMPLATE_JSON):
        _read_into(raw, folder, name)
    templates_folder = folder / CHAT_TEMPLATE_FOLDER
    if templates_folder.is_dir():
        for path in sorted(templates_folder.glob("*.jinja")):
            _read_into(raw, folder, f"{CHAT_TEMPLATE_FOLDER}/{path.name}")
    config: dict[str, bytes] = {}
    _read_into(config, folder, MODEL_CONFIG)
    return TokenizerFiles(
        folder=folder,
        tokenizer_json=raw.get(TOKENIZER_JSON),
        tokenizer_model=raw.get(TOKENIZER_MODEL),
        tekken=raw.get(TEKKEN),
        tokenizer_config=_json_object(folder, TOKENIZER_CONFIG, raw) or {},
        special_tokens_map=_json_object(folder, SPECIAL_TOKENS_MAP, raw),
        added_tokens=_json_object(folder, ADDED_TOKENS, raw),
        model_config=_json_object(folder, MODEL_CONFIG, config) or {},
        chat_templates=_chat_templates(folder, raw),
        whole_template=_whole_template(folder, raw),
        digest=_digest(raw),
    )


def _read_into(raw: dict[str, bytes], folder: Path, name: str) -> None:
    path = folder / name
    if not path.is_file():
        return
    try:
        raw[name] = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from error


def _nothing_found(folder: Path) -> str:
    message = f"no tokenizer in {folder}: looked for {', '.join(VOCABULARY_FILES)}"
    others = [name for name in _OTHER_VOCABULARIES if (folder / name).is_file()]
    if others:
        message += (
            f"; found {', '.join(others)}, which is not read here. Save the tokenizer with transformers' "
            f"save_pretrained to get a {TOKENIZER_JSON}"
        )
    return message


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not valid UTF-8: {error}") from error


def _json_object(folder: Path, name: str, raw: dict[str, bytes]) -> dict[str, Any] | None:
    if name not in raw:
        return None
    return parse_json_object(folder / name, raw[name])


def parse_json_object(path: Path, data: bytes) -> dict[str, Any]:
    """Parses a JSON object; TokenizerError names the file when it is something else."""
    text = _decode(path, data)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not {type(value).__name__}")
    if _SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"{path} holds half of a surrogate pair, which is no text: {error}") from error
    return value


def _chat_templates(folder: Path, raw: dict[str, bytes]) -> dict[str, str]:
    templates: dict[str, str] = {}
    if CHAT_TEMPLATE in raw:
        templates["default"] = _template_text(folder / CHAT_TEMPLATE, raw[CHAT_TEMPLATE])
    for name, data in raw.items():
        if name.startswith(f"{CHAT_TEMPLATE_FOLDER}/"):
            stem = name.removeprefix(f"{CHAT_TEMPLATE_FOLDER}/").removesuffix(".jinja")
            templates[stem] = _template_text(folder / name, data)
    return templates


def _whole_template(folder: Path, raw: dict[str, bytes]) -> str | None:
    template = (_json_object(folder, CHAT_TEMPLATE_JSON, raw) or {}).get("chat_template")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{folder / CHAT_TEMPLATE_JSON}: chat_template must be a string, got {template!r:.200}")
    return template


def _template_text(path: Path, data: bytes) -> str:
    # transformers opens templates in text mode, which turns CR LF and CR into LF.
    return _decode(path, data).replace("\r\n", "\n").replace("\r", "\n")


def _digest(raw: dict[str, bytes]) -> str:
    outer = hashlib.sha256()
    for name in sorted(raw):
        outer.update(f"{name}\0{len(raw[name])}\0".encode())
        outer.update(raw[name])
    return outer.hexdigest()
