"""Makes the demo model from nothing: a corpus from a seed, a tokenizer, a small Llama, a Hugging Face folder.

    python scripts/train_demo.py --out DIR --minutes 20

Trains on the CPU, or on one GPU when JAX has one. Needs optax and sentencepiece beside the package's own dependencies.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from demo_training.export import export
from demo_training.network import NetworkConfig
from demo_training.tokenizer import TokenStream, load_tokenizer, plain_texts, token_stream, train_tokenizer
from demo_training.training import Report, TrainConfig, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

DEFAULT_MINUTES = 20.0
_LOG_SECONDS = 20.0
_HELD_OUT_DOCUMENTS = 300


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Train jaxinfer's demo model from text that this script makes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the Hugging Face model to")
    parser.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--minutes", type=float, help=f"stop after this time (default {DEFAULT_MINUTES:g}, or --steps)")
    parser.add_argument("--seed", type=int, default=0, help="seed of corpus, weights and batches")
    parser.add_argument("--workdir", type=Path, help="tokenizer, tokens and checkpoint (default: OUT.work)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the workdir")
    parser.add_argument("--documents", type=int, default=60_000, help="size of the corpus")
    for name, value in (("hidden", 256), ("layers", 4), ("heads", 4), ("kv-heads", 2), ("mlp", 640)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"network size (default {value})")
    parser.add_argument("--context", type=int, default=1024, help="longest sequence (default 1024)")
    parser.add_argument("--vocab-size", type=int, default=2048, help="pieces of the tokenizer (default 2048)")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens per step (default 2048)")
    parser.add_argument("--window", type=int, default=256, help="row length in the first part (default 256)")
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: must not be negative")
    if arguments.documents < 1:
        parser.error(f"--documents {arguments.documents}: must be at least 1")
    if arguments.out.exists() and not arguments.out.is_dir():
        parser.error(f"--out {arguments.out}: exists and is not a folder")
    if arguments.steps is None and arguments.minutes is None:
        arguments.minutes = DEFAULT_MINUTES
    if arguments.workdir is None:
        arguments.workdir = arguments.out.with_name(arguments.out.name + ".work")
    return arguments


def prepare(arguments: argparse.Namespace, console: Console) -> tuple[Path, TokenStream, TokenStream]:
    """The tokenizer file, and the token ids of the training and the held-out corpus.

    A resumed run keeps the tokenizer of its workdir. The tokens are cheap to make and are made again.
    """
    tokenizer_file: Path = arguments.workdir / "tokenizer.model"
    if not (arguments.resume and tokenizer_file.exists()):
        console.print(f"tokenizer: {arguments.vocab_size} pieces")
        train_tokenizer(tokenizer_file, seed=arguments.seed, vocab_size=arguments.vocab_size)
    tokenizer = load_tokenizer(tokenizer_file)
    stream = token_stream(tokenizer, arguments.seed, arguments.documents)
    held_out = token_stream(tokenizer, arguments.seed + 1, _HELD_OUT_DOCUMENTS)
    console.print(
        f"corpus: {arguments.documents} documents, {len(stream.ids):,} tokens; held out {len(held_out.ids):,} tokens"
    )
    return tokenizer_file, stream, held_out


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
        network = NetworkConfig(
            vocab_size=arguments.vocab_size,
            hidden=arguments.hidden,
            layers=arguments.layers,
            heads=arguments.heads,
            kv_heads=arguments.kv_heads,
            mlp=arguments.mlp,
            context=arguments.context,
        )
        config = TrainConfig(
            steps=arguments.steps,
            minutes=arguments.minutes,
            seed=arguments.seed,
            batch_tokens=arguments.batch_tokens,
            window=arguments.window,
            loss_chunk=min(1024, arguments.batch_tokens),
        )
        arguments.workdir.mkdir(parents=True, exist_ok=True)
        tokenizer_file, stream, held_out = prepare(arguments, console)
        trainer = Trainer(network, config)
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
            trainer.run(stream, state_file, Watcher(progress))
        except KeyboardInterrupt:
            console.print(f"interrupted at step {trainer.state.step}: --resume goes on from {state_file}")
            return 130
    console.print(f"held-out loss {trainer.evaluate(held_out):.4f} after {trainer.state.step} steps")
    export(
        arguments.out,
        trainer.state.params,
        network,
        tokenizer_file,
        plain_texts(arguments.seed + 1, _HELD_OUT_DOCUMENTS),
    )
    console.print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
