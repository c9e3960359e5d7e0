"""Facts about people and things: looked up in a table, or taken out of a sentence as JSON."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable

from jaxinfer.evaluation.extract import canonical_json, first_json
from jaxinfer.evaluation.item import Item, Kind, Split
from jaxinfer.evaluation.tasks.answers import last_word
from jaxinfer.evaluation.tasks.wording import introduced, listing, user, wrapped
from jaxinfer.evaluation.world.pools import (
    CITIES,
    COLORS,
    FIRST_NAMES,
    FOODS,
    JOBS,
    OBJECTS,
    SURNAMES,
    people,
    person,
    pick,
    pick_some,
)  # fmt: skip

_MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October", "December")

Record = tuple[str, dict[str, str | int]]  # a sentence and what it says
Columns = dict[str, Callable[[random.Random, Split], str]]
_PERSON_COLUMNS: Columns = {
    "city": lambda rng, split: pick(rng, CITIES, split),
    "job": lambda rng, split: rng.choice(JOBS),
    "age": lambda rng, split: str(rng.randint(5, 99)),
    "color": lambda rng, split: rng.choice(COLORS),
    "food": lambda rng, split: rng.choice(FOODS),
    "room": lambda rng, split: str(rng.randint(100, 999)),
}
_THING_COLUMNS: Columns = {
    "price": lambda rng, split: str(rng.randint(2, 999)),
    "color": lambda rng, split: rng.choice(COLORS),
    "owner": lambda rng, split: pick(rng, FIRST_NAMES, split),
    "weight": lambda rng, split: str(rng.randint(2, 99)),
    "shop": lambda rng, split: pick(rng, CITIES, split),
}


def _table(rng: random.Random, split: Split) -> Item:
    rows = rng.randint(2, 5)
    if rng.random() < 0.5:
        corner, heads, columns = "name", people(rng, split, rows), _PERSON_COLUMNS
    else:
        corner, heads, columns = "item", pick_some(rng, OBJECTS, split, rows), _THING_COLUMNS
    names = rng.sample(sorted(columns), rng.randint(1, 3))
    cells = [[columns[name](rng, split) for name in names] for _ in heads]
    lines = [[corner, *names], *([head, *row] for head, row in zip(heads, cells, strict=True))]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if rng.random() < 0.3:
        table = "\n".join(", ".join(line) for line in lines)
    row, column = rng.randrange(rows), rng.randrange(len(names))
    head, name, answer = heads[row], names[column], cells[row][column]
    subject = f"the {head}" if corner == "item" else head
    questions = (
        f"What is the {name} of {subject}?", f"Which {name} does {subject} have?", f"Look up the {name} of {subject}.",
        f"Tell me the {name} of {subject}.", f"Find the {name} of {subject} in the table.", f"{subject}: which {name}?",
    )  # fmt: skip
    text = introduced(rng, questions, table)
    return Item("table", f"{table}\x00{head}\x00{name}", user(text), answer, f"The {name} of {subject} is {answer}.")


def _person(rng: random.Random, split: Split) -> Record:
    name = person(rng, split)
    if rng.random() < 0.5:
        name = f"{name} {pick(rng, SURNAMES, split)}"
    age, city, job = rng.randint(5, 99), pick(rng, CITIES, split), rng.choice(JOBS)
    article = "an" if job[0] in "aeiou" else "a"
    sentences: tuple[Record, ...] = (
        (f"{name} is {age} years old and lives in {city}.", {"name": name, "age": age, "city": city}),
        (f"In {city} lives {name}, who is {age}.", {"name": name, "age": age, "city": city}),
        (f"{name} works as {article} {job} in {city}.", {"name": name, "job": job, "city": city}),
        (f"My neighbor {name} is {article} {job} and {age} years old.", {"name": name, "job": job, "age": age}),
        (f"{name}, {age}, is {article} {job} from {city}.", {"name": name, "age": age, "job": job, "city": city}),
        (f"At the age of {age}, {name} moved to {city}.", {"name": name, "age": age, "city": city}),
    )
    return rng.choice(sentences)


def _purchase(rng: random.Random, split: Split) -> Record:
    name, thing, color = pick(rng, FIRST_NAMES, split), pick(rng, OBJECTS, split), rng.choice(COLORS)
    price, city = rng.randint(2, 999), pick(rng, CITIES, split)
    article = "an" if color[0] in "aeiou" else "a"
    sentences: tuple[Record, ...] = (
        (
            f"{name} bought {article} {color} {thing} for {price} dollars.",
            {"buyer": name, "item": thing, "color": color, "price": price},
        ),
        (
            f"The {color} {thing} in the shop in {city} costs {price} dollars.",
            {"item": thing, "color": color, "price": price, "city": city},
        ),
        (
            f"{name} paid {price} dollars for {article} {thing} in {city}.",
            {"buyer": name, "item": thing, "price": price, "city": city},
        ),
        (f"For {price} dollars, {name} sold the {thing}.", {"seller": name, "item": thing, "price": price}),
    )
    return rng.choice(sentences)  # fmt: skip


def _event(rng: random.Random, split: Split) -> Record:
    event = rng.choice(("concert", "meeting", "party", "market", "race", "play", "dinner", "class"))
    city, month, day, hour = pick(rng, CITIES, split), rng.choice(_MONTHS), rng.randint(1, 30), rng.randint(1, 12)
    sentences: tuple[Record, ...] = (
        (f"The {event} in {city} is on {month} {day}.", {"event": event, "city": city, "month": month, "day": day}),
        (
            f"On {month} {day} there is a {event} in {city} at {hour} o'clock.",
            {"event": event, "city": city, "month": month, "day": day, "hour": hour},
        ),
        (f"The {event} starts at {hour} o'clock in {city}.", {"event": event, "hour": hour, "city": city}),
    )
    return rng.choice(sentences)  # fmt: skip


def _json(rng: random.Random, split: Split) -> Item:
    sentence, record = rng.choice((_person, _purchase, _event))(rng, split)
    fields = list(record)
    if rng.random() < 0.5:
        rng.shuffle(fields)
        fields = fields[: rng.randint(2, len(fields))]
    wanted = {field: record[field] for field in fields}
    names = listing(fields)
    questions = (
        f"Extract {names} as JSON.", f"Give me a JSON object with {names}.", f"Return JSON with the fields {names}.",
        f"Write {names} as a JSON object.", f"Turn this into JSON with {names}.", f"Find {names} and answer in JSON.",
    )  # fmt: skip
    key = f"{sentence}\x00{' '.join(sorted(fields))}"
    text = introduced(rng, questions, sentence)
    return Item("json", key, user(text), canonical_json(wanted), json.dumps(wanted, ensure_ascii=False))


_ORDERS = (
    ("taller", "shorter", "tallest", "shortest"), ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"), ("stronger", "weaker", "strongest", "weakest"),
    ("richer", "poorer", "richest", "poorest"), ("louder", "quieter", "loudest", "quietest"),
)  # fmt: skip


def _logic(rng: random.Random, split: Split) -> Item:
    names = people(rng, split, rng.choice((3, 3, 4)))
    more, less, most, least = rng.choice(_ORDERS)
    pairs = list(itertools.pairwise(names))
    rng.shuffle(pairs)
    facts = [
        f"{high} is {more} than {low}." if rng.random() < 0.6 else f"{low} is {less} than {high}."
        for high, low in pairs
    ]
    word, answer = (most, names[0]) if rng.random() < 0.5 else (least, names[-1])
    questions = (
        f"Who is the {word}?", f"Who is {word}?", f"Which one is the {word}?", f"Tell me who is the {word}.",
        f"Name the {word} one.", f"Do you know who is the {word}?",
    )  # fmt: skip
    text = f"{' '.join(facts)} {wrapped(rng, questions)}"
    ordered = ", ".join(f"{high} > {low}" for high, low in pairs)
    response = f"{ordered}. From {most} to {least}: {', '.join(names)}. The {word} is {answer}."
    return Item("logic", f"{' '.join(facts)} {word}", user(text), answer, response)


KINDS = (
    Kind("table", "one cell of a small table", _table, last_word),
    Kind("json", "fields of a sentence as a JSON object", _json, first_json),
    Kind("logic", "the first or last of three or four people from comparisons", _logic, last_word),
)
