"""The sampling and prompt options of `generate`, and the requests they become."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.errors import InvalidRequest
from jaxinfer.sampling_fields import Kind, SamplingField
from jaxinfer.sampling_params import FIELDS
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving import json_text
from serving.commands.parsing import CommandError
from serving.grpc_server.replies import sampling_to_proto

_NEED_JSON = ("logprobs", "prompt_logprobs")  # nothing else shows them


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of SamplingParams; what is not given is left to the model's defaults."""
    group = parser.add_argument_group("sampling")
    for declared in FIELDS.values():
        wraps = declared.name == "seed"  # a seed's 64 bits may be written with a sign, so -1 is a seed like others
        said = declared.description if wraps else declared.sentence
        settings = _settings(declared)
        said += "; may be given several times" if settings.get("action") == "append" else ""
        said = ("with --json: " if declared.name in _NEED_JSON else "") + said[0].lower() + said[1:]
        group.add_argument(
            _option(declared.name),
            default=argparse.SUPPRESS,
            help=f"{said} (default: {declared.default_in_words})",
            **({"type": _seed, "metavar": "N"} if wraps else settings),
        )
    group.add_argument(
        "--json-schema",
        dest="structured_outputs",
        type=_json_schema,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="answers are JSON of the schema in this file; short for --structured-outputs",
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _settings(declared: SamplingField) -> dict[str, Any]:
    """How an option of this kind is read."""
    if declared.kind == "boolean":
        return {"action": argparse.BooleanOptionalAction if declared.default else "store_true"}
    readers: dict[Kind, dict[str, Any]] = {
        "integer": {"type": int, "metavar": "N"},
        "number": {"type": float, "metavar": "X"},
        "strings": {"action": "append", "metavar": "TEXT"},
        "token_ids": {"type": _ids, "metavar": "ID,ID"},
        "logit_bias": {"type": _bias, "action": "append", "metavar": "ID=X"},
        "structured": {"type": _structured, "metavar": "JSON|@FILE"},
    }
    return readers[declared.kind]


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="- reads standard input")
    group = parser.add_argument_group("prompts")
    group.add_argument("--chat", action="store_true", help="a PROMPT is a user's message for the chat template")
    group.add_argument("--system", metavar="TEXT", help="with --chat: the system's message")
    group.add_argument("--template-variables", metavar="JSON", help="with --chat: an object for the template")
    group.add_argument("--token-ids", action="store_true", help="a PROMPT is a list of token ids: 1,15,7")
    group.add_argument(
        "--add-special-tokens",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let the tokenizer put its special tokens around a text (default: on)",
    )
    group.add_argument("--priority", type=int, default=0, metavar="N", help="lower is served first")
    group.add_argument("--cache-salt", default="", metavar="TEXT", help="share cached prefixes with equal salts only")


def make_requests(arguments: argparse.Namespace) -> list[tuple[str, pb.GenerateRequest]]:
    """(prompt as given, request) for each prompt. Raises CommandError."""
    _check_prompt_options(arguments)
    message = pb.SamplingParams()
    for name, value in sampling_given(arguments).items():
        try:
            message.MergeFrom(sampling_to_proto({name: value}))
        except ValueError as error:  # a number that its field cannot hold
            raise CommandError(f"{_option(name)} is {value}; it is out of range") from error
    return [(prompt, _request(prompt, arguments, message)) for prompt in map(_read, arguments.prompts)]


def sampling_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that the user set, by SamplingParams' names."""
    given = {name: getattr(arguments, name) for name in FIELDS if hasattr(arguments, name)}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    return given


def _check_prompt_options(arguments: argparse.Namespace) -> None:
    if arguments.chat and arguments.token_ids:
        raise CommandError("--chat and --token-ids exclude each other")
    for name in ("system", "template_variables"):
        if getattr(arguments, name) is not None and not arguments.chat:
            raise CommandError(f"{_option(name)} needs --chat")
    if arguments.template_variables is not None:
        _check_variables(arguments.template_variables)
    if not arguments.json:
        for name in _NEED_JSON:
            if hasattr(arguments, name):
                raise CommandError(f"{_option(name)} needs --json, which shows them")


def _check_variables(text: str) -> None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"--template-variables is {text!r}; it must be a JSON object: {error}") from error
    if not isinstance(found, dict):
        raise CommandError(f"--template-variables is {text!r}; it must be a JSON object")


def _request(prompt: str, arguments: argparse.Namespace, sampling: pb.SamplingParams) -> pb.GenerateRequest:
    request = pb.GenerateRequest(
        sampling=sampling, priority=arguments.priority, cache_salt=arguments.cache_salt, final_only=arguments.json
    )
    if arguments.add_special_tokens is not None:
        request.add_special_tokens = arguments.add_special_tokens
    if arguments.chat:
        if arguments.system is not None:
            request.chat.messages.add(role="system", content=arguments.system)
        request.chat.messages.add(role="user", content=prompt)
        request.chat.template_variables_json = arguments.template_variables or ""
    elif arguments.token_ids:
        try:
            request.token_ids.ids.extend(_ids(prompt))
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise CommandError(f"PROMPT is {prompt!r}; with --token-ids it must be a list like 1,15,7") from error
        request.token_ids.SetInParent()
    else:
        request.text = prompt
    return request


def _read(prompt: str) -> str:
    """`-` is standard input, without the line end that a shell adds."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise CommandError(f"PROMPT on standard input is no UTF-8: {error}") from error


def _ids(text: str) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise argparse.ArgumentTypeError("it must be a list of token ids like 1,15,7") from error
    if any(not 0 <= token < 1 << 32 for token in ids):
        raise argparse.ArgumentTypeError("it must be a list of token ids from 0 to 4294967295")
    return ids


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 2**64
    if not -(2**63) <= value < 2**64:
        raise argparse.ArgumentTypeError("it must be a whole number of 64 bits")
    return value % 2**64


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise argparse.ArgumentTypeError("it must be like 15=-2.5, a token id and a number") from error


def _structured(text: str) -> StructuredOutputsParams:
    """An object like {"regex": "[0-9]+"}, or @ and the file that has it."""
    try:
        found = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"it must be a JSON object, or @ and a file that has one: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError('it must be an object like {"regex": "[0-9]+"}')
    try:
        return StructuredOutputsParams.from_mapping(found)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _json_schema(path: str) -> StructuredOutputsParams:
    """The form of answers that are JSON of the schema in a file."""
    try:
        return StructuredOutputsParams(json=Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def as_json(index: int, prompt: str, events: Sequence[pb.GenerateResponse]) -> str:
    """One line with everything a request gave; `index` counts the prompts of the command."""
    result: dict[str, Any] = {"index": index, "prompt": prompt, "outputs": {}}
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "started":
            result["request_id"] = event.started.request_id
        elif kind == "prompt_logprobs":
            result.setdefault("prompt_logprobs", [None]).extend(_logprobs(e) for e in event.prompt_logprobs.entries)
        elif kind == "delta":
            _add_delta(result["outputs"], event.delta)
        elif kind == "finished":
            usage = event.finished.usage
            result["usage"] = {field.name: getattr(usage, field.name) for field in usage.DESCRIPTOR.fields}
    result["outputs"] = [result["outputs"][index] for index in sorted(result["outputs"])]
    return json_text.line_safe_text(json.dumps(result, ensure_ascii=False))


def _add_delta(outputs: dict[int, dict[str, Any]], delta: pb.GenerateResponse.Delta) -> None:
    output = outputs.setdefault(delta.index, {"index": delta.index, "text": "", "token_ids": []})
    output["text"] += delta.text
    output["token_ids"] += list(delta.token_ids)
    if delta.logprobs:
        output.setdefault("logprobs", []).extend(_logprobs(entry) for entry in delta.logprobs)
    if delta.finish_reason:
        name = pb.FinishReason.Name(delta.finish_reason)
        output["finish_reason"] = name.removeprefix("FINISH_REASON_").lower()
        reason = delta.WhichOneof("stop_reason")
        output["stop_reason"] = getattr(delta, reason) if reason is not None else None


def _logprobs(entry: pb.TokenLogprobs) -> dict[str, Any]:
    top = [{"token_id": other.token_id, "logprob": other.logprob} for other in entry.top]
    return {"token_id": entry.token_id, "logprob": entry.logprob, "rank": entry.rank, "top": top}
