"""load_tokenizer: from a folder of Hugging Face files to a `Tokenizer`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from jaxinfer.text import pipelines, sentencepiece_model, sentencepiece_pipeline, tekken
from jaxinfer.text.chat import ChatTemplates
from jaxinfer.text.decoding import DecodePlan
from jaxinfer.text.errors import TokenizerError
from jaxinfer.text.files import (
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    VOCABULARY_FILES,
    TokenizerFiles,
    parse_json_object,
    read_folder,
)
from jaxinfer.text.sentencepiece_model import SentencePieceModel
from jaxinfer.text.special_tokens import SpecialTokens, gather, register
from jaxinfer.text.tokenizer import Tokenizer

# What the tokenizers library raises where its own code fails; it is no Exception, and cannot be imported.
PANIC = "PanicException"
# Below this size transformers does not look at `fix_mistral_regex` at all.
_MISTRAL_REGEX_VOCAB = 100_000


@dataclass
class _Draft:
    """A backend under construction: its pipeline, the class's own token names, and what to tell the user."""

    backend: Backend
    defaults: dict[str, str | None] = field(default_factory=dict)
    extra: list[AddedToken] = field(default_factory=list)
    post_processor: Any = None
    notes: list[str] = field(default_factory=list)


def load_tokenizer(folder: Path, *, model_type: str | None = None) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face folder so that it gives the ids and texts of transformers 5.24.

    `tokenizer.json` is read when it is there, else `tokenizer.model` (sentencepiece), else `tekken.json` (Mistral's).
    All end up in the tokenizers library, as they do in transformers 5. The pipeline depends on the model family too
    (see pipelines.py). Releases of transformers differ in a few of these rules: docs/tokenizers.md says in which,
    `notes` when it matters here.

    Args:
        folder: holds tokenizer.json, tokenizer.model or tekken.json, and optionally tokenizer_config.json,
            special_tokens_map.json, added_tokens.json, chat_template.jinja, additional_chat_templates/*.jinja,
            chat_template.json and config.json.
        model_type: the `model_type` of the Hugging Face config.json, such as "llama" or "qwen2"; None reads it from
            config.json in the folder, where it may be absent.

    Raises:
        TokenizerError: no vocabulary file, a corrupt file, or a feature that is not supported; names file and value.
    """
    files = read_folder(folder)
    if model_type is None:
        model_type = _optional_str(files.model_config, "model_type", str(files.folder / "config.json"))
    name = pipelines.class_name(
        tokenizer_class=_optional_str(files.tokenizer_config, "tokenizer_class", str(files.folder / TOKENIZER_CONFIG)),
        config_class=_optional_str(files.model_config, "tokenizer_class", str(files.folder / "config.json")),
        model_type=model_type,
        byte_level_json=b'"ByteLevel"' in (files.tokenizer_json or b""),
        own_code=_has_own_code(files.tokenizer_config),
    )
    document: dict[str, Any] | None = None
    if files.tokenizer_json is not None:
        document = parse_json_object(files.folder / TOKENIZER_JSON, files.tokenizer_json)
    tokens = gather(files, _added_tokens(files, document))
    source = files.folder / _vocabulary_file(files)
    if files.tekken is not None:
        name = pipelines.GENERIC  # the classes have rules for the other files only
    try:
        if document is not None:
            draft = _from_json(files, document, name, tokens)
        else:
            draft = _from_tekken(source, files.tekken) if files.tekken is not None else _from_model(files, name, tokens)
        draft.notes += _legacy_note(name, files.tokenizer_config)
        if _has_own_code(files.tokenizer_config):
            draft.notes.append(f"{TOKENIZER_CONFIG}: auto_map names code of the folder's own, which is not run")
        tokens = _finish(draft, files, name, tokens)
        _check_post_processor(draft.backend, source)
        plan = DecodePlan.of(draft.backend, clean_up=_cleans_up(draft.backend, files))
    except TokenizerError:
        raise
    except BaseException as error:  # the tokenizers library raises bare exceptions of several kinds for bad contents
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise TokenizerError(f"cannot build the tokenizer of {source}: {error}") from error
    return Tokenizer(
        backend=draft.backend,
        plan=plan,
        special_tokens=tokens.for_templates(),
        chat_templates=ChatTemplates.of(files),
        content_digest=hashlib.sha256(f"{name}\0{files.digest}".encode()).hexdigest(),
        notes=tuple(draft.notes),
    )


def _from_json(files: TokenizerFiles, document: dict[str, Any], name: str, tokens: SpecialTokens) -> _Draft:
    path = files.folder / TOKENIZER_JSON
    assert files.tokenizer_json is not None
    try:
        backend = Backend.from_buffer(files.tokenizer_json)
    except BaseException as error:  # see load_tokenizer
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise TokenizerError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
    draft = _Draft(backend)
    if backend.padding is not None:
        draft.defaults["pad_token"] = backend.padding["pad_token"]
    recipe = pipelines.recipe_for(name)
    if recipe is None:
        if name != pipelines.GENERIC:
            draft.notes.append(f"tokenizer_class {name} has no rules of its own here: {path.name} is used as it stands")
        draft.notes += _prefix_space_note(document, files.tokenizer_config)
        return draft
    model = document.get("model") or {}
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):
        draft.notes.append(f"{path.name} holds a {model.get('type')} model, but {name} reads it as BPE")
        vocab = {entry[0] if isinstance(entry, list) else entry: index for index, entry in enumerate(vocab)}
    merges = [_merge(merge) for merge in model.get("merges") or []]
    draft.defaults |= recipe.special_tokens
    unk = tokens.with_defaults(draft.defaults).text("unk_token")
    draft.backend = recipe.build(vocab, merges, files.tokenizer_config, unk)
    draft.post_processor = backend.post_processor
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if not _same_part(getattr(backend, part), getattr(draft.backend, part)):
            draft.notes.append(f"{name} replaces the {part} of {path.name} by its own")
    return draft


def _vocabulary_file(files: TokenizerFiles) -> str:
    found = (files.tokenizer_json, files.tokenizer_model, files.tekken)
    return next(name for name, data in zip(VOCABULARY_FILES, found, strict=True) if data is not None)


def _from_tekken(path: Path, data: bytes) -> _Draft:
    """A text begins with BOS, as it does in mistral-common."""
    draft = _Draft(tekken.read(path, parse_json_object(path, data)).backend(), dict(tekken.NAMED))
    bos = tekken.NAMED["bos_token"]
    if (index := draft.backend.token_to_id(bos)) is None:
        raise TokenizerError(f"{path}: special_tokens lack {bos!r}, which begins a text")
    draft.post_processor = processors.TemplateProcessing(single=f"{bos}:0 $A:0", special_tokens=[(bos, index)])
    return draft


def _merge(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _same_part(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return bool(left.__getstate__() == right.__getstate__())


def _from_model(files: TokenizerFiles, name: str, tokens: SpecialTokens) -> _Draft:
    path = files.folder / TOKENIZER_MODEL
    assert files.tokenizer_model is not None
    model = sentencepiece_model.read_model(path, files.tokenizer_model)
    extra = [
        AddedToken(piece, normalized=False, special=kind == sentencepiece_model.CONTROL)
        for (piece, _), kind in zip(model.pieces, model.types, strict=True)
        if kind in (sentencepiece_model.CONTROL, sentencepiece_model.USER_DEFINED)
    ]
    recipe = pipelines.recipe_for(name)
    if recipe is None:
        draft = _generic_from_model(files, name, model, tokens)
        extra = [token for token in extra if token.special]  # the pipeline itself finds user-defined pieces
    else:
        vocab = {piece: index for index, (piece, _) in enumerate(model.pieces)}
        defaults = dict(recipe.special_tokens)
        merges = sentencepiece_model.merges_by_id(vocab)
        unk = tokens.with_defaults(defaults).text("unk_token")
        draft = _Draft(recipe.build(vocab, merges, files.tokenizer_config, unk), defaults)
        if model.model_type == sentencepiece_model.UNIGRAM:
            draft.notes.append(f"{path.name} is a unigram model, but {name} reads it as BPE")
        if model.charsmap:
            draft.notes.append(f"{path.name} normalises text, which {name} does not")
    draft.extra = extra
    return draft


def _generic_from_model(files: TokenizerFiles, name: str, model: SentencePieceModel, tokens: SpecialTokens) -> _Draft:
    config = files.tokenizer_config
    backend = sentencepiece_pipeline.build(
        model, {index: str(token) for index, token in tokens.added.items()}, legacy=bool(config.get("legacy", True))
    )
    if model.add_dummy_prefix:
        tokens.find_added_in_raw_text()  # so that each stretch between them has its own prefix
    named = (
        ("bos_token", model.bos_id, model.bos_piece),
        ("eos_token", model.eos_id, model.eos_piece),
        ("unk_token", model.unk_id, model.unk_piece),
    )
    draft = _Draft(backend, {token: piece for token, index, piece in named if index >= 0})
    if name != pipelines.GENERIC:
        draft.notes.append(
            f"tokenizer_class {name} has no rules of its own here: {TOKENIZER_MODEL} is read by its own settings"
        )
    if differing := sentencepiece_pipeline.releases_differ(model):
        draft.notes.append(f"{TOKENIZER_MODEL}: {differing}")
    return draft


def _prefix_space_note(document: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """A tokenizer.json that is used as it stands puts its own space before a text, or none."""
    asked, outer = config.get("add_prefix_space"), document.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers") or [outer]
    if asked is None or all(bool(step.get("add_prefix_space", asked)) == bool(asked) for step in steps):
        return []
    return [
        f"add_prefix_space = {asked} of {TOKENIZER_CONFIG} is passed over, as in transformers 5.24 (not in 5.0): "
        f"{TOKENIZER_JSON} is used as it stands"
    ]


def _legacy_note(name: str, config: dict[str, Any]) -> list[str]:
    if name != "LlamaTokenizer" or "legacy" in config:
        return []
    return [f"{TOKENIZER_CONFIG} does not say legacy: it is false as in transformers 5; transformers 4 takes true"]


def _finish(draft: _Draft, files: TokenizerFiles, name: str, tokens: SpecialTokens) -> SpecialTokens:
    """Adds tokens and post-processor, and switches off what only training batches need."""
    backend, config = draft.backend, files.tokenizer_config
    tokens = tokens.with_defaults(draft.defaults)
    if draft.extra and not tokens.extra_given:
        tokens.extra = list(draft.extra)
    backend.no_truncation()
    backend.no_padding()
    if draft.post_processor is not None:
        backend.post_processor = draft.post_processor
    register(backend, tokens)
    # With a tokenizer.json its post-processor decides about BOS and EOS, and these two keys are not looked at.
    recipe = pipelines.recipe_for(name)
    adds_bos = recipe is not None and recipe.adds_bos
    explicit = files.tokenizer_json is None and ("add_bos_token" in config or "add_eos_token" in config)
    if explicit or adds_bos or backend.post_processor is None:
        add_bos = bool(config.get("add_bos_token", adds_bos)) if explicit else adds_bos
        add_eos = explicit and bool(config.get("add_eos_token"))
        _set_post_processor(backend, tokens.text("bos_token") if add_bos else None, tokens, add_eos)
    if name == "Qwen2Tokenizer":
        names = [*tokens.for_templates().values(), *map(str, tokens.extra)]
        backend.add_tokens([AddedToken(text, special=True) for text in dict.fromkeys(names)])
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    if config.get("fix_mistral_regex") and backend.get_vocab_size() > _MISTRAL_REGEX_VOCAB:
        draft.notes.append("fix_mistral_regex is not applied: the pre-tokenizer of the file is taken to be fixed")
    return tokens


def _check_post_processor(backend: Backend, source: Path) -> None:
    """Raises TokenizerError for a template with a token that it does not define: the library would panic at each text.

    A post-processor is a template, or a sequence of which one may be.
    """
    if backend.post_processor is None:
        return
    outer = json.loads(backend.post_processor.__getstate__())
    for step in outer.get("processors") or [outer]:
        defined = step.get("special_tokens") or {}
        for piece in step.get("single") or []:
            token = piece.get("SpecialToken")
            if token is not None and token["id"] not in defined:
                raise TokenizerError(
                    f"{source}: post_processor.single has the token {token['id']!r}, which its special_tokens do not "
                    f"define: {sorted(defined)}"
                )


def _set_post_processor(backend: Backend, bos: str | None, tokens: SpecialTokens, add_eos: bool) -> None:
    eos = tokens.text("eos_token") if add_eos else None
    single = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    special = [(text, backend.token_to_id(text)) for text in dict.fromkeys((bos, eos)) if text]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def _added_tokens(files: TokenizerFiles, document: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    if document is None:
        return None
    listed = document.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise TokenizerError(f"{files.folder / TOKENIZER_JSON}: added_tokens must be a list of objects")
    return listed


def _cleans_up(backend: Backend, files: TokenizerFiles) -> bool:
    """Whether decode removes spaces before punctuation: transformers 5 ignores the setting for BPE models."""
    config = files.tokenizer_config
    if not config.get("clean_up_tokenization_spaces"):
        return False
    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    return bool(forced) or type(backend.model).__name__ != "BPE"


def _has_own_code(config: dict[str, Any]) -> bool:
    """Whether `auto_map` names code: in an object, or in older files as a list."""
    named = config.get("auto_map")
    return bool(named.get("AutoTokenizer") if isinstance(named, dict) else named)


def _optional_str(values: dict[str, Any], key: str, where: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{where}: {key} must be a string, got {value!r}")
    return value or None
