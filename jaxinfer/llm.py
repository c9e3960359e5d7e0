"""The offline API: `LLM(model).generate(prompts)`, and `build_engine`, the composition root that loads a model."""

from __future__ import annotations

import itertools
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxinfer.config import RuntimeConfig
from jaxinfer.constraints.budget import thinking_budget
from jaxinfer.constraints.constraint import constrained
from jaxinfer.engine import EngineLoop
from jaxinfer.errors import InvalidRequest
from jaxinfer.expert_load import ExpertLoad
from jaxinfer.generation_config import generation_defaults, generation_notes
from jaxinfer.messages import (
    Abort,
    Died,
    EngineInfo,
    EngineStats,
    Progress,
    Rejected,
    Shutdown,
    StepOutputs,
    Submit,
    TellExpertLoad,
)
from jaxinfer.model_path import hub_cache_from, resolve_model
from jaxinfer.outputs import RequestOutput, RequestStream, fault_of
from jaxinfer.progress_bar import progress_bar
from jaxinfer.sampling_params import SamplingParams, as_token_ids
from jaxinfer.text import VOCABULARY_FILES, Tokenizer, TokenizerError, load_tokenizer

if TYPE_CHECKING:
    from jaxinfer.config import ModelConfig
    from jaxinfer.constraints.vocabulary import Vocabulary

Prompt = str | Sequence[int] | Mapping[str, Any]


class EngineDead(RuntimeError):
    """The engine's thread failed; the message carries its reason."""


def build_engine(
    model: str | Path,
    runtime: RuntimeConfig,
    progress: Callable[[Progress], None] | None = None,
    *,
    check: bool = False,
    tokenizer: Tokenizer | None = None,
) -> EngineLoop:
    """Loads a checkpoint folder and returns a warmed-up engine. tokenizer: the folder's, where it is loaded already.
    Raises ConfigError or CheckpointError.

    A composition root: the only place of the engine that reaches up to `checkpoints`.
    """
    from checkpoints.folder import read_config
    from checkpoints.storage import read_storage, with_stored_defaults
    from jaxinfer.constraints.vocabulary import ComingVocabulary
    from jaxinfer.runtime.allocator import keep_large_blocks
    from jaxinfer.runtime.bundle import bundle_or_compiler
    from jaxinfer.runtime.engine_builder import assemble_engine, configure_jax
    from jaxinfer.runtime.self_test import self_test
    from jaxinfer.sharding import make_mesh

    if runtime.device in (None, "cpu"):
        keep_large_blocks()  # before JAX starts its threads
    configure_jax(runtime)
    config, folder = read_config(model)[0], Path(model)
    vocabulary = ComingVocabulary(lambda: _vocabulary(folder, config, runtime, tokenizer))
    runtime = with_stored_defaults(folder, config, runtime)
    storage = read_storage(folder, config)
    tried = self_test(config, runtime, storage.matrices)  # before the device is opened
    mesh = make_mesh(runtime.parallel, runtime.device)

    def on_load(done: int, total: int, detail: str) -> None:
        if progress is not None:
            progress(Progress("load", done, total, detail))

    with bundle_or_compiler(config, storage.to_dict(), runtime, mesh) as programs:
        from checkpoints.load import load_model  # a bundle's executables load beside this import

        runtime = programs.runtime
        loaded = load_model(folder, dtype=runtime.dtype, mesh=mesh, quantization=runtime.quantization, progress=on_load)
        engine = assemble_engine(
            loaded, mesh, runtime, progress, check=check, source=programs.source, vocabulary=vocabulary
        )
        extra = {**engine.info.extra, "vocabulary_seconds": vocabulary.seconds}
        engine.info = engine.info._replace(notes=(*engine.info.notes, *tried, *programs.notes()), extra=extra)
    return engine


def _vocabulary(
    folder: Path, config: ModelConfig, runtime: RuntimeConfig, tokenizer: Tokenizer | None
) -> Vocabulary | None:
    """The tokens of a folder's tokenizer, for grammars; None where it has no tokenizer."""
    from checkpoints.end_tokens import served_end_tokens
    from jaxinfer.constraints.vocabulary import Vocabulary
    from jaxinfer.models.shape import ModelShape

    tokenizer = tokenizer or _tokenizer_or_none(folder)
    if tokenizer is None:
        return None
    width = ModelShape.of(config, runtime.parallel.num_devices).vocab
    return Vocabulary(tokenizer, width, served_end_tokens(folder, config, tokenizer)[0])


class LLM:
    """A model ready to generate. Keyword names follow vLLM where the thing is the same.

    model: converted checkpoint, Hugging Face folder or hub id in the local cache; None is the shipped demo.
    generation_config: "auto" overlays the defaults with the model's own, "none" does not; `info.notes` says what of it
    has no effect. End tokens are read from it either way, see `checkpoints.end_tokens`.
    Other keywords are `RuntimeConfig`'s fields. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        generation_config: str = "auto",
        seed: int | None = 0,
        **runtime: Any,
    ) -> None:
        if generation_config not in ("auto", "none"):
            raise ValueError(f"generation_config is {generation_config!r}; it must be 'auto' or 'none'")
        self.runtime = RuntimeConfig(seed=seed, **runtime)
        self.model_path = resolve_model(None if model is None else str(model), hub_cache_from(os.environ))
        self._tokenizer = _tokenizer_or_none(self.model_path)
        self._seeds = random.Random(seed)
        self._ids = itertools.count()
        self._lock = threading.Lock()
        engine = build_engine(self.model_path, self.runtime, tokenizer=self._tokenizer)
        found = _generation_config(self.model_path) if generation_config == "auto" else {}
        self.info: EngineInfo = engine.info._replace(notes=(*engine.info.notes, *generation_notes(found)))
        self._defaults = generation_defaults(found)
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._outbox: queue.Queue[Any] = queue.Queue()
        self._dead: str | None = None
        self._stats = EngineStats()
        self._expert_load: ExpertLoad | None = None
        run = engine, self._inbox, self._outbox.put
        self._thread = threading.Thread(target=_run_quietly, args=run, name="jaxinfer-engine", daemon=True)
        self._thread.start()
        # Also when nobody calls close: a thread that still computes while the interpreter goes down would crash it.
        self._stop = weakref.finalize(self, _stop_engine, self._inbox, self._thread)

    # -- public -----------------------------------------------------------------------------------------------------

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError when the folder has none."""
        if self._tokenizer is None:
            raise TokenizerError(f"{self.model_path} has no tokenizer; give prompts as token ids")
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """vLLM's defaults, overlaid by the model's generation config."""
        return SamplingParams(**self._defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        use_tqdm: bool = False,
        on_finish: Callable[[RequestOutput], None] | None = None,
    ) -> list[RequestOutput]:
        """Generates for one prompt or a list of them, in their order.

        Prompts are strings, lists of token ids or {"prompt_token_ids": [...]} / {"prompt": "..."}. sampling_params: one
        for all, or one each. use_tqdm: show a progress bar. on_finish: called with each result as soon as it is there.
        Raises InvalidRequest before anything runs, EngineDead.
        """
        entries = _as_list(prompts)
        params = self._params_for(entries, sampling_params)
        if priority is not None and len(priority) != len(entries):
            wanted = f"it must hold one value for each of {len(entries)} prompts"
            raise InvalidRequest("priority", len(priority), wanted)
        streams = [self._stream(entry, p) for entry, p in zip(entries, params, strict=True)]
        with self._lock:
            self._submit_all(streams, priority or [0] * len(streams))
            self._collect({s.result.request_id: s for s in streams}, use_tqdm, on_finish)
        return [stream.result for stream in streams]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Renders one conversation, or a list of them, with the model's chat template and generates the answers.

        Answers are the model's own text, reasoning and its tags included, so stop strings count from its beginning.
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if single else list(messages)
        tokenizer = self.get_tokenizer()
        prompts = [tokenizer.encode_chat(c, add_generation_prompt=add_generation_prompt) for c in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stats(self) -> EngineStats:
        """The engine's counters as of its last step."""
        return self._stats

    def expert_load(self) -> ExpertLoad:
        """How many tokens each expert has computed since the engine started, and how unevenly; without layers in a
        model without experts. `later.since(earlier)` is what came between two calls. Waits for what is being
        generated. Raises EngineDead."""
        with self._lock:
            self._check_alive()
            self._inbox.put(TellExpertLoad())
            self._expert_load = None
            while self._expert_load is None:
                self._take({})
            return self._expert_load

    def close(self) -> None:
        """Stops the engine's thread. Idempotent."""
        self._stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- requests ---------------------------------------------------------------------------------------------------

    def _params_for(
        self, entries: Sequence[Prompt], given: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * len(entries)
        if len(given) != len(entries):
            raise InvalidRequest("sampling_params", len(given), f"there are {len(entries)} prompts")
        return list(given)

    def _stream(self, prompt: Prompt, params: SamplingParams) -> RequestStream:
        text, ids = self._token_ids(prompt, params)
        params.check_vocabulary(self.info.vocab_size)
        params = params.resolve_logprobs(self.info.vocab_size, self.info.max_logprobs)
        room = self.info.max_model_len - len(ids)
        if not ids:
            raise InvalidRequest("prompt", prompt, "it must hold at least one token")
        if room < 1:
            raise InvalidRequest(
                "prompt", f"{len(ids)} tokens", f"at most {self.info.max_model_len - 1} fit the context"
            )
        if params.max_tokens is None and params.min_tokens > room:
            allowed = f"with a prompt of {len(ids)} tokens at most {room} fit the context of {self.info.max_model_len}"
            raise InvalidRequest("min_tokens", params.min_tokens, allowed)
        # A pool that cannot hold the prompt is the engine's to refuse.
        in_pool = self.info.pool_length - len(ids)
        left = min(room, in_pool) if in_pool >= max(1, min(params.min_tokens, room)) else room
        if params.max_tokens is None or params.max_tokens > left:
            params = params.with_changes(max_tokens=left, min_tokens=min(params.min_tokens, left))
        if params.stop and self._tokenizer is None:
            raise InvalidRequest("stop", params.stop, "stop strings need a tokenizer, and this model has none")
        if params.thinking_token_budget is not None and self._tokenizer is None:
            allowed = "it needs a tokenizer, and this model has none"
            raise InvalidRequest("thinking_token_budget", params.thinking_token_budget, allowed)
        if params.structured_outputs is not None and self._tokenizer is None:
            allowed = "it needs a tokenizer, and this model has none"
            raise InvalidRequest("structured_outputs", params.structured_outputs.kind, allowed)
        return RequestStream(str(next(self._ids)), text, ids, params, self._tokenizer)

    def _token_ids(self, prompt: Prompt, params: SamplingParams) -> tuple[str | None, tuple[int, ...]]:
        if isinstance(prompt, Mapping):
            unknown = set(prompt) - {"prompt", "prompt_token_ids"}
            if unknown or len(prompt) != 1:
                raise InvalidRequest("prompt", sorted(prompt), "a mapping holds either prompt or prompt_token_ids")
            prompt = cast("str | Sequence[int]", next(iter(prompt.values())))
        limit = params.prompt_limit(self.info.max_model_len)
        if isinstance(prompt, str):
            return prompt, tuple(self.get_tokenizer().encode(prompt, truncate_prompt_tokens=limit))
        ids = as_token_ids("prompt_token_ids", prompt, self.info.vocab_size)
        return None, ids if limit is None else ids[-limit:]

    def _submit_all(self, streams: Sequence[RequestStream], priority: Sequence[int]) -> None:
        self._check_alive()
        for submit in [self._submit(stream, level) for stream, level in zip(streams, priority, strict=True)]:
            self._inbox.put(submit)

    def _submit(self, stream: RequestStream, priority: int) -> Submit:
        result, params = stream.result, stream.params
        seed = self._seeds.getrandbits(64) if params.seed is None else params.seed & (2**64 - 1)
        # Nobody reads an answer before its end, but a stop string must be found when it is complete.
        interval = 1 if params.stop else self.info.max_model_len
        ids = tuple(result.prompt_token_ids)
        thinking = thinking_budget(params.thinking_token_budget, None, self._tokenizer, ids)
        constraint, _ = constrained(params.structured_outputs, None, None, self._tokenizer)
        return Submit(
            result.request_id,
            ids,
            params.with_changes(structured_outputs=None, thinking_token_budget=None),
            seed,
            priority,
            time.monotonic(),
            interval=interval,
            constraint=constraint,
            thinking=thinking,
        )

    def _collect(
        self, streams: dict[str, RequestStream], show: bool, on_finish: Callable[[RequestOutput], None] | None
    ) -> None:
        open_ids = set(streams)
        try:
            with progress_bar(len(streams), show) as advance:
                while open_ids:
                    for request_id in self._take(streams):
                        open_ids.discard(request_id)
                        advance()
                        if on_finish is not None:
                            on_finish(streams[request_id].result)
        except BaseException:
            for request_id in open_ids:
                self._inbox.put(Abort(request_id))
            raise

    def _take(self, streams: dict[str, RequestStream]) -> list[str]:
        """Waits for one message; returns the requests it finished. News of requests given up earlier is dropped."""
        self._check_alive()
        message = self._outbox.get()
        if isinstance(message, Died):
            self._dead = message.error
            self._check_alive()
        if isinstance(message, Rejected) and message.request_id in streams:
            raise fault_of(streams, message.request_id, message.message)
        finished: list[str] = []
        if isinstance(message, ExpertLoad):
            self._expert_load = message
        if isinstance(message, StepOutputs):
            self._stats = message.stats
            for scored in message.prompts:
                if scored.request_id in streams:
                    streams[scored.request_id].push_prompt(scored)
            for output in message.sequences:
                stream = streams.get(output.request_id)
                if stream is not None and output.finish_reason == "error":
                    raise fault_of(streams, output.request_id, output.message)
                delta = stream.push(output) if stream is not None else None
                if stream is None or delta is None:
                    continue
                if delta.stopped:
                    self._inbox.put(Abort(output.request_id, output.index))
                if stream.finished:
                    finished.append(output.request_id)
        return finished

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDead(f"the engine failed: {self._dead}")
        if not self._stop.alive:
            raise EngineDead("this LLM was closed")


def _run_quietly(engine: EngineLoop, inbox: queue.Queue[Any], post: Callable[[Any], None]) -> None:
    """The thread's body: the failure has been posted as `Died`, so the thread need not print it as well."""
    try:
        engine.run(inbox, post)
    except Exception:
        return


def _stop_engine(inbox: queue.Queue[Any], thread: threading.Thread) -> None:
    if thread.is_alive():
        inbox.put(Shutdown())
        thread.join()


def _as_list(prompts: Any) -> list[Any]:
    single = isinstance(prompts, (str, Mapping)) or (bool(prompts) and isinstance(prompts[0], int))
    return [prompts] if single else list(prompts)


def _tokenizer_or_none(folder: Path) -> Tokenizer | None:
    """A model without tokenizer files still serves token ids; broken files are an error."""
    if not any((folder / name).exists() for name in VOCABULARY_FILES):
        return None
    return load_tokenizer(folder)


def _generation_config(folder: Path) -> dict[str, Any]:
    from checkpoints.folder import read_config

    return read_config(folder)[1]
