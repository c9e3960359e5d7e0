"""An engine without a model: speaks the messages of jaxinfer.messages, says what its options make it say. No jax.

A greedy request is answered with the bytes of `FakeOptions.script`, over and over; a sampled one with letters that
depend on seed, sequence and position. Token ids are bytes, as in `write_tokenizer`'s vocabulary; 257 ends a sequence.
"""

from __future__ import annotations

import itertools
import json
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxinfer.engine import MESSAGES_A_STEP, message_weight
from jaxinfer.expert_load import ExpertLoad
from jaxinfer.messages import (
    Abort,
    Died,
    Drain,
    Drained,
    EngineInfo,
    EngineStats,
    Progress,
    PromptScored,
    Rejected,
    SequenceAccount,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    Submit,
    TokenLogprobs,
    Warmed,
)
from serving.engine_process import EngineRefused

_SCORED_IN_A_STEP = 128  # chunks of a prompt, which are 512 positions
BOS, EOS, VOCAB_SIZE = 256, 257, 260  # the model has more rows than the tokenizer has tokens (258)
ALPHABET = "abcdefghijklmnopqrstuvwxyz "
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.name %} ({{ m.name }}){% endif %};{% endfor %}"
    "{% if tools %}[{{ tools | tojson }}]{% endif %}{% if style is defined %}style={{ style }};{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class FakeOptions:
    """How the fake behaves. Counts of steps start at 1; None never happens."""

    script: str = ALPHABET
    step_seconds: float = 0.0
    load_seconds: float = 0.0
    refuse: str | None = None  # the model cannot be loaded
    break_load: str | None = None  # a bug while loading
    crash_at_step: int | None = None
    hang_at_step: int | None = None
    max_num_seqs: int = 4
    max_model_len: int = 4096
    num_pages: int = 1001
    max_pinned_pages: int = 500
    page_size: int = 16
    warm_at_step: int | None = None  # serves while warming until then
    eos_after: int | None = None  # tokens until a sequence ends by itself
    vocab_size: int = VOCAB_SIZE
    expert_layers: tuple[tuple[int, int], ...] = ()  # a token goes to one expert of each, by its id and the layer
    devices: int = 1  # that experts are dealt to

    def build(self, progress: Callable[[Progress], None]) -> FakeEngine:
        for done in range(3):
            progress(Progress("load", done + 1, 3, f"layer {done}"))
            time.sleep(self.load_seconds / 3)
        if self.refuse is not None:
            raise EngineRefused(self.refuse)
        if self.break_load is not None:
            raise RuntimeError(self.break_load)
        for done, name in enumerate(("T8 S8", "T64 S8")):
            progress(Progress("warmup", done + 1, 2, name))
        return FakeEngine(self)


@dataclass
class _Sequence:
    submit: Submit
    index: int
    tokens: int = 0
    started: float = 0.0
    unscored: Iterator[PromptScored] = field(default_factory=lambda: iter(()))


@dataclass
class FakeEngine:
    options: FakeOptions
    received: list[Any] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)  # ends a hang
    _running: list[_Sequence] = field(default_factory=list)
    _waiting: list[_Sequence] = field(default_factory=list)
    _stats: EngineStats = field(default_factory=EngineStats)
    _ended: list[SequenceOutput] = field(default_factory=list)
    _draining: bool = False
    _stopped: bool = False

    def __post_init__(self) -> None:
        o = self.options
        self.info = EngineInfo(
            model="fake",
            architecture="FakeForCausalLM",
            vocab_size=o.vocab_size,
            max_model_len=o.max_model_len,
            max_num_seqs=o.max_num_seqs,
            max_num_batched_tokens=64,
            page_size=o.page_size,
            num_pages=o.num_pages,
            max_pinned_pages=o.max_pinned_pages,
            dtype="float32",
            tensor_parallel_size=1,
            device="1 x fake",
            backends={"paged_attention": "fake"},
            eos_token_ids=(EOS,),
            notes=("max_model_len is 4096, the model's own",),
            executables=(("T8 S8", 0.25), ("T64 S8", 0.5)),
            extra={},
            expert_layers=o.expert_layers,
            expert_parallel_size=o.devices,
        )
        self._experts = [[0] * count for _, count in o.expert_layers]

    @property
    def warming(self) -> bool:
        warm_at = self.options.warm_at_step
        return warm_at is not None and self._stats.steps < warm_at

    def describe(self) -> dict[str, Any]:
        rows = [{"request_id": s.submit.request_id, "index": s.index, "length": 1} for s in self._running]
        return {"step": self._stats.steps, "rows": rows}

    def run(self, inbox: Any, post: Callable[[Any], None]) -> None:
        try:
            self._serve(inbox, post)
        except BaseException as error:  # as jaxinfer.engine does it
            post(Died(f"{type(error).__name__}: {error}", traceback.format_exc()))
            raise

    def _serve(self, inbox: Any, post: Callable[[Any], None]) -> None:
        while not self._stopped:
            self._receive(inbox, post)
            if self._running or self._waiting or self._ended:
                post(self._step())
                if self._stats.steps == self.options.warm_at_step:
                    post(Warmed(self.info._replace(executables=(*self.info.executables, ("T256 S8", 0.75)))))
            elif self._draining:
                post(Drained())
                return

    def _receive(self, inbox: Any, post: Callable[[Any], None]) -> None:
        block = not (self._running or self._waiting or self._draining)
        left = math.inf if block else MESSAGES_A_STEP  # as jaxinfer.engine does it
        while left > 0 and not self._stopped:
            try:
                message = inbox.get(block)
            except queue.Empty:
                return
            block = False
            left -= message_weight(message)
            self.received.append(message)
            if isinstance(message, Submit):
                self._submit(message, post)
            elif isinstance(message, Abort):
                self._abort(message)
            elif isinstance(message, Drain):
                self._draining = True
            elif isinstance(message, Shutdown):
                self._stopped = True
            else:
                raise TypeError(message)

    def _submit(self, submit: Submit, post: Callable[[Any], None]) -> None:
        room = (self.options.num_pages - 1) * self.options.page_size
        if self._draining:
            post(Rejected(submit.request_id, "draining", "the engine is draining"))
        elif self._pages(submit) > self.options.num_pages - 1:
            post(Rejected(submit.request_id, "invalid", f"prompt and output do not fit the pool of {room} tokens"))
        else:
            self._stats.prompt_tokens += len(submit.prompt_token_ids)
            self._waiting += [_Sequence(submit, i) for i in range(submit.params.n)]

    def _pages(self, submit: Submit) -> int:
        assert submit.params.max_tokens is not None
        return math.ceil((len(submit.prompt_token_ids) + submit.params.max_tokens - 1) / self.options.page_size)

    def _abort(self, abort: Abort) -> None:
        for sequence in [*self._running, *self._waiting]:
            if sequence.submit.request_id == abort.request_id and abort.index in (None, sequence.index):
                (self._running if sequence in self._running else self._waiting).remove(sequence)
                account = self._account(sequence)
                self._ended.append(
                    SequenceOutput(abort.request_id, sequence.index, (), None, "abort", None, 0, account)
                )

    def _account(self, sequence: _Sequence) -> SequenceAccount:
        """A millisecond and a padded token for each token."""
        prompt, tokens = len(sequence.submit.prompt_token_ids), sequence.tokens
        computed = prompt + tokens if sequence.started else 0
        return SequenceAccount(sequence.started, 1, self._pages(sequence.submit), 0, computed, tokens, tokens / 1000)

    def _step(self) -> StepOutputs:
        o, stats = self.options, self._stats
        stats.steps += 1
        if stats.steps == o.crash_at_step:
            raise RuntimeError("the fake engine crashes, as it was told to")
        if stats.steps == o.hang_at_step:
            self.released.wait()
        time.sleep(o.step_seconds)
        prompts: list[PromptScored] = []
        while self._waiting and len(self._running) < o.max_num_seqs:
            sequence = self._waiting.pop(0)
            sequence.started = time.monotonic()
            self._running.append(sequence)
            if sequence.index == 0:
                sequence.unscored = _score_prompt(sequence.submit)
        outputs, self._ended = self._ended, []
        for sequence in list(self._running):
            scored = list(itertools.islice(sequence.unscored, _SCORED_IN_A_STEP))
            prompts += scored
            if len(scored) == _SCORED_IN_A_STEP:
                continue  # its prompt takes another step
            output = self._next(sequence)
            outputs.append(output)
            if output.finish_reason is not None:
                self._running.remove(sequence)
        stats.running, stats.waiting = len(self._running), len(self._waiting)
        stats.total_pages = o.num_pages - 1
        stats.free_pages = o.num_pages - 1 - sum(self._pages(s.submit) for s in self._running)
        stats.generated_tokens += len(outputs)
        load = self._load([token for output in outputs for token in output.token_ids])
        return StepOutputs(outputs, prompts, stats.copy(), expert_load=load)

    def _load(self, token_ids: list[int]) -> ExpertLoad | None:
        """Told in every third step, and in the last one of busy times."""
        layers = self.options.expert_layers
        for (layer, count), tokens in zip(layers, self._experts, strict=True):
            for token in token_ids:
                tokens[(token + layer) % count] += 1
        if not layers or (self._stats.steps % 3 and (self._running or self._waiting)):
            return None
        return ExpertLoad(tuple(layer for layer, _ in layers), tuple(map(tuple, self._experts)), self._stats.steps)

    def _next(self, sequence: _Sequence) -> SequenceOutput:
        submit, params, position = sequence.submit, sequence.submit.params, sequence.tokens
        sequence.tokens += 1
        token = fake_token(self.options.script, submit, sequence.index, position)
        reason: str | None = None
        stop: int | None = None
        if self.options.eos_after is not None and sequence.tokens > self.options.eos_after and not params.ignore_eos:
            token, reason, stop = EOS, "stop", EOS
        elif token in params.stop_token_ids:
            reason, stop = "stop", token
        elif sequence.tokens == params.max_tokens:
            reason = "length"
        scored = None if params.logprobs is None else (_scored(token, params.logprobs),)
        account = None if reason is None else self._account(sequence)
        return SequenceOutput(submit.request_id, sequence.index, (token,), scored, reason, stop, 3, account)


def fake_token(script: str, submit: Submit, index: int, position: int) -> int:
    if submit.params.temperature == 0:
        data = script.encode()
        return data[position % len(data)]
    return ord("a") + (submit.seed * 7919 + index * 104_729 + position * (position + submit.seed + index)) % 26


def _scored(token: int, alternatives: int) -> TokenLogprobs:
    return TokenLogprobs(token, -0.5, 1, tuple((token + i, -0.5 - i) for i in range(alternatives)))


def _score_prompt(submit: Submit) -> Iterator[PromptScored]:
    """As the engine does it: in chunks (of four positions), the first position without an entry."""
    count = submit.params.prompt_logprobs
    tokens = () if count is None else submit.prompt_token_ids[1:]
    for i in range(0, len(tokens), 4):
        entries = tuple(_scored(token, count or 0) for token in tokens[i : i + 4])
        yield PromptScored(submit.request_id, i, entries)


def write_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer whose ids are bytes, <s> = 256 and </s> = 257, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": EOS,
}


def write_model(folder: Path, **generation_config: Any) -> Path:
    """A model folder without weights: enough for everything but the engine."""
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))
    if generation_config:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


def main(argv: list[str]) -> int:
    """`jaxinfer serve`, `generate` and `batch` over the fake: [FakeOptions as JSON, command, option ...]."""
    from serving.commands import batch, generate, serve

    options = FakeOptions(**json.loads(argv[0]))
    command = {"serve": serve.main, "generate": generate.main, "batch": batch.main}[argv[1]]
    return command(argv[2:], hub_cache=Path("/nonexistent"), build=lambda _folder, _arguments: options.build)
