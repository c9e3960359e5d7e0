"""A request between a server and the engine: what every server makes of what its client sent, and its check.

A server turns its own message into a `GenerationRequest`; everything after that is the same for all. Errors name the
field by the names here, which are those of jaxinfer.SamplingParams and of the gRPC interface; a server whose clients
write other names translates (see serving/http/convert.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from jaxinfer.constraints.budget import thinking_budget
from jaxinfer.constraints.calls import ToolRules
from jaxinfer.constraints.constraint import constrained
from jaxinfer.errors import Gathering, InvalidRequest, PromptTooLong, TooManyTokens, one_of
from jaxinfer.messages import EngineInfo, Submit
from jaxinfer.outputs import prompt_end_of
from jaxinfer.sampling_params import FIELDS, SamplingParams, as_token_ids
from jaxinfer.text import AnswerReading, PromptEnd, Tokenizer, stop_automaton
from serving.access.caller import Caller
from serving.bad_words import bad_sequences, with_bad_words
from serving.cache_marks import Messages, Tools, marked_places, without_marks
from serving.errors import Refusal
from serving.prompts import ChatPrompt as ChatPrompt
from serving.prompts import Pins
from serving.prompts import Prompt as Prompt
from serving.prompts import TextPrompt as TextPrompt
from serving.prompts import TokenPrompt as TokenPrompt
from serving.sizes import MAX_MESSAGES as MAX_MESSAGES
from serving.sizes import MAX_TOOLS as MAX_TOOLS
from serving.sizes import check_chat, fit_context, too_many_characters, too_many_tokens
from serving.sizes import check_count as check_count

MAX_REQUEST_ID = 128  # characters
MAX_CACHE_SALT = 256  # characters

# Variables of a chat template that have a field of their own, or none here.
_RESERVED_VARIABLES = frozenset({"messages", "tools", "template", "truncate_prompt_tokens", "self"}) | {
    *("add_generation_prompt", "continue_final", "continue_final_message")
}
# Tokens of an answer that nobody reads before its end, told to the server at a time: enough that telling costs little,
# few enough that limits and metrics follow.
UNREAD_INTERVAL = 32
NO_TOKENS = "this server filters its answers and gives no tokens of them"
_NO_TOKENIZER = "this server runs without a tokenizer and takes token ids only"


@dataclass(frozen=True)
class ModelContext:
    """What requests are checked against.

    aliases: further names that requests may give the model. defaults: sampling fields that the model's generation
    config sets. draw_seed: gives a seed (64 bits) to a request that has none. filter_prompt: the operator's; raises
    Refusal or InvalidRequest. gives_tokens: answers come with token ids and log-probabilities, not as filtered text
    only. trusts_chat_templates: a chat template may be one that the request brings.
    """

    info: EngineInfo
    name: str
    tokenizer: Tokenizer | None
    defaults: Mapping[str, Any]
    draw_seed: Callable[[], int]
    filter_prompt: Callable[[Prompt], Prompt] | None = None
    gives_tokens: bool = True
    aliases: tuple[str, ...] = ()
    trusts_chat_templates: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All of the model's; answers are of the first."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a client asked for. `sampling` holds the fields of SamplingParams that it set, unchecked; `defaults` what
    the server sets where neither client nor model does. request_id "" lets the server draw one, model "" is the served
    one. kept_tokens: special tokens that stay in the text all the same. reading: given the prompt's ids, how the server
    parses the answers, if it does; where the model reasons first, stop strings wait for the answer then. suffix: what
    the server puts behind a request_id of the client's, to tell several of one name apart. shows_prompt: the answer has
    the prompt's text, which is made of its ids where the client gave those or a limit. user: whom the client serves, as
    OpenAI's field says. calls: what must hold for the calls of its answers. ignored: names of what else the
    client sent, without effect. keeps_beginning: a prompt that truncate_prompt_tokens cuts keeps its first tokens, not
    its last. bad_words: texts that are never generated. interval: tokens of a stream that are sent at once, but one.
    pin_answer: seconds for which prompt and answer are pinned."""

    prompt: Prompt
    sampling: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    model: str = ""
    priority: int = 0
    cache_salt: str = ""
    final_only: bool = False
    kept_tokens: frozenset[int] = frozenset()
    suffix: str = ""
    reading: Callable[[Tokenizer, tuple[int, ...]], AnswerReading] | None = None
    shows_prompt: bool = False
    user: str = ""
    calls: ToolRules | None = None
    ignored: tuple[str, ...] = ()
    keeps_beginning: bool = False
    bad_words: tuple[str, ...] = ()
    interval: int = 1
    pin_answer: float = 0.0


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that passed every check of this side: what the engine gets, and what the server keeps to answer it.

    Args:
        submit: For the engine, with `params.max_tokens` and `seed` resolved; under the client's id and salt until it is
            sent (`sent_as`).
        text: The prompt's, where the client gave it as text or its answer shows it.
        final_only: Nothing of the answer is read before its end.
        kept_tokens: Special tokens that stay in the text all the same.
        reading: How the answers are parsed, where they are.
        prompt_end: What its sequences must know of the prompt, made here because that takes time in proportion to it.
        user: Whom the client serves, for the records.
        ignored: Names of what had no effect, for the records.
        asked_tokens: The max_tokens that the client would take, of which the context may leave less; None: no limit.
        interval: Tokens of a stream that are sent at once, behind the first.
    """

    submit: Submit
    text: str | None = None
    final_only: bool = False
    kept_tokens: frozenset[int] = frozenset()
    reading: AnswerReading | None = None
    prompt_end: PromptEnd | None = None
    user: str = ""
    ignored: tuple[str, ...] = ()
    asked_tokens: int | None = None
    interval: int = 1

    @property
    def request_id(self) -> str:
        """The client's."""
        return self.submit.request_id

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of the prompt."""
        return self.submit.prompt_token_ids

    @property
    def params(self) -> SamplingParams:
        return self.submit.params

    def sent_as(self, engine_id: str, arrival: float, caller: Caller, *, judged: bool = False) -> Submit:
        """What the engine gets. arrival: seconds of time.monotonic(). judged: an output filter looks at the answer."""
        submit = self.submit
        at_once = submit.params.stop or judged  # what ends an answer on this side
        interval = UNREAD_INTERVAL if self.final_only else self.interval
        return submit._replace(
            request_id=engine_id,
            arrival=arrival,
            cache_salt=caller.salt(submit.cache_salt),
            tenant=caller.tenant,
            weight=caller.weight,
            interval=1 if at_once else interval,
        )


def prepare(request: GenerationRequest, context: ModelContext) -> PreparedRequest:
    """Checks and tokenizes: sizes first, then what costs time in proportion to them. May take long for long texts, and
    other threads run meanwhile. Raises one of `BAD_INPUT`, or Refusal."""
    request_id, params = check_fields(request, context)
    prompt = request.prompt
    if params.truncate_prompt_tokens is None:
        refuse_too_long(prompt, context)
    if context.filter_prompt is not None:
        prompt = context.filter_prompt(prompt)
    limit = params.prompt_limit(context.info.max_model_len)
    ids, pins = _encode(prompt, context, limit, must_fit=True, keeps_beginning=request.keeps_beginning)
    asked_tokens = params.max_tokens
    params = fit_context(params, len(ids), context.info)
    seed = context.draw_seed() if params.seed is None else params.seed & (2**64 - 1)
    tokenizer, text = context.tokenizer, prompt.text if isinstance(prompt, TextPrompt) else None
    if request.shows_prompt and tokenizer is not None and (text is None or params.truncate_prompt_tokens is not None):
        text = tokenizer.decode(ids, skip_special_tokens=params.skip_special_tokens)
    stop_automaton(params.stop)  # made here, which for a long request is beside the event loop
    reading = None if request.reading is None or tokenizer is None else request.reading(tokenizer, ids)
    thinking = thinking_budget(params.thinking_token_budget, reading, tokenizer, ids)
    constraint, reading = constrained(params.structured_outputs, request.calls, reading, tokenizer)
    params = params.with_changes(structured_outputs=None, thinking_token_budget=None)  # it is told by the two alone
    submit = Submit(request_id, ids, params, seed, request.priority, 0.0, request.cache_salt, constraint=constraint)
    return PreparedRequest(
        submit._replace(
            thinking=thinking,
            bad_words=bad_sequences(request.bad_words, tokenizer),
            pins=tuple(pins),
            pin_answer=request.pin_answer,
        ),
        text,
        request.final_only,
        request.kept_tokens,
        reading,
        prompt_end_of(tokenizer, ids, params, request.kept_tokens),
        request.user,
        request.ignored,
        asked_tokens,
        request.interval,
    )


def check_fields(request: GenerationRequest, context: ModelContext) -> tuple[str, SamplingParams]:
    """All but the prompt: id and sampling parameters. Raises InvalidRequest with every fault, or Refusal."""
    gathering = Gathering()
    with gathering:
        request_id = _request_id(request.request_id, request.suffix)
    check_model(request.model, context)
    with gathering:
        if request.pin_answer and not context.info.max_pinned_pages:
            raise InvalidRequest("session_id", "given", "this server pins nothing (--max-pinned-ratio)")
    with gathering:
        if len(request.cache_salt) > MAX_CACHE_SALT:
            raise InvalidRequest("cache_salt", request.cache_salt, f"at most {MAX_CACHE_SALT} characters are allowed")
    with gathering:
        if not -(2**31) <= request.priority < 2**31:
            raise InvalidRequest("priority", request.priority, "it must be a 32-bit integer")
    with gathering:
        given = with_bad_words(request.sampling, request.bad_words, context.tokenizer)
        params = sampling_params(given, context, request.defaults)
        if params.logprobs is not None and not context.gives_tokens:
            raise InvalidRequest("logprobs", params.logprobs, NO_TOKENS)
    gathering.done()
    return request_id, params


def check_model(name: str, context: ModelContext) -> None:
    """Raises Refusal unless the name is one of the served model's, or empty."""
    if name and name not in context.names:
        shown = repr(name if len(name) <= MAX_REQUEST_ID else name[:MAX_REQUEST_ID] + "...")
        served = " and ".join(map(repr, context.names))
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"model is {shown}; this server serves {served} only")


def _request_id(given: str, suffix: str) -> str:
    if not given:
        return secrets.token_hex(16)
    if len(given) > MAX_REQUEST_ID or not (given.isascii() and given.isprintable()):
        raise InvalidRequest("request_id", given, f"it must be 1 to {MAX_REQUEST_ID} printable ASCII characters")
    return given + suffix


def sampling_params(
    given: Mapping[str, Any], context: ModelContext, server_defaults: Mapping[str, Any] | None = None
) -> SamplingParams:
    """The model's defaults overlaid by the server's and by what the client set; max_tokens None where nobody says
    anything."""
    if context.tokenizer is None:
        for name, declared in FIELDS.items():
            if declared.needs_tokenizer and given.get(name, declared.default) != declared.default:
                raise InvalidRequest(name, given[name], _NO_TOKENIZER)
    values = {"max_tokens": None, **context.defaults, **(server_defaults or {})}
    if "max_tokens" not in given and given.get("min_tokens", 0) > (values["max_tokens"] or 0):
        values["max_tokens"] = None  # a default must not contradict what the client asked for
    try:
        return _params({**values, **given}, context)
    except InvalidRequest as error:
        raise _with_others(error, given, context) from error


def _params(values: Mapping[str, Any], context: ModelContext) -> SamplingParams:
    params = SamplingParams(**values)
    params.check_vocabulary(context.info.vocab_size)
    return params.resolve_logprobs(context.info.vocab_size, context.info.max_logprobs)


def _with_others(error: InvalidRequest, given: Mapping[str, Any], context: ModelContext) -> InvalidRequest:
    """What is wrong with each field by itself, or else `error`, which is with several together."""
    gathering = Gathering()
    for name, value in given.items():
        with gathering:
            _params({"max_tokens": None, name: value}, context)
    return one_of(gathering.faults or [error])


def refuse_too_long(prompt: Prompt, context: ModelContext) -> None:
    """Raises InvalidRequest for a prompt that its length alone shows to be too long. What a template makes of a chat is
    known when it is rendered."""
    context_len = context.info.max_model_len
    if isinstance(prompt, TokenPrompt) and len(prompt.token_ids) >= context_len:
        raise too_many_tokens(len(prompt.token_ids), context_len)
    bound = None if context.tokenizer is None else context.tokenizer.length_bound
    if isinstance(prompt, TextPrompt) and bound is not None and bound.exceeded(prompt.text, context_len - 1):
        raise too_many_characters(len(prompt.text), bound.characters(context_len - 1), context_len)


def encode_prompt(prompt: Prompt, context: ModelContext, *, must_fit: bool = False) -> tuple[int, ...]:
    """Ids of a prompt. must_fit: see `_encode`. Raises as `prepare`."""
    return _encode(prompt, context, must_fit=must_fit)[0]


def _encode(
    prompt: Prompt,
    context: ModelContext,
    limit: int | None = None,
    *,
    must_fit: bool = False,
    keeps_beginning: bool = False,
) -> tuple[tuple[int, ...], Pins]:
    """Ids of a prompt, and what is to be pinned of one that is not cut. limit: keep only the last so many, or the
    first. must_fit: a text that cannot be short enough for the context is refused before it is tokenized, unless there
    is a limit."""
    if isinstance(prompt, TokenPrompt):
        ids = as_token_ids("token_ids", prompt.token_ids, context.info.vocab_size)
        return ids if limit is None else ids[:limit] if keeps_beginning else ids[-limit:], ()
    tokenizer, context_len = context.tokenizer, context.info.max_model_len
    if tokenizer is None:
        raise InvalidRequest("prompt", "text" if isinstance(prompt, TextPrompt) else "chat", _NO_TOKENIZER)
    text, marks = _text_of(prompt, context, tokenizer)
    special = isinstance(prompt, TextPrompt) and prompt.add_special_tokens
    most, cut = context_len - 1 if must_fit and limit is None else None, None if keeps_beginning else limit
    pins: Pins = ()
    try:
        if marks and limit is None:
            found, ends = tokenizer.encode_with_places(text, [place for place, _ in marks], max_tokens=most)
            pins = tuple((end, seconds) for end, (_, seconds) in zip(ends, marks, strict=True))
        else:
            found = tokenizer.encode(text, add_special_tokens=special, truncate_prompt_tokens=cut, max_tokens=most)
    except TooManyTokens as error:
        raise too_many_tokens(error.count, context_len) from error
    except PromptTooLong as error:
        raise too_many_characters(error.characters, error.allowed, context_len) from error
    return as_token_ids("prompt", found[:limit] if keeps_beginning else found, context.info.vocab_size), pins


def _text_of(prompt: TextPrompt | ChatPrompt, context: ModelContext, tokenizer: Tokenizer) -> tuple[str, Pins]:
    """The text, and where its marks are, in characters."""
    if isinstance(prompt, TextPrompt):
        return prompt.text, ()
    if not prompt.marked:
        return _render_chat(prompt, context, tokenizer), ()

    def render(messages: Messages, tools: Tools) -> str:
        return _render_chat(replace(prompt, messages=messages, tools=tools), context, tokenizer)

    text = render(*without_marks(prompt.messages, prompt.tools))
    return text, marked_places(prompt.messages, prompt.tools, text, render)


def _render_chat(chat: ChatPrompt, context: ModelContext, tokenizer: Tokenizer) -> str:
    """The template writes all special tokens itself."""
    for name in chat.variables:
        if name in _RESERVED_VARIABLES:
            raise InvalidRequest("template_variables", name, "this is not a variable that a request may set")
    check_chat(chat.messages, chat.tools or (), chat.variables)
    # A template is a program: only the model's own are run, chosen by name, unless the operator trusts requests.
    names = chat_template_names(tokenizer)
    if chat.template and chat.template not in names and not context.trusts_chat_templates:
        allowed = f"the model's chat templates are {list(names)}; others need --trust-request-chat-template"
        raise InvalidRequest("template", chat.template, allowed)
    by_name = isinstance(tokenizer.chat_template, dict) or chat.template not in names
    return tokenizer.render_chat(
        chat.messages,
        add_generation_prompt=chat.add_generation_prompt,
        tools=chat.tools or None,
        template=chat.template if chat.template and by_name else None,
        continue_final=chat.continue_final_message,
        **chat.variables,
    )


def chat_template_names(tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """Names of the model's chat templates; a single one is called "default"."""
    source = None if tokenizer is None else tokenizer.chat_template
    return () if source is None else tuple(source) if isinstance(source, dict) else ("default",)
