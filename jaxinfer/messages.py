"""What crosses the engine's process boundary: small, picklable, standard library only.

Towards the engine: `Submit`, `Abort`, `TellExpertLoad`, `Drain`, `Shutdown`. From it: `Ready` once, `Warmed` once where
that was said to come, one `StepOutputs` a step, `Rejected` for a request the engine cannot take, `ExpertLoad` when
asked for it, `Drained`, and `Died` as its last word.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jaxinfer.expert_load import ExpertLoad
from jaxinfer.sampling_params import MAX_LOGPROBS, SamplingParams

NO_LOGITS = "the model's logits are not numbers (NaN) for this request, so that no token can be chosen"
NO_TOKEN_LEFT = (
    "no token can be chosen: the request's other fields (allowed_token_ids, bad_token_ids, bad_words, logit_bias ...) "
    "forbid all that its structured output lets through, or the model's logits are not numbers (NaN)"
)


class ThinkingBudget(NamedTuple):
    """How long each answer to a request may reason; then it is closed.

    tokens: the most, tags not counted. begun: the answer begins inside the reasoning. opens, closes: the format's tags,
    in UTF-8. closing: the tokens that are put in where the model does not close it. channel: of formats whose answers
    are messages (Harmony), what stands before the name of a message's channel: reasoning may come again then, and
    counts on; `opens` begin with it. b"" where it comes once, at the beginning.
    """

    tokens: int
    begun: bool
    opens: tuple[bytes, ...]
    closes: tuple[bytes, ...]
    closing: tuple[int, ...]
    channel: bytes = b""


class Submit(NamedTuple):
    """A validated request. `seed` is resolved (0 <= seed < 2**64); `arrival` is seconds of time.monotonic().

    tenant: whom it is charged to; tenants share a busy engine by their weights (see scheduling/tenants.py).
    interval: how many tokens of a sequence are told at a time, behind the first, which is told at once. Where nobody
    reads an answer before its end, most of the work for a token is telling of it.
    constraint: a grammar, as llguidance's LLMatcher takes it, that every token of every answer must be let through by;
    "" for none.
    thinking: how long the answers may reason; None for as long as they like.
    bad_words: sequences of two tokens or more that no answer may hold.
    pins: (tokens, seconds) of each prefix of the prompt whose pages are to stay in the prefix cache for so long after
    each use, shortest first. pin_answer: seconds of the same for the prompt and as much of the answer as there is when
    it ends; 0.0 for none. What is pinned gives way before anybody waits (see scheduling/pins.py).
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    priority: int
    arrival: float
    cache_salt: str = ""
    tenant: str = ""
    weight: float = 1.0
    interval: int = 1
    constraint: str = ""
    pins: tuple[tuple[int, float], ...] = ()
    pin_answer: float = 0.0
    thinking: ThinkingBudget | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()

    @property
    def guided(self) -> bool:
        """Whether it is said from token to token what may come next."""
        return bool(self.constraint or self.bad_words or self.thinking is not None)


class Abort(NamedTuple):
    """Ends a request, or one of its sequences when `index` is given (its stop string was found on this side).

    The engine answers with a `SequenceOutput` whose finish reason is "abort" for each sequence that was still alive;
    aborting what has already finished or was never known does nothing.
    """

    request_id: str
    index: int | None = None  # type: ignore[assignment]  # shadows tuple.index


class Drain(NamedTuple):
    """Finish what was accepted, take nothing new, then say `Drained`."""


class Shutdown(NamedTuple):
    """Stop after the current step; whatever is unfinished is dropped."""


class TellExpertLoad(NamedTuple):
    """Asks for an `ExpertLoad` with all that was computed so far; the engine waits for the step that it has in flight.
    What a step's news have of it (`StepOutputs.expert_load`) costs no such wait."""


class TokenLogprobs(NamedTuple):
    """Log-probabilities (natural log, raw logits) at one position; `rank` is 1 for the most likely token.

    `top` holds (token id, logprob) pairs, best first, as many as the request asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class SequenceAccount(NamedTuple):
    """What one sequence took, told once, when it ends. Times are time.monotonic() of the machine that both ends run on.

    started: when it was first planned, 0.0 for never. chunks: rows of its prompt, recomputed ones included. pages: held
    at its end. device_seconds, padded_tokens: its share of its steps, by tokens. computed_tokens: all rows together.
    """

    started: float
    chunks: int
    pages: int
    preemptions: int
    computed_tokens: int
    padded_tokens: float
    device_seconds: float


class SequenceOutput(NamedTuple):
    """One sequence's news. token_ids: its new tokens, in order, of one step or of several (see `Submit.interval`);
    none when it finished without one (abort, error). logprobs: an entry for each of them, None where the request asks
    for none.

    "error" ends all sequences of a request at once, for the reason that `message` says. All but `NO_LOGITS` lie in what
    the request asks for. pinned_tokens: how much of the prompt, from its beginning on, the request has pinned so far.
    """

    request_id: str
    index: int  # type: ignore[assignment]  # shadows tuple.index
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: str | None  # "stop" | "length" | "abort" | "error"
    stop_token: int | None  # what ended it: one of stop_token_ids or an end token
    cached_tokens: int
    account: SequenceAccount | None = None  # with the finish reason
    message: str = ""  # with "error"
    pinned_tokens: int = 0

    def followed_by(self, later: SequenceOutput) -> SequenceOutput:
        """Both as one."""
        logprobs = self.logprobs
        if logprobs is not None and later.logprobs is not None:
            logprobs += later.logprobs
        return SequenceOutput(
            later.request_id,
            later.index,
            self.token_ids + later.token_ids,
            logprobs,
            later.finish_reason,
            later.stop_token,
            later.cached_tokens,
            later.account,
            later.message,
            later.pinned_tokens,
        )


class PromptScored(NamedTuple):
    """Prompt log-probabilities of positions start+1 .. start+len(entries) (position 0 has none)."""

    request_id: str
    start: int
    entries: tuple[TokenLogprobs, ...]


class PinStats(NamedTuple):
    """pages: that pins hold now. The others count pins since start-up: begun, ended when their time was over, ended
    before."""

    pages: int = 0
    made: int = 0
    expired: int = 0
    evicted: int = 0


class TenantPins(NamedTuple):
    """What one tenant has pinned: pins, the pages that they hold together and may hold at most, the tokens of the
    longest, and seconds until the last one ends unless it is used before."""

    tenant: str
    pins: int
    pages: int
    max_pages: int
    longest: int
    seconds: float


@dataclass(slots=True)
class EngineStats:
    """A snapshot after a step; counters run from start-up."""

    running: int = 0
    waiting: int = 0
    total_pages: int = 0
    free_pages: int = 0  # without content, or cached and evictable
    cached_pages: int = 0  # evictable with content
    steps: int = 0
    scheduled_tokens: int = 0
    padded_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    forced_tokens: int = 0  # known without drawing, since a grammar left no choice
    constrained_requests: int = 0
    constraint_seconds: float = 0.0  # compiling grammars, in threads
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens found
    pinned_pages: int = 0  # whether somebody owns them or not
    pins_made: int = 0
    pins_expired: int = 0
    pins_evicted: int = 0  # ended before their time was over
    compilations_after_ready: int = 0

    def copy(self) -> EngineStats:
        return replace(self)


class StepTimes(NamedTuple):
    """Where the engine's one thread spent its seconds since start-up; together the time that it was not idle.

    schedule: planning. dispatch: packing arrays and launching. device: waiting for results. update: taking them.
    messages: reading submissions and posting outputs. masks: saying what grammars let through. starved_steps found the
    device without work when they were launched; starved_seconds, the host's time before those launches, is the most
    that the device idled.
    """

    schedule: float = 0.0
    dispatch: float = 0.0
    device: float = 0.0
    update: float = 0.0
    messages: float = 0.0
    starved_steps: int = 0
    starved_seconds: float = 0.0
    masks: float = 0.0


NO_TIMES = StepTimes()


@dataclass(slots=True)
class StepOutputs:
    """Everything the engine has to say after one step, or after several where the listener was busy meanwhile (`add`):
    one message, one wake-up of the listener.

    expert_load: since start-up, of models with experts: about once a second, and always with the last step before the
    engine is idle; None in between. pins: what each tenant has pinned, as often where that has changed.
    """

    sequences: list[SequenceOutput] = field(default_factory=list)
    prompts: list[PromptScored] = field(default_factory=list)
    stats: EngineStats = field(default_factory=EngineStats)
    times: StepTimes = NO_TIMES
    expert_load: ExpertLoad | None = None
    pins: tuple[TenantPins, ...] | None = None

    def add(self, later: StepOutputs) -> None:
        """Takes in a later step's news: a sequence's tokens join those that it has here, in order. An "error" stays
        apart, so that the tokens before it reach their reader."""
        mine, places = self.sequences, dict[tuple[str, int], int]()
        known = len(mine)
        for i, output in enumerate(later.sequences):
            request_id, index = output.request_id, output.index
            if i < known and mine[i].request_id == request_id and mine[i].index == index:
                place: int | None = i  # the usual case: two steps of the same rows
            else:
                places = places or {(each.request_id, each.index): j for j, each in enumerate(mine[:known])}
                place = places.get((request_id, index))
            if place is None or output.finish_reason == "error":
                mine.append(output)
            else:
                mine[place] = mine[place].followed_by(output)
        self.prompts += later.prompts
        self.stats, self.times = later.stats, later.times
        self.expert_load = later.expert_load or self.expert_load
        self.pins = self.pins if later.pins is None else later.pins


class Rejected(NamedTuple):
    """The engine refused a submission. `kind` is "invalid", "duplicate" or "draining"."""

    request_id: str
    kind: str
    message: str


class EngineInfo(NamedTuple):
    """What the engine settled on; sent with `Ready`. Plain data."""

    model: str
    architecture: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    num_pages: int
    dtype: str
    tensor_parallel_size: int
    device: str
    backends: dict[str, str]
    eos_token_ids: tuple[int, ...]
    notes: tuple[str, ...]
    executables: tuple[tuple[str, float], ...]  # (bucket name, seconds to compile)
    extra: dict[str, Any]
    max_logprobs: int = MAX_LOGPROBS  # alternatives that a request may ask for at a position
    num_page_tables: int = 1  # of a sequence: so many pages hold page_size tokens in all layers
    expert_parallel_size: int = 1
    expert_layers: tuple[tuple[int, int], ...] = ()  # layers with experts, counted from 0: (layer, its experts)
    max_pinned_pages: int = 0  # that pins of prefixes hold, at most; 0: nothing is pinned
    window_tokens: int | None = None  # of the longest sequence in the pool, where windows give pages back; else None

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV pool holds in all layers; page 0 is the null page."""
        return (self.num_pages - 1) // self.num_page_tables * self.page_size

    @property
    def pool_length(self) -> int:
        """Tokens of the longest sequence that the pool holds, output included: its last token's KV is never needed."""
        return 1 + (self.kv_tokens if self.window_tokens is None else self.window_tokens)


class Progress(NamedTuple):
    """Start-up news: `stage` is "load", in bytes of weights, or "warmup", in programs: `done` of `total`."""

    stage: str
    done: int
    total: int
    detail: str


class Ready(NamedTuple):
    """Requests are served. warming: programs are still being compiled, so that steps are small; `Warmed` follows."""

    info: EngineInfo
    warming: bool = False


class Warmed(NamedTuple):
    """All programs are compiled. info: with all of them."""

    info: EngineInfo


class Drained(NamedTuple):
    pass


class Died(NamedTuple):
    """The engine failed; nothing follows. `error` is the one-line reason, `traceback` for the log."""

    error: str
    traceback: str
