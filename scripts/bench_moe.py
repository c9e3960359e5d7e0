"""What a mixture of experts costs on a CPU beside a dense model of the same active bytes, in one run, in turns.

    python scripts/bench_moe.py [--transformers-python PYTHON] [--rounds 7] [--json FILE]

Makes `qwen3moe-0.5b` (8 of 64 experts) and its twin `qwen3-0.1b` of random numbers, and prints, each beside its bar:
  decode of 1 row      the mixture's step over the twin's
  decode of 16 rows    the mixture's step over (bytes of the experts that tokens went to / this machine's read bandwidth
                       + the twin's step)
  prefill of 512       the mixture's FLOP/s over the twin's, counting active parameters
  beside transformers  output tokens per second of 16 requests of 128 tokens in and 64 out, ours over transformers'
                       grouped path (its default; `scripts/bench/peer_worker.py`)
and the grouped product alone, at 1 to 512 tokens with 8 to 128 experts: by the C++ kernel, by XLA in blocks, and by
`jax.lax.ragged_dot`. Ratios are medians over rounds, of which each runs both models within seconds; `cpu` is the same
of processor time, which shows something even where the machine is shared. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import grouped_products
from make_random_model import write_model
from model_shapes import SHAPES
from rich.console import Console
from rich.table import Table

from jaxinfer.memory_plan import count_parameters
from jaxinfer.models.registry import model_config
from serving.bench.bandwidth import host_read_bandwidth

ROOT = Path(__file__).resolve().parent.parent
MIXTURE, TWIN = "qwen3moe-0.5b", "qwen3-0.1b"
WORK = {
    "single": {"rows": 1, "prompt": 20, "steps": 40},
    "batch16": {"rows": 16, "prompt": 20, "steps": 40},
    "prefill": {"rows": 1, "prompt": 512, "steps": 0},
}
BARS = {"single": 1.3, "batch16": 1.15, "prefill": 0.7, "transformers": 2.0}
AT_MOST = ("single", "batch16")  # the others are at least
Readings = dict[str, list[dict[str, float]]]  # by kind of work, of each round


class Child:
    """A process of `moe_side.py`."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, str(ROOT / "scripts/bench/moe_side.py"), str(model), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, work: dict[str, int]) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"one side ended with {self.process.wait()}; its message stands above")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def expert_bytes() -> tuple[int, int]:
    """(of one expert of the mixture, layers that have experts)."""
    shape = SHAPES[MIXTURE]
    return 3 * shape["hidden_size"] * shape["moe_intermediate_size"] * 2, shape["num_hidden_layers"]


def multiplied(name: str) -> int:
    """Parameters by which each token of a prompt is multiplied: the active ones but for the vocabulary's."""
    config = model_config(SHAPES[name])
    return count_parameters(config)[1] - config.vocab_size * config.hidden_size


def read_steps(mixture: Path, twin: Path, rounds: int) -> tuple[list[Readings], list[float]]:
    """Readings of the mixture and of the twin, and the bandwidth that was measured before each round."""
    children = [Child(mixture), Child(twin)]
    found: list[Readings] = [{name: [] for name in WORK} for _ in children]
    bandwidth = []
    for number in range(rounds + 1):
        bandwidth.append(host_read_bandwidth())
        for name, work in WORK.items():
            for which in (0, 1) if number % 2 else (1, 0):  # nobody is always the first
                found[which][name].append(children[which].ask(work))
    for child in children:
        child.close()
    warmed = [{name: readings[1:] for name, readings in side.items()} for side in found]
    return warmed, bandwidth[1:]


def count_experts(mixture: Path, rounds: int) -> list[float]:
    """Experts of a layer that 16 rows' tokens go to, in each round: the same requests as in `read_steps`."""
    child = Child(mixture, "--touched")
    found = [{name: child.ask(work)["touched"] for name, work in WORK.items()} for _ in range(rounds)]
    child.close()
    return [of_work["batch16"] for of_work in found]


def step_ratios(sides: list[Readings], bandwidth: list[float], touched: float, clock: str) -> dict[str, float]:
    """Medians over the rounds."""
    mixture, twin = sides
    of_an_expert, layers = expert_bytes()

    def median(name: str, ratio: Any) -> float:
        pairs = zip(mixture[name], twin[name], bandwidth, strict=True)
        return statistics.median(ratio(one[clock], other[clock], width) for one, other, width in pairs)

    moved = touched * layers * of_an_expert
    cores = len(os.sched_getaffinity(0)) if clock == "process" else 1  # processor time counts each of them
    active, twins = (multiplied(name) for name in (MIXTURE, TWIN))
    return {
        "single": median("single", lambda one, other, _: one / other),
        "batch16": median("batch16", lambda one, other, width: one / (cores * moved / width + other)),
        "prefill": median("prefill", lambda one, other, _: (active / one) / (twins / other)),
    }


def beside_transformers(mixture: Path, python: str, rounds: int = 2) -> dict[str, list[float]]:
    """Output tokens per second of `batch16` of peer_worker.py."""
    rates: dict[str, list[float]] = {"jaxinfer": [], "transformers": []}
    for _ in range(rounds):
        for peer, own in (("jaxinfer", sys.executable), ("transformers", python)):
            command = [own, str(ROOT / "scripts/bench/peer_worker.py"), peer, str(mixture)]
            command += ["--workloads", "batch16"]
            environment = {**os.environ, **({"PYTHONPATH": str(ROOT)} if peer == "jaxinfer" else {})}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            rates[peer].append(next(line["output_tok_s"] for line in lines if line["workload"] == "batch16"))
    return rates


def show_products(rows: list[grouped_products.Row]) -> None:
    names = list(rows[0].milliseconds)
    table = Table("tokens", "experts", "of a token", "with rows", *(f"{name} ms" for name in names))
    for row in rows:
        sizes = (row.tokens, row.experts, row.chosen, row.touched)
        table.add_row(*map(str, sizes), *(f"{row.milliseconds[name]:.3f}" for name in names))
    Console(width=110).print(table)


def show(found: dict[str, dict[str, float]]) -> bool:
    """Prints the ratios; whether all bars hold, by the wall clock."""
    table = Table("what", "ratio", "cpu", "bar", "holds")
    fine = True
    for name, clocks in found.items():
        bar, least = BARS[name], name not in AT_MOST
        holds = clocks["wall"] >= bar if least else clocks["wall"] <= bar
        fine = fine and holds
        cpu = f"{clocks['process']:.3f}" if "process" in clocks else ""
        table.add_row(name, f"{clocks['wall']:.3f}", cpu, f"{'>=' if least else '<='} {bar}", "yes" if holds else "no")
    Console(width=110).print(table)
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers-python", help="a Python that has torch and transformers; without it, not run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--folder", type=Path, help="where the two models are, or are made and kept; else a temporary one"
    )
    parser.add_argument("--only", choices=("steps", "products"), help="one part")
    parser.add_argument("--json", type=Path, help="also write all readings to this file")
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    everything: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [(args.folder or Path(temporary)) / name for name in (MIXTURE, TWIN)]
        for folder in folders:
            if not folder.exists():
                write_model(folder.name, folder)
        if args.only != "products":
            touched = statistics.fmean(count_experts(folders[0], 2))
            sides, bandwidth = read_steps(folders[0], folders[1], args.rounds)
            everything |= {"mixture": sides[0], "twin": sides[1], "bandwidth": bandwidth, "touched": touched}
            of_clock = {clock: step_ratios(sides, bandwidth, touched, clock) for clock in ("wall", "process")}
            found = {name: {clock: of_clock[clock][name] for clock in of_clock} for name in WORK}
            print(f"16 rows go to {touched:.1f} experts; read bandwidth {statistics.median(bandwidth) / 1e9:.1f} GB/s")
            for name in WORK:
                times = [1e3 * statistics.median(r["wall"] for r in side[name]) for side in sides]
                print(f"{name}: mixture {times[0]:.2f} ms, twin {times[1]:.2f} ms")
        if args.transformers_python:
            rates = beside_transformers(folders[0], args.transformers_python)
            pairs = zip(rates["jaxinfer"], rates["transformers"], strict=True)
            found["transformers"] = {"wall": statistics.median(ours / theirs for ours, theirs in pairs)}
            everything["tokens_per_second"] = rates
            print("; ".join(f"{peer} {statistics.median(rate):.1f} tokens/s" for peer, rate in rates.items()))
    if args.only != "steps":
        rows = grouped_products.measure(args.rounds)
        everything["products"] = [row._asdict() for row in rows]
        show_products(rows)
    if args.json:
        args.json.write_text(json.dumps(everything | {"ratios": found}, indent=1))
    return 0 if show(found) else 1


if __name__ == "__main__":
    sys.exit(main())
