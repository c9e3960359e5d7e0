"""What the JSON Schema Test Suite says of our grammars, keyword by keyword.

    python scripts/bench/schema_suite.py [--folder SUITE] [--draft 2020-12 ...] [--show KIND]

The suite comes with the source package of `jsonschema` on PyPI, whose own tests it is; without --folder pip downloads
that into a temporary folder. A schema is either refused by name, or a grammar is made of it; then each of the suite's
instances is written as compact JSON and read by that grammar, byte by byte. An instance may have its keys in any
order, a grammar has one: those of an instance that it does not take as they stand are tried in every order, and in the
schema's own. Counted for each file of the suite, which is named like a keyword:

    refused     schemas that we name as none that a grammar is made of
    exact       schemas all of whose instances are judged as the suite does
    loose       instances that the suite calls invalid and the grammar takes: a fault of ours, named below the table
    strict      instances that the suite calls valid and the grammar does not take: a text of fewer forms than the
                schema has; docs/structured_output.md names them

Optional tests are read too, of formats those that we take: a grammar holds a text to its format, so what the suite has
for readers who pass over formats is not asked. Ends with an error where an instance is loose.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxinfer.constraints.constraint import AnswerShape, constraint_of
from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.constraints.schema import FORMATS
from jaxinfer.errors import InvalidRequest

PACKAGE = "jsonschema"
DRAFTS = ("2020-12", "7")
_ASSERTIONS = ("format-assertion", "content")  # of annotations: formats in a vocabulary of its own, what a text encodes
_MOST_ORDERS = 720  # of an instance's keys


@dataclass
class Count:
    """Of one file of the suite, or of all."""

    schemas: int = 0
    refused: int = 0
    exact: int = 0
    instances: int = 0
    loose: list[str] = field(default_factory=list)
    strict: list[str] = field(default_factory=list)

    def add(self, other: Count) -> None:
        for name in ("schemas", "refused", "exact", "instances", "loose", "strict"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def downloaded(folder: Path) -> tuple[Path, str]:
    """The suite, and the version of the package that it comes with. Raises SystemExit where pip has none."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        PACKAGE,
        "-d",
        str(folder),
    ]
    if subprocess.run([*command, PACKAGE]).returncode:
        raise SystemExit(f"pip could not download the source of {PACKAGE}; give its folder json/ as --folder")
    archive = next(folder.glob(f"{PACKAGE}-*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    version = archive.name.removeprefix(f"{PACKAGE}-").removesuffix(".tar.gz")
    return folder / f"{PACKAGE}-{version}" / "json", version


def files(suite: Path, draft: str) -> Iterator[Path]:
    folder = suite / "tests" / f"draft{draft}"
    if not folder.is_dir():
        raise SystemExit(f"{suite} holds no tests of draft {draft}")
    yield from sorted(path for path in folder.glob("*.json") if path.stem != "format")
    yield from sorted(path for path in (folder / "optional").glob("*.json") if path.stem not in _ASSERTIONS)
    formats = folder / "optional" / "format"
    yield from (path for name in FORMATS if (path := formats / f"{name}.json").exists())


class Reader:
    """Reads texts by a grammar, byte by byte."""

    def __init__(self, constraint: str) -> None:
        from llguidance import LLMatcher, LLTokenizer

        self._matcher = LLMatcher(LLTokenizer("byte"), constraint)
        if self._matcher.is_error():
            raise SystemExit(f"the engine would not compile what was let through: {self._matcher.get_error()}")

    def takes(self, text: str) -> bool:
        """Whether it is a whole answer."""
        found = self._matcher.deep_copy()
        ids = list(text.encode())
        return found.try_consume_tokens(ids) == len(ids) and found.is_accepting()


def orders(value: Any) -> Iterator[Any]:
    """The value with its objects' keys in every order."""
    if isinstance(value, Mapping):
        for keys in itertools.permutations(value):
            for values in itertools.product(*(list(itertools.islice(orders(value[k]), _MOST_ORDERS)) for k in keys)):
                yield dict(zip(keys, values, strict=True))
    elif isinstance(value, list):
        for values in itertools.product(*(list(itertools.islice(orders(each), _MOST_ORDERS)) for each in value)):
            yield list(values)
    else:
        yield value


def written(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def judged(group: Mapping[str, Any], place: str) -> Count:
    """One schema of the suite with its instances."""
    count = Count(schemas=1)
    schema = group["schema"]
    try:
        params = StructuredOutputsParams(json=schema if isinstance(schema, bool) else json.dumps(schema))
        reader = Reader(constraint_of(params, None, AnswerShape()))
    except InvalidRequest:
        count.refused = 1
        return count
    for test in group["tests"]:
        count.instances += 1
        forms = map(written, itertools.islice(orders(test["data"]), _MOST_ORDERS))
        try:
            taken = any(map(reader.takes, forms))
        except UnicodeEncodeError:  # half of a surrogate pair is no text
            count.instances -= 1
            continue
        if taken == test["valid"]:
            continue
        line = f"{place}: {group['description']}: {test['description']}: {written(test['data'])[:80]}"
        (count.loose if taken else count.strict).append(f"{line}\n      {written(schema)[:200]}")
    count.exact = int(not count.loose and not count.strict)
    return count


def of_draft(suite: Path, draft: str) -> Count:
    print(f"draft {draft}\n  {'':24}{'schemas':>9}{'refused':>9}{'exact':>9}{'instances':>11}{'loose':>7}{'strict':>8}")
    everything = Count()
    for path in files(suite, draft):
        count = Count()
        for group in json.loads(path.read_text()):
            count.add(judged(group, f"draft {draft}, {path.stem}"))
        everything.add(count)
        line(path.stem, count)
    line("all", everything)
    return everything


def line(name: str, count: Count) -> None:
    numbers = f"{count.schemas:>9}{count.refused:>9}{count.exact:>9}{count.instances:>11}"
    print(f"  {name:<24}{numbers}{len(count.loose):>7}{len(count.strict):>8}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="the suite, with its folder tests/")
    parser.add_argument("--draft", nargs="*", default=DRAFTS)
    parser.add_argument("--show", choices=("strict",), help="name these instances too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        suite, version = (args.folder, "") if args.folder else downloaded(Path(scratch))
        if version:
            print(f"the suite of {PACKAGE} {version}")
        counts = Count()
        for draft in args.draft:
            counts.add(of_draft(suite, draft))
    for text in counts.strict if args.show else ():
        print(f"  strict: {text}")
    for text in counts.loose:
        print(f"  loose: {text}")
    if counts.loose:
        raise SystemExit(f"{len(counts.loose)} instances are taken that the suite calls invalid")


if __name__ == "__main__":
    main()
