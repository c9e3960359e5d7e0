"""Follows requests from submission to end and tells everybody who wants to know. On the event loop; never waits."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.expert_load import ExpertLoad
from jaxinfer.messages import SequenceOutput, StepOutputs, TenantPins
from jaxinfer.outputs import Delta
from serving.observing.expert_load import imbalance
from serving.observing.metrics import Metrics
from serving.observing.record import Origin, RequestRecord
from serving.request import PreparedRequest

_LOG = logging.getLogger("serving.observing")

_GATE = {"UNAUTHENTICATED": "401", "PERMISSION_DENIED": "403"}  # gRPC's name -> HTTP's status
RECENT = 1000  # finished requests that can be explained

Sink = Callable[[RequestRecord], None]


class Recorder:
    """sinks: each gets every finished request. log_content: prompts and outputs are kept for the access log."""

    def __init__(self, metrics: Metrics | None = None, *, log_content: bool = False, recent: int = RECENT) -> None:
        self.metrics = metrics or Metrics()
        self.sinks: list[Sink] = []
        self.refusal_sinks: list[Callable[[Origin, str, Exception], None]] = []
        self.log_content = log_content
        self._live: dict[str, RequestRecord] = {}  # by the engine's id, until the engine has ended it too
        self._closed: set[str] = set()  # of those, the ones that nobody reads any more
        self._recent: OrderedDict[str, RequestRecord] = OrderedDict()
        self._unloaded: list[tuple[RequestRecord, int]] = []  # ended, at which step; no report has all of them yet
        self._most_recent = recent
        self.pins: dict[int, tuple[TenantPins, ...]] = {}  # of each engine, by its number

    # -- a request's life -----------------------------------------------------------------------------------------

    def begin(self, prepared: PreparedRequest, engine_id: str, origin: Origin, engine: int = 0) -> RequestRecord:
        """engine: the number of the one that it goes to."""
        record = RequestRecord.of(prepared, engine_id, origin, self.metrics.model, engine)
        record.load_before = self.metrics.experts.latest(engine)
        self._live[engine_id] = record
        return record

    def step(self, step: StepOutputs, engine: int = 0) -> None:
        """One message of an engine; its ends count even where nobody listens any more."""
        self.metrics.step(step.stats, step.times, engine)
        for output in step.sequences:
            if output.finish_reason is not None:
                self._engine_says(output, step.stats.steps)
        if step.pins is not None:
            self.pins[engine] = step.pins
        if step.expert_load is not None:
            self._experts_say(step.expert_load, engine)

    def _engine_says(self, output: SequenceOutput, steps: int) -> None:
        record = self._live.get(output.request_id)
        if record is None:
            return
        record.engine_says(output)
        if record.running:
            return
        if record.load_before is not None:
            self._unloaded.append((record, steps))
        if record.engine_id in self._closed:
            self._finish(record)

    def _experts_say(self, load: ExpertLoad, engine: int) -> None:
        """An engine's report: what its experts did during the requests that ended before it."""
        self.metrics.experts.tell(load, engine)
        waiting, self._unloaded = self._unloaded, []
        found: dict[int, dict[str, Any]] = {}  # many requests come between the same reports
        for record, steps in waiting:
            before = record.load_before
            if record.engine != engine or steps > load.steps or before is None:
                self._unloaded.append((record, steps))
                continue
            if id(before) not in found:
                found[id(before)] = imbalance(load.since(before), self.metrics.experts.devices)
            record.load_during = found[id(before)]
        for record, _ in waiting:
            if record.load_during is not None:
                record.load_before = None  # thousands of numbers

    def delta(self, record: RequestRecord, delta: Delta, now: float) -> None:
        """What a client gets of one sequence."""
        if delta.token_ids:
            self.metrics.tokens(record, delta.index, len(delta.token_ids), now)
        if delta.finish_reason is not None:
            record.reasons[delta.index] = delta.finish_reason
            if len(record.reasons) == record.n:
                record.ended = now

    def close(self, record: RequestRecord, content: Callable[[], dict[str, Any]]) -> None:
        """Nobody reads it any more. It is finished when the engine, too, has ended it."""
        if record.engine_id not in self._live:
            return
        record.ended = record.ended or time.monotonic()
        if self.log_content:
            record.content = content()
        self._closed.add(record.engine_id)
        if not record.running:
            self._finish(record)

    def reject(self, record: RequestRecord) -> None:
        """The engine did not take it: it is no request."""
        self._live.pop(record.engine_id, None)

    def engine_ended(self, engine: int, *, failed: bool) -> None:
        """Nothing more will be heard of those of its requests that nobody reads; the others are finished when they are
        closed."""
        self._unloaded = [(record, steps) for record, steps in self._unloaded if record.engine != engine]
        for record in [record for record in self._live.values() if record.engine == engine]:
            record.running = 0
            record.failed = record.failed or (failed and len(record.reasons) < record.n)
            if record.engine_id in self._closed:
                self._finish(record)

    def _finish(self, record: RequestRecord) -> None:
        del self._live[record.engine_id]
        self._closed.discard(record.engine_id)
        self.metrics.finish(record)
        self._recent.pop(record.request_id, None)
        self._recent[record.request_id] = record
        while len(self._recent) > self._most_recent:
            self._recent.popitem(last=False)
        for sink in self.sinks:
            try:
                sink(record)
            except Exception:  # who observes must not take down what is observed
                _LOG.exception("request %s is missing in one of the records", record.request_id)

    def ignored(self, counts: Mapping[str, int]) -> None:
        """Fields of one request that had no effect, by the label that each has in the metric."""
        for field, count in counts.items():
            self.metrics.ignored[field,] += count

    def refused(self, origin: Origin, code: str, error: Exception) -> None:
        self.metrics.refused[origin.server, code] += 1
        for sink in self.refusal_sinks:
            sink(origin, code, error)

    def refused_at_the_gate(self, entry: Mapping[str, Any]) -> None:
        """Counts an entry of the audit log for which no request began."""
        status = _GATE.get(entry.get("code", ""))
        if status is not None:
            self.metrics.refused[entry["door"], status if entry["door"] == "http" else entry["code"]] += 1

    # -- explanations ---------------------------------------------------------------------------------------------

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """Where a request's time went and what it took; None when it is neither alive nor among the last."""
        for record in self._live.values():
            if record.request_id == request_id:
                return {**explanation(record, alive=True), **self._expert_load(record)}
        found = self._recent.get(request_id)
        return None if found is None else {**explanation(found, alive=False), **self._expert_load(found)}

    def _expert_load(self, record: RequestRecord) -> dict[str, Any]:
        """Nothing in a model without experts."""
        experts = self.metrics.experts
        latest = experts.latest(record.engine)
        if latest is None:
            return {}
        if record.load_during is None and record.load_before is not None:
            return {"expert_load": imbalance(latest.since(record.load_before), experts.devices)}
        return {"expert_load": record.load_during}


def explanation(record: RequestRecord, *, alive: bool) -> dict[str, Any]:
    """As JSON. The seconds of a finished request's phases add up to seconds.total."""
    result: dict[str, Any] = {
        "request_id": record.request_id,
        "state": "alive" if alive else "finished",
        "model": record.model,
        "door": record.origin.server,
        "endpoint": record.origin.endpoint,
        "tenant": record.origin.tenant,
        "arrived": record.time,
        "n": record.n,
        "max_tokens": record.max_tokens,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.output_tokens,
    }
    if record.asked_tokens is not None and record.asked_tokens > record.max_tokens:
        result["max_tokens_asked"] = record.asked_tokens  # more than prompt, context and pool left
    if record.pins or record.pin_answer:
        marks = [{"tokens": tokens, "seconds": seconds} for tokens, seconds in record.pins]
        whole = [{"tokens": None, "seconds": record.pin_answer}] if record.pin_answer else []
        result["pins"] = marks + whole
        result["pinned_tokens"] = record.pinned_tokens
    if record.ignored:
        result["ignored"] = list(record.ignored)
    if alive:
        now = time.monotonic()
        first = record.first_token
        result["seconds"] = {
            "total": now - record.received,
            "to_first_token": first - record.received if first else None,
        }
        return result
    phases = record.phases()
    return {
        **result,
        "finish_reason": record.finish_reason,
        "seconds": {
            **phases,
            "total": sum(phases.values()),
            "to_first_token": record.first_token - record.received if record.first_token else None,
            "device": record.device_seconds,
        },
        "prefill_chunks": sum(account.chunks for account in record.accounts),
        "pages": sum(account.pages for account in record.accounts),
        "preemptions": record.preemptions,
        "computed_tokens": sum(account.computed_tokens for account in record.accounts),
        "padding_share": record.padding_share,
    }
