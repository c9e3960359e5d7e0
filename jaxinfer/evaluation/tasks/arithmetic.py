"""Sums, differences and products of numbers of one to three digits, worked column by column as at school."""

from __future__ import annotations

import random

from jaxinfer.evaluation.extract import last_number
from jaxinfer.evaluation.item import Item, Kind, Split
from jaxinfer.evaluation.tasks.wording import user, wrapped


def _number(rng: random.Random) -> int:
    digits = rng.choice((1, 2, 2, 3, 3, 3, 3))
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _digits(number: int) -> list[int]:
    """Units first."""
    return [int(digit) for digit in reversed(str(number))]


def added(a: int, b: int) -> str:
    """The working of a + b and its result: "47+85: 7+5=12, 4+8+1=13. 47 + 85 = 132"."""
    result = f"{a} + {b} = {a + b}"
    if a < 10 and b < 10:
        return result
    first, second, carry, steps = _digits(a), _digits(b), 0, []
    for place in range(max(len(first), len(second))):
        column = first[place : place + 1] + second[place : place + 1] + [1] * carry
        steps.append("+".join(map(str, column)) + f"={sum(column)}")
        carry = sum(column) // 10
    return f"{', '.join(steps)}. {result}"


def subtracted(a: int, b: int) -> str:
    """The working of a - b, a >= b: a column that borrows shows the ten, the next one the 1 that it lent."""
    result = f"{a} - {b} = {a - b}"
    if a < 10:
        return result
    first, second, borrow, steps = _digits(a), _digits(b), 0, []
    for place, digit in enumerate(first):
        taken = [1] * borrow + second[place : place + 1]
        top = digit + 10 * (digit < sum(taken))
        steps.append("-".join(map(str, [top, *taken])) + f"={top - sum(taken)}")
        borrow = int(top > digit)
    return f"{', '.join(steps)}. {result}"


def multiplied(a: int, b: int) -> str:
    """The working of a * b with b of one digit."""
    result = f"{a} x {b} = {a * b}"
    if a < 10:
        return result
    carry, steps = 0, []
    for digit in _digits(a):
        value = digit * b + carry
        steps.append(f"{digit}x{b}" + (f"+{carry}" if carry else "") + f"={value}")
        carry = value // 10
    return f"{', '.join(steps)}. {result}"


def _item(kind: str, key: str, prompt: str, working: str, answer: int) -> Item:
    return Item(kind, key, user(prompt), str(answer), f"{working}.", max_tokens=96)


def _addition(rng: random.Random, split: Split) -> Item:
    a, b = _number(rng), _number(rng)
    thing = rng.choice(("apples", "books", "coins", "stamps", "eggs", "cards"))
    questions = (
        f"What is {a} + {b}?",
        f"What is {a} plus {b}?",
        f"Add {a} and {b}.",
        f"{a} + {b} = ?",
        f"{a}+{b}=?",
        f"Calculate {a} + {b}.",
        f"Find the sum of {a} and {b}.",
        f"How much is {a} plus {b}?",
        f"What do {a} and {b} make?",
        f"I have {a} {thing} and get {b} more. How many {thing} do I have?",
        f"Compute {a} + {b}.",
    )
    low, high = sorted((a, b))
    return _item("addition", f"{low}+{high}", wrapped(rng, questions), added(a, b), a + b)


def _subtraction(rng: random.Random, split: Split) -> Item:
    b, a = sorted((_number(rng), _number(rng)))
    thing = rng.choice(("apples", "books", "coins", "stamps", "eggs", "cards"))
    questions = (
        f"What is {a} - {b}?",
        f"What is {a} minus {b}?",
        f"Subtract {b} from {a}.",
        f"{a} - {b} = ?",
        f"{a}-{b}=?",
        f"Calculate {a} - {b}.",
        f"Take {b} away from {a}.",
        f"How much is {a} minus {b}?",
        f"Compute {a} - {b}.",
        f"I have {a} {thing} and give away {b}. How many {thing} are left?",
    )
    return _item("subtraction", f"{a}-{b}", wrapped(rng, questions), subtracted(a, b), a - b)


def _multiplication(rng: random.Random, split: Split) -> Item:
    a, b = rng.randint(2, 9) if rng.random() < 0.15 else rng.randint(10, 999), rng.randint(2, 9)
    thing = rng.choice(("apples", "books", "coins", "stamps", "eggs", "cards"))
    questions = (
        f"What is {a} x {b}?",
        f"What is {a} times {b}?",
        f"Multiply {a} by {b}.",
        f"{a} x {b} = ?",
        f"{a}*{b}=?",
        f"Calculate {a} x {b}.",
        f"How much is {a} times {b}?",
        f"Find the product of {a} and {b}.",
        f"There are {b} boxes with {a} {thing} each. How many {thing} is that?",
    )
    return _item("multiplication", f"{a}x{b}", wrapped(rng, questions), multiplied(a, b), a * b)


KINDS = (
    Kind("addition", "two numbers of one to three digits", _addition, last_number),
    Kind("subtraction", "the same, never below zero", _subtraction, last_number),
    Kind("multiplication", "up to three digits times one", _multiplication, last_number),
)
