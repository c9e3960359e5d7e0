"""What is known, one line each: `FACT name value share verdict`. Standard library only.

share: of the ceiling (copy bandwidth, matrix rate, byte floor), of the tolerance, or of the target where that is a
factor; "-" where there is none. verdict: ok, miss or "no target". What has no figure has its status in the place of the
value, and a line `WHY name reason` behind it. Facts follow from the records alone, so that a run that was cut can be
told again from its results.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from device_checks import fact_readers
from device_checks.fact_readers import Figure
from device_checks.records import BEGIN, LEFT_OUT, OK, SKIPPED, UNSUPPORTED, Record, last_of_each
from device_checks.targets import Target, targets_of

FACTS_FD = "DEVICE_CHECK_FACTS_FD"  # where a section's process finds the run's stdout; its own goes to the log
OK_WORD, MISS, NO_TARGET = "ok", "miss", "no target"


class Fact(NamedTuple):
    """One thing that is known. number: what a target of unit "x" judges."""

    name: str
    value: str
    share: float | None
    verdict: str
    why: str = ""
    number: float | None = None

    def lines(self) -> str:
        share = "-" if self.share is None else f"{self.share:.0%}"
        told = f"FACT {self.name} {self.value} {share} {self.verdict}\n"
        return told + (f"WHY {self.name} {self.why}\n" if self.why else "")


def facts(records: Iterable[Record]) -> list[Fact]:
    """All that the records say, in their order, and then what follows from several of them."""
    ended = [r for r in last_of_each(list(records)) if r["status"] != BEGIN]
    platform = next((r["platform"] for r in ended if r["section"] == "probe" and "platform" in r), "gpu")
    rehearsed = any(r.get("rehearsal") for r in ended)
    targets = {} if rehearsed else targets_of(platform)  # tiny sizes on a CPU meet and miss nothing
    known = fact_readers.Known.of(ended)
    found: dict[str, Fact] = {}
    for record in ended:
        told = _figures(record, known) if record["status"] == OK else [_without_figure(record, known)]
        for each in told:
            fact = each if isinstance(each, Fact) else _judged(each, targets.get(each.name))
            found[fact.name] = fact
    for figure in fact_readers.derived(ended, known):
        found[figure.name] = _judged(figure, targets.get(figure.name))
    return list(found.values())


def _figures(record: Record, known: fact_readers.Known) -> list[Figure]:
    return list(fact_readers.reader_of(record["section"])(record, known))


def _judged(figure: Figure, target: Target | None) -> Fact:
    share, verdict = figure.share, NO_TARGET
    if figure.passed is not None:
        verdict = OK_WORD if figure.passed else MISS
    elif target is not None and target.unit == "x" and figure.number is not None:
        share = figure.number / target.at_least
        verdict = OK_WORD if share >= 1 else MISS
    elif target is not None and share is not None:
        verdict = OK_WORD if share >= target.at_least else MISS
    return Fact(figure.name, "_".join(figure.value.split()), share, verdict, figure.why, figure.number)


def _without_figure(record: Record, known: fact_readers.Known) -> Fact:
    """A case that did not run, or ended badly: what makes no sense on this machine is no miss."""
    reason = " ".join(str(record.get("error", "")).split())
    harmless = record["status"] == UNSUPPORTED or (record["status"] == SKIPPED and record["case"] == LEFT_OUT)
    value = "left_out" if record["status"] == SKIPPED else record["status"]
    return Fact(fact_readers.name_of(record), value, None, NO_TARGET if harmless else MISS, reason)


def tell(before: list[Record], after: list[Record]) -> None:
    """Prints the facts that `after` has and `before` has not, whole lines at once. Nobody may be reading any more: the
    records are kept all the same."""
    known = set(facts(before))
    lines = "".join(fact.lines() for fact in facts(after) if fact not in known)
    if lines:
        with contextlib.suppress(BrokenPipeError):
            os.write(int(os.environ.get(FACTS_FD, "1")), lines.encode())


def facts_in(text: str) -> dict[str, str]:
    """{name: its last line} of what a run printed."""
    return {match[1]: match[0] for match in re.finditer(r"^FACT (\S+) \S+ \S+ (?:ok|miss|no target)$", text, re.M)}
