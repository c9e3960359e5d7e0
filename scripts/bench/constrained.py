"""What answers that follow grammars cost, beside answers that do not, in turns in one run.

    python scripts/bench/constrained.py [MODEL] [--rows 32] [--rounds 7] [--vocabulary FOLDER ...]

One engine in this process answers the same number of prompts with the same number of tokens, in turns without a
grammar, with a schema that leaves the model a choice at most tokens (`free`), and with one whose keys are fixed
(`keys`, where forced tokens are known before they are drawn). Prints, for each kind with a grammar, the ratio of its
tokens a second to those without: of processor time of the process, and of wall time, which others on the machine
change. Then, for the model's vocabulary and that of each FOLDER with a tokenizer, the mean time of a row's mask, of
all processors together and by the clock, in batches of so many rows, along random texts of several grammars, and what
compiling them takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxinfer.config import RuntimeConfig
from jaxinfer.constraints.matching import Guide, Matching
from jaxinfer.constraints.vocabulary import ComingVocabulary, Vocabulary
from jaxinfer.engine import EngineLoop
from jaxinfer.llm import build_engine
from jaxinfer.messages import Submit
from jaxinfer.model_path import demo_path
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import load_tokenizer

_PROMPT = 16  # tokens


def _many(items: dict[str, Any]) -> str:
    """So many of them that an answer is cut off at its last token, as one without a grammar is."""
    schema = {"type": "array", "items": items, "minItems": 400, "x-guidance": {"whitespace_flexible": False}}
    return json.dumps({"grammars": [{"json_schema": schema}]})


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
    }  # fmt: skip


TEXT = {"type": "string", "minLength": 40, "maxLength": 80}
KINDS = {
    "none": "",
    "free": _many(_object(text=TEXT, words={"type": "array", "items": {"type": "string"}, "minItems": 8})),
    "keys": _many(
        _object(
            the_first_name={"type": "string", "maxLength": 12},
            the_age_in_years={"type": "integer", "maximum": 120},
            place_of_residence={"enum": ["the northern valley", "the southern coast", "somewhere else"]},
            is_a_member_of_the_council={"type": "boolean"},
        )
    ),
}
PATTERN = json.dumps({"grammars": [{"lark_grammar": r"start: /([A-Z][a-z]+ ){3,}[0-9]{2,4}(-[0-9a-f]{4}){3}/"}]})
LARK = json.dumps(
    {
        "grammars": [
            {"lark_grammar": 'start: sum\nsum: term (("+" | "-") term)*\nterm: /[0-9]+/ | "(" sum ")" | /[a-z]+/'}
        ]
    }
)


class Reading(NamedTuple):
    tokens: int
    processor: float
    wall: float


def answer(engine: EngineLoop, constraint: str, rows: int, tokens: int, seed: int) -> Reading:
    """Answers `rows` prompts at once."""
    rng = np.random.default_rng(seed)
    params = SamplingParams(max_tokens=tokens, temperature=1.0, ignore_eos=True)
    before = engine.scheduler.stats.generated_tokens
    begin = time.process_time(), time.perf_counter()
    refused: list[Any] = []
    for row in range(rows):
        prompt = tuple(map(int, rng.integers(300, 3000, _PROMPT)))
        name = f"{constraint}{seed}.{row}"
        engine._handle(Submit(name, prompt, params, row, 0, time.monotonic(), constraint=constraint), refused.append)
    while engine.waiting_for_grammars:
        engine.admit_compiled(refused.append)
    while not engine.idle:
        engine.step()
    if refused:
        raise SystemExit(str(refused[0]))
    done = engine.scheduler.stats.generated_tokens - before
    return Reading(done, time.process_time() - begin[0], time.perf_counter() - begin[1])


def throughput(model: Path, rows: int, tokens: int, rounds: int) -> None:
    runtime = RuntimeConfig(
        max_num_seqs=rows, max_model_len=_PROMPT + tokens, max_num_batched_tokens=max(256, 4 * rows), device="cpu"
    )
    engine = build_engine(model, runtime)
    for constraint in KINDS.values():
        answer(engine, constraint, rows, 8, 0)
    found: dict[str, list[Reading]] = {kind: [] for kind in KINDS}
    masks: dict[str, list[float]] = {kind: [] for kind in KINDS}
    forced: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        kinds = list(KINDS)
        for kind in kinds[number % 3 :] + kinds[: number % 3]:  # nobody is always the first
            before, known = engine._clock.times.masks, engine.scheduler.stats.forced_tokens
            reading = answer(engine, KINDS[kind], rows, tokens, 1 + number)
            found[kind].append(reading)
            masks[kind].append((engine._clock.times.masks - before) / reading.tokens)
            forced[kind].append((engine.scheduler.stats.forced_tokens - known) / reading.tokens)
    print(f"{rows} rows, {tokens} tokens each, {rounds} rounds; tokens a second against those without a grammar")
    for kind, readings in found.items():
        rates = [[r.tokens / seconds for r in readings for seconds in (r[part],)] for part in (1, 2)]
        base = [[r.tokens / seconds for r in found["none"] for seconds in (r[part],)] for part in (1, 2)]
        ratios = [
            statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in zip(rates, base, strict=True)
        ]
        print(
            f"  {kind:<5} {statistics.median(rates[1]):7.0f} tokens/s   processor time {ratios[0]:.3f}   wall "
            f"{ratios[1]:.3f}   masks {1e6 * statistics.median(masks[kind]):5.1f} us a token   "
            f"forced {statistics.median(forced[kind]):.2f}"
        )


def walk(matching: Matching, guides: list[Guide], words: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Processor seconds, wall seconds and number of the masks of random texts."""
    spent = np.zeros(3)
    for _ in range(steps):
        live = [(row, guide) for row, guide in enumerate(guides) if not guide.complete and not guide.error]
        if not live:
            break
        begin = time.process_time(), time.perf_counter()
        masks = matching.masks(live, len(guides), words)
        spent += time.process_time() - begin[0], time.perf_counter() - begin[1], len(live)
        for row, guide in live:
            ids = np.flatnonzero(np.unpackbits(masks[row].view(np.uint8), bitorder="little"))
            guide.accept(int(rng.choice(ids)))
    return spent


def masks_of(folder: Path, rows: int) -> None:
    tokenizer = load_tokenizer(folder)
    end = tokenizer.eos_token_id
    size = tokenizer.vocab_size
    coming = ComingVocabulary(lambda: Vocabulary(tokenizer, size, [] if end is None else [end]))
    coming.get()
    matching, words = Matching(coming), -(-size // 32)
    print(f"{folder.name}: {size} tokens, made for grammars in {coming.seconds:.2f} s; masks in batches of {rows} rows")
    whole = np.zeros(3)
    for name, constraint in {**KINDS, "regex": PATTERN, "lark": LARK}.items():
        if not constraint:
            continue
        before, begin = matching.compile_seconds, time.perf_counter()
        guides: list[Guide] = []
        while len(guides) < rows:
            found = matching.begin(Submit(name, (1,), SamplingParams(), 0, 0, 0.0, constraint=constraint))
            while found is None:
                taken = matching.take()
                if taken:
                    (_, result), *_ = taken
                    if not isinstance(result, list):
                        raise SystemExit(str(result))
                    found = result
            guides += found
        waited = time.perf_counter() - begin
        spent = walk(matching, guides, words, 60, np.random.default_rng(0))
        whole += spent
        processor, wall, count = spent
        print(
            f"  {name:<5} {1e6 * processor / count:6.1f} us a row ({1e6 * wall / count:.1f} wall), {count:.0f} masks; "
            f"compiled in {1e3 * (matching.compile_seconds - before):.1f} ms, {rows} guides after {1e3 * waited:.1f} ms"
        )
    print(f"  mean  {1e6 * whole[0] / whole[2]:6.1f} us a row ({1e6 * whole[1] / whole[2]:.1f} wall)")
    matching.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=demo_path())
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocabulary", type=Path, nargs="*", default=[], help="folders with a tokenizer")
    args = parser.parse_args()
    for folder in (args.model, *args.vocabulary):
        masks_of(folder, args.rows)
    throughput(args.model, args.rows, args.tokens, args.rounds)


if __name__ == "__main__":
    main()
