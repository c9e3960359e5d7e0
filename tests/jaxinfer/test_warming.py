"""An engine that serves while it compiles: the same tokens in smaller steps, and it waits for no compilation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.messages import Shutdown, StepOutputs, Warmed
from jaxinfer.runtime.executables import Compiler, Executable, Lower
from jaxinfer.runtime.programs import ADMIT, SCORE
from jaxinfer.sampling_params import SamplingParams
from tests.golden_recipe import load_case
from tests.jaxinfer.harness import Harness, build

CASE = load_case("llama")
PROMPT = list(CASE.prompts[0])[:24] + list(CASE.prompts[1])[:6]
SIZES: dict[str, Any] = {"max_num_batched_tokens": 32, "max_num_seqs": 4}  # buckets of 8 and 32 tokens
FIRST = {"step[8 tokens, 8 rows]", "draw[8 rows]", ADMIT, SCORE}
SCORED = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, prompt_logprobs=2, logprobs=2)


class Gate:
    """A source that compiles only what is let through."""

    def __init__(self, *, fails: bool = False) -> None:
        self.opened = threading.Event()
        self.asked: list[str] = []
        self._fails = fails

    def get(self, name: str, lower: Lower) -> Executable:
        self.asked.append(name)
        if name not in FIRST:
            assert self.opened.wait(60)
            if self._fails:
                raise RuntimeError("the compiler gave up")
        return Compiler().get(name, lower)

    def replace(self, name: str, lower: Lower, error: Exception) -> Executable:
        raise error


@pytest.fixture(scope="module")
def whole() -> Harness:
    return build(CASE, **SIZES)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def answers(engine: Harness) -> Any:
    """Tokens, their scores and those of the prompt, by position: chunks of it may be others."""
    name = engine.submit(PROMPT, SCORED)
    engine.run()
    prompt = [(part.start + i, entry) for part in engine.prompts[name] for i, entry in enumerate(part.entries)]
    heard = engine.heard[name, 0]
    return heard.tokens, heard.logprobs, prompt


def test_small_steps_give_the_same_bytes(whole: Harness, gate: Gate) -> None:
    engine = build(CASE, serve_while_warming=True, source=gate, **SIZES)
    loop, runner, posted = engine.loop, engine.loop.runner, []
    assert loop.warming
    assert loop.scheduler.limits.max_num_batched_tokens == runner.token_budget == 8
    wanted = answers(whole)
    assert answers(engine) == wanted
    assert engine.steps > whole.steps
    loop.grow(posted.append)
    assert (posted, loop.warming, runner.compilations) == ([], True, 0)
    gate.opened.set()
    while loop.warming:
        loop.grow(posted.append)
    assert [type(message) for message in posted] == [Warmed]
    assert [name for name, _ in posted[0].info.executables] == list(runner.jobs())
    assert loop.scheduler.limits.max_num_batched_tokens == 32
    engine.forget_prefixes()
    steps = engine.steps
    assert answers(engine) == wanted
    assert engine.steps - steps == whole.steps
    assert runner.compilations == 0
    runner.close()


def test_the_smallest_step_comes_first(whole: Harness) -> None:
    names = list(whole.loop.runner.jobs())
    assert set(names[:4]) == FIRST
    assert names[4] == "step[32 tokens, 8 rows]"


def test_an_idle_engine_gets_whole_and_stops_when_told(gate: Gate) -> None:
    engine = build(CASE, serve_while_warming=True, source=gate, **SIZES)
    inbox: queue.Queue[Any] = queue.Queue()
    posted: queue.Queue[Any] = queue.Queue()
    thread = threading.Thread(target=engine.loop.run, args=(inbox, posted.put))
    thread.start()
    gate.opened.set()
    assert isinstance(posted.get(timeout=60), Warmed)
    inbox.put(Shutdown())
    thread.join(60)
    assert not thread.is_alive()
    engine.loop.runner.close()


def test_an_engine_may_stop_before_it_is_whole(gate: Gate) -> None:
    engine = build(CASE, serve_while_warming=True, source=gate, **SIZES)
    inbox: queue.Queue[Any] = queue.Queue()
    inbox.put(Shutdown())
    threading.Timer(0.2, gate.opened.set).start()  # what is being compiled is waited for
    posted: list[Any] = []
    engine.loop.run(inbox, posted.append)
    assert not [message for message in posted if isinstance(message, (Warmed, StepOutputs))]
    assert not engine.loop.warming
    engine.loop.runner.close()


def test_a_compiler_that_fails_later_ends_the_engine() -> None:
    gate = Gate(fails=True)
    engine = build(CASE, serve_while_warming=True, source=gate, **SIZES)
    gate.opened.set()
    posted: list[Any] = []
    with pytest.raises(RuntimeError, match="the compiler gave up"):
        engine.loop.run(queue.Queue(), posted.append)
    assert posted[-1].error == "RuntimeError: the compiler gave up"
    engine.loop.runner.close()


@pytest.mark.longer
def test_an_engine_of_one_step_size(whole: Harness) -> None:
    """What `jaxinfer generate` runs: four programs, and the same bytes."""
    settings = {"max_num_batched_tokens": 16, "max_num_seqs": 1, "step_sizes": (16,)}
    engine = build(CASE, **{**SIZES, **settings})
    names = [name for name, _ in engine.loop.info.executables]
    assert names == ["step[16 tokens, 8 rows]", "draw[8 rows]", ADMIT, SCORE]
    assert answers(engine) == answers(whole)
    assert engine.loop.runner.compilations == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_sizes": ()}, r"step_sizes is \(\); it must have positive integers"),
        ({"step_sizes": (0, 8)}, r"step_sizes is \(0, 8\); it must have positive integers"),
        ({"step_sizes": (8,)}, "the largest must be at least max_num_batched_tokens, which must be given and is None"),
        ({"step_sizes": (8,), "max_num_batched_tokens": 9}, "must be given and is 9"),
        ({"step_sizes": [8]}, "step_sizes is"),
    ],
)
def test_step_sizes_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RuntimeConfig(**settings)
