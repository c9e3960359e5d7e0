"""Schemas by chance, answered by a model: which answers end, and whether those that end are valid.

    python scripts/bench/schemas_answered.py [MODEL] [--schemas 300] [--samples 20] [--open 60] [--tokens 1024]

Schemas of every class of keywords, each answered so many times at temperature 1.5, where a model writes next to
anything that it may. An answer that ends has the finish reason `stop`; it is read as JSON and judged by `jsonschema`,
which shares nothing with the compiler of our grammars. Formats are judged where that library can by itself.

What an answer is cut for is that nothing of its schema ends it: a text without maxLength, a property's name that is not
listed, an integer without a bound, a fraction. At this temperature the demo goes on in them for thousands of tokens,
since every word is about as likely as the quote. So the schemas that say how many answers end are bounded
(tests/jaxinfer/constraints/schemas.py); others, as clients write them, are counted apart. White space, which has an
end of its own, is left out in every second one (disable_any_whitespace). Ends with an error where an answer is not
valid, where a schema is refused, or where fewer than 90 % of the bounded ones' answers end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxinfer import LLM, SamplingParams, StructuredOutputsParams
from jaxinfer.outputs import RequestOutput
from tests.jaxinfer.constraints.schemas import KINDS, schema

TEMPERATURE, ENOUGH = 1.5, 0.9
PROMPT = "Answer with JSON."
_ROWS, _PROMPT_ROOM = 64, 64  # sequences at once; tokens


@dataclass(frozen=True)
class Asked:
    kind: str
    schema: Any
    params: SamplingParams


def asked(count: int, samples: int, tokens: int, *, bounded: bool) -> list[Asked]:
    """So many schemas, of all kinds in turn."""
    found = []
    for i in range(count):
        kind = list(KINDS)[i % len(KINDS)]
        made = schema(random.Random(f"{kind} {i} {bounded}"), kind, bounded=bounded)
        form = StructuredOutputsParams(json=made, disable_any_whitespace=i // len(KINDS) % 2 == 0)
        params = SamplingParams(n=samples, temperature=TEMPERATURE, max_tokens=tokens, seed=i, structured_outputs=form)
        found.append(Asked(kind, made, params))
    return found


def judge(requests: Sequence[Asked], outputs: Sequence[RequestOutput], title: str) -> tuple[float, list[str]]:
    """Prints the table. Returns the share of answers that ended, and what is wrong with those that are not valid."""
    formats = jsonschema.Draft202012Validator.FORMAT_CHECKER
    all_answers, ended, tokens = Counter[str](), Counter[str](), Counter[str]()
    faults: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for request, output in zip(requests, outputs, strict=True):
        validator = jsonschema.Draft202012Validator(request.schema, format_checker=formats)
        for answer in output.outputs:
            all_answers[request.kind] += 1
            tokens[request.kind] += len(answer.token_ids)
            if answer.finish_reason != "stop":
                continue
            ended[request.kind] += 1
            if (fault := fault_of(answer.text, validator)) is not None:
                faults[request.kind].append(f"{json.dumps(request.schema)}\n    {answer.text!r}\n    {fault}")
    print(f"{title}: {len(requests)} schemas\n  {'':12}{'answers':>9}{'ended':>9}{'valid':>9}{'tokens':>9}")
    for kind in (name for name in KINDS if all_answers[name]):
        valid = ended[kind] - len(faults[kind])
        mean = tokens[kind] / all_answers[kind]
        print(f"  {kind:<12}{all_answers[kind]:>9}{ended[kind]:>9}{valid:>9}{mean:>9.1f}")
    share = ended.total() / all_answers.total()
    listed = [fault for found in faults.values() for fault in found]
    print(f"  ended {100 * share:.1f} %, valid of those {100 * (1 - len(listed) / max(1, ended.total())):.2f} %")
    return share, listed


def fault_of(text: str, validator: jsonschema.Draft202012Validator) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return str(error)
    found = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return None if found is None else found.message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the demo")
    parser.add_argument("--schemas", type=int, default=300, help="bounded ones")
    parser.add_argument("--open", type=int, default=60, help="others")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1024, help="the most of an answer")
    args = parser.parse_args()
    begin = time.perf_counter()
    requests = asked(args.schemas, args.samples, args.tokens, bounded=True)
    others = asked(args.open, args.samples, args.tokens, bounded=False)
    together = requests + others
    with LLM(args.model, max_num_seqs=_ROWS, max_model_len=args.tokens + _PROMPT_ROOM) as llm:
        prompts: list[Any] = [PROMPT] * len(together)
        if llm.get_tokenizer().chat_template is None:
            outputs = llm.generate(prompts, [each.params for each in together])
        else:
            chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
            outputs = llm.chat(chats, [each.params for each in together])
        print(f"{llm.model_path.name}, temperature {TEMPERATURE}, at most {args.tokens} tokens", end="; ")
    print(f"jsonschema {version('jsonschema')}, llguidance {version('llguidance')}")
    share, faults = judge(requests, outputs[: len(requests)], "bounded")
    if others:
        faults += judge(others, outputs[len(requests) :], "open")[1]
    print(f"{time.perf_counter() - begin:.0f} s")
    for fault in faults:
        print(f"  not valid: {fault}")
    if faults or share < ENOUGH:
        raise SystemExit(f"{len(faults)} answers are not valid; {100 * share:.1f} % ended, {100 * ENOUGH:.0f} % must")


if __name__ == "__main__":
    main()
