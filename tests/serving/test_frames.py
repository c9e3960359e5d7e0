"""Framing over the socket pair: cut anywhere, of any size, and the two ends of the line."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time

import pytest

from jaxinfer.messages import Abort, Rejected, SequenceOutput, Shutdown, StepOutputs, Submit, TenantPins, TokenLogprobs
from jaxinfer.sampling_params import SamplingParams
from serving.frames import SocketInbox, SocketPost, Unpacker, pack

MESSAGES = [
    Abort("a"),
    Submit("b", tuple(range(200_000)), SamplingParams(stop=("x",), logit_bias={3: 1.0}), 2**64 - 1, -1, 1.5, "salt"),
    StepOutputs(pins=(TenantPins("t", 1, 2, 3, 64, 300.0),)),
    Shutdown(),
]


@pytest.mark.parametrize("seed", range(5))
def test_messages_survive_any_cut(seed):
    data = b"".join(map(pack, MESSAGES))
    cuts = random.Random(seed)
    unpacker, got = Unpacker(), []
    while data:
        size = cuts.choice([1, 3, 4, 5, 1000, 100_000])
        got += unpacker.feed(data[:size])
        data = data[size:]
    assert got == MESSAGES
    assert not unpacker._buffer


def test_a_consumer_that_fails_loses_only_what_it_took():
    unpacker = Unpacker()
    for message in unpacker.feed(b"".join(map(pack, MESSAGES))):
        assert message == MESSAGES[0]
        break
    assert list(unpacker.feed(b"")) == MESSAGES[1:]


def test_inbox_and_post():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox, post = SocketInbox(theirs), SocketPost(ours)
        with pytest.raises(queue.Empty):
            inbox.get(block=False)
        with pytest.raises(queue.Empty):
            inbox.get(block=False)
        began = time.monotonic()
        with pytest.raises(queue.Empty):
            inbox.get(timeout=0.05)
        assert time.monotonic() - began >= 0.05
        sender = threading.Thread(target=lambda: [*[post(message) for message in MESSAGES], post.flush()])
        sender.start()  # a large message does not fit the socket: someone must read meanwhile
        assert [inbox.get() for _ in MESSAGES] == MESSAGES
        sender.join()


def test_a_server_that_is_gone_means_shutdown_after_what_it_said():
    ours, theirs = socket.socketpair()
    with theirs:
        SocketPost(ours)(MESSAGES[0])
        ours.close()
        inbox = SocketInbox(theirs)
        assert inbox.get() == MESSAGES[0]
        assert [inbox.get(), inbox.get(block=False)] == [Shutdown(), Shutdown()]
        with pytest.raises(ConnectionError):
            SocketPost(theirs)(MESSAGES[1])


def news(request: int, *tokens: int, reason: str | None = None, scored: bool = False) -> SequenceOutput:
    logprobs = tuple(TokenLogprobs(token, -0.5, 1, ((token, -0.5),)) for token in tokens) if scored else None
    return SequenceOutput(f"r{request}", 0, tokens, logprobs, reason, None, 3, None)


def test_sequences_survive_as_columns():
    step = StepOutputs([news(1, 5), news(2, 6, 7, scored=True), news(3, reason="abort")])
    (got,) = Unpacker().feed(pack(step))
    assert got == step
    assert all(type(output) is SequenceOutput for output in got.sequences)
    assert type(got.sequences[1].logprobs[0]) is TokenLogprobs


def test_a_busy_server_gets_the_steps_that_it_missed_as_one():
    """The engine is never held up, and every sequence's tokens arrive once, in order."""
    ours, theirs = socket.socketpair()
    steps, rows = 4000, 16
    with ours, theirs:
        post, inbox = SocketPost(ours), SocketInbox(theirs)
        for i in range(steps):  # nobody reads, and far more is said than the socket holds
            post(StepOutputs([news(row, i) for row in range(rows)]))
        post(Rejected("x", "invalid", "between the steps"))
        post(StepOutputs([news(0, steps)]))
        sender = threading.Thread(target=post.flush)
        sender.start()
        got: dict[str, list[int]] = {f"r{row}": [] for row in range(rows)}
        messages = [inbox.get()]
        while not (isinstance(messages[-2:][0], Rejected)):
            messages.append(inbox.get())
        sender.join()
        for message in messages:
            for output in getattr(message, "sequences", ()):
                got[output.request_id] += output.token_ids
    assert len(messages) < steps / 10
    assert got.pop("r0") == list(range(steps + 1))
    assert list(got.values()) == [list(range(steps))] * (rows - 1)


def test_steps_are_added_up_in_order():
    step = StepOutputs([news(1, 5), news(2, 6, scored=True), news(3, 7)])
    step.add(StepOutputs([news(2, 8, scored=True), news(1, 9, reason="length"), news(4, 1), news(3, reason="error")]))
    assert step.sequences == [
        news(1, 5, 9, reason="length"),
        news(2, 6, 8, scored=True),
        news(3, 7),  # reaches its reader before the error does
        news(4, 1),
        news(3, reason="error"),
    ]
