"""Grammars of clients are tried out in a process of their own, which can be ended.

llguidance's fuel bounds how many steps its expressions take, not what a step takes: expressions that must all match
(`&` of Lark, `allOf` with several `pattern`s) can make one step cost gigabytes and minutes, in a call that nothing can
interrupt. A process that has used up its processor time or its memory is killed by the system, wherever it is, and
another one takes its place. What it lets through costs no more in an engine.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any

from jaxinfer.constraints.limits import COMPILING_NICENESS, LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU_SECONDS = 1.0  # for all that one request asks for; the longest grammars allowed take some 0.1
MEMORY_BYTES = 1 << 30  # of addresses; an idle process has some 100 MB
TOO_COSTLY = f"trying it out takes more than {CPU_SECONDS:g} s of processor time or {MEMORY_BYTES >> 20} MiB"
_LENGTH = struct.Struct("<I")
_ASKED = struct.Struct("<dB")  # seconds, what is asked
_GRAMMAR, _TEXT = range(2)
_MOST_IDLE = 4
_TOKENS = re.compile(r"<\[[^\]]{0,65536}\]>")  # as Lark names tokens by their ids
_MOST_SPECIAL = 64  # of a grammar, by their spelling
# The child needs the parent's path, but not its main module.
_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from jaxinfer.constraints.judge import main; main()"
)

_left: ContextVar[list[float] | None] = ContextVar("seconds_for_grammars", default=None)


@contextmanager
def one_request() -> Iterator[None]:
    """All that is judged within has `CPU_SECONDS` together."""
    token = _left.set([CPU_SECONDS])
    try:
        yield
    finally:
        _left.reset(token)


class Judge:
    """Processes that try grammars out, as many as there are callers at a time. Its methods may run in any thread, and
    other threads go on meanwhile."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def fault_of(self, grammar: str) -> str | None:
        """What llguidance says is wrong with a grammar in its JSON form; `TOO_COSTLY`; None where nothing is wrong.
        Faults that depend on a model's tokens are not seen."""
        reply = self._ask(_GRAMMAR, grammar)
        return TOO_COSTLY if reply is None else reply[0]

    def lark_of(self, text: str) -> tuple[str | None, str]:
        """A grammar in Lark or GBNF as Lark, and ""; or None, and why there is none."""
        reply = self._ask(_TEXT, text)
        if reply is None:
            return None, TOO_COSTLY
        fault, lark = reply
        return (lark, "") if fault is None else (None, fault)

    def _ask(self, kind: int, text: str) -> tuple[str | None, str] | None:
        """(fault, what it was made into); None where that takes too much."""
        left = _left.get() or [CPU_SECONDS]
        if left[0] <= 0:
            return None
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and child.poll() is not None:
            child = None
        child = child or _start()
        body = text.encode()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(_LENGTH.pack(len(body)) + _ASKED.pack(left[0], kind) + body)
            child.stdin.flush()
            reply = _read(child.stdout)
        except BrokenPipeError:
            reply = None
        if reply is None:
            _end(child)
            left[0] = 0.0
            return None
        with self._lock:
            kept = len(self._idle) < _MOST_IDLE
            if kept:
                self._idle.append(child)
        if not kept:
            _end(child)
        fault, made, seconds = json.loads(reply)
        left[0] -= seconds
        return fault, made

    def close(self) -> None:
        """Ends the idle processes. They would end by themselves with this one."""
        with self._lock:
            children, self._idle = self._idle, []
        for child in children:
            _end(child)


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def _read(stream: IO[bytes]) -> bytes | None:
    """None where the other end is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


# -- the other process -----------------------------------------------------------------------------------------------


def main() -> None:
    """Until its input ends."""
    import os
    import resource
    import signal
    import time

    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, in whatever call it is
    os.nice(COMPILING_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    trial = _Trial()
    while head := stdin.read(_LENGTH.size + _ASKED.size):
        (length,), (seconds, kind) = _LENGTH.unpack_from(head), _ASKED.unpack_from(head, _LENGTH.size)
        text = stdin.read(length).decode()
        begin = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, max(seconds, 0.001))
        fault, made = (trial.fault_of(text), "") if kind == _GRAMMAR else _as_lark(text)
        signal.setitimer(signal.ITIMER_PROF, 0)
        body = json.dumps([fault, made, time.process_time() - begin]).encode()
        stdout.write(_LENGTH.pack(len(body)) + body)
        stdout.flush()


def _as_lark(text: str) -> tuple[str | None, str]:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return None, str(any_to_lark(text))
    except Exception as error:  # the converter raises whatever its parser meets
        return f"it must be Lark or GBNF: {error}", ""


class _Trial:
    """Compiles grammars for single bytes, which takes no model, and with the special tokens that they name."""

    def __init__(self) -> None:
        self._special: tuple[str, ...] = ()
        self._tokenizer = _byte_tokenizer(())

    def fault_of(self, grammar: str) -> str | None:
        from llguidance import LLMatcher, LLParserLimits

        failed, messages = LLMatcher.validate_grammar_with_warnings(
            grammar, None, limits=LLParserLimits(verbose_errors=False)
        )
        if failed:
            return str(messages[0])
        limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        grammar = _TOKENS.sub("<[0]>", grammar)  # which of them, and whether there are such, the engine knows
        for _ in range(_MOST_SPECIAL):
            error = str(LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits).get_error())
            unknown = _unknown_special(error)
            if unknown is None or unknown in self._special:
                return None  # whatever else it says, the engine says, with its own tokens
            self._special = (*self._special[-_MOST_SPECIAL + 1 :], unknown)
            self._tokenizer = _byte_tokenizer(self._special)
        return f"it names more than {_MOST_SPECIAL} special tokens"


def _unknown_special(error: str) -> str | None:
    _, found, rest = error.partition("unknown special token: ")
    if not found:
        return None
    name = rest.partition("; following special tokens are available")[0].strip()
    try:
        return str(json.loads(name))
    except ValueError:
        return name


def _byte_tokenizer(special: tuple[str, ...]) -> Any:
    from llguidance import LLTokenizer

    class Bytes:
        is_tokenizer_wrapper = True
        bos_token_id = None
        eos_token_id = 256
        tokens = [bytes([i]) for i in range(256)] + [b"</s>"] + [name.encode() for name in special]
        special_token_ids = tuple(range(256, 257 + len(special)))

        def __call__(self, text: str) -> list[int]:
            return list(text.encode())

    return LLTokenizer(Bytes())  # type: ignore[arg-type]  # by its attributes
