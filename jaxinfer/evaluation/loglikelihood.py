"""How likely a model finds given text: a continuation after a context, or a whole document. No jax.

The engine reads the text as a prompt, with `prompt_logprobs`, and generates one token that nobody looks at. What counts
as context and what as continuation follows the model guide of EleutherAI's lm-evaluation-harness, so that results can
be compared; where this module departs from its transformers backend, the docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from jaxinfer.messages import EngineInfo, TokenLogprobs
from jaxinfer.outputs import RequestOutput
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import Tokenizer, TokenizerError

_SCORE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=0)
# An entry takes about 200 bytes and stays until its call ends: this many tokens are 100 MB, and plenty to fill batches.
_TOKENS_PER_CALL = 1 << 19


class ScoringError(ValueError):
    """Something that cannot be scored: nothing to score, or more than the context holds. Names the entry and limit."""


class ScoringEngine(Protocol):
    """What scoring needs of an engine; `jaxinfer.LLM` is one."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams],
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]: ...


class Pair(NamedTuple):
    """Token ids: the first may be shortened from the left, the second are scored, all of them."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    """How likely a continuation or a document is.

    Attributes:
        logprob: natural logarithm of the probability of all scored tokens together, from the raw logits.
        is_greedy: whether every scored token is the likeliest one; a tie for the first place counts.
        tokens: how many tokens were scored.
        truncated: how many tokens of the context did not fit and were left out, counted from its start.
    """

    logprob: float
    is_greedy: bool
    tokens: int
    truncated: int


class LoglikelihoodScorer:
    """Scores token ids, and texts when there is a tokenizer. Holds no state between calls.

    Args:
        llm: the engine.
        tokenizer: the model's; None leaves the methods that take token ids.
        max_length: tokens of context and continuation and one more, which the engine must generate; at most, and by
            default, the engine's max_model_len.
        prefix_token_id: what stands before a text that has no context. Default: the tokenizer's BOS, else its EOS,
            else the model's first end-of-sequence token.
        add_bos_token: None encodes a context as the tokenizer does by itself, True puts BOS first in any case, False
            adds no special token. A text that spells BOS at its start (a rendered chat) never gets a second one.

    Raises:
        ScoringError: max_length or prefix_token_id is out of range, or add_bos_token asks for a BOS there is not.
    """

    def __init__(
        self,
        llm: ScoringEngine,
        tokenizer: Tokenizer | None = None,
        *,
        max_length: int | None = None,
        prefix_token_id: int | None = None,
        add_bos_token: bool | None = None,
    ) -> None:
        longest, vocab_size = llm.info.max_model_len, llm.info.vocab_size
        self.max_length = longest if max_length is None else max_length
        if not 3 <= self.max_length <= longest:
            raise ScoringError(f"max_length is {max_length}; it must be from 3 to the engine's max_model_len {longest}")
        if prefix_token_id is not None and not 0 <= prefix_token_id < vocab_size:
            raise ScoringError(f"prefix_token_id is {prefix_token_id}; token ids are from 0 to {vocab_size - 1}")
        if add_bos_token and (tokenizer is None or tokenizer.bos_token_id is None):
            raise ScoringError("add_bos_token is True, but the model's tokenizer names no BOS token")
        self._llm, self._tokenizer, self._add_bos, self._prefix = llm, tokenizer, add_bos_token, prefix_token_id

    @property
    def max_scored(self) -> int:
        """The longest continuation in tokens: one token of context goes before it, one is generated after it."""
        return self.max_length - 2

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text without context. Raises ScoringError when the model offers none."""
        named = () if self._tokenizer is None else (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        for token in (self._prefix, *named, *self._llm.info.eos_token_ids):
            if token is not None:
                return token
        raise ScoringError("prefix_token_id is None, and the model names neither a BOS nor an EOS token to use instead")

    # -- texts ------------------------------------------------------------------------------------------------------

    def score(self, pairs: Sequence[tuple[str, str]], *, use_tqdm: bool = False) -> list[Score]:
        """Scores the second text of each pair as the continuation of the first; see `encode_pair` and `score_tokens`.

        Raises TokenizerError without a tokenizer, TextError for broken Unicode, ScoringError.
        """
        return self.score_tokens([self.encode_pair(*pair) for pair in pairs], use_tqdm=use_tqdm)

    def score_documents(self, texts: Sequence[str], *, use_tqdm: bool = False) -> list[Score]:
        """Scores whole texts, however long: each of their tokens once, with as much context as fits.

        Texts are encoded without special tokens, and the first token follows `prefix_token_id`. (The harness's
        transformers backend keeps the BOS that a tokenizer adds and scores it too, after another BOS.) A text without
        tokens has log-probability 0. Raises as `score` does.
        """
        return self.score_document_tokens([self.encode_document(text) for text in texts], use_tqdm=use_tqdm)

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text; None leaves special tokens to what `add_bos_token` said at construction."""
        tokenizer = self._need_tokenizer()
        if add_special_tokens is not None:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if self._add_bos is False or self._spells_bos(text):
            return tokenizer.encode(text, add_special_tokens=False)
        ids, bos = tokenizer.encode(text), tokenizer.bos_token_id
        return [bos, *ids] if self._add_bos and bos is not None and ids[:1] != [bos] else ids

    def encode_pair(self, context: str, continuation: str) -> Pair:
        """Token ids of a context and of what follows it.

        Blanks at the end of the context go to the continuation, as most tokenizers write a word with the blank before
        it. Both texts together are encoded, and what lies beyond the length of the encoded context is the continuation.
        Without a context, `prefix_token_id` is the context, unless the continuation starts with it anyway.
        """
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        if kept:
            return split_tokens(self.encode(kept), self.encode(kept + continuation))
        return self._after_prefix(self.encode(continuation, add_special_tokens=False))

    def encode_document(self, text: str) -> list[int]:
        """Token ids of a text to be scored as a whole; a BOS that it spells at its start counts as the prefix."""
        return list(self._after_prefix(self.encode(text, add_special_tokens=False)).continuation)

    def _after_prefix(self, ids: Sequence[int]) -> Pair:
        prefix = self.prefix_token_id
        return Pair((prefix,), tuple(ids[1:] if list(ids[:1]) == [prefix] else ids))

    def _spells_bos(self, text: str) -> bool:
        bos = self._need_tokenizer().special_tokens.get("bos_token")
        return bool(bos) and text.startswith(str(bos))

    def _need_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerError("this model has no tokenizer; score token ids")
        return self._tokenizer

    # -- token ids --------------------------------------------------------------------------------------------------

    def score_tokens(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, use_tqdm: bool = False
    ) -> list[Score]:
        """Scores the second ids of each pair as the continuation of the first, in the order given.

        A context that is too long loses tokens at its start (`Score.truncated`). Everything runs in one batch (or a
        few, of half a million tokens), where equal sequences are read once. Raises ScoringError, before anything runs,
        for a pair without context or continuation and for a continuation longer than `max_scored`; InvalidRequest for
        an id outside the vocabulary.
        """
        waiting: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for index, (context, continuation) in enumerate(pairs):
            self._check_pair(index, context, continuation)
            ids = (*context, *continuation)
            excess = max(0, len(ids) - (self.max_length - 1))
            waiting.setdefault(ids[excess:], []).append((index, len(context) - excess, excess))
        scores: dict[int, Score] = {}
        for call in _calls(waiting):
            for ids, output in zip(call, self._llm.generate(call, _SCORE, use_tqdm=use_tqdm), strict=True):
                entries = _entries(ids, output)
                for index, start, excess in waiting[ids]:
                    scores[index] = _summed(entries[start - 1 :], excess)
        return [scores[index] for index in range(len(pairs))]

    def score_document_tokens(self, documents: Sequence[Sequence[int]], *, use_tqdm: bool = False) -> list[Score]:
        """Scores each document's ids as a whole, in windows; the first token follows `prefix_token_id`."""
        windows = [rolling_windows(ids, self.prefix_token_id, self.max_scored) for ids in documents]
        scores = iter(self.score_tokens([pair for pairs in windows for pair in pairs], use_tqdm=use_tqdm))
        return [_total([next(scores) for _ in pairs]) for pairs in windows]

    def _check_pair(self, index: int, context: Sequence[int], continuation: Sequence[int]) -> None:
        if not context:
            raise ScoringError(f"pair {index}: the context has no tokens; put prefix_token_id there")
        if not continuation:
            raise ScoringError(f"pair {index}: the continuation has no tokens, so there is nothing to score")
        if len(continuation) > self.max_scored:
            raise ScoringError(
                f"pair {index}: the continuation has {len(continuation)} tokens; at most {self.max_scored} fit the "
                f"context of {self.max_length} (score it as a document)"
            )


def split_tokens(context: Sequence[int], whole: Sequence[int]) -> Pair:
    """The pair whose continuation is what `whole` has beyond the length of `context`, as the harness splits it."""
    return Pair(tuple(context), tuple(whole[len(context) :]))


def rolling_windows(tokens: Sequence[int], prefix_token_id: int, max_scored: int) -> list[Pair]:
    """Cuts a document of any length into pairs that together score each of its tokens exactly once.

    The first pair's context is the prefix alone; every further one starts at the last token that was scored before it,
    and the last one reaches back as far as fits. Each has at most `max_scored` + 1 ids. No tokens, no pairs.
    """
    if max_scored < 1:
        raise ScoringError(f"max_scored is {max_scored}; it must be at least 1")
    ids = (prefix_token_id, *tokens)
    pairs = []
    for done in range(1, len(ids), max_scored):
        end = min(done + max_scored, len(ids))
        pairs.append(Pair(ids[max(0, end - max_scored - 1) : done], ids[done:end]))
    return pairs


def _calls(prompts: dict[tuple[int, ...], list[tuple[int, int, int]]]) -> Iterator[list[tuple[int, ...]]]:
    """Portions that one call of the engine takes, so that the entries held at a time stay bounded."""
    call: list[tuple[int, ...]] = []
    tokens = 0
    for ids in prompts:
        if call and tokens + len(ids) > _TOKENS_PER_CALL:
            yield call
            call, tokens = [], 0
        call.append(ids)
        tokens += len(ids)
    if call:
        yield call


def _entries(ids: Sequence[int], output: RequestOutput) -> list[TokenLogprobs]:
    """The entries of ids[1:]. A short or foreign answer is a fault of the engine, never a score."""
    entries = [entry for entry in (output.prompt_logprobs or [])[1:] if entry is not None]
    if [entry.token_id for entry in entries] != list(ids[1:]):
        raise RuntimeError(f"the engine scored {len(entries)} of the {len(ids) - 1} prompt tokens it was asked for")
    return entries


def _summed(entries: Sequence[TokenLogprobs], truncated: int) -> Score:
    greedy = all(entry.rank == 1 for entry in entries)
    return Score(math.fsum(entry.logprob for entry in entries), greedy, len(entries), truncated)


def _total(scores: Sequence[Score]) -> Score:
    return Score(
        math.fsum(s.logprob for s in scores), all(s.is_greedy for s in scores), sum(s.tokens for s in scores), 0
    )
