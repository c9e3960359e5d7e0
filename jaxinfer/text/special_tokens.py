"""Which special and added tokens a tokenizer has, gathered from the four places where they may be written.

tokenizer_config.json, special_tokens_map.json, added_tokens.json and the `added_tokens` list of tokenizer.json overlap.
The order of precedence here is that of transformers 5: with an `added_tokens_decoder` in tokenizer_config.json the two
legacy files are not consulted at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from jaxinfer.text.errors import TokenizerError
from jaxinfer.text.files import ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, TOKENIZER_JSON, TokenizerFiles

STANDARD_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

Token = str | AddedToken


@dataclass
class SpecialTokens:
    """Tokens to register with a backend, in the order in which transformers does it.

    Attributes:
        named: "bos_token" and the like -> token, or None where a file says so explicitly. A model may name its own
            (`image_token`); those come after the standard ones.
        extra: special tokens without a name.
        extra_given: whether a file lists `extra_special_tokens`; if not, a sentencepiece model's own control and
            user-defined pieces take that place.
        added: id -> token, as the files list them.
    """

    named: dict[str, Token | None]
    extra: list[Token]
    extra_given: bool
    added: dict[int, AddedToken]

    def text(self, name: str) -> str | None:
        """The spelling of a named token, None when unset."""
        token = self.named.get(name)
        return None if token is None else str(token)

    def with_defaults(self, defaults: Mapping[str, str | None]) -> SpecialTokens:
        """The same with a tokenizer class's own names filled in where no file mentions them (None is a mention)."""
        named: dict[str, Token | None] = {}
        for name in STANDARD_NAMES:
            if name in self.named or name in defaults:
                named[name] = self.named[name] if name in self.named else defaults[name]
        own = {name: token for name, token in defaults.items() if name not in STANDARD_NAMES}
        named |= own | {name: token for name, token in self.named.items() if name not in STANDARD_NAMES}
        return SpecialTokens(named=named, extra=self.extra, extra_given=self.extra_given, added=self.added)

    def find_added_in_raw_text(self) -> None:
        """Has the listed tokens looked for before a text is normalised, whatever the files say."""
        for index, token in self.added.items():
            self.added[index] = AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
                special=token.special,
            )

    def for_templates(self) -> dict[str, str]:
        """name -> spelling of every token that is set: what chat templates see as variables."""
        return {name: str(token) for name, token in self.named.items() if token is not None}


def gather(files: TokenizerFiles, json_added_tokens: list[dict[str, Any]] | None) -> SpecialTokens:
    """Merges the files' statements.

    Args:
        files: the folder's contents.
        json_added_tokens: the `added_tokens` list of tokenizer.json, None where that file is absent.

    Raises:
        TokenizerError: a token is neither a string nor an object with "content"; names file and key.
    """
    where = str(files.folder / TOKENIZER_CONFIG)
    values = dict(files.tokenizer_config)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if not isinstance(values.get(key), list | dict | None):
            raise TokenizerError(f"{where}: {key} must be a list or an object, got {values[key]!r}")
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    # Only strings count as a model's own names here; an AddedToken object is recognised further down.
    own: dict[str, Any] = {
        key: values.pop(key)
        for key in list(values)
        if key.endswith("_token") and key not in STANDARD_NAMES and isinstance(values[key], str)
    }
    if isinstance(values.get("extra_special_tokens"), dict):
        own.update(values.pop("extra_special_tokens"))
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in values:
        for index, token in _object(values["added_tokens_decoder"], f"{where}: added_tokens_decoder").items():
            added[_token_id(index, where)] = _added(token, f"{where}: added_tokens_decoder[{index}]")
    else:
        _merge_special_tokens_map(files, values, own)
        _merge_added_tokens(files, values, added)
        for entry in json_added_tokens or []:
            fields = dict(entry)
            index = fields.pop("id", None)
            added[_token_id(index, str(files.folder / TOKENIZER_JSON))] = _added(fields, TOKENIZER_JSON)
    return _assemble(values, own, added, where)


def _assemble(values: dict[str, Any], own: dict[str, Any], added: dict[int, AddedToken], where: str) -> SpecialTokens:
    by_text = {str(token): token for token in added.values()}
    named: dict[str, Token | None] = {}
    for name in STANDARD_NAMES:
        if name in values:
            token = _optional(values[name], f"{where}: {name}")
            named[name] = by_text.get(str(token), token) if token is not None else None
    for name, value in values.items():
        if name.endswith("_token") and name not in STANDARD_NAMES and isinstance(value, dict) and "content" in value:
            named[name] = _optional(value, f"{where}: {name}")
    for name, value in own.items():
        named[name] = _optional(value, f"{where}: {name}")
    given = "extra_special_tokens" in values
    extra_key = "extra_special_tokens" if given else "additional_special_tokens"
    extra = [_token(value, f"{where}: {extra_key}[{i}]") for i, value in enumerate(values.get(extra_key) or [])]
    return SpecialTokens(named=named, extra=extra, extra_given=given, added=added)


def _merge_special_tokens_map(files: TokenizerFiles, values: dict[str, Any], own: dict[str, Any]) -> None:
    where = str(files.folder / SPECIAL_TOKENS_MAP)
    for key, value in (files.special_tokens_map or {}).items():
        if key == "extra_special_tokens" and isinstance(value, list):
            merged = list(values.get(key) or [])
            merged += [entry for entry in value if entry not in merged]
            values[key] = merged
        elif key == "extra_special_tokens" and isinstance(value, dict):
            own.update(value)
        elif isinstance(value, dict):
            values[key] = _added({**value, "special": True}, f"{where}: {key}")
        elif value is None or isinstance(value, str | list):
            values[key] = value
        else:
            raise TokenizerError(f"{where}: {key} must be a token or a list of tokens, not {value!r}")


def _merge_added_tokens(files: TokenizerFiles, values: dict[str, Any], added: dict[int, AddedToken]) -> None:
    where = str(files.folder / ADDED_TOKENS)
    # A token that tokenizer_config.json gives as an object is not recognised here, as in transformers; a string is.
    special = {str(values[name]) for name in STANDARD_NAMES if values.get(name)}
    special |= {str(value) for value in values.get("extra_special_tokens") or []}
    for text, index in (files.added_tokens or {}).items():
        is_special = text in special
        added[_token_id(index, where)] = AddedToken(
            text, lstrip=False, rstrip=False, normalized=not is_special, special=is_special
        )


def register(backend: Tokenizer, tokens: SpecialTokens) -> None:
    """Adds the tokens to a backend as transformers does.

    A token that the vocabulary holds keeps its id; a new one gets the next free id, so the order matters: listed
    tokens by id, then named ones, then extra ones.
    """
    order: list[Token] = [tokens.added[index] for index in sorted(tokens.added)]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known |= {str(token) for token in order}
    names = {str(token) for token in tokens.named.values() if token}
    for candidate in (*tokens.named.values(), *tokens.extra):
        # Equal spellings with other flags are given to the backend too: the last one's flags count.
        if candidate is not None and str(candidate) not in known and candidate not in order:
            order.append(candidate)
    prepared = []
    for token in order:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif not token.special and str(token) in names:
            token.special = True
        prepared.append(token)
    if prepared:
        backend.add_tokens(prepared)


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TokenizerError(f"{what} must be an object, not {type(value).__name__}")
    return value


def _token_id(value: Any, where: str) -> int:
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TokenizerError(f"{where}: token id must be an integer >= 0, got {value!r}")
    return value


def _optional(value: Any, what: str) -> Token | None:
    return None if value is None else _token(value, what)


def _token(value: Any, what: str) -> Token:
    return value if isinstance(value, str | AddedToken) else _added(value, what)


def _added(value: Any, what: str) -> AddedToken:
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise TokenizerError(f'{what} must be a string or an object with "content", got {value!r}')
    flags = {flag: value[flag] for flag in _FLAGS if isinstance(value.get(flag), bool)}
    return AddedToken(value["content"], **flags)
