"""The tokenizer that the engine's callers hold: text to ids, ids to text, chats to either."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from jaxinfer.errors import PromptTooLong, TextError, TooManyTokens
from jaxinfer.text.chat import ChatTemplates
from jaxinfer.text.decoding import DecodePlan, clean_up
from jaxinfer.text.length_bound import LengthBound
from jaxinfer.text.within import encoder_within

# The library's `encode` and `decode` keep the interpreter to themselves, all of its threads waiting; its calls for a
# batch do not. Up to here there is nothing to gain: it takes less than a millisecond or two.
_SHORT_TEXT = 2048  # characters
_SHORT_IDS = 2048
_LOOK_BACK = 64  # characters in front of a place that are asked for a token
_FEW = 8  # ids that are sooner looked at one by one
_SLICE = 1 << 16  # ids that one call of the interpreter looks at


class Tokenizer:
    """A loaded tokenizer. Made by `load_tokenizer`; immutable; safe to use from several threads.

    Ids and texts are those of transformers 5 for the same folder.

    Attributes:
        notes: sentences about where the loaded pipeline departs from the folder's files, because transformers does.
        content_digest: sha256 (hex) of the tokenizer's files and of the class rules applied to them. Two folders with
            equal digests give equal ids, texts and rendered chats.
        decode_plan: for incremental detokenization.
        length_bound: how much text so many tokens can be at most; None for a pipeline of which nothing can be said.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        plan: DecodePlan,
        special_tokens: Mapping[str, str],
        chat_templates: ChatTemplates,
        content_digest: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        self._chat = chat_templates
        self.decode_plan = plan
        self.content_digest = content_digest
        self.notes = notes
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self.length_bound = LengthBound.of(backend)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's embedding may have more rows."""
        size: int = self._backend.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def special_tokens(self) -> dict[str, str]:
        """Named special tokens that are set: "bos_token" -> "<s>" and so on."""
        return dict(self._special_tokens)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that starts a text; None when the tokenizer names none."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the tokenizer's own end token. A model's stop ids come from its configs, and may be several."""
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of the padding token; None when the tokenizer names none."""
        return self._named_id("pad_token")

    def _named_id(self, name: str) -> int | None:
        text = self._special_tokens.get(name)
        index: int | None = None if text is None else self._backend.token_to_id(text)
        return index

    def is_special(self, index: int) -> bool:
        """Whether `skip_special_tokens` drops this token."""
        return index in self._special_ids

    def token_id(self, token: str) -> int | None:
        """Id of the token with this spelling; None when there is none."""
        index: int | None = self._backend.token_to_id(token)
        return index

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds to a text (not at its start, where some tokenizers drop a space); b"" for an id
        without a token. Bytes of a token of half a character are no valid UTF-8.

        Raises:
            TextError: not an integer >= 0.
        """
        check_ids("token id", [index])
        plan = self.decode_plan
        if plan.piece(index) is None:
            return b""
        if plan.byte_level:
            return plan.token_bytes(index)
        byte = plan.fallback_byte(index)
        return plan.fragment(index).encode() if byte is None else bytes((byte,))

    def encoder_within(self) -> Callable[[str], list[int]]:
        """Encodes text as it is within another text; see `jaxinfer/text/within.py`. It has a copy of the vocabulary."""
        return encoder_within(self._backend)

    def token_to_piece(self, index: int) -> str:
        """The token's spelling in the vocabulary ("▁the", "Ġthe", "<0x0A>"); "" for an id without a token.

        Models often have more embedding rows than the tokenizer has tokens, so such an id is not an error.

        Raises:
            TextError: not an integer >= 0.
        """
        check_ids("token id", [index])
        return self.decode_plan.piece(index) or ""

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Ids of a text prompt. Other threads run meanwhile, however long it is.

        Special tokens (BOS, EOS) are added as the tokenizer's post-processor says, whatever the text starts with: a
        text that spells BOS itself gets it twice, as in transformers. Use `encode_chat` for rendered chats.

        Args:
            text: any text without lone surrogates; special tokens spelled in it are recognised.
            add_special_tokens: whether to add BOS/EOS.
            truncate_prompt_tokens: keep at most so many ids, the last ones of the text between the BOS and EOS that
                are added, as truncation on the left does in transformers (and so in vLLM). A BOS that the text spells
                is text. A number smaller than that of the added ids keeps the last of all.
            max_tokens: the caller's limit. A text that is certainly longer, going by its characters, is not tokenized;
                of any other that is longer no list of ids is made.

        Raises:
            PromptTooLong, TooManyTokens: by `max_tokens`, before and after the text was tokenized.
            TextError: text is not a string, holds a lone surrogate, or holds something that the vocabulary cannot
                express; truncate_prompt_tokens is not an integer >= 1.
        """
        check_text("text", text)
        _check_truncation(truncate_prompt_tokens)
        self._check_length(text, max_tokens)
        try:
            if len(text) <= _SHORT_TEXT:
                found = self._backend.encode(text, add_special_tokens=add_special_tokens)
            else:
                found = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except Exception as error:  # the library raises bare exceptions, such as for a character without a token
            raise TextError(f"text cannot be encoded by this tokenizer: {error}") from error
        if max_tokens is not None and len(found) > max_tokens:
            raise TooManyTokens(len(found), max_tokens)
        ids: list[int] = found.ids
        if truncate_prompt_tokens is None or len(ids) <= truncate_prompt_tokens:
            return ids
        return _cut_left(ids, found.special_tokens_mask, truncate_prompt_tokens)

    def encode_with_places(
        self, text: str, places: Sequence[int], *, max_tokens: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids as `encode` gives them without adding special ones, and for each place in the text, counted in
        characters, how many of them are wholly in front of it; where characters have no token it may be a few less.

        Raises:
            PromptTooLong, TooManyTokens, TextError: as `encode`.
        """
        check_text("text", text)
        self._check_length(text, max_tokens)
        try:  # not the fast kind, which does not say what became of which character
            found = self._backend.encode_batch([text], add_special_tokens=False)[0]
        except Exception as error:
            raise TextError(f"text cannot be encoded by this tokenizer: {error}") from error
        if max_tokens is not None and len(found) > max_tokens:
            raise TooManyTokens(len(found), max_tokens)
        return found.ids, [_tokens_before(found, place, len(text)) for place in places]

    def _check_length(self, text: str, max_tokens: int | None) -> None:
        bound = self.length_bound
        if max_tokens is not None and bound is not None and bound.exceeded(text, max_tokens):
            raise PromptTooLong(len(text), bound.characters(max_tokens), max_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids, as transformers gives it. Ids without a token are dropped; broken UTF-8 becomes U+FFFD. Other
        threads run meanwhile, however many they are.

        Raises:
            TextError: an id is not an integer >= 0.
        """
        check_ids("ids", ids)
        if len(ids) <= _SHORT_IDS:
            text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        else:
            skipped = self._special_ids if skip_special_tokens else frozenset()
            text = "".join(self.decode_plan.text_in_slices(ids, skipped, _SHORT_IDS))
        return clean_up(text) if self.decode_plan.clean_up else text

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The folder's chat template: its source, or name -> source where it has several; None when it has none."""
        return self._chat.source

    def with_chat_template(self, source: str, where: str) -> Tokenizer:
        """The same tokenizer with a chat template (Jinja) in the place of the folder's. where: for messages. Raises
        ChatTemplateError where it does not compile."""
        chat = ChatTemplates(source, where)
        chat.check()
        found = copy.copy(self)
        found._chat = chat
        found.content_digest = hashlib.sha256(f"{self.content_digest}{source}".encode()).hexdigest()
        return found

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        continue_final: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """Renders a conversation as transformers' apply_chat_template(tokenize=False) does.

        The template is given what vLLM would give it: absent, null and empty values mean the same (content "", no
        `tool_calls`), arguments of calls are objects ({} where they cannot be read), a list of parts reaches templates
        that take one and is joined by line breaks for others.

        Args:
            messages: at least one {"role": str, "content": str or [{"type": "text", "text": str}, ...], ...}. Further
                keys (`tool_calls`, `name`, `reasoning_content` ...) reach the template.
            add_generation_prompt: end with the opening of an assistant message.
            tools: JSON schemas of callable functions.
            template: Jinja source, or the name of one of the folder's templates; default: the folder's own
                ("tool_use", where there is one and tools are given).
            continue_final: end with the last message's text, without what closes a message, for the model to
                go on with it; instead of `add_generation_prompt`.
            **template_kwargs: further variables of the template (`documents`, `enable_thinking`, ...). They win over
                the special tokens, which are variables too.

        Raises:
            ChatMessageError: a malformed message, tool or variable; names the field.
            ChatTemplateError: no template, a template that does not compile, or one that refuses the conversation.
        """
        return self._chat.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            template=template,
            variables=template_kwargs,
            special_tokens=self._special_tokens,
            settle=True,
            continue_final=continue_final,
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        truncate_prompt_tokens: int | None = None,
        max_tokens: int | None = None,
        **template_kwargs: Any,
    ) -> list[int]:
        """Ids of a rendered chat. The template writes all special tokens itself, so none are added.

        Arguments and errors are those of `render_chat` and `encode`.
        """
        _check_truncation(truncate_prompt_tokens)
        text = self.render_chat(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, template=template, **template_kwargs
        )
        return self.encode(
            text, add_special_tokens=False, truncate_prompt_tokens=truncate_prompt_tokens, max_tokens=max_tokens
        )


def _tokens_before(encoding: Encoding, place: int, length: int) -> int:
    """The token that has the character at `place`, or, where that has none, the nearest one in front of it."""
    if place >= length:
        return len(encoding)
    for character in range(place, max(-1, place - _LOOK_BACK), -1):
        token: int | None = encoding.char_to_token(character)
        if token is not None:
            return token
    return 0


def check_text(name: str, text: object) -> None:
    """Raises TextError unless `text` is a string that UTF-8 can carry."""
    if not isinstance(text, str):
        raise TextError(f"{name} must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"{name} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}; "
            "text must be valid Unicode"
        ) from error


def check_ids(name: str, ids: Sequence[int]) -> None:
    """Raises TextError unless every id is an integer in 0..2**32-1 (what the tokenizers library can hold)."""
    position = first_bad_id(ids, 1 << 32)
    if position is not None:
        raise TextError(f"{name}[{position}] must be an integer in 0..{(1 << 32) - 1}, got {ids[position]!r}")


def first_bad_id(ids: Sequence[int], end: int) -> int | None:
    """Position of the first entry that is no integer in 0..end-1; None where all are. In slices, so that no call of
    the interpreter is long."""
    for start in range(0, len(ids), _SLICE):
        part = ids if len(ids) <= _SLICE else ids[start : start + _SLICE]
        if len(part) > _FEW and set(map(type, part)) == {int} and min(part) >= 0 and max(part) < end:
            continue
        for position, index in enumerate(part, start):
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < end:
                return position
    return None


def _cut_left(ids: list[int], added: list[int], limit: int) -> list[int]:
    """At most `limit` ids: the last of the text's, between those that the post-processor added (1 in `added`).

    Not the library's own truncation: it is a setting of the tokenizer that all threads share, and it makes an object of
    every stretch of `limit` ids that it cuts off.
    """
    start = next((i for i, mark in enumerate(added) if not mark), len(ids))
    end = next((i for i in range(len(ids), start, -1) if not added[i - 1]), start)
    room = limit - start - (len(ids) - end)
    return ids[-limit:] if room < 0 else [*ids[:start], *ids[end - room : end], *ids[end:]]


def _check_truncation(value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise TextError(f"truncate_prompt_tokens must be an integer >= 1 or None, got {value!r}")
