"""Make tests/goldens_text/harmony.json: what the package openai-harmony reads of answers and renders of conversations.

    python scripts/make_harmony_cases.py --ranks FILE

Needs openai-harmony (0.0.8 made the file), which never becomes a dependency of ours; the engine is not imported. The
package would download its vocabulary; `--ranks` is a file to take it from: o200k_base.tiktoken, or the npm package
js-tiktoken's dist/ranks/o200k_base.js, which has the same ranks. The hash is checked.

An answer is stored as the texts of its tokens (the first bytes of a character have none) and where the parser stands
behind each of them, so tests can cut it at every token. Answers that the package refuses are not here.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens_text" / "harmony.json"
RANKS = "o200k_base.tiktoken"
SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
DATE = "2025-03-04"
RANDOM_ANSWERS = 40

ANALYSIS, FINAL, START = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|start|>assistant"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Zürich"}<|call|>'
ANSWERS = [
    f"{ANALYSIS}The user greets.\n<|end|>{START}{FINAL}Hello! 👋<|return|>",
    f"{FINAL}Four.<|return|>",
    f"{ANALYSIS}Weather of Zürich.<|end|>{START}{CALL}",
    f"{ANALYSIS}Hm.<|end|>{START}<|channel|>commentary<|message|>I look it up: **wait**.\n<|end|>{START}{CALL}",
    f"{ANALYSIS}First.<|end|>{START}{ANALYSIS}Second.<|end|>{START}{FINAL}Third.<|return|>",
    f"<|channel|>commentary<|message|>A plan:\n1. look<|end|>{START}{FINAL}Done.<|return|>",
    '<|channel|>commentary to=functions.f json<|message|>{"a": [1, {"b": null}]}<|call|>',
    '<|channel|>commentary to=functions.f<|constrain|>json<|message|>{"a":1}<|call|>',
    "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|><|call|>",
    ' to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"a": "<|"}<|call|>',
    ' to=functions.f<|channel|>commentary json<|message|>\n{"a": 1}\n<|call|>',
    f'{ANALYSIS}a<|end|>{START} to=functions.f<|channel|>commentary <|constrain|>json<|message|>{{"é": "漢"}}<|call|>',
    f'<|channel|>analysis to=functions.f <|constrain|>json<|message|>{{"a": 1}}<|call|>{START}{FINAL}b<|return|>',
    "<|channel|>analysis to=python code<|message|>print(1)\n<|call|>",
    '<|channel|>commentary to=browser.search json<|message|>{"query": "tides"}<|call|>',
    f"{ANALYSIS}<|end|>{START}{FINAL}<|return|>",
    f"{ANALYSIS}a <| b<|end|>{START}{FINAL}<b>|x|</b> <|channel|> a\n\n  <|return|>",
    f"{ANALYSIS}a<|start|>assistant{FINAL}b<|return|>",
    "<|message|>no channel<|return|>",
    "<|channel|>other<|message|>not known<|return|>",
    f"{FINAL}a<|endoftext|>b",
    f"{ANALYSIS}a<|end|><|start|>user<|message|>b<|end|>{START}{FINAL}c",
    f"{ANALYSIS}a<|end|><|start|>functions.f to=assistant<|channel|>commentary<|message|>b<|end|>{START}{FINAL}c",
    "<|channel|>final <|message|>a<|return|>",
    "<|channel|>final\n<|message|>a<|return|>",
]
_BITS = [
    *(
        "word ",
        " the",
        "\n",
        "\n\n",
        "é",
        "漢字",
        "🙂👨‍👩‍👧",
        "<",
        "<|",
        "<|en",
        "|>",
        "to=",
        "json",
        "final",
        "null",
        " ",
    ),
    *("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", '{"a": 1}', "```", "analysis"),
]

WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather.\nOf a city.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name, like Zürich"},
            "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
            "days": {"type": "integer"},
            "hours": {"type": "array", "items": {"type": "number"}, "description": "Of the day"},
        },
        "required": ["city"],
    },
}
TOOLS = [WEATHER, {"name": "get_time", "description": "Tells the time"}]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _called(name: str, arguments: dict[str, Any], result: str, **more: Any) -> list[dict[str, Any]]:
    call = {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "assistant", "tool_calls": [call], **more},
        {"role": "tool", "tool_call_id": call["id"], "content": result},
    ]


_ASKED = [
    _user("Weather in Zürich?"),
    *_called("get_weather", {"city": "Zürich", "days": 2}, '{"sky": "clear <3"}', thinking="I look it up."),
]
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [_user("Hi")]},
    {"messages": [_user("Hi")], "reasoning_effort": "low", "model_identity": "You are a buoy."},
    {"messages": [{"role": "developer", "content": "Be brief."}, _user("Hi")], "reasoning_effort": "high"},
    {"messages": [{"role": "system", "content": "Be brief.\n"}, _user("Hi")], "tools": TOOLS},
    {"messages": [_user("Hi"), {"role": "assistant", "thinking": "Greet.", "content": "Hello 👋"}, _user("Bye\n")]},
    {"messages": _ASKED, "tools": TOOLS},
    {"messages": [*_ASKED, {"role": "assistant", "content": "Clear."}, _user("And then?")], "tools": TOOLS},
    {
        "messages": [*_ASKED, *_called("get_time", {}, "12:00", thinking="Now the time.", content="One moment.")],
        "tools": TOOLS,
    },
]


def ranks(path: Path) -> bytes:
    """The vocabulary as openai-harmony reads it. Raises ValueError where it is another."""
    data = path.read_bytes()
    if path.suffix == ".js":  # lines of: a mark, the first rank, tokens
        lines = json.loads(re.search(rb'"bpe_ranks":("(?:[^"\\]|\\.)*")', data)[1]).splitlines()  # type: ignore[index]
        found: dict[int, str] = {}
        for _, first, *tokens in (line.split(" ") for line in lines if line):
            found.update(enumerate(tokens, int(first)))
        data = "".join(f"{found[rank]} {rank}\n" for rank in sorted(found)).encode()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{path} has {hashlib.sha256(data).hexdigest()}, not {SHA256}")
    return data


def random_answer(random_: random.Random) -> str:
    """Messages of a well-formed answer, in texts that are full of parts of the format."""
    messages = []
    for _ in range(random_.randint(1, 4)):
        body = "".join(random_.choices(_BITS, k=random_.randint(0, 10)))
        recipient = random_.choice(["", "", "", " to=functions.f", " to=functions.get_weather", " to=python"])
        channel = random_.choice(["analysis", "commentary", "final"])
        kind = random_.choice(["", " json", " <|constrain|>json", "<|constrain|>json"]) if recipient else ""
        first, second = random_.choice([(recipient, ""), ("", recipient)])
        messages.append(f"{first}<|channel|>{channel}{second}{kind}<|message|>{body}")
    end = random_.choice(["<|return|>", "<|call|>", "", "<|end|>"])
    return f"<|end|>{START}".join(messages) + end


class Maker:
    def __init__(self, encoding: Any, bytes_of: Sequence[bytes]) -> None:
        self._encoding, self._bytes = encoding, bytes_of
        self._byte = {data: i for i, data in enumerate(bytes_of) if len(data) == 1}

    def tokens(self, text: str, random_: random.Random | None) -> list[int]:
        """random_: tokens as a model may choose them; some characters become bytes, others parts of words."""
        if random_ is None:
            return self._encoding.encode(text, allowed_special="all")
        found = []
        for part in re.split(r"(<\|[a-z]+\|>)", text):
            if re.fullmatch(r"<\|(start|channel|message|constrain|end|return|call|endoftext)\|>", part):
                found += self._encoding.encode(part, allowed_special="all")
                continue
            while part:
                size = random_.randint(1, 6)
                piece, part = part[:size], part[size:]
                if random_.random() < 0.3:
                    found += [self._byte[bytes([byte])] for byte in piece.encode()]
                else:
                    found += self._encoding.encode(piece, disallowed_special=())
        return found

    def answer(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Raises HarmonyError where the package refuses it."""
        from openai_harmony import Role, StreamableParser, StreamState

        parser = StreamableParser(self._encoding, Role.ASSISTANT)
        pieces, states, pending = [], [], b""
        for token in tokens:
            parser.process(token)
            pending += self._bytes[token] if token < len(self._bytes) else self._encoding.decode([token]).encode()
            text, pending = _complete(pending)
            pieces.append(text)
            # Messages that are complete; of the one that is open, the characters so far, or -1 in its header.
            inside = parser.state is StreamState.CONTENT
            states.append([len(parser.messages), len(parser.current_content) if inside else -1])
        if parser.state is not StreamState.HEADER:
            parser.process_eos()
        messages = [
            {"channel": m.channel, "recipient": m.recipient, "text": m.content[0].text} for m in parser.messages
        ]
        return {"pieces": pieces, "states": states, "messages": messages}

    def answers(self) -> Iterator[dict[str, Any]]:
        random_ = random.Random(7)
        texts = [*ANSWERS, *(random_answer(random_) for _ in range(RANDOM_ANSWERS))]
        for text in texts:
            yield self.answer(self.tokens(text, None))
            yield self.answer(self.tokens(text, random_))

    def conversation(self, given: dict[str, Any]) -> dict[str, Any]:
        from openai_harmony import Conversation, Role

        tokens = self._encoding.render_conversation_for_completion(
            Conversation.from_messages(list(_harmony_messages(**given))), Role.ASSISTANT
        )
        given = {**given, "tools": [{"type": "function", "function": tool} for tool in given.get("tools", ())] or None}
        return {**given, "text": self._encoding.decode_utf8(tokens)}


def _complete(data: bytes) -> tuple[str, bytes]:
    """Whole characters, and the bytes behind them."""
    for cut in range(min(4, len(data) + 1)):
        try:
            return data[: len(data) - cut].decode(), data[len(data) - cut :]
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{data!r} is no UTF-8")


def _harmony_messages(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    reasoning_effort: str = "medium",
    model_identity: str | None = None,
) -> Iterator[Any]:
    import openai_harmony as oh
    from openai_harmony import Message, ReasoningEffort, Role

    system = oh.SystemContent.new().with_conversation_start_date(DATE)
    system = system.with_reasoning_effort(ReasoningEffort(reasoning_effort.capitalize()))
    yield Message.from_role_and_content(
        Role.SYSTEM, system.with_model_identity(model_identity) if model_identity else system
    )
    instructions = messages[0]["content"] if messages[0]["role"] in ("system", "developer") else None
    if instructions or tools:
        developer = oh.DeveloperContent.new()
        if instructions:
            developer = developer.with_instructions(instructions)
        if tools:
            developer = developer.with_function_tools([oh.ToolDescription.new(**tool) for tool in tools])
        yield Message.from_role_and_content(Role.DEVELOPER, developer)

    def said(text: str, channel: str) -> Any:
        return Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)

    name = ""
    for message in messages[1 if instructions else 0 :]:
        if message["role"] == "user":
            yield Message.from_role_and_content(Role.USER, message["content"])
        elif message["role"] == "tool":
            author = oh.Author.new(Role.TOOL, name)
            result = Message.from_author_and_content(author, message["content"])
            yield result.with_channel("commentary").with_recipient("assistant")
        else:
            if message.get("thinking"):
                yield said(message["thinking"], "analysis")
            if message.get("content"):
                yield said(message["content"], "commentary" if "tool_calls" in message else "final")
            for call in message.get("tool_calls", ()):
                name = "functions." + call["function"]["name"]
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                yield said(arguments, "commentary").with_recipient(name).with_content_type("<|constrain|>json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=Path, required=True)
    data = ranks(parser.parse_args().ranks)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / RANKS).write_bytes(data)
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        import openai_harmony

        encoding = openai_harmony.load_harmony_encoding("HarmonyGptOss")
        maker = Maker(encoding, [base64.b64decode(line.split()[0]) for line in data.splitlines()])
        found = {
            "date": DATE,
            "answers": list(maker.answers()),
            "conversations": [maker.conversation(given) for given in CONVERSATIONS],
        }
    OUT.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
