"""Functions that a model may call: families of them under many names, what people ask of them, and what they say."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxinfer.evaluation.item import Split, draw, is_held_out
from jaxinfer.evaluation.tasks import arithmetic
from jaxinfer.evaluation.tasks.wording import wrapped
from jaxinfer.evaluation.world.pools import CITIES, FIRST_NAMES, OBJECTS, SURNAMES, pick

_SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy")
_ROOMS = ("kitchen", "hall", "garden", "bathroom", "office", "cellar", "bedroom", "library")
_EVENTS = ("concert", "meeting", "party", "market", "race", "play", "dinner", "class")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONEY = ("euros", "dollars", "pounds", "yen", "francs")
_ENDINGS = ("txt", "md", "csv", "json", "py")


@dataclass(frozen=True)
class Use:
    """One call and what is around it.

    Attributes:
        key: what is asked, whatever the wording.
        question: the user's.
        values: the arguments, in the order of the function's parameters; one that is None is left out.
        result: what the function gives back, as text.
        reply: what a good assistant says then.
    """

    key: str
    question: str
    values: tuple[Any, ...]
    result: str
    reply: str


@dataclass(frozen=True)
class Family:
    """Functions that do the same under different names.

    Attributes:
        names: of the function.
        summaries: its description.
        parameters: for each, the names that it may have and its JSON schema.
        use: draws a question for it.
        optional: parameters at the end that a call may leave out.
    """

    names: tuple[str, ...]
    summaries: tuple[str, ...]
    parameters: tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]
    use: Callable[[random.Random, Split], Use]
    optional: int = 0

    def offered(self, rng: random.Random) -> dict[str, Any]:
        """One of its functions, as clients describe tools."""
        names = [rng.choice(names) for names, _ in self.parameters]
        schema = {
            "type": "object",
            "properties": {name: dict(kind) for name, (_, kind) in zip(names, self.parameters, strict=True)},
            "required": names[: len(names) - self.optional],
        }
        function = {"name": rng.choice(self.names), "description": rng.choice(self.summaries), "parameters": schema}
        return {"type": "function", "function": function}


def draw_use(family: Family, rng: random.Random, split: Split) -> Use:
    """One use of the split: draws until the key's hash says so."""
    while is_held_out((use := family.use(rng, split)).key) != (split == "held_out"):
        pass
    return use


def arguments(tool: Mapping[str, Any], use: Use) -> dict[str, Any]:
    """The arguments with which the tool, one of the use's family, is to be called."""
    names = tool["function"]["parameters"]["properties"]
    return {name: value for name, value in zip(names, use.values, strict=True) if value is not None}


def _text(*names: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, {"type": "string"}


def _whole(*names: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, {"type": "integer"}


def _weather(rng: random.Random, split: Split) -> Use:
    city, sky, degrees = pick(rng, CITIES, split), rng.choice(_SKIES), rng.randint(-9, 35)
    days = rng.randint(2, 9) if rng.random() < 0.3 else None
    questions: tuple[str, ...] = (
        f"What is the weather in {city}?", f"How is the weather in {city}?", f"Is it warm in {city}?",
        f"Do I need an umbrella in {city}?", f"What is the weather like in {city} today?", f"The weather in {city}?",
    )  # fmt: skip
    when = ""
    if days is not None:
        questions = (f"What will the weather be in {city} in {days} days?", f"How is {city}'s weather in {days} days?",
                     f"Will it rain in {city} in {days} days?")  # fmt: skip
        when = f" in {days} days"
    result = rng.choice((f"{sky}, {degrees} degrees", f'{{"sky": "{sky}", "temperature": {degrees}}}'))
    reply = f"The weather in {city}{when}: {sky}, {degrees} degrees."
    return Use(f"weather {city} {days}", wrapped(rng, questions), (city, days), result, reply)


def _clock(rng: random.Random, split: Split) -> Use:
    city, time = pick(rng, CITIES, split), f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}"
    questions = (f"What time is it in {city}?", f"How late is it in {city}?", f"Tell me the time in {city}.",
                 f"What does the clock say in {city}?")  # fmt: skip
    result = rng.choice((time, f'{{"time": "{time}"}}'))
    return Use(f"time {city}", wrapped(rng, questions), (city,), result, f"It is {time} in {city}.")


def _calculate(rng: random.Random, split: Split) -> Use:
    """The questions and the keys of sums, so that what evaluation asks there is not trained here."""
    item = draw(rng.choice(arithmetic.KINDS), rng, split)
    said = item.response.rpartition(". ")[2] if ". " in item.response else item.response
    expression = said.split(" = ")[0].replace(" x ", " * ")
    return Use(item.key, item.messages[-1]["content"], (expression,), item.answer, said)


def _price(rng: random.Random, split: Split) -> Use:
    thing, price = pick(rng, OBJECTS, split), rng.randint(2, 999)
    questions = (f"What does the {thing} cost?", f"How much is the {thing}?", f"What is the price of the {thing}?",
                 f"How expensive is the {thing}?", f"Look up what the {thing} costs.")  # fmt: skip
    result = rng.choice((f"{price}", f"{price} dollars", f'{{"price": {price}}}'))
    return Use(f"price {thing}", wrapped(rng, questions), (thing,), result, f"The {thing} costs {price} dollars.")


def _phone(rng: random.Random, split: Split) -> Use:
    name, number = pick(rng, FIRST_NAMES, split), str(rng.randint(10_000, 999_999))
    if rng.random() < 0.5:
        name = f"{name} {pick(rng, SURNAMES, split)}"
    questions = (f"What is the phone number of {name}?", f"How can I call {name}?", f"Find the number of {name}.",
                 f"I want to phone {name}.", f"Which number does {name} have?")  # fmt: skip
    result = rng.choice((number, f'{{"number": "{number}"}}'))
    return Use(f"phone {name}", wrapped(rng, questions), (name,), result, f"The number of {name} is {number}.")


def _message(rng: random.Random, split: Split) -> Use:
    name, city = pick(rng, FIRST_NAMES, split), pick(rng, CITIES, split)
    words = rng.choice(("I am late", "dinner is ready", f"I am in {city}", "please call me", "happy birthday",
                        f"the {rng.choice(_EVENTS)} starts at {rng.randint(1, 12)}", f"see you in {city}",
                        f"bring the {pick(rng, OBJECTS, split)}"))  # fmt: skip
    questions = (f"Tell {name}: {words}", f"Write to {name}: {words}", f"Send {name} a message: {words}",
                 f"Send this to {name}: {words}")  # fmt: skip
    result = rng.choice(("sent", "ok", '{"status": "sent"}'))
    return Use(f"message {name} {words}", rng.choice(questions), (name, words), result, f"I have written to {name}.")


def _timer(rng: random.Random, split: Split) -> Use:
    minutes = rng.randint(1, 240)
    questions = (f"Set a timer for {minutes} minutes.", f"Wake me in {minutes} minutes.",
                 f"Start a timer of {minutes} minutes.", f"Remind me in {minutes} minutes.")  # fmt: skip
    result = rng.choice(("ok", "set", '{"status": "set"}'))
    return Use(
        f"timer {minutes}", wrapped(rng, questions), (minutes,), result, f"The timer is set to {minutes} minutes."
    )


def _light(rng: random.Random, split: Split) -> Use:
    room, state = rng.choice((*_ROOMS, f"room {rng.randint(1, 99)}")), rng.choice(("on", "off"))
    questions = (f"Turn {state} the light in the {room}.", f"Switch the light in the {room} {state}.",
                 f"Light {state} in the {room}, please.", f"Please turn the {room} light {state}.")  # fmt: skip
    result = rng.choice(("ok", "done", '{"ok": true}'))
    return Use(
        f"light {room} {state}", wrapped(rng, questions), (room, state), result, f"The light in the {room} is {state}."
    )


def _calendar(rng: random.Random, split: Split) -> Use:
    event, day, hour = rng.choice(_EVENTS), rng.choice(_DAYS), rng.randint(1, 12)
    if rng.random() < 0.5:
        event = f"{event} with {pick(rng, FIRST_NAMES, split)}"
    questions = (f"Put the {event} on {day} at {hour} into my calendar.", f"Add {event}, {day} at {hour}.",
                 f"Plan the {event} for {day} at {hour}.", f"Note the {event} on {day} at {hour}.")  # fmt: skip
    result = rng.choice(("ok", "added", '{"status": "added"}'))
    reply = f"The {event} is in your calendar: {day} at {hour}."
    return Use(f"calendar {event} {day} {hour}", wrapped(rng, questions), (event, day, hour), result, reply)


def _money(rng: random.Random, split: Split) -> Use:
    (give, get), amount, change = rng.sample(_MONEY, 2), rng.randint(2, 999), rng.randint(2, 999)
    questions = (f"How many {get} are {amount} {give}?", f"Change {amount} {give} into {get}.",
                 f"What do I get in {get} for {amount} {give}?", f"{amount} {give} in {get}?")  # fmt: skip
    result = rng.choice((f"{change}", f'{{"amount": {change}}}'))
    reply = f"{amount} {give} are {change} {get}."
    return Use(f"money {amount} {give} {get}", wrapped(rng, questions), (amount, give, get), result, reply)


def _search(rng: random.Random, split: Split) -> Use:
    city, thing = pick(rng, CITIES, split), pick(rng, OBJECTS, split)
    subject = rng.choice((f"the history of {city}", f"how to clean a {thing}", f"hotels in {city}",
                          f"{pick(rng, FIRST_NAMES, split)} {pick(rng, SURNAMES, split)}",
                          f"who made the first {thing}"))  # fmt: skip
    questions = (f"Search for {subject}.", f"Look for {subject} on the web.", f"Find pages about {subject}.",
                 f"Search the web: {subject}")  # fmt: skip
    count = rng.randint(2, 99)
    result = rng.choice((f"{count} pages", f'{{"pages": {count}}}'))
    return Use(f"search {subject}", rng.choice(questions), (subject,), result, f"I have found {count} pages.")


def _file(rng: random.Random, split: Split) -> Use:
    path = f"{pick(rng, OBJECTS, split)}.{rng.choice(_ENDINGS)}"
    if rng.random() < 0.4:
        path = f"{rng.choice(_ROOMS)}/{path}"
    words = f"{pick(rng, FIRST_NAMES, split)} lives in {pick(rng, CITIES, split)}."
    questions = (f"Read the file {path}.", f"What is in {path}?", f"Show me {path}.", f"Open {path}.")
    return Use(f"file {path}", wrapped(rng, questions), (path,), words, f"The file says: {words}")


FAMILIES: dict[str, Family] = {
    "weather": Family(
        ("get_weather", "weather", "current_weather", "weather_forecast", "look_up_weather", "get_current_weather"),
        ("The weather in a city.", "Get the weather for a place", "Returns the weather forecast."),
        (_text("city", "location", "place", "town"), _whole("days", "in_days", "day")), _weather, optional=1,
    ),
    "clock": Family(
        ("get_time", "time", "clock", "current_time", "local_time", "get_current_time"),
        ("The time in a city.", "Get the current time of a place", "Tells how late it is."),
        (_text("city", "location", "place", "town"),), _clock,
    ),
    "calculate": Family(
        ("calculate", "calculator", "compute", "evaluate", "do_math"),
        ("Calculates.", "Evaluate an arithmetic expression", "Computes the value of an expression."),
        (_text("expression", "formula", "term"),), _calculate,
    ),
    "price": Family(
        ("get_price", "price", "find_price", "look_up_price", "product_price"),
        ("The price of a product.", "Get what something costs", "Looks up a price in dollars."),
        (_text("item", "product", "thing", "name"),), _price,
    ),
    "phone": Family(
        ("find_number", "phone_number", "get_phone", "look_up_contact", "find_contact"),
        ("The phone number of a person.", "Find somebody's number", "Looks up a contact."),
        (_text("name", "person", "contact"),), _phone,
    ),
    "message": Family(
        ("send_message", "message", "write_to", "send_text", "send_mail"),
        ("Sends a message.", "Write to somebody", "Send a text to a person."),
        (_text("to", "name", "recipient"), _text("text", "message", "body", "content")), _message,
    ),
    "timer": Family(
        ("set_timer", "timer", "start_timer", "remind_me", "set_alarm"),
        ("Sets a timer.", "Start a timer of some minutes", "Reminds the user later."),
        (_whole("minutes", "duration", "length"),), _timer,
    ),
    "light": Family(
        ("set_light", "light", "switch_light", "control_light", "turn_light"),
        ("Turns a light on or off.", "Switch the light of a room", "Controls the lights."),
        (_text("room", "place", "where"), (("state", "value", "mode"), {"type": "string", "enum": ["on", "off"]})),
        _light,
    ),
    "calendar": Family(
        ("add_event", "create_event", "plan", "calendar", "new_appointment"),
        ("Adds an event to the calendar.", "Create an appointment", "Plans an event."),
        (_text("title", "event", "name"), _text("day", "date", "weekday"), _whole("hour", "time", "start")), _calendar,
    ),
    "money": Family(
        ("convert_money", "exchange", "convert", "currency", "change_money"),
        ("Converts money.", "Exchange one currency for another", "Changes an amount into another currency."),
        (_whole("amount", "value"), _text("from", "source"), _text("to", "target")), _money,
    ),
    "search": Family(
        ("search", "web_search", "search_web", "find_pages", "look_up"),
        ("Searches the web.", "Search for pages", "Finds pages about a subject."),
        (_text("query", "words", "subject", "q"),), _search,
    ),
    "file": Family(
        ("read_file", "open_file", "read", "cat", "show_file"),
        ("Reads a file.", "Get the content of a file", "Returns what a file holds."),
        (_text("path", "file", "filename", "file_path"),), _file,
    ),
}  # fmt: skip
