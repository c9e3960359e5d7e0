"""Framing over the socket pair: cut anywhere, of any size, and the two ends of the line."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time

import pytest

from jaxinfer.messages import Abort, Shutdown, StepOutputs, Submit
from jaxinfer.sampling_params import SamplingParams
from serving.frames import SocketInbox, SocketPost, Unpacker, pack

MESSAGES = [
    Abort("a"),
    Submit("b", tuple(range(200_000)), SamplingParams(stop=("x",), logit_bias={3: 1.0}), 2**64 - 1, -1, 1.5, "salt"),
    StepOutputs(),
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
        sender = threading.Thread(target=lambda: [post(message) for message in MESSAGES])
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
