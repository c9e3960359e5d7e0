"""Log-likelihoods against transformers' logits, windows over long documents, and how texts become token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxinfer import LLM, SamplingParams
from jaxinfer.errors import InvalidRequest
from jaxinfer.evaluation import loglikelihood
from jaxinfer.evaluation.loglikelihood import LoglikelihoodScorer, Pair, ScoringError, rolling_windows, split_tokens
from jaxinfer.messages import TokenLogprobs
from jaxinfer.text import TokenizerError, load_tokenizer
from tests.fakes import BOS, EOS, write_tokenizer
from tests.golden_recipe import load_case, write_checkpoint
from tests.jaxinfer.harness import SIZES

CASE = load_case("llama")
VOCAB = CASE.config["vocab_size"]
SETTINGS: dict[str, Any] = {"page_size": 16, "max_num_seqs": 4, "max_num_batched_tokens": 16, "num_pages": 64}
SETTINGS |= {"dtype": "float32", "max_model_len": 160, "compilation_cache_dir": None}
PREFIX = 1
# float32 logits of another implementation: both log-softmaxes may be off by 4 * 1e-5 of the largest logit, each token.
PER_TOKEN = 4e-5 * max(float(np.abs(logits).max()) for logits in (*CASE.logits, CASE.decode_logits))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_checkpoint(CASE, tmp_path_factory.mktemp("model")), **SETTINGS) as model:
        yield model


def token_logprobs(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """log P(tokens[i]) under logits[i]. logits (n, V), tokens n; returns (n,) float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(-1, keepdims=True)))[np.arange(len(tokens)), list(tokens)]


def documents(count: int, length: int, seed: int = 5) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, VOCAB) for _ in range(length)] for _ in range(count)]


# -- against transformers ---------------------------------------------------------------------------------------------


def test_equals_the_log_softmax_sums_of_transformers(llm: LLM) -> None:
    cuts = [(i, cut) for i, prompt in enumerate(CASE.prompts) for cut in {1, len(prompt) // 2, len(prompt) - 1}]
    pairs = [(CASE.prompts[i][:cut], CASE.prompts[i][cut:]) for i, cut in cuts]
    for (i, cut), pair, score in zip(cuts, pairs, LoglikelihoodScorer(llm).score_tokens(pairs), strict=True):
        logits = CASE.logits[i][cut - 1 : -1]
        assert score.logprob == pytest.approx(token_logprobs(logits, pair[1]).sum(), abs=PER_TOKEN * score.tokens)
        assert score.is_greedy == bool((logits.argmax(-1) == np.array(pair[1])).all())
        assert (score.tokens, score.truncated) == (len(pair[1]), 0)


def test_greedy_continuations_are_greedy_until_one_token_changes(llm: LLM) -> None:
    context, continuation = CASE.prompts[1], list(CASE.greedy[1])
    second = int(CASE.decode_logits[len(continuation) - 1].argsort()[-2])
    changed = [*continuation[:-1], second]
    greedy, other = LoglikelihoodScorer(llm).score_tokens([(context, continuation), (context, changed)])
    wanted = token_logprobs(CASE.decode_logits, continuation).sum()
    assert greedy.logprob == pytest.approx(wanted, abs=PER_TOKEN * len(continuation))
    assert (greedy.is_greedy, other.is_greedy) == (True, False)
    assert other.logprob < greedy.logprob


def test_equals_what_generation_reports(llm: LLM) -> None:
    """The engine's own log-probabilities of the tokens it generated, by another path through the step."""
    prompt = documents(1, 21)[0]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=0)
    output = llm.generate([prompt], params)[0].outputs[0]
    (score,) = LoglikelihoodScorer(llm).score_tokens([(prompt, output.token_ids)])
    assert score.is_greedy
    assert score.logprob == pytest.approx(output.cumulative_logprob, abs=1e-4)


# -- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_scored", [1, 2, 7, 8, 20, 50])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 20, 21, 40, 50])
def test_windows_score_each_token_once(length: int, max_scored: int) -> None:
    tokens = list(range(100, 100 + length))
    windows = rolling_windows(tokens, PREFIX, max_scored)
    assert [token for window in windows for token in window.continuation] == tokens
    text = [PREFIX, *tokens]
    done = 1
    for i, (context, continuation) in enumerate(windows):
        assert context == tuple(text[done - len(context) : done])  # what stands right before it
        assert len(context) >= 1
        full = max_scored + 1
        assert len(context) + len(continuation) == (min(full, length + 1) if i == 0 else full)
        assert i == len(windows) - 1 or len(continuation) == max_scored
        done += len(continuation)


def test_a_short_document_is_one_window(llm: LLM) -> None:
    scorer = LoglikelihoodScorer(llm, prefix_token_id=CASE.prompts[2][0])
    (score,) = scorer.score_document_tokens([CASE.prompts[2][1:]])
    wanted = token_logprobs(CASE.logits[2][:-1], CASE.prompts[2][1:]).sum()
    assert score.logprob == pytest.approx(wanted, abs=PER_TOKEN * 89)
    assert score.tokens == 89


def test_long_documents_add_up_over_their_windows(llm: LLM) -> None:
    scorer = LoglikelihoodScorer(llm, prefix_token_id=PREFIX, max_length=26)
    texts = [documents(1, length, seed=length)[0] for length in (0, 3, 24, 25, 77, 400)]
    scores = scorer.score_document_tokens(texts)
    assert [score.tokens for score in scores] == [len(text) for text in texts]
    assert scores[0] == (0.0, True, 0, 0)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    for text, score in zip(texts, scores, strict=True):
        wanted, done = 0.0, 0
        while done < len(text):
            end = min(done + 24, len(text))
            before = ([PREFIX, *text])[: done + 1] if done == 0 else text[max(0, end - 25) : done]
            output = llm.generate([[*before, *text[done:end]]], params)[0]
            assert output.prompt_logprobs is not None
            wanted += sum(entry.logprob for entry in output.prompt_logprobs[len(before) :] if entry is not None)
            done = end
        assert score.logprob == pytest.approx(wanted, abs=1e-9)


# -- company, order and caches ----------------------------------------------------------------------------------------


def test_the_batch_does_not_matter(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: alone, in any order, twice, in several calls, after the prefix cache has seen the prompts."""
    scorer = LoglikelihoodScorer(llm)
    pairs = [
        (doc[:cut], doc[cut:]) for doc, cut in zip(documents(9, 45), (1, 5, 16, 17, 30, 31, 32, 40, 44), strict=True)
    ]
    together = scorer.score_tokens(pairs)
    assert together == [scorer.score_tokens([pair])[0] for pair in pairs]
    assert together[::-1] == scorer.score_tokens(pairs[::-1])
    hits = llm.stats().prefix_hits
    llm.generate([[*a, *b] for a, b in pairs] * 2, SamplingParams(temperature=0, max_tokens=2))
    assert llm.stats().prefix_hits > hits  # the pages are there, and scoring must not lose positions to them
    assert together == scorer.score_tokens(pairs)
    monkeypatch.setattr(loglikelihood, "_TOKENS_PER_CALL", 100)
    assert together == scorer.score_tokens(pairs)


def test_equal_sequences_are_read_once_and_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StubEngine()
    scorer = LoglikelihoodScorer(engine)
    doc = documents(1, 30)[0]
    pairs = [(doc[:cut], doc[cut:]) for cut in range(1, 30)]
    scores = scorer.score_tokens(pairs)
    assert engine.calls == [[tuple(doc)]]
    assert [s.logprob for s in scores] == pytest.approx([sum(engine.logprob(t) for t in doc[c:]) for c in range(1, 30)])
    other = documents(1, 12, seed=9)[0]
    mixed = scorer.score_tokens([(doc[:9], doc[9:]), (other[:9], other[9:]), (doc[:20], doc[20:])])
    assert [s.tokens for s in mixed] == [21, 3, 10]
    monkeypatch.setattr(loglikelihood, "_TOKENS_PER_CALL", 100)
    others = [(doc[:10], doc[10:]) for doc in documents(7, 40)]
    engine.calls.clear()
    scorer.score_tokens(others)
    assert [len(call) for call in engine.calls] == [2, 2, 2, 1]


@pytest.mark.longer
def test_chunking_and_caching_do_not_matter(llm: LLM, tmp_path: Path) -> None:
    pairs = [(doc[:9], doc[9:]) for doc in documents(6, 70)]
    with LLM(write_checkpoint(CASE, tmp_path), **SIZES, enable_prefix_caching=False) as other:
        assert LoglikelihoodScorer(other).score_tokens(pairs) == LoglikelihoodScorer(llm).score_tokens(pairs)


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_long_contexts_lose_their_start(llm: LLM) -> None:
    scorer = LoglikelihoodScorer(llm)
    doc = documents(1, 200)[0]
    long, whole = scorer.score_tokens([(doc[:190], doc[190:]), (doc[41:190], doc[190:])])
    assert long == whole._replace(truncated=41)  # 159 of 200 fit 160, with room for one generated token
    longest = scorer.score_tokens([(doc[:42], doc[42:])])[0]
    assert (longest.tokens, longest.truncated) == (158, 41)


def test_what_cannot_be_scored_is_named(llm: LLM) -> None:
    scorer = LoglikelihoodScorer(llm)
    good = ([5], [6])
    for pair, message in [
        (([], [1]), "pair 1: the context has no tokens"),
        (([1], []), "pair 1: the continuation has no tokens"),
        (([1], [3] * 159), "pair 1: the continuation has 159 tokens; at most 158 fit the context of 160"),
    ]:
        with pytest.raises(ScoringError, match=message):
            scorer.score_tokens([good, pair])
    with pytest.raises(InvalidRequest, match=f"prompt_token_ids is {VOCAB}"):
        scorer.score_tokens([good, ([1], [VOCAB])])
    with pytest.raises(TokenizerError, match="score token ids"):
        scorer.score([("a", "b")])
    for arguments, message in [
        ({"max_length": 161}, "max_length is 161; it must be from 3 to the engine's max_model_len 160"),
        ({"max_length": 2}, "max_length is 2"),
        ({"prefix_token_id": VOCAB}, f"prefix_token_id is {VOCAB}"),
        ({"add_bos_token": True}, "names no BOS token"),
    ]:
        with pytest.raises(ScoringError, match=message):
            LoglikelihoodScorer(llm, **arguments)
    with pytest.raises(ScoringError, match="max_scored is 0"):
        rolling_windows([1], PREFIX, 0)


def test_an_engine_that_scores_too_little_is_a_fault() -> None:
    engine = StubEngine(lose=1)
    with pytest.raises(RuntimeError, match="scored 2 of the 3 prompt tokens"):
        LoglikelihoodScorer(engine).score_tokens([([1], [2, 3, 4])])


# -- texts ------------------------------------------------------------------------------------------------------------


class StubEngine:
    """Scores every token by its id; keeps the prompts of each call."""

    def __init__(self, eos: tuple[int, ...] = (EOS,), lose: int = 0) -> None:
        self.info: Any = SimpleNamespace(max_model_len=64, vocab_size=260, eos_token_ids=eos)
        self.calls: list[list[tuple[int, ...]]] = []
        self.lose = lose

    @staticmethod
    def logprob(token: int) -> float:
        return -1.0 - token / 1000

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool = False) -> Any:
        self.calls.append(list(prompts))
        entries = [[TokenLogprobs(t, self.logprob(t), 1, ()) for t in p[1 : len(p) - self.lose]] for p in prompts]
        return [SimpleNamespace(prompt_logprobs=[None, *each]) for each in entries]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def scorer_of(folder: Path, **arguments: Any) -> LoglikelihoodScorer:
    """Ids are bytes; the tokenizer adds <s>."""
    return LoglikelihoodScorer(StubEngine(), load_tokenizer(folder), **arguments)


@pytest.mark.parametrize(
    ("context", "continuation", "ids", "scored"),
    [
        ("ab", " c", [BOS, *b"ab"], b" c"),
        ("ab ", "c", [BOS, *b"ab"], b" c"),
        ("ab \n", " c", [BOS, *b"ab"], b" \n c"),
        ("", "c", [BOS], b"c"),
        ("  ", "c", [BOS], b"  c"),
        ("<s>ab", "c", [BOS, *b"ab"], b"c"),
        ("", "<s>c", [BOS], b"c"),
        ("é", "ü", [BOS, *"é".encode()], "ü".encode()),
    ],
)
def test_pairs_of_texts(folder: Path, context: str, continuation: str, ids: list[int], scored: bytes) -> None:
    assert scorer_of(folder).encode_pair(context, continuation) == (tuple(ids), tuple(scored))


def test_a_token_across_the_border_belongs_to_the_continuation_by_position() -> None:
    """Where the encoding of both texts joins them differently, what counts is the length of the context's own."""
    assert split_tokens([7, 8, 9], [7, 8, 21, 22]) == Pair((7, 8, 9), (22,))


def test_scores_of_texts(folder: Path) -> None:
    scorer = scorer_of(folder)
    scores = scorer.score([("ab", " c"), ("x ", "yz")])
    assert [s.tokens for s in scores] == [2, 3]
    assert scores[0].logprob == pytest.approx(sum(StubEngine.logprob(t) for t in b" c"))
    text = "a document of more than sixty-four bytes, so that it takes more than one window " * 3
    (whole,) = scorer.score_documents([text])
    assert whole.tokens == len(text)
    assert whole.logprob == pytest.approx(sum(StubEngine.logprob(t) for t in text.encode()))
    assert scorer.score_documents(["", "<s>"]) == [(0.0, True, 0, 0)] * 2
    with pytest.raises(ScoringError, match="pair 1: the continuation has no tokens"):
        scorer.score([("a", "b"), ("a", "")])


def test_who_decides_about_bos(folder: Path) -> None:
    assert scorer_of(folder).encode("a") == [BOS, *b"a"]
    assert scorer_of(folder, add_bos_token=True).encode("a") == [BOS, *b"a"]
    assert scorer_of(folder, add_bos_token=False).encode("a") == [*b"a"]
    assert scorer_of(folder).encode("a", add_special_tokens=False) == [*b"a"]
    assert scorer_of(folder).encode("<s>a") == [BOS, *b"a"]
    assert scorer_of(folder).prefix_token_id == BOS
    assert scorer_of(folder, prefix_token_id=7).encode_pair("", "c").context == (7,)
    assert LoglikelihoodScorer(StubEngine()).prefix_token_id == EOS
    with pytest.raises(ScoringError, match="neither a BOS nor an EOS token"):
        LoglikelihoodScorer(StubEngine(eos=())).score_document_tokens([[1]])
