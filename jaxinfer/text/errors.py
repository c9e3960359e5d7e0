"""What a tokenizer folder raises that cannot be used. What bad texts raise is in jaxinfer/errors.py."""

from __future__ import annotations


class TokenizerError(ValueError):
    """A tokenizer folder cannot be used: a file is absent, corrupt, or asks for something unsupported.

    The message names the folder or the file, and what was looked for or expected.
    """
