"""Options of `jaxinfer bench serve`, named as those of `vllm bench serve` where it has them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from serving.bench.datasets import NAMES, Lengths, Prefixes
from serving.bench.http_client import CHAT, COMPLETIONS
from serving.bench.measures import GOALS, METRICS
from serving.commands import bench_values as values
from serving.commands.access_options import add_client_options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        type=values.server_url,
        required=True,
        metavar="URL",
        help="grpc://HOST:PORT, or http://HOST:PORT of any server with OpenAI's interface",
    )
    parser.add_argument(
        "--endpoint",
        choices=(COMPLETIONS, CHAT),
        help=f"with http://: what is asked (default: {COMPLETIONS}; {CHAT} for chat-turns)",
    )
    parser.add_argument("--model", metavar="NAME", help="with http://: which model (default: the first that is listed)")
    parser.add_argument(
        "--ready-check-timeout-sec",
        type=values.not_negative,
        default=0,
        metavar="S",
        help="wait so long for the server",
    )
    _add_load(parser)
    _add_datasets(parser)
    _add_sampling(parser)
    _add_results(parser)
    add_client_options(parser, "keys and certificates")


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("when requests are sent")
    group.add_argument(
        "--rate",
        "--request-rate",
        type=values.rates,
        default=(math.inf,),
        metavar="R,R",
        help="requests per second, each rate in turn; inf sends all at once (default: inf)",
    )
    group.add_argument(
        "--burstiness",
        type=values.above_zero,
        default=1.0,
        metavar="X",
        help="shape of the gaps' gamma distribution: 1 is a Poisson process, less is burstier, inf is even",
    )
    group.add_argument(
        "--max-concurrency", type=values.positive, metavar="N", help="most in flight; others wait in this client"
    )
    group.add_argument(
        "--num-prompts", type=values.positive, default=100, metavar="N", help="requests, or conversations, at each rate"
    )
    group.add_argument(
        "--num-warmups", type=values.not_negative, default=1, metavar="N", help="requests before, which do not count"
    )
    group.add_argument(
        "--timeout", type=values.seconds, default=600.0, metavar="S", help="a request that takes longer has failed"
    )
    group.add_argument("--seed", type=values.not_negative, default=0, metavar="N", help="of prompts and of arrivals")


def _add_datasets(parser: argparse.ArgumentParser) -> None:
    lengths, prefixes = Lengths(), Prefixes()
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--dataset",
        "--dataset-name",
        default=NAMES[0],
        metavar="NAME",
        help=f"{', '.join(NAMES)}, or a file with one JSON object a line: prompt or messages, and output_tokens",
    )
    group.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="the model's folder: texts get their exact length in tokens"
    )
    group.add_argument(
        "--vocab-size",
        type=values.positive,
        metavar="N",
        help="token ids of prompts are below it (default: what the server says, the tokenizer's, or 256)",
    )
    for name, default, what in (
        ("random-input", lengths.input_len, "tokens of a prompt, of each user message in chat-turns"),
        ("random-output", lengths.output_len, "most tokens of an answer; exactly so many with --ignore-eos"),
    ):
        names = (f"--{name}-len", f"--{name.removeprefix('random-')}-len")
        group.add_argument(*names, type=values.positive, default=default, metavar="N", help=what)
    group.add_argument(
        "--random-range-ratio", type=values.share, default=lengths.range_ratio, metavar="X", help="lengths vary by +-X"
    )
    group.add_argument(
        "--random-prefix-len",
        type=values.not_negative,
        default=lengths.prefix_len,
        metavar="N",
        help="synthetic: tokens that all prompts begin with, too",
    )
    for name, default, what in (
        ("prefix-len", prefixes.prefix_len, "tokens of a prefix"),
        ("suffix-len", prefixes.suffix_len, "tokens behind it"),
        ("num-prefixes", prefixes.count, "different prefixes"),
        ("output-len", prefixes.output_len, "most tokens of an answer"),
    ):
        group.add_argument(
            f"--prefix-repetition-{name}",
            type=values.positive,
            default=default,
            metavar="N",
            help=f"shared-prefix: {what}",
        )
    group.add_argument(
        "--long-prompt-len", type=values.positive, default=2000, metavar="N", help="long-prompt: tokens of a long one"
    )
    group.add_argument(
        "--long-prompt-share", type=values.share, default=0.1, metavar="X", help="long-prompt: how many are long"
    )
    group.add_argument(
        "--num-turns", type=values.positive, default=4, metavar="N", help="chat-turns: user messages of a conversation"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--ignore-eos", action="store_true", help="answers are as long as they may be")
    group.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 is greedy")
    for name, kind in (
        ("top-p", float),
        ("top-k", int),
        ("min-p", float),
        ("presence-penalty", float),
        ("frequency-penalty", float),
        ("repetition-penalty", float),
    ):
        group.add_argument(
            f"--{name}",
            type=kind,
            metavar="X" if kind is float else "N",
            help="as the server understands it (default: its own)",
        )
    group.add_argument(
        "--extra-body", type=values.json_object, metavar="JSON", help="with http://: further fields of every request"
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is reported")
    group.add_argument(
        "--goodput",
        type=values.goal,
        nargs="+",
        metavar="KEY:MS",
        help=f"requests within these milliseconds are good: {', '.join(GOALS)} (default: no goals)",
    )
    group.add_argument(
        "--percentile-metrics",
        type=values.metrics,
        default=METRICS[:4],
        metavar="NAMES",
        help=f"what the table shows, of {', '.join(METRICS)} (default: {','.join(METRICS[:4])})",
    )
    group.add_argument(
        "--metric-percentiles",
        type=values.percentiles,
        default=(50.0, 90.0, 99.0),
        metavar="P,P",
        help="which percentiles (default: 50,90,99)",
    )
    group.add_argument("--save-result", action="store_true", help="write the figures as JSON")
    group.add_argument("--save-detailed", action="store_true", help="the same with the times of every token")
    group.add_argument("--plot", action="store_true", help="write a PNG of latency against rate")
    group.add_argument("--plot-timeline", action="store_true", help="write a PNG of each rate's tokens over time")
    group.add_argument("--result-dir", type=Path, default=Path(), metavar="DIR", help="where files are written")
    group.add_argument(
        "--result-filename", metavar="NAME", help="of the JSON file, and pictures beside it (default: label and date)"
    )
    group.add_argument("--label", metavar="TEXT", help="kept in the JSON, and begins its name")
    group.add_argument(
        "--metadata", type=values.key_value, nargs="*", metavar="KEY=VALUE", help="kept in the JSON (default: nothing)"
    )
