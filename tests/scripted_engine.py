"""An engine whose model says what a test scripts: the real loop and scheduler, with a list in the device's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.engine import EngineLoop
from jaxinfer.messages import Abort, EngineInfo, StepOutputs, Submit
from jaxinfer.outputs import RequestStream
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import Admission, PlanRow, Scores, StepPlan, StepResult
from jaxinfer.text import AnswerReading, Tokenizer, load_tokenizer
from tests.fakes import EOS, VOCAB_SIZE, write_tokenizer

OTHER_EOS = 259  # what generation_config.json names beside the tokenizer's own
Wish = int | Sequence[int]  # a token, or several in the order in which the model would like to say them


@dataclass
class _Pending:
    tokens: StepResult
    ready: bool = True

    def result(self) -> StepResult:
        return self.tokens


class ScriptedDevice:
    """Says the script's tokens, but for those that the request forbids. Obeys what it is told at admission alone."""

    padded_tokens = 0

    def __init__(self) -> None:
        self.scripts: dict[str, Sequence[Sequence[Wish]]] = {}
        self._slots: dict[int, Admission] = {}

    def dispatch(self, plan: StepPlan) -> _Pending:
        tokens = []
        for row in plan.rows:
            if row.admission is not None:
                self._slots[row.slot] = row.admission
            tokens.append(self._say(row) if row.draws else -1)
        return _Pending(
            StepResult([[t] for t in tokens], _scores(tokens), _scores([t for row in plan.rows for t in _targets(row)]))
        )

    def _say(self, row: PlanRow) -> int:
        told = self._slots[row.slot]
        count = row.start + row.length - told.prompt_len
        script = self.scripts[row.request_id][told.index]
        wish = script[min(count, len(script) - 1)]
        wishes = (wish,) if isinstance(wish, int) else wish
        params = told.params
        forbidden = set(params.bad_token_ids) | (set(told.stop_ids) if count < params.min_tokens else set())
        allowed = range(VOCAB_SIZE) if params.allowed_token_ids is None else params.allowed_token_ids
        return next(token for token in (*wishes, ord(".")) if token in allowed and token not in forbidden)


def _targets(row: PlanRow) -> list[int]:
    return [*row.targets, *[0] * (row.length - len(row.targets))]


def _scores(tokens: Sequence[int]) -> Scores:
    others = [[token, (token + 1) % VOCAB_SIZE] for token in tokens]
    return Scores([-token / 100 for token in tokens], [1] * len(tokens), others, [[-0.1, -2.0]] * len(tokens))


class ScriptedEngine:
    """`play` gives a request's stream when both halves are done with it, as an offline caller would drive it."""

    def __init__(self, folder: Path, *, num_pages: int = 65) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(write_tokenizer(folder))
        limits = SchedulerLimits(8, 64, 512, eos_token_ids=(EOS, OTHER_EOS))
        self.device = ScriptedDevice()
        values: dict[str, Any] = dict.fromkeys(EngineInfo._fields, 0)
        self.loop = EngineLoop(
            Scheduler(limits, PagePool(num_pages, 16)), self.device, EngineInfo(**values), check=True
        )
        self._played = 0
        self.generated = 0  # tokens that the engine counted, also those that nobody was told
        self.preemptions = 0

    def play(
        self,
        script: Sequence[Wish] | Sequence[Sequence[Wish]],
        *,
        prompt: bytes = b"p",
        reading: AnswerReading | None = None,
        **params: Any,
    ) -> RequestStream:
        """script: of the one sequence, or with n of each."""
        given = SamplingParams(**{"max_tokens": 40, **params})
        self._played += 1
        name = f"r{self._played}"
        self.device.scripts[name] = script if given.n > 1 else [script]  # type: ignore[assignment,list-item]
        before = self.loop.scheduler.stats.copy()
        stream = RequestStream(name, None, list(prompt), given, self.tokenizer, reading=reading)
        self.loop.scheduler.add(Submit(name, tuple(prompt), given, 0, 0, 0.0))
        while not self.loop.idle:
            outputs = self.loop.step() or StepOutputs()
            for scored in outputs.prompts:
                stream.push_prompt(scored)
            for output in outputs.sequences:
                delta = stream.push(output)
                if delta is not None and delta.stopped:
                    self.loop._handle(Abort(name, output.index), lambda _: None)
        assert stream.finished
        stats = self.loop.scheduler.stats
        self.generated = stats.generated_tokens - before.generated_tokens
        self.preemptions = stats.preemptions - before.preemptions
        return stream

    def one(self, script: Sequence[Wish] | bytes, **params: Any) -> tuple[str, list[int], str | None, int | str | None]:
        """The only sequence's (text, token ids, finish reason, stop reason)."""
        output = self.play(list(script), **params).result.outputs[0]
        return output.text, output.token_ids, output.finish_reason, output.stop_reason
