"""Milliseconds that sampling takes on this device for a large vocabulary; minimum and median of many calls.

python scripts/bench_sampling.py [--rows 16] [--vocab 128256] [--calls 60]
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.runtime.sampling import SamplingParamsRows, TokenTables, sample
from jaxinfer.sampling_params import DEVICE_COLUMNS

BAR_MS = 15.0
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "penalties, greedy": {"temperature": 0.0, "repetition_penalty": 1.1, "has_penalties": True},
    "top-k 50 + top-p 0.9 + penalties": {
        "top_k": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "has_penalties": True,
    },
    "top-k 1000 + top-p 0.9": {"top_k": 1000, "top_p": 0.9},
    "top-p 0.9 + min-p 0.01": {"top_p": 0.9, "min_p": 0.01},
    "greedy + 20 logprobs": {"temperature": 0.0, "num_logprobs": 20},
}


def params(rows: int, **changes: Any) -> SamplingParamsRows:
    values = {"temperature": 1.0, **changes}
    arrays = {
        name: jnp.full(rows, values.get(name, column.neutral), column.dtype)
        for name, column in DEVICE_COLUMNS.items()
        if name not in ("seed_low", "seed_high")
    }
    seeds = jnp.arange(rows, dtype=jnp.uint32)
    return SamplingParamsRows(**arrays, seed_low=seeds, seed_high=seeds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--calls", type=int, default=60)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (args.rows, args.vocab)).astype(np.float32))
    tables = TokenTables.zeros(args.rows, args.vocab)
    slots = jnp.arange(args.rows, dtype=jnp.int32)
    length = jnp.full(args.rows, 100, jnp.int32)
    call = jax.jit(partial(sample, vocab_size=args.vocab))
    print(
        f"{args.rows} rows x {args.vocab:,} on {jax.devices()[0].device_kind}, jax {jax.__version__}; bar {BAR_MS} ms"
    )
    for name, changes in CASES.items():
        rows = params(args.rows, **changes)
        jax.block_until_ready(call(logits, rows, tables, slots, length, length))
        times = []
        for _ in range(args.calls):
            begin = time.perf_counter()
            jax.block_until_ready(call(logits, rows, tables, slots, length, length))
            times.append(1e3 * (time.perf_counter() - begin))
        print(f"  {name:34} min {min(times):6.2f} ms   median {sorted(times)[len(times) // 2]:6.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
