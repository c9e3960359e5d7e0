"""Grammars at work: compiled in threads, followed token by token, and made into masks of the tokens that may come next.

A constraint is the text of a grammar as llguidance's LLMatcher takes it. Compiling one takes from less than a
millisecond to a second, so it never happens on the engine's thread; a mask takes some microseconds to a fraction of a
millisecond, and those of a step's rows are made together by threads that do not hold the interpreter.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxinfer.constraints.guide import BadWords, Guide, reason_of
from jaxinfer.constraints.limits import COMPILING_NICENESS, LIMITS
from jaxinfer.constraints.thinking import Thinking
from jaxinfer.constraints.turns import Turns
from jaxinfer.constraints.vocabulary import ComingVocabulary, Vocabulary
from jaxinfer.messages import Submit

if TYPE_CHECKING:
    import numpy as np

COMPILE_SECONDS = 10.0  # after which nobody waits for a grammar any longer
MASK_SECONDS = 0.2  # of processor time, for a mask and what follows by force; a fraction of a millisecond is usual
_TRIED_MASKS, _MOST_FORCED = 16, 64  # of a text by chance; of those, tokens that follow by force
_COMPILING_THREADS = 4
_PLACES_EACH = 2  # of them, that one tenant's grammars may have at a time
_MOST_MASK_THREADS = 16
# Masks that take no longer than this are made by the engine's own thread: those of llguidance look for work for a while
# after each step's, which costs as much again while a CPU is the device.
_ALONE_SECONDS = 1e-3
# Compiled grammars that are kept. A simple one takes some milliseconds and 100 KB; what takes longer to compile, or to
# find masks of, takes more memory, too: some 500 MB a second of work.
_KEPT, _KEPT_SECONDS = 128, 2.0
# Sequences of one grammar are copies of one matcher, which share what their lexer has learnt, behind one lock. So there
# are several to copy where many use it, and none serves for ever, nor after an error: its lexer's states are bounded.
_COPIES_EACH, _MOST_COPIES, _MOST_MASK_SECONDS = 4, 4096, 1.0


class ConstraintError(ValueError):
    """A grammar that this engine cannot follow; the message says why."""


def try_out(matcher: Any) -> None:
    """Follows a text by chance that the grammar lets through. Raises ConstraintError where a mask has an error or takes
    so long that an engine's other requests would wait for it. The same grammar is tried with the same text."""
    import numpy as np  # a server, which has no engine, does without

    chance = random.Random(0)
    for _ in range(_TRIED_MASKS):
        begin = time.thread_time()
        mask = matcher.compute_bitmask()
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        forced = matcher.compute_ff_tokens() if len(allowed) == 1 and not matcher.is_error() else []
        if time.thread_time() - begin > MASK_SECONDS:
            slow = f"finding the tokens that may come next takes more than {MASK_SECONDS:g} s of processor time"
            raise ConstraintError(f"the grammar cannot be followed: {slow}")
        if not matcher.is_error() and len(allowed):
            matcher.consume_tokens(forced[:_MOST_FORCED] or [int(allowed[chance.randrange(len(allowed))])])
        if matcher.is_error():
            raise ConstraintError(f"the grammar cannot be followed: {reason_of(matcher)}")
        if matcher.is_stopped() or not len(allowed) or len(forced) > _MOST_FORCED:
            return  # an engine makes no masks while tokens follow by force


class _Job:
    """A grammar that is being compiled."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.began: float | None = None  # time.monotonic()
        self.seconds = 0.0  # of processor time, that it took
        self.tenants: set[str] = set()  # who wait for it
        self.taken = False
        self.future: Future[Any] = Future()


class _Compiled:
    """A compiled grammar: matchers that nothing was given to. See `_COPIES_EACH`."""

    def __init__(self, original: Any, seconds: float) -> None:
        """seconds: of processor time, that compiling it took."""
        self.originals = [original]
        self.seconds = seconds
        self.mask_seconds = 0.0
        self.copies = 0
        self.worn = False
        self.job: _Job | None = None  # makes another original

    def copy(self) -> Any:
        self.copies += 1
        self.worn = self.worn or self.copies >= _MOST_COPIES
        return self.originals[self.copies % len(self.originals)].deep_copy()

    def worked(self, seconds: float) -> None:
        """On a mask."""
        self.mask_seconds += seconds
        self.worn = self.worn or self.mask_seconds > _MOST_MASK_SECONDS

    @property
    def crowded(self) -> bool:
        return self.copies > _COPIES_EACH * len(self.originals)


def _give_way() -> None:
    """This thread takes a smaller share of the processors than the engine's, where the system has such for threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPILING_NICENESS)


class Held(NamedTuple):
    """A request that waits for its grammar."""

    submit: Submit
    job: _Job


class Matching:
    """Compiles constraints and makes masks, for one engine, whose thread alone calls it.

    Attributes:
        compile_seconds: of all grammars, in threads.
        requests: that had a constraint.
    """

    def __init__(self, vocabulary: ComingVocabulary, threads: int | None = None) -> None:
        """threads: that make masks; None for as many as the machine has processors, at most 16."""
        self._coming = vocabulary
        self._threads = threads or max(1, min(_MOST_MASK_THREADS, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(_COMPILING_THREADS, "constraint", initializer=_give_way)
        self._cache: OrderedDict[str, _Compiled] = OrderedDict()
        self._jobs: dict[str, _Job] = {}
        self._held: dict[str, Held] = {}  # by request id
        self._executor: Any = None
        self._usual = 0.0  # seconds of a mask, lately
        self._lock = threading.Lock()  # of compile_seconds and the turns, which threads change
        self._turns: Turns[_Job] = Turns(_PLACES_EACH)
        self.compile_seconds = 0.0
        self.requests = 0

    # -- compiling -----------------------------------------------------------------------------------------------------

    def begin(self, submit: Submit) -> list[Guide] | None:
        """A guide for each of the sequences of a request that wants such, where its grammar is there or it has none;
        else None, and it is held until `take` gives it back. Raises ConstraintError where it wants something else that
        the model's tokenizer does not allow."""
        text = submit.constraint
        if not text:
            return self._guides_of(submit, None)
        self.requests += 1
        compiled = self._cache.get(text)
        if compiled is not None and not compiled.worn:
            return self._guides(submit, compiled)
        job = self._jobs.get(text)
        if job is None:
            job = self._jobs[text] = _Job(text)
        self._start(job, submit.tenant)
        self._held[submit.request_id] = Held(submit, job)
        return None

    @property
    def waiting(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._held)

    def holds(self, request_id: str) -> bool:
        return request_id in self._held

    def release(self, request_id: str) -> Submit | None:
        """Gives a held request back that need not wait any longer; None where it is not held."""
        held = self._held.pop(request_id, None)
        return None if held is None else held.submit

    def take(self) -> list[tuple[Submit, list[Guide] | ConstraintError]]:
        """The held requests whose grammar is there now, or is found to be none. Never waits."""
        found: list[tuple[Submit, list[Guide] | ConstraintError]] = []
        now = time.monotonic()
        for text, job in list(self._jobs.items()):
            late = job.began is not None and now - job.began > COMPILE_SECONDS
            if not job.future.done() and not late:
                continue
            del self._jobs[text]
            result = self._settle(text, job)
            for request_id in [name for name, held in self._held.items() if held.job is job]:
                submit = self._held.pop(request_id).submit
                if isinstance(result, _Compiled):
                    found.append((submit, self._guides(submit, result)))
                else:
                    found.append((submit, result))
        return found

    def _settle(self, text: str, job: _Job) -> _Compiled | ConstraintError:
        if not job.future.done():
            return ConstraintError(f"the grammar was not compiled within {COMPILE_SECONDS:g} seconds")
        error = job.future.exception()
        if error is not None:
            return (
                error
                if isinstance(error, ConstraintError)
                else ConstraintError(f"the grammar does not compile: {error}")
            )
        compiled = self._cache[text] = _Compiled(job.future.result(), job.seconds)
        self._cache.move_to_end(text)
        self._forget()
        return compiled

    def _forget(self) -> None:
        """Drops the grammars that were used longest ago and are too many. Their sequences keep them."""
        seconds = sum(each.seconds + each.mask_seconds for each in self._cache.values())
        while self._cache and (len(self._cache) > _KEPT or seconds > _KEPT_SECONDS):
            _, dropped = self._cache.popitem(last=False)
            seconds -= dropped.seconds + dropped.mask_seconds

    def _guides_of(self, submit: Submit, compiled: _Compiled | None) -> list[Guide]:
        ends = frozenset() if compiled is None else frozenset(self._vocabulary.tokenizer.eos_tokens)
        budget, words, params = submit.thinking, submit.bad_words, submit.params
        bans = params.allowed_token_ids is not None or params.bad_token_ids
        return [
            Guide(
                compiled,
                ends,
                thinking=None if budget is None else Thinking(budget, self._vocabulary.pieces),
                bad_words=BadWords(words) if words else None,
                jumps=not bans,
            )
            for _ in range(params.n)
        ]

    def _guides(self, submit: Submit, compiled: _Compiled) -> list[Guide]:
        text, guides = submit.constraint, self._guides_of(submit, compiled)
        if compiled.job is not None and compiled.job.future.done():
            if compiled.job.future.exception() is None:
                compiled.originals.append(compiled.job.future.result())
                compiled.seconds += compiled.job.seconds
            compiled.job = None
        elif compiled.crowded and compiled.job is None and len(compiled.originals) < self._threads:
            compiled.job = _Job(text)
            self._start(compiled.job, submit.tenant)
        self._cache.move_to_end(text)
        return guides

    @property
    def _vocabulary(self) -> Vocabulary:
        """Of a model that has one. Waits for it."""
        try:
            found = self._coming.get()
        except Exception as error:
            raise ConstraintError(f"this model's tokenizer does not suit structured output: {error}") from error
        if found is None:
            raise ConstraintError("structured output needs a tokenizer, and this model has none")
        return found

    def _start(self, job: _Job, tenant: str) -> None:
        """Has it compiled, in the tenant's turn: the first one's of those who wait for it."""
        if tenant in job.tenants:
            return
        job.tenants.add(tenant)
        with self._lock:
            self._turns.put(tenant, job)
        self._pool.submit(self._work)

    def _work(self) -> None:
        """In a thread, for as long as somebody has a turn."""
        while True:
            with self._lock:
                turn = self._turns.take()
                if turn is None:
                    return
                tenant, job = turn
                first, job.taken = not job.taken, True
            if first:
                self._compile(job.text, job)
            with self._lock:
                self._turns.done(tenant)

    def _compile(self, text: str, job: _Job) -> None:
        """In a thread. Makes some masks, too: copies share what the lexer learns of them."""
        job.began = time.monotonic()
        begin, worked = time.perf_counter(), time.thread_time()
        try:
            from llguidance import LLMatcher, LLParserLimits

            vocabulary = self._vocabulary
            matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=LLParserLimits(**LIMITS))  # type: ignore[arg-type]
            if matcher.is_error():
                raise ConstraintError(f"the grammar does not compile: {reason_of(matcher)}")
            try_out(matcher.deep_copy())
            result: Any = matcher
        except BaseException as error:  # told to whoever waits for it; a panic of Rust's is no Exception
            job.future.set_exception(error)
        else:
            job.seconds = time.thread_time() - worked
            job.future.set_result(result)
        with self._lock:
            self.compile_seconds += time.perf_counter() - begin

    # -- masks ---------------------------------------------------------------------------------------------------------

    def masks(self, guides: Iterable[tuple[int, Guide]], rows: int, words: int) -> np.ndarray:
        """(rows, words) uint32: bit i of word w of a row is set where token 32 w + i may come next in it.

        guides: of some rows, by their numbers; the others may have any token. Afterwards a guide's `error` says
        whether its mask could not be made: its row may have any token, and must not be used. Where a grammar leaves one
        token, `forced` has it and those that follow it by force.
        """
        import numpy as np  # a server, which has no engine, does without

        masks = np.full((rows, words), 0xFFFFFFFF, np.uint32)
        asked, barring = [], []
        for row, guide in guides:
            if guide.forced:
                masks[row] = 0
                masks[row, guide.forced[0] >> 5] = 1 << (guide.forced[0] & 31)
                continue
            if guide.matcher is not None:
                asked.append((row, guide))
            if guide.bars:
                barring.append((row, guide))
        if asked:
            self._fill(asked, masks)
        for row, guide in barring:
            if not guide.error:
                guide.bar(masks[row])
        return masks

    def _fill(self, asked: Sequence[tuple[int, Guide]], masks: np.ndarray) -> None:
        import numpy as np

        width = self._vocabulary.words
        filled = masks if width == masks.shape[1] else np.zeros((len(masks), width), np.uint32)
        address, size = filled.ctypes.data, width * 4
        together = min(self._threads, len(asked)) if self._usual * len(asked) > _ALONE_SECONDS else 1
        begin = time.perf_counter()
        if together > 1:
            self._threaded.unsafe_compute_mask_ptr(
                [(guide.matcher, row) for row, guide in asked], address, size, len(filled)
            )
        else:
            for row, guide in asked:
                assert guide.matcher is not None
                guide.matcher.unsafe_compute_mask_ptr(address + row * size, size)
        spent = (time.perf_counter() - begin) * together / len(asked)
        self._usual += (spent - self._usual) / 8
        numbers = [row for row, _ in asked]
        if filled is not masks:
            shared = min(width, masks.shape[1])
            masks[numbers] = 0
            masks[numbers, :shared] = filled[numbers, :shared]
        counts = np.bitwise_count(filled[numbers]).sum(axis=1)
        for (row, guide), count in zip(asked, counts.tolist(), strict=True):
            guide.look(only=count == 1, seconds=spent)
            if guide.error:
                masks[row] = 0xFFFFFFFF

    @property
    def _threaded(self) -> Any:
        """Makes masks in threads."""
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor(self._threads)
        return self._executor

    def close(self) -> None:
        """Compiles nothing more; waits for what is being compiled."""
        self._pool.shutdown(wait=True, cancel_futures=True)
