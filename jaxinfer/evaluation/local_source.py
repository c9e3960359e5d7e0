"""Answers of an engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxinfer.evaluation.source import (
    PLAIN_STOPS,
    AnswerText,
    Chat,
    Distributions,
    OnDone,
    Scored,
    SourceInfo,
    plain_prompt,
)
from jaxinfer.messages import EngineInfo, TokenLogprobs
from jaxinfer.outputs import RequestOutput
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import Tokenizer


class Engine(Protocol):
    """What is needed of `jaxinfer.llm.LLM`."""

    @property
    def info(self) -> EngineInfo: ...

    def get_tokenizer(self) -> Tokenizer: ...

    def generate(
        self,
        prompts: list[list[int]],
        sampling_params: Sequence[SamplingParams],
        *,
        on_finish: Callable[[RequestOutput], None],
    ) -> list[RequestOutput]: ...

    def close(self) -> None: ...


class LocalSource:
    """An engine in this process, which it owns. Use as a context manager, or call `close`: engines do not share a
    device well.

    Args:
        name: what reports call the model.
        engine: a started engine that samples as it is told, without defaults of the model's own.
        enable_prefix_caching: as the engine was started; reports tell it.
    """

    def __init__(self, name: str, engine: Engine, *, enable_prefix_caching: bool) -> None:
        self._engine = engine
        self._tokenizer = engine.get_tokenizer()
        info = engine.info
        self.info = SourceInfo(
            model=name,
            where="offline",
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            max_logprobs=info.max_logprobs,
            chat=self._tokenizer.chat_template is not None,
            settings=_engine_settings(info, enable_prefix_caching=enable_prefix_caching),
        )

    def __enter__(self) -> LocalSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.close()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text) for text in texts]

    def encode_chats(self, chats: Sequence[Chat]) -> list[list[int]]:
        if not self.info.chat:
            return self.encode([plain_prompt(chat.messages) for chat in chats])
        return [
            self._tokenizer.encode_chat(chat.messages, tools=chat.tools or None, **chat.variables) for chat in chats
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int], on_done: OnDone
    ) -> list[AnswerText]:
        stops = () if self.info.chat else PLAIN_STOPS
        params = [SamplingParams(temperature=0.0, max_tokens=limit, stop=stops) for limit in max_tokens]
        return [
            AnswerText(output.outputs[0].text, str(output.outputs[0].finish_reason))
            for output in self._run(prompts, params, on_done)
        ]

    def score(self, prompts: Sequence[Sequence[int]], on_done: OnDone) -> list[Scored]:
        params = [SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)] * len(prompts)
        return [_scored(output.prompt_logprobs or []) for output in self._run(prompts, params, on_done)]

    def distributions(self, prompts: Sequence[Sequence[int]], alternatives: int) -> Iterator[Distributions]:
        params = [SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=alternatives)]
        for prompt in prompts:  # one at a time: whole distributions of many texts would not fit the host's memory
            (output,) = self._run([prompt], params, lambda: None)
            entries = [entry for entry in output.prompt_logprobs or [] if entry is not None]
            yield Distributions(
                np.array([[token for token, _ in entry.top] for entry in entries], np.int32),
                np.array([[value for _, value in entry.top] for entry in entries], np.float32),
            )

    def _run(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], on_done: OnDone
    ) -> list[RequestOutput]:
        if not prompts:
            return []
        return self._engine.generate([list(prompt) for prompt in prompts], params, on_finish=lambda _: on_done())


def _scored(entries: Sequence[TokenLogprobs | None]) -> Scored:
    known = [entry for entry in entries if entry is not None]
    return Scored(np.array([e.logprob for e in known], np.float64), np.array([e.rank for e in known], np.int64))


def _engine_settings(info: EngineInfo, **more: Any) -> dict[str, Any]:
    return {
        "architecture": info.architecture,
        "dtype": info.dtype,
        "tensor_parallel_size": info.tensor_parallel_size,
        "expert_parallel_size": info.expert_parallel_size,
        "device": info.device,
        "backends": dict(info.backends),
        "max_model_len": info.max_model_len,
        "max_num_seqs": info.max_num_seqs,
        "max_num_batched_tokens": info.max_num_batched_tokens,
        "page_size": info.page_size,
        **more,
    }
