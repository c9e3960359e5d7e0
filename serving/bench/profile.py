"""Records N steps of an engine and says where their time went."""

from __future__ import annotations

import math
import queue
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxinfer.messages import Died, EngineStats, Shutdown, StepOutputs, StepTimes, Submit
from jaxinfer.sampling_params import SamplingParams
from serving.bench.offline import random_prompts
from serving.bench.records import ServerTrouble
from serving.bench.trace import Operation

_SETTLE_STEPS = 3  # of decoding, before the first that is recorded


class Engine(Protocol):
    """What is needed of `jaxinfer.engine.EngineLoop`."""

    def run(self, inbox: Any, post: Callable[[Any], None]) -> None: ...


@dataclass(frozen=True)
class Load:
    """`batch_size` requests of `input_len` tokens at once; `steps` of their decoding are recorded."""

    batch_size: int
    input_len: int
    steps: int

    def output_len(self, budget: int) -> int:
        """Tokens of an answer that keep all rows decoding while steps are recorded, where a step has `budget` tokens:
        the first of them decode while the last prompts are computed."""
        return self.steps + _SETTLE_STEPS + 4 + 2 * math.ceil(self.batch_size * self.input_len / budget)


@dataclass(frozen=True)
class Mark:
    """Where the engine stood at a moment: seconds of time.perf_counter() and its counters."""

    at: float
    times: StepTimes
    stats: EngineStats


@dataclass(frozen=True)
class Recording:
    begin: Mark
    end: Mark

    @property
    def steps(self) -> int:
        return self.end.stats.steps - self.begin.stats.steps

    @property
    def seconds(self) -> float:
        return self.end.at - self.begin.at

    def part(self, name: str) -> float:
        """Seconds of a field of `StepTimes`."""
        return float(getattr(self.end.times, name) - getattr(self.begin.times, name))

    def counted(self, name: str) -> int:
        """Growth of a field of `EngineStats`."""
        return int(getattr(self.end.stats, name) - getattr(self.begin.stats, name))


class _Recorder:
    """Is given the engine's messages between two steps: starts and stops the trace there, then ends the engine."""

    def __init__(
        self, load: Load, inbox: queue.Queue[Any], start: Callable[[], object], stop: Callable[[], None]
    ) -> None:
        self._load, self._inbox, self._start, self._stop = load, inbox, start, stop
        self._decoding: set[str] = set()
        self._settled = 0
        self.begin: Mark | None = None
        self.end: Mark | None = None
        self.died: Died | None = None

    def __call__(self, message: Any) -> None:
        if isinstance(message, Died):
            self.died = message
        if not isinstance(message, StepOutputs) or self.end is not None:
            return
        self._decoding |= {output.request_id for output in message.sequences if output.token_ids}
        if self.begin is None:
            self._settled += len(self._decoding) == self._load.batch_size
            if self._settled > _SETTLE_STEPS:
                self._start()
                self.begin = Mark(time.perf_counter(), message.times, message.stats)
        elif message.stats.steps - self.begin.stats.steps >= self._load.steps:
            self.end = Mark(time.perf_counter(), message.times, message.stats)
            self._stop()
            self._inbox.put(Shutdown())


def record(engine: Engine, load: Load, vocab_size: int, budget: int, folder: Path, seed: int = 0) -> Recording:
    """Runs the engine in this thread until `load.steps` decode steps are recorded, with a trace of JAX in `folder`.

    budget: tokens of a step. The engine is of no use afterwards. Raises ServerTrouble when it fails, or when the
    requests end before.
    """
    import jax

    inbox: queue.Queue[Any] = queue.Queue()
    prompts = random_prompts(load.batch_size, load.input_len, vocab_size, random.Random(seed))
    params = SamplingParams(temperature=0, max_tokens=load.output_len(budget), ignore_eos=True)
    for i, prompt in enumerate(prompts):
        inbox.put(Submit(f"profile-{i}", tuple(prompt), params, i, 0, time.monotonic()))
    recorder = _Recorder(load, inbox, lambda: jax.profiler.start_trace(str(folder)), jax.profiler.stop_trace)
    engine.run(_Ending(inbox), recorder)
    if recorder.died is not None:
        raise ServerTrouble(f"the engine failed: {recorder.died.error}")
    if recorder.begin is None or recorder.end is None:
        raise ServerTrouble(f"the requests ended before {load.steps} steps were recorded")
    return Recording(recorder.begin, recorder.end)


class _Ending:
    """The engine's inbox, which ends it when all requests are over instead of waiting for others."""

    def __init__(self, messages: queue.Queue[Any]) -> None:
        self._messages = messages

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self._messages.get(False)
        except queue.Empty:
            if block:
                return Shutdown()
            raise


# -- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """What a step reads at least: every weight, and the keys and values of every row."""

    weight_bytes: int
    kv_bytes_per_token: int
    read_bandwidth: float  # bytes per second


def figures(recording: Recording, load: Load, memory: Memory, busy: float | None) -> dict[str, Any]:
    """Milliseconds of a step by part, padding, and the bytes that it must read against the memory's limit.

    busy: seconds in which the device computed, from the trace; None where it could not be read.
    """
    steps = recording.steps
    padded, scheduled = recording.counted("padded_tokens"), recording.counted("scheduled_tokens")
    context = load.input_len + recording.begin.stats.generated_tokens / load.batch_size + steps / 2
    kv_bytes = int(memory.kv_bytes_per_token * context * scheduled / steps)
    limit = (memory.weight_bytes + kv_bytes) / memory.read_bandwidth
    per_step = 1e3 / steps
    parts = ("schedule", "dispatch", "update", "masks", "messages")
    return {
        "steps": steps,
        "rows": scheduled / steps,
        "step_ms": recording.seconds * per_step,
        "device_ms": None if busy is None else busy * per_step,
        "host_ms": sum(recording.part(part) for part in parts) * per_step,
        "wait_ms": recording.part("device") * per_step,
        **{f"host_{part}_ms": recording.part(part) * per_step for part in parts},
        "starved_steps": recording.part("starved_steps"),
        "starved_ms": recording.part("starved_seconds") * per_step,
        "padding_share": padded / (padded + scheduled),
        "weight_bytes": memory.weight_bytes,
        "kv_bytes": kv_bytes,
        "read_bandwidth": memory.read_bandwidth,
        "memory_limit_ms": 1e3 * limit,
        "of_memory_limit": limit / (recording.seconds / steps),
    }


def shares(found: Sequence[Operation], steps: int, most: int) -> list[dict[str, Any]]:
    """The `most` longest operations, and the others together: milliseconds and calls a step, share of all."""
    total = sum(operation.seconds for operation in found) or 1.0
    rows = [
        {
            "operation": each.name,
            "program": each.module,
            "calls": each.count / steps,
            "milliseconds": 1e3 * each.seconds / steps,
            "share": each.seconds / total,
        }
        for each in found[:most]
    ]
    rest = found[most:]
    if rest:
        seconds = sum(each.seconds for each in rest)
        calls = sum(each.count for each in rest) / steps
        others = {"operation": f"{len(rest)} others", "program": "", "calls": calls}
        rows.append({**others, "milliseconds": 1e3 * seconds / steps, "share": seconds / total})
    return rows
