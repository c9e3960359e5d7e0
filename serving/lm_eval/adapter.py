"""The model "jaxinfer" of EleutherAI's lm-evaluation-harness: an `LLM` behind the harness's public model interface.

From the command line `python -m serving.lm_eval run --model jaxinfer --model_args pretrained=MODEL,... --tasks ...`,
from Python `lm_eval.simple_evaluate(model=JaxinferLM(llm=llm), tasks=[...])`. Written for lm-eval 0.4.13, whose model
guide says what each method must return.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from jaxinfer import LLM, __version__
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.errors import ChatTemplateError
from jaxinfer.evaluation.loglikelihood import LoglikelihoodScorer, ScoringError
from serving.lm_eval.generation import sampling_params

_LOG = logging.getLogger("lm_eval.jaxinfer")
_RUNTIME = tuple(field.name for field in fields(RuntimeConfig))


@register_model("jaxinfer")
class JaxinferLM(TemplateLM):
    """Scores and generates with one engine in this process. Results keep the order of the requests.

    All requests of one kind go to the engine at once, so the harness's `--use_cache` has them when that kind is done.

    Args:
        pretrained: converted checkpoint, Hugging Face folder or hub id in the local cache; left out: the shipped demo.
        model: another name for `pretrained`.
        llm: an engine that runs already, instead of a model and its runtime settings.
        max_length: another name for `max_model_len`; beside `llm` it may shorten what the engine allows.
        max_gen_toks: tokens to generate where a task does not say.
        add_bos_token, prefix_token_id: see `LoglikelihoodScorer`.
        enable_thinking: passed to the chat template as a variable of that name, when given.
        batch_size: taken because the harness always gives one; the engine forms its batches itself.
        max_batch_size: another name for `max_num_seqs`.
        device: "cpu", "gpu" or "tpu". The harness says "cuda:0" where its user says nothing: that, and "cuda", leave
            the choice to JAX.
        runtime: fields of `RuntimeConfig`.

    Raises:
        ConfigError: an argument that is unknown, given twice, or out of range. CheckpointError, TokenizerError: as LLM.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: str | None = None,
        llm: LLM | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **runtime: Any,
    ) -> None:
        super().__init__()
        name = _one_of("pretrained", pretrained, "model", model)
        if llm is None:
            runtime = _runtime(runtime)
            runtime["max_model_len"] = _one_of("max_model_len", runtime.get("max_model_len"), "max_length", max_length)
            seqs = _one_of("max_num_seqs", runtime.get("max_num_seqs"), "max_batch_size", max_batch_size)
            llm = LLM(name, generation_config="none", **{**runtime, "max_num_seqs": seqs, "device": _device(device)})
            max_length = None
        elif name is not None or runtime or max_batch_size is not None:
            extra = ", ".join(["pretrained"] * (name is not None) + sorted(runtime)) or "max_batch_size"
            raise ConfigError(f"llm was given, an engine that runs already; {extra} cannot be set beside it")
        self.llm = llm
        self.tokenizer = llm.get_tokenizer()
        self.scorer = LoglikelihoodScorer(
            llm, self.tokenizer, max_length=max_length, prefix_token_id=prefix_token_id, add_bos_token=add_bos_token
        )
        self.max_gen_toks = max_gen_toks
        self.truncated = 0  # requests so far whose context lost tokens at its start
        self._template: str | None = None
        self._template_variables: dict[str, Any] = {}
        if enable_thinking is not None:
            self._template_variables["enable_thinking"] = enable_thinking

    # -- what the harness asks about the model ----------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        token = self.tokenizer.eos_token_id
        return token if token is not None else self.llm.info.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        return self.scorer.prefix_token_id

    @property
    def max_length(self) -> int:
        """Tokens of prompt and output together."""
        return self.scorer.max_length

    @property
    def tokenizer_name(self) -> str:
        """Names tokenizer and chat template by content: the harness keys its cache of rendered requests with it."""
        return f"{self.llm.info.model}-{self.tokenizer.content_digest[:16]}".replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What goes into the results file beside the harness's own settings."""
        info = self.llm.info
        return {
            "model_name": info.model,
            "model_architecture": info.architecture,
            "model_dtype": info.dtype,
            "model_device": info.device,
            "tensor_parallel_size": info.tensor_parallel_size,
            "expert_parallel_size": info.expert_parallel_size,
            "max_length": self.max_length,
            "jaxinfer_version": __version__,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if kwargs:
            raise TypeError(f"tok_encode takes no argument {sorted(kwargs)[0]!r} here")
        return self.scorer.encode(string, add_special_tokens=add_special_tokens)

    # -- chats ------------------------------------------------------------------------------------------------------

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source for the results file. A string chooses one of several by name, from here on."""
        if chat_template is False or chat_template is None:
            return None
        source = self.tokenizer.chat_template
        if isinstance(source, dict):
            name = chat_template if isinstance(chat_template, str) else "default"
            if name not in source:
                raise ChatTemplateError(f"chat template is {name!r}; this model has {', '.join(sorted(source))}")
            self._template = name
            return source[name]
        if isinstance(chat_template, str):
            raise ChatTemplateError(f"chat template is {chat_template!r}; this model's templates have no names")
        if source is None:
            raise ChatTemplateError("this model has no chat template; leave --apply_chat_template out")
        return source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The rendered conversation. Without a generation prompt it ends inside its last message, to be continued."""
        text = self.tokenizer.render_chat(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            template=self._template,
            **self._template_variables,
        )
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        end = text.rfind(last)
        if end < 0:
            raise ChatTemplateError("the chat template changes the last message, so its rendering cannot be continued")
        return text[: end + len(last)]

    # -- the three kinds of request ---------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        encoded = [(request.args, *self.scorer.encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        scores = self.scorer.score_tokens([request[1:] for request in requests], use_tqdm=not disable_tqdm)
        self._count_truncated(sum(score.truncated > 0 for score in scores), len(scores))
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        scores = self.scorer.score_documents([request.args[0] for request in requests], use_tqdm=not disable_tqdm)
        return [score.logprob for score in scores]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, params = [], []
        truncated = 0
        for request in requests:
            context, arguments = request.args
            sampling = sampling_params(_mapping(arguments), self.tokenizer, self.max_gen_toks)
            assert sampling.max_tokens is not None
            room = self.max_length - sampling.max_tokens
            if room < 1:
                raise ScoringError(
                    f"max_gen_toks is {sampling.max_tokens}; with one token of prompt it must fit the context of "
                    f"{self.max_length}"
                )
            ids = self.tok_encode(context) or [self.prefix_token_id]
            truncated += len(ids) > room
            prompts.append(ids[-room:])
            params.append(sampling)
        self._count_truncated(truncated, len(requests))
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        return [output.outputs[0].text for output in outputs]

    def _count_truncated(self, count: int, total: int) -> None:
        self.truncated += count
        if count:
            _LOG.warning(
                "%d of %d contexts lost tokens at their start to fit max_length %d", count, total, self.max_length
            )


def _one_of(name: str, value: Any, other_name: str, other: Any) -> Any:
    if value is not None and other is not None:
        raise ConfigError(f"{name} is {value!r} and {other_name} is {other!r}; they mean the same, so give one")
    return other if value is None else value


def _runtime(given: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the names; "none" turns the compilation cache off, as on our own command line."""
    if "server" in given:
        raise ConfigError(
            f"server is {given['server']!r}; a running server cannot be scored here, give the model it serves "
            "(pretrained=MODEL)"
        )
    for name in given:
        if name not in _RUNTIME:
            raise ConfigError(f"model argument {name!r} is unknown; how a model runs is said by {', '.join(_RUNTIME)}")
    folder = given.get("compilation_cache_dir", "")
    return {**given, "compilation_cache_dir": None} if str(folder).lower() == "none" else dict(given)


def _device(device: str | None) -> str | None:
    if device in ("cuda", "cuda:0"):
        return None
    if device is not None and device.startswith("cuda"):
        raise ConfigError(f"device is {device!r}; it must be cpu, gpu or tpu (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    return device


def _mapping(arguments: Any) -> Mapping[str, Any]:
    if not isinstance(arguments, Mapping):
        raise ScoringError(f"generation arguments are {arguments!r}; they must be a mapping")
    return arguments
