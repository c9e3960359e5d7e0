"""Sends requests when they are due and waits for their answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.bench.records import Answer, BenchRequest, Client, RequestFailed

_TICK = 0.01  # seconds between looks at how late the event loop is
_LATE = 0.01  # seconds that the client may be late at the 99th percentile before the report says so
_BUSY = 0.9  # of one core


@dataclass
class Run:
    """One rate's answers. began, ended: seconds of time.perf_counter(). lag: seconds that each look at the event loop
    came late. cpu_seconds: processor time of this process."""

    rate: float
    answers: list[Answer]
    began: float
    ended: float
    lag: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    limited: bool = False  # by --max-concurrency: then requests are late on purpose

    @property
    def duration(self) -> float:
        return self.ended - self.began

    @property
    def lateness(self) -> list[float]:
        """Seconds between when each request should have been sent and when it was."""
        return [answer.sent - answer.due for answer in self.answers if answer.sent]

    def troubles(self) -> list[str]:
        """What of the figures is the client's own doing, in sentences; empty where it kept up."""
        found = []
        late = _p99(self.lateness)
        if not self.limited and late > _LATE:
            found.append(f"the client fell behind: requests were sent up to {1e3 * late:.0f} ms late (p99)")
        lag = _p99(self.lag)
        if lag > _LATE:
            found.append(f"the client's event loop was up to {1e3 * lag:.0f} ms late (p99): so are its times of tokens")
        if self.duration and self.cpu_seconds / self.duration > _BUSY:
            found.append(f"the client used {self.cpu_seconds / self.duration:.0%} of the one core that it can use")
        return found


def _p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99)) if len(values) else 0.0


async def drive(
    client: Client,
    requests: Sequence[BenchRequest],
    due: Sequence[float] | np.ndarray,
    *,
    rate: float,
    max_concurrency: int | None = None,
    timeout: float | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> Run:
    """Sends each request at its time, whether or not earlier ones were answered.

    due: seconds from the start, ascending, one for each request. max_concurrency: requests in flight; the others wait
    in this client, and their wait is `lateness`. timeout: seconds of one request, after which it counts as an error.
    done: is told how many requests are over. Errors of requests are in their answers; anything else is raised.
    """
    places = asyncio.Semaphore(max_concurrency) if max_concurrency is not None else contextlib.nullcontext()
    answers: list[Answer] = []
    lag: list[float] = []
    over = itertools.count(1)
    watch = asyncio.create_task(_watch(lag))
    cpu, began = time.process_time(), time.perf_counter()

    async def follow(request: BenchRequest | None, due_at: float, turn: int) -> None:
        """A request, and those that follow it in its conversation."""
        while request is not None:
            kind = f"turn {turn}" if request.kind.startswith("turn ") else request.kind
            answer = Answer(kind=kind, due=due_at)
            answers.append(answer)
            async with places:
                await _ask(client, request, answer, timeout)
            done(next(over))
            more = bool(request.turns) and answer.error is None
            request = request.next_turn("".join(answer.text)) if more else None
            due_at, turn = time.perf_counter(), turn + 1

    try:
        async with asyncio.TaskGroup() as group:
            for request, offset in zip(requests, due, strict=True):
                due_at = began + float(offset)
                if (wait := due_at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(follow(request, due_at, 1))
    finally:
        watch.cancel()
    ended = max((answer.ended for answer in answers), default=began)
    limited = max_concurrency is not None
    return Run(rate, answers, began, ended, lag, time.process_time() - cpu, limited)


async def _ask(client: Client, request: BenchRequest, answer: Answer, timeout: float | None) -> None:
    try:
        async with asyncio.timeout(timeout):
            await client.ask(request, answer)
        if not answer.event_times:
            answer.error = "the answer has no token"
    except RequestFailed as error:
        answer.error = str(error)
    except TimeoutError:
        answer.error = f"not finished within {timeout:g} s"
    if answer.error is not None or not answer.ended:
        answer.ended = time.perf_counter()


async def _watch(lag: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_TICK)
        lag.append(max(0.0, time.perf_counter() - before - _TICK))
