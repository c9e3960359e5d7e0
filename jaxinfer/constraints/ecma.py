"""JSON Schema's regular expressions, ECMA-262's, for Rust's crate regex, which reads some classes otherwise."""

from __future__ import annotations

import re

# WhiteSpace and LineTerminator of ECMA-262: with U+FEFF and without U+0085, unlike Unicode's White_Space.
_SPACE = r"\x09-\x0D\x20\xA0\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}"
_WRITTEN = {r"\s": f"[{_SPACE}]", r"\S": f"[^{_SPACE}]"}
_ANY = r"[^\n\r\u{2028}\u{2029}]"  # the dot, but in a class
_PART = re.compile(r"\\.|[.\[\]]", re.DOTALL)
_FLAGS = re.compile(r"\(\?[a-zA-Z-]+[:)]")  # not ECMA's; what a dot means is theirs to say then


def as_rust(pattern: str) -> str:
    """The same expression with `\\s`, `\\S` and the dot spelled out. A class in a class is Rust's syntax."""
    depth, dots = 0, not _FLAGS.search(pattern)

    def written(found: re.Match[str]) -> str:
        nonlocal depth
        part = found[0]
        if part == "[":
            depth += 1
        elif part == "]":
            depth = max(0, depth - 1)
        elif part == ".":
            return _ANY if dots and not depth else part
        return _WRITTEN.get(part, part)

    return _PART.sub(written, pattern)
