"""How a prompt is made of a request: a last message that is continued, a template of the client's, which end is cut."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from jaxinfer.errors import ChatMessageError, ChatTemplateError
from jaxinfer.messages import Submit
from serving.request import UNREAD_INTERVAL
from tests.jaxinfer.text.test_conversation import render
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "The answer is "}
CHATS = {"/v1/chat/completions": {"max_tokens": 4}, "/tokenize": {}}


async def prompt(s: HttpServer, path: str, **body: Any) -> str:
    response = await s.post(path, **{**CHATS[path], **body})
    assert response.status_code == 200, response.text
    if path == "/tokenize":
        return bytes(response.json()["tokens"]).decode()
    return bytes(s.grpc.received(Submit)[-1].prompt_token_ids).decode()


@pytest.mark.parametrize("path", CHATS)
def test_the_last_message_is_continued(path):
    async def test():
        async with http_serving() as s:
            closed = await prompt(s, path, messages=[USER, ANSWER])
            assert closed == "<user>hi;<assistant>The answer is ;<assistant>"
            for content in ("The answer is ", [{"type": "text", "text": "The answer is "}]):
                messages = [USER, {**ANSWER, "content": content}]
                told = {"messages": messages, "continue_final_message": True}
                assert await prompt(s, path, **told) == "<user>hi;<assistant>The answer is "
                assert await prompt(s, path, **told, add_generation_prompt=False) == closed[: -len(";<assistant>")]
            error = await s.refused(path, messages=messages, continue_final_message=True, add_generation_prompt=True)
            assert error["param"] == "add_generation_prompt"
            for last in ({**ANSWER, "content": ""}, {**ANSWER, "content": None}, {**ANSWER, "content": []}):
                error = await s.refused(path, messages=[USER, last], continue_final_message=True)
                assert error["param"] == "messages[1].content", error
            error = await s.refused(path, messages=messages, chat_template_kwargs={"continue_final_message": True})
            assert error["param"] == "chat_template_kwargs"

    run(test())


continued = partial(render, continue_final=True)


def test_what_a_template_does_to_the_last_text():
    each = "{% for m in messages %}[{{ CONTENT }}]</s>\n{% endfor %}"
    for shown, wanted in (
        ("m.content", "[hi]</s>\n[ so "),
        ("m.content | trim", "[hi]</s>\n[so "),  # its end stays: the model goes on from there
        ("m.content ~ m.content", "[hihi]</s>\n[ so  so "),  # as far as it is shown
        ("m.content.split('</think>')[-1]", "[hi]</s>\n[ so "),
    ):
        assert continued(each.replace("CONTENT", shown), USER, {"role": "assistant", "content": " so "}) == wanted
    hostile = {"role": "user", "content": "=CONTINUED-HERE0= =CONTINUED-HERE1="}
    assert continued(each.replace("CONTENT", "m.content"), hostile, ANSWER).startswith(f"[{hostile['content']}]")
    with pytest.raises(ChatTemplateError, match="does not show the last message's text"):
        continued("{{ messages[0].content }}", USER, ANSWER)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}
    with pytest.raises(ChatMessageError, match=r"messages\[1\].tool_calls is given"):
        continued(each.replace("CONTENT", "m.content"), USER, {**ANSWER, "tool_calls": [call]})


@pytest.mark.parametrize("path", CHATS)
def test_a_template_of_the_clients_needs_trust(path):
    told = {"messages": [USER], "chat_template": "{{ messages[0].content }}!{{ word }}", "add_generation_prompt": False}

    async def test():
        async with http_serving() as s:
            error = await s.refused(path, **told)
            assert error["param"] == "chat_template"
            assert "others need --trust-request-chat-template" in error["message"]
        async with http_serving(trust_request_chat_template=True) as s:
            assert await prompt(s, path, **told, chat_template_kwargs={"word": "yes"}) == "hi!yes"
            assert await prompt(s, path, messages=[USER], chat_template="default") == "<user>hi;<assistant>"
            for wrong in ("{% if %}", "{{ messages.x.y }}", "{% for i in range(10**9) %}{{ i }}{% endfor %}"):
                assert (await s.refused(path, **{**told, "chat_template": wrong}))["type"] == "invalid_request_error"

    run(test())


def test_which_end_of_a_prompt_is_cut():
    async def test():
        async with http_serving() as s:
            for path, body in (
                ("/v1/completions", {"prompt": "abcdef", "add_special_tokens": False}),
                ("/v1/completions", {"prompt": [*b"abcdef"]}),
                ("/v1/chat/completions", {"messages": [USER]}),
            ):
                whole: dict[str, tuple[int, ...]] = {}
                for side in (None, "left", "right"):
                    for limit in (None, 3):
                        answer = await s.post(
                            path, **body, max_tokens=2, truncation_side=side, truncate_prompt_tokens=limit
                        )
                        assert answer.status_code == 200, answer.text
                        name = answer.headers.get("x-jaxinfer-ignored")
                        assert name == ("truncation_side" if side and limit is None else None)
                        whole[f"{side} {limit}"] = s.grpc.received(Submit)[-1].prompt_token_ids
                every = whole["None None"]
                assert whole["None 3"] == whole["left 3"] == every[-3:] != every[:3] == whole["right 3"]
                assert every == whole["left None"] == whole["right None"]
            error = await s.refused("/v1/completions", prompt="a", truncation_side="up")
            assert (error["param"], "left or right" in error["message"]) == ("truncation_side", True)

    run(test())


def test_words_that_are_never_generated():
    async def test():
        async with http_serving() as s:
            plain = (await s.complete())["choices"][0]["text"]
            await s.complete(bad_words=["c"], bad_token_ids=[ord("x")])
            assert s.grpc.received(Submit)[-1].params.bad_token_ids == (ord("x"), ord("c"))
            await s.complete(bad_words=["cd", " ef", "x"])
            sent = s.grpc.received(Submit)[-1]
            assert (sent.bad_words, sent.params.bad_token_ids) == ((tuple(b"cd"), tuple(b"ef")), (ord("x"),))
            for words, said in (
                ([""], "1 to 128"),
                ([" "], "1 to 128"),
                (["x" * 129], "1 to 128"),
            ):
                error = await s.refused("/v1/completions", prompt="a", bad_words=words)
                assert (error["param"], said in error["message"]) == ("bad_words", True)
            assert (await s.complete(bad_words=[]))["choices"][0]["text"] == plain

    run(test())


def test_tokens_of_a_stream_come_several_at_once():
    async def asked(s: HttpServer, path: str = "/v1/completions", **body: Any) -> int:
        given = {"prompt": "hi"} if path == "/v1/completions" else {"input": "hi"}
        assert (await s.post(path, **given, **body)).status_code == 200
        return s.grpc.received(Submit)[-1].interval

    async def test():
        async with http_serving() as s:
            assert await asked(s, stream=True) == 1
            assert await asked(s, stream=True, stream_interval=5) == 5
            assert await asked(s, stream=True, stream_interval=5, stop=["x"]) == 1
            assert await asked(s, stream_interval=5) == UNREAD_INTERVAL
            answer = await s.post("/v1/completions", prompt="hi", stream_interval=5)
            assert answer.headers["x-jaxinfer-ignored"] == "stream_interval"
            assert (await s.refused("/v1/completions", prompt="a", stream_interval=0))["param"] == "stream_interval"
        async with http_serving(stream_interval=4) as s:
            for interval, wanted in ((None, 4), (2, 4), (9, 9)):
                assert await asked(s, stream=True, stream_interval=interval) == wanted
            assert await asked(s, "/v1/responses", stream=True) == 4
            events = await s.events("/v1/completions", prompt="hi", temperature=0, max_tokens=9, stream=True)
            texts = [event["choices"][0]["text"] for event in events[:-1]]
            assert "".join(texts) == "abcdefghi"

    run(test())
