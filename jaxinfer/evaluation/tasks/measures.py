"""Dates some days before or after another one, and quantities in other units."""

from __future__ import annotations

import random

from jaxinfer.evaluation.extract import last_number
from jaxinfer.evaluation.item import Item, Kind, Split
from jaxinfer.evaluation.tasks.answers import MONTHS, last_date
from jaxinfer.evaluation.tasks.wording import user, wrapped

# Plural of the large and of the small unit, how many small ones make a large one, largest count, most small ones.
UNITS = (
    ("kilometers", "meters", 1000, 99, 999),
    ("kilograms", "grams", 1000, 99, 999),
    ("liters", "milliliters", 1000, 99, 999),
    ("meters", "centimeters", 100, 99, 99),
    ("dollars", "cents", 100, 99, 99),
    ("hours", "minutes", 60, 12, 59),
    ("minutes", "seconds", 60, 12, 59),
    ("weeks", "days", 7, 30, 6),
    ("days", "hours", 24, 9, 23),
    ("years", "months", 12, 20, 11),
)


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit if count != 1 else unit[:-1]}"


def _after(month: int, day: int, days: int) -> tuple[str, str]:
    """The working and the date `days` after a day of a common year."""
    name, length = MONTHS[month]
    total = day + days
    if total <= length:
        return f"{day} + {days} = {total}.", f"{name} {total}"
    following = MONTHS[(month + 1) % 12][0]
    return f"{day} + {days} = {total}. {name} has {length} days. {total} - {length} = {total - length}.", (
        f"{following} {total - length}"
    )


def _before(month: int, day: int, days: int) -> tuple[str, str]:
    """The working and the date `days` before a day of a common year."""
    if days < day:
        return f"{day} - {days} = {day - days}.", f"{MONTHS[month][0]} {day - days}"
    name, length = MONTHS[month - 1]
    total = day + length
    return f"{name} has {length} days. {day} + {length} = {total}. {total} - {days} = {total - days}.", (
        f"{name} {total - days}"
    )


def _dates(rng: random.Random, split: Split) -> Item:
    month = rng.randrange(12)
    day, days = rng.randint(1, MONTHS[month][1]), rng.randint(2, 27)
    date, later = f"{MONTHS[month][0]} {day}", rng.random() < 0.5
    if later:
        questions = (
            f"What date is {days} days after {date}?",
            f"Which date comes {days} days after {date}?",
            f"It is {date}. What is the date in {days} days?",
            f"Today is {date}. Which date is it {days} days later?",
            f"Start at {date} and go {days} days forward. What is the date?",
            f"Add {days} days to {date}.",
        )
    else:
        questions = (
            f"What date is {days} days before {date}?",
            f"Which date comes {days} days before {date}?",
            f"It is {date}. What was the date {days} days ago?",
            f"Today is {date}. Which date was it {days} days earlier?",
            f"Start at {date} and go {days} days back. What is the date?",
            f"Take {days} days from {date}.",
        )
    working, answer = (_after if later else _before)(month, day, days)
    text = wrapped(rng, questions)
    key = f"{date} {'+' if later else '-'} {days}"
    return Item("dates", key, user(text), answer, f"{working} The date is {answer}.")


def _units(rng: random.Random, split: Split) -> Item:
    large, small, factor, most, rest = rng.choice(UNITS)
    count, extra = rng.randint(1, most), rng.randint(1, rest)
    amount = f"{_counted(count, large)} and {_counted(extra, small)}"
    questions = (
        f"How many {small} are {amount}?",
        f"Convert {amount} to {small}.",
        f"What is {amount} in {small}?",
        f"Write {amount} in {small}.",
        f"How many {small} do you get from {amount}?",
        f"{amount}: how many {small}?",
    )
    whole = count * factor
    working = f"{_counted(count, large)} = {whole} {small}. {whole} + {extra} = {whole + extra}."
    key = f"{count} {large} {extra} {small}"
    return Item("units", key, user(wrapped(rng, questions)), str(whole + extra), working)


KINDS = (
    Kind("dates", "the date 2 to 27 days before or after another", _dates, last_date),
    Kind("units", "a quantity in two units as one number", _units, last_number),
)
