"""Makes the demo model from nothing: a corpus from a seed, a tokenizer, a small Llama, a Hugging Face folder.

    python scripts/train_demo.py --out DIR --minutes 80 --checkpoint checkpoints/demo

Trains on the CPU, or on one GPU when JAX has one. Needs optax and sentencepiece beside the package's own dependencies.
The sibling for speculative decoding is the same with `--size draft --tokenizer DIR/tokenizer.model`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from demo_corpus import held_out_texts
from demo_training.continued import params_of
from demo_training.export import export
from demo_training.network import NetworkConfig
from demo_training.rows import Corpus, make_corpus
from demo_training.tokenizer import load_tokenizer, plain_texts, train_tokenizer
from demo_training.training import Report, TrainConfig, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from serving.commands.convert import main as convert

DEFAULT_MINUTES = 80.0
# The demo, and its sibling of about a million parameters.
SIZES = {
    "demo": {"hidden": 256, "layers": 6, "heads": 4, "kv_heads": 2, "mlp": 640},
    "draft": {"hidden": 128, "layers": 3, "heads": 2, "kv_heads": 1, "mlp": 320},
}
_TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("mmap_threshold", 8 << 30), ("trim_threshold", 16 << 30))
)
_LOG_SECONDS = 20.0
_CHECKED_TEXTS = 300


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Train jaxinfer's demo model from text that this script makes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the Hugging Face model to")
    parser.add_argument("--checkpoint", type=Path, help="also convert it into this folder, replacing what is there")
    parser.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--minutes", type=float, help=f"stop after this time (default {DEFAULT_MINUTES:g}, or --steps)")
    parser.add_argument("--seed", type=int, default=0, help="seed of corpus, weights and batches")
    parser.add_argument("--workdir", type=Path, help="tokenizer and training state (default: OUT.work)")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the workdir")
    parser.add_argument("--start-from", type=Path, metavar="CHECKPOINT", help="train on from its weights and tokenizer")
    parser.add_argument("--rate", type=float, default=5e-3, help="highest learning rate (default 5e-3)")
    parser.add_argument("--tokenizer", type=Path, help="use this tokenizer.model instead of training one")
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="demo", help="which of the two networks (default demo)"
    )
    for name in SIZES["demo"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="network size, instead of --size's")
    parser.add_argument("--context", type=int, default=2048, help="longest sequence (default 2048)")
    parser.add_argument("--vocab-size", type=int, default=4096, help="pieces of the tokenizer (default 4096)")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens per step (default 4096)")
    parser.add_argument("--window", type=int, default=512, help="length of the short rows (default 512)")
    parser.add_argument("--corpus-tokens", type=int, default=60_000_000, help="tokens before rows repeat (60 million)")
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: must not be negative")
    if arguments.corpus_tokens < 1:
        parser.error(f"--corpus-tokens {arguments.corpus_tokens}: must be at least 1")
    if not 0 < arguments.rate < 1:
        parser.error(f"--rate {arguments.rate}: must be above 0 and below 1")
    if arguments.start_from is not None:
        if not arguments.start_from.is_dir():
            parser.error(f"--start-from {arguments.start_from}: no such folder")
        arguments.tokenizer = arguments.tokenizer or arguments.start_from / "tokenizer.model"
    if arguments.tokenizer is not None and not arguments.tokenizer.is_file():
        parser.error(f"--tokenizer {arguments.tokenizer}: no such file")
    if arguments.out.exists() and not arguments.out.is_dir():
        parser.error(f"--out {arguments.out}: exists and is not a folder")
    if arguments.steps is None and arguments.minutes is None:
        arguments.minutes = DEFAULT_MINUTES
    if arguments.workdir is None:
        arguments.workdir = arguments.out.with_name(arguments.out.name + ".work")
    return arguments


def prepare(arguments: argparse.Namespace, console: Console) -> tuple[Path, Corpus]:
    """The tokenizer file and the training rows. A resumed run keeps its tokenizer; rows are cheap and made again."""
    tokenizer_file: Path = arguments.workdir / "tokenizer.model"
    if arguments.tokenizer is not None:
        shutil.copyfile(arguments.tokenizer, tokenizer_file)
    elif not (arguments.resume and tokenizer_file.exists()):
        console.print(f"tokenizer: {arguments.vocab_size} pieces")
        train_tokenizer(tokenizer_file, seed=arguments.seed, vocab_size=arguments.vocab_size)
    held_out = held_out_texts()
    corpus = make_corpus(
        load_tokenizer(tokenizer_file),
        held_out,
        seed=arguments.seed,
        tokens=arguments.corpus_tokens,
        short=arguments.window,
        long=arguments.context,
    )
    console.print(
        f"corpus: {corpus.short.ids.size:,} tokens in rows of {arguments.window}, {corpus.long.ids.size:,} in rows of "
        f"{arguments.context}; none of the {len(held_out):,} held-out texts is in it"
    )
    return tokenizer_file, corpus


def network_config(arguments: argparse.Namespace, vocab_size: int) -> NetworkConfig:
    """The sizes asked for. Factors of products are bfloat16: twice as fast, and what the weights are stored in."""
    given = {name: getattr(arguments, name) for name in SIZES["demo"] if getattr(arguments, name) is not None}
    sizes = {**SIZES[arguments.size], **given}
    return NetworkConfig(vocab_size=vocab_size, context=arguments.context, product_dtype="bfloat16", **sizes)


class Watcher:
    """Shows a bar on a terminal, and a line of numbers every so often everywhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=1.0, loss="")
        self._losses: list[float] = []
        self._shown = time.monotonic()

    def __call__(self, report: Report) -> None:
        self._losses.append(report.loss)
        self._progress.update(self._task, completed=report.share, loss=f"loss {report.loss:.3f}")
        if time.monotonic() - self._shown > _LOG_SECONDS:
            mean = sum(self._losses) / len(self._losses)
            self._progress.console.print(
                f"step {report.step}  {report.share:.1%}  loss {mean:.3f}  "
                f"rate x{report.rate_factor:.2f}  {report.tokens_per_second:,.0f} tokens/s"
            )
            self._losses.clear()
            self._shown = time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)
    console = Console()
    try:
        config = TrainConfig(
            steps=arguments.steps,
            minutes=arguments.minutes,
            seed=arguments.seed,
            batch_tokens=arguments.batch_tokens,
            loss_chunk=min(512, arguments.batch_tokens),
            matrix_rate=arguments.rate,
            other_rate=arguments.rate,
        )
        network_config(arguments, arguments.vocab_size)  # bad sizes are refused before the work begins
        arguments.workdir.mkdir(parents=True, exist_ok=True)
        tokenizer_file, corpus = prepare(arguments, console)
        network = network_config(arguments, load_tokenizer(tokenizer_file).vocab_size())
        trainer = Trainer(network, config)
        if arguments.start_from is not None:
            trainer.start_from(params_of(arguments.start_from, network))
        state_file = arguments.workdir / "state.npz"
        if arguments.resume:
            trainer.restore(state_file)
            console.print(f"resumed at step {trainer.state.step}, {trainer.state.seconds / 60:.1f} minutes in")
    except (ValueError, FileNotFoundError) as error:
        console.print(f"train_demo: {error}", style="red", markup=False)
        return 2
    console.print(f"network: {network.parameters:,} parameters on {jax.devices()[0].device_kind}")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console) as progress:
        try:
            trainer.run(corpus, state_file, Watcher(progress))
        except KeyboardInterrupt:
            console.print(f"interrupted at step {trainer.state.step}: --resume goes on from {state_file}")
            return 130
    seen = trainer.state.step * arguments.batch_tokens
    console.print(f"trained for {trainer.state.seconds / 60:.1f} minutes, {trainer.state.step} steps, {seen:,} tokens")
    texts = plain_texts(arguments.seed + 1, _CHECKED_TEXTS)
    export(arguments.out, trainer.state.params, network, tokenizer_file, texts)
    console.print(f"wrote {arguments.out}")
    if arguments.checkpoint is not None:
        return convert([str(arguments.out), str(arguments.checkpoint), "--overwrite"])
    return 0


def keep_memory() -> None:
    """Starts this program again with a malloc that keeps large blocks in huge pages, if the C library is glibc.

    XLA's arrays of a step are otherwise mapped anew at every step; a step takes a fifth less time so. The setting is
    read when a process starts, hence the second start.
    """
    if "GLIBC_TUNABLES" not in os.environ and platform.libc_ver()[0] == "glibc":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": _TUNABLES})


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
