"""`jaxinfer bench serve`: requests at given rates against a running server, over gRPC or over OpenAI's interface."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib.util
import json
import math
import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxinfer.text import load_tokenizer
from serving.bench import datasets, measures, plots, report
from serving.bench.arrivals import arrival_times
from serving.bench.grpc_client import GrpcClient
from serving.bench.http_client import CHAT, COMPLETIONS, HttpClient
from serving.bench.records import BenchRequest, Client, ServerTrouble
from serving.bench.run import Run, drive
from serving.commands.access_options import check_client_options, client_channel, client_metadata
from serving.commands.bench_serve_options import add_options
from serving.commands.parsing import FAILURE, CommandError
from serving.commands.progress import PlainLines, wide_console

__all__ = ["add_options", "run"]

_HTTP_VOCABULARY = 256  # token ids below it are in every vocabulary; OpenAI's interface does not tell its size
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_RETRY_SECONDS = 0.5


def run(arguments: argparse.Namespace, hub_cache: Path) -> int:
    """Measures and prints; 0 where every request was answered, else 1."""
    _check(arguments)
    console = wide_console()
    record, runs = asyncio.run(_measure(arguments))
    shown = [float(p) for p in arguments.metric_percentiles]
    report.show(console, record["runs"], arguments.percentile_metrics, shown, record["title"])
    _save(arguments, record, runs, console)
    return 0 if all(not each["failed"] for each in record["runs"]) else FAILURE


def _check(arguments: argparse.Namespace) -> None:
    """Refuses what cannot go together, before anything is sent. Settles the endpoint."""
    scheme, place = arguments.url
    arguments.server = place
    check_client_options(arguments)
    over_grpc = scheme == "grpc"
    if over_grpc:
        for name in ("endpoint", "extra_body"):
            if getattr(arguments, name) is not None:
                raise CommandError(f"--{name.replace('_', '-')} is of OpenAI's interface; it goes with http://")
    elif importlib.util.find_spec("aiohttp") is None:
        raise CommandError("http:// needs aiohttp: pip install 'jaxinfer[bench]'")
    if scheme == "http" and arguments.tls_ca is not None:
        raise CommandError("--tls-ca goes with https:// or grpc://")
    if arguments.endpoint is None:
        arguments.endpoint = CHAT if arguments.dataset == "chat-turns" else COMPLETIONS
    if arguments.dataset == "chat-turns" and not over_grpc and arguments.endpoint != CHAT:
        raise CommandError(f"--endpoint is {arguments.endpoint!r}; --dataset chat-turns needs {CHAT}")
    if (arguments.plot or arguments.plot_timeline) and not plots.available():
        raise CommandError("--plot and --plot-timeline need matplotlib: pip install 'jaxinfer[bench]'")
    if not os.path.isdir(arguments.result_dir):  # also false for a name that is too long
        raise CommandError(f"--result-dir is {str(arguments.result_dir)!r}; it must be a folder that exists")
    if arguments.result_filename is not None and Path(arguments.result_filename).name != arguments.result_filename:
        raise CommandError(f"--result-filename is {arguments.result_filename!r}; it must be a name without a folder")


# -- the server -------------------------------------------------------------------------------------------------------


def _client(arguments: argparse.Namespace) -> Client:
    scheme, place = arguments.url
    sampling = {name: getattr(arguments, name) for name in _SAMPLING if getattr(arguments, name) is not None}
    metadata = client_metadata(arguments)
    if scheme == "grpc":
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = client_channel(arguments, options)
        return GrpcClient(channel, sampling, ignore_eos=arguments.ignore_eos, metadata=metadata)
    body = {**sampling, **({"ignore_eos": True} if arguments.ignore_eos else {}), **(arguments.extra_body or {})}
    headers = dict(metadata)
    return HttpClient(f"{scheme}://{place}", arguments.endpoint, arguments.model, body, headers, _tls(arguments))


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if arguments.tls_ca is None:
        return None
    try:
        context = ssl.create_default_context(cafile=arguments.tls_ca)
        if arguments.tls_client_cert is not None:
            context.load_cert_chain(arguments.tls_client_cert, arguments.tls_client_key)
    except (OSError, ssl.SSLError) as error:
        raise CommandError(f"--tls-ca or --tls-client-cert cannot be used: {error}") from error
    return context


async def _describe(client: Client, patience: float) -> Mapping[str, Any]:
    """What the server says of itself, as soon as it is ready. Raises ServerTrouble after `patience` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        try:
            return await client.describe()
        except ServerTrouble:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


# -- requests ---------------------------------------------------------------------------------------------------------


def _requests(
    arguments: argparse.Namespace, count: int, vocab_size: int, rng: np.random.Generator
) -> list[BenchRequest]:
    """`count` requests, or conversations, of the dataset. Raises DatasetError."""
    chat = arguments.url[0] != "grpc" and arguments.endpoint == CHAT
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer is not None else None
    make = datasets.PromptMaker("chat" if chat else "tokens", vocab_size, tokenizer)
    lengths = datasets.Lengths(
        arguments.random_input_len,
        arguments.random_output_len,
        arguments.random_range_ratio,
        arguments.random_prefix_len,
    )
    if arguments.dataset == "synthetic":
        return datasets.synthetic(count, lengths, make, rng)
    if arguments.dataset == "shared-prefix":
        sizes = datasets.Prefixes(
            arguments.prefix_repetition_prefix_len,
            arguments.prefix_repetition_suffix_len,
            arguments.prefix_repetition_num_prefixes,
            arguments.prefix_repetition_output_len,
        )
        return datasets.shared_prefix(count, sizes, make, rng)
    if arguments.dataset == "long-prompt":
        return datasets.long_prompt(count, lengths, arguments.long_prompt_len, arguments.long_prompt_share, make, rng)
    if arguments.dataset == "chat-turns":
        return datasets.chat_turns(count, lengths, arguments.num_turns, make, rng)
    return datasets.from_file(Path(arguments.dataset), count, arguments.random_output_len, rng, chat=chat)


def _vocab_size(arguments: argparse.Namespace, described: Mapping[str, Any]) -> int:
    if arguments.vocab_size is not None:
        return int(arguments.vocab_size)
    if arguments.tokenizer is not None:
        return load_tokenizer(arguments.tokenizer).vocab_size
    return int(described.get("vocab_size", _HTTP_VOCABULARY))


# -- measuring --------------------------------------------------------------------------------------------------------


async def _measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Run]]:
    client = _client(arguments)
    view = PlainLines(Console(stderr=True))
    runs = []
    try:
        described = await _describe(client, arguments.ready_check_timeout_sec)
        vocab_size = _vocab_size(arguments, described)
        if arguments.num_warmups:
            view.doing("warm-up")
            rng = np.random.default_rng([arguments.seed, 0])  # prompts of its own: no later one is cached by it
            requests = _requests(arguments, arguments.num_warmups, vocab_size, rng)
            warm = await drive(client, requests, np.zeros(len(requests)), rate=math.inf, timeout=arguments.timeout)
            if errors := [answer.error for answer in warm.answers if answer.error]:
                raise ServerTrouble(f"a request of the warm-up failed: {errors[0]}")
        for number, rate in enumerate(arguments.rate, 1):
            rng = np.random.default_rng([arguments.seed, number])
            runs.append(await _one_rate(arguments, client, rate, vocab_size, rng, view))
    finally:
        view.close()
        await client.close()
    return _record(arguments, described, runs), runs


async def _one_rate(
    arguments: argparse.Namespace,
    client: Client,
    rate: float,
    vocab_size: int,
    rng: np.random.Generator,
    view: PlainLines,
) -> Run:
    requests = _requests(arguments, arguments.num_prompts, vocab_size, rng)
    due = arrival_times(len(requests), rate, arguments.burstiness, rng)
    total = sum(1 + len(request.turns) for request in requests)

    def done(count: int) -> None:
        view.doing(f"rate {rate:g}: {count} of {total} requests answered")

    done(0)
    return await drive(
        client,
        requests,
        due,
        rate=rate,
        max_concurrency=arguments.max_concurrency,
        timeout=arguments.timeout,
        done=done,
    )


def _record(arguments: argparse.Namespace, described: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    scheme, place = arguments.url
    goals = dict(arguments.goodput or ())
    figures = [measures.summary(each, arguments.metric_percentiles, goals) for each in runs]
    title = f"{described['model']} at {scheme}://{place}, {arguments.dataset}, {arguments.num_prompts} prompts a rate"
    return {
        "title": title,
        "label": arguments.label,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "url": f"{scheme}://{place}",
        "endpoint": None if scheme == "grpc" else arguments.endpoint,
        "server": dict(described),
        "settings": _settings(arguments),
        "metadata": dict(arguments.metadata or ()),
        "runs": figures,
    }


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that make a run what it is, so that it can be repeated."""
    names = ("dataset", "num_prompts", "num_warmups", "seed", "burstiness", "max_concurrency", "ignore_eos", "timeout")
    own = [name for name in vars(arguments) if name.startswith(("random_", "prefix_repetition_", "long_prompt_"))]
    chosen = {name: getattr(arguments, name) for name in (*names, *own, "num_turns", *_SAMPLING)}
    return {name: str(value) if value == math.inf else value for name, value in chosen.items()}


def _save(arguments: argparse.Namespace, record: dict[str, Any], runs: Sequence[Run], console: Console) -> None:
    """The files that were asked for, beside each other, named alike."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    label = arguments.label or ("grpc" if arguments.url[0] == "grpc" else "openai")
    dataset = arguments.dataset if arguments.dataset in datasets.NAMES else Path(arguments.dataset).stem
    path = Path(arguments.result_dir) / (arguments.result_filename or f"{label}-{dataset}-{stamp}.json")
    written = []
    if arguments.save_result or arguments.save_detailed:
        if arguments.save_detailed:
            for figures, each in zip(record["runs"], runs, strict=True):
                figures["requests"] = measures.detailed(each)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        written.append(path)
    if arguments.plot:
        written.append(path.with_suffix(".png"))
        plots.latency_against_rate(record["runs"], arguments.metric_percentiles, record["title"], written[-1])
    if arguments.plot_timeline:
        for each in runs:
            rate = f"{each.rate:g}"
            written.append(path.with_name(f"{path.stem}.timeline-{rate}.png"))
            title = f"{record['title']}, {rate} requests per second"
            plots.timeline(measures.detailed(each), title, written[-1])
    for name in written:
        console.print(f"wrote {name}", highlight=False, soft_wrap=True)
