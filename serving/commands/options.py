"""Command-line options that several commands share, and what they become."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from checkpoints.files import GENERATION_CONFIG_FILE, CheckpointError
from checkpoints.folder import read_config
from jaxinfer.config import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, KvCacheDtype, Quantization, RuntimeConfig
from jaxinfer.errors import ChatTemplateError, InvalidRequest
from jaxinfer.generation_config import generation_defaults, generation_notes
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import Tokenizer, TokenizerError, load_tokenizer
from serving.commands.parsing import spelled
from serving.commands.vllm_options import length, size
from serving.observing.ledger import MAX_BYTES
from serving.observing.logs import LEVELS, LogFormat
from serving.observing.metrics import PREFIXES
from serving.observing.setup import ObservingConfig
from serving.observing.tracing import ENDPOINT, is_endpoint

_NONE = "none"
_LENGTH = "the model's context, or what the KV pool holds"


# Names are RuntimeConfig's fields. What is not given is not in the namespace, so that the config's own defaults hold.
def add_runtime_options(parser: argparse.ArgumentParser, *, bundle: bool = True) -> None:
    """bundle: whether the command runs a model, with executables of a bundle if it is given one."""
    group = parser.add_argument_group("how the model runs")
    defaults = {field.name: field.default for field in dataclasses.fields(RuntimeConfig)}

    def add(name: str, *, help: str, without: str = "", **settings: Any) -> None:
        """without: what holds when the option is not given, where that is no value of its own."""
        default = defaults[name.removeprefix("--").replace("-", "_")]
        said = without or spelled(default)
        group.add_argument(name, default=argparse.SUPPRESS, help=f"{help} (default: {said})", **settings)

    add("--dtype", choices=("auto", "float32", "bfloat16"), help="type of weights; auto is the checkpoint's")
    add(
        "--quantization",
        choices=get_args(Quantization),
        help="quantizes the layers' matrices at load",
        without="as the checkpoint has them",
    )
    add("--device", choices=("cpu", "gpu", "tpu"), help="where to run", without="what JAX finds")
    add("--max-model-len", type=length, metavar="N", help="longest prompt and output together, tokens", without=_LENGTH)
    add("--max-num-seqs", type=int, metavar="N", help="sequences in one step", without=_by_device(MAX_NUM_SEQS))
    add(
        "--max-num-batched-tokens",
        type=size,
        metavar="N",
        help="tokens in one step",
        without=f"{_by_device(MAX_NUM_BATCHED_TOKENS)}, at least --max-num-seqs",
    )
    add("--max-logprobs", type=int, metavar="N", help="most logprobs of a request; -1 is the whole vocabulary")
    add(
        "--kv-cache-dtype",
        choices=get_args(KvCacheDtype),
        help="type of keys and values, auto: the model's; int8 and fp8 halve their memory",
    )
    add("--page-size", type=int, metavar="N", help="tokens in one KV page")
    add("--num-pages", type=int, metavar="N", help="size of the KV pool", without="what fits into free memory")
    add("--gpu-memory-utilization", type=float, metavar="X", help="share of an accelerator's memory")
    add("--tensor-parallel-size", type=int, metavar="N", help="devices to split the model over")
    add("--expert-parallel-size", type=int, metavar="N", help="times as many devices, to which experts are dealt")
    add(
        "--enable-expert-parallel",
        action=argparse.BooleanOptionalAction,
        help="deal experts to the devices of --tensor-parallel-size, instead of splitting each",
    )
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, help="share KV of equal prefixes")
    add("--max-pinned-ratio", type=float, metavar="X", help="share of the KV pages that pins hold, at most")
    add("--max-pinned-ratio-per-tenant", type=float, metavar="X", help="share of those for a tenant; without keys 1")
    add(
        "--language-model-only",
        action=argparse.BooleanOptionalAction,
        help="of a model of several modalities serve the text model; there is nothing else yet",
    )
    add("--batch-invariant", action=argparse.BooleanOptionalAction, help="bytes do not depend on the batch")
    add("--priority-ageing-seconds", type=float, metavar="S", help="waiting time worth a level of priority")
    add("--attention-backend", metavar="NAME", help="insist on one backend", without="the best that can")
    add("--self-test", choices=("auto", "on", "off"), help="try kernels apart before they serve; auto: on accelerators")
    add("--cpu-kernels", metavar="NAME", help="auto, xla, or an instruction set: avx2, avx512_bf16, ...")
    add("--compilation-cache-dir", metavar="DIR", help=f"where compiled programs are kept, or {_NONE}")
    if bundle:
        add("--bundle", metavar="DIR", help="executables of `jaxinfer compile`; trust it as you trust a program")


def _by_device(sizes: Mapping[str, int]) -> str:
    others = sizes["accelerator"]
    return ", ".join(f"{size} on a {name.upper()}" for name, size in sizes.items() if name != "accelerator") + (
        f", {others} elsewhere"
    )


RUNTIME_NAMES = (
    "dtype",
    "quantization",
    "device",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_logprobs",
    "kv_cache_dtype",
    "page_size",
    "num_pages",
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "expert_parallel_size",
    "enable_expert_parallel",
    "enable_prefix_caching",
    "max_pinned_ratio",
    "max_pinned_ratio_per_tenant",
    "language_model_only",
    "batch_invariant",
    "priority_ageing_seconds",
    "attention_backend",
    "self_test",
    "cpu_kernels",
    "compilation_cache_dir",
    "bundle",
)


def runtime_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The runtime options that the user set, by RuntimeConfig's names."""
    given = {name: getattr(arguments, name) for name in RUNTIME_NAMES if hasattr(arguments, name)}
    if given.get("compilation_cache_dir") == _NONE:
        given["compilation_cache_dir"] = None
    return given


def runtime_config(arguments: argparse.Namespace) -> RuntimeConfig:
    """Raises ConfigError naming the option that cannot be."""
    return RuntimeConfig(**runtime_given(arguments))


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--generation-config",
        type=lambda text: _NONE if text == "vllm" else text,  # vLLM's name for it
        choices=("auto", _NONE),
        default="auto",
        help="auto: the model's generation_config.json sets defaults of sampling; none, or vllm: it does not",
    )
    parser.add_argument("--skip-tokenizer-init", action="store_true", help="load no tokenizer: prompts are token ids")


def model_name(arguments: argparse.Namespace, folder: Path) -> str:
    """What clients call the model: as the user says, else its hub id or its folder's name."""
    given: str | list[str] | None = getattr(arguments, "served_model_name", None)
    if isinstance(given, list):  # answers say the first
        given = given[0] if given else None
    is_hub_id = arguments.model is not None and not Path(arguments.model).expanduser().is_dir()
    return given or (arguments.model if is_hub_id else folder.resolve().name)


def add_observing_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what operators see (docs/operations.md)")
    group.add_argument("--log-format", choices=get_args(LogFormat), default="auto", help="auto: text on a terminal")
    group.add_argument("--log-level", choices=LEVELS, default="info", help="info has a line for each request")
    group.add_argument("--log-content", action="store_true", help="prompts and outputs in the log, too")
    group.add_argument(
        "--metrics-prefix", choices=tuple(PREFIXES), default="jaxinfer", help="of the metrics that vLLM has, too"
    )
    group.add_argument("--ledger", type=Path, metavar="FILE", help="a line of JSON for each request: who used what")
    group.add_argument(
        "--ledger-max-bytes", type=int, metavar="N", default=MAX_BYTES, help="a fuller file is renamed FILE.000001, ..."
    )
    group.add_argument("--audit-log", type=Path, metavar="FILE", help="a line of JSON for each admin call and refusal")
    group.add_argument(
        "--otlp-traces-endpoint",
        type=_endpoint,
        metavar="URL",
        help="send a span for each request; needs jaxinfer[otel]",
    )


def _endpoint(text: str) -> str:
    if not is_endpoint(text):
        raise argparse.ArgumentTypeError(ENDPOINT)
    return text


def observing_config(arguments: argparse.Namespace) -> ObservingConfig:
    return ObservingConfig(
        arguments.metrics_prefix,
        arguments.log_content,
        arguments.ledger,
        arguments.ledger_max_bytes,
        arguments.otlp_traces_endpoint,
        arguments.audit_log,
    )


def sampling_defaults(folder: Path, generation_config: str) -> dict[str, Any]:
    """Sampling defaults of the model; also checks its config. Raises CheckpointError, naming the file."""
    _, found = read_config(folder)
    defaults: Mapping[str, Any] = generation_defaults(found) if generation_config == "auto" else {}
    try:
        SamplingParams(**{"max_tokens": None, **defaults})
    except InvalidRequest as error:
        raise CheckpointError(f"{folder / GENERATION_CONFIG_FILE}: {error}") from error
    return dict(defaults)


def generation_config_notes(folder: Path, generation_config: str) -> tuple[str, ...]:
    """What of the model's generation config has no effect. Raises CheckpointError."""
    return generation_notes(read_config(folder)[1]) if generation_config == "auto" else ()


def tokenizer_of(folder: Path, *, skip: bool, chat_template: str | None = None) -> Tokenizer | None:
    """chat_template: in the place of the folder's own. Raises TokenizerError, with the way out."""
    if skip:
        return None
    try:
        found = load_tokenizer(folder)
    except TokenizerError as error:
        raise TokenizerError(f"{error} (--skip-tokenizer-init serves token ids without one)") from error
    if chat_template is None:
        return found
    try:
        return found.with_chat_template(chat_template, "--chat-template")
    except ChatTemplateError as error:
        raise TokenizerError(f"--chat-template: {error}") from error
