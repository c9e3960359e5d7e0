"""What stands in a thinking block's signature.

The client sends blocks back as it got them. A signature is a digest of the text; where the client wanted the text left
out it holds the text itself, so that the model's next turn has its reasoning all the same. It is no secret: it is the
client's own answer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

_TEXT = "text:"


def signature_of(thinking: str, *, omitted: bool) -> str:
    """omitted: the block itself comes without its text."""
    data = thinking.encode("utf-8", "surrogatepass")
    if omitted:
        return _TEXT + base64.urlsafe_b64encode(data).decode()
    return hashlib.sha256(data).hexdigest()


def thinking_of(thinking: str, signature: str) -> str:
    """The text of a block that comes back; signatures of others say nothing here."""
    if thinking or not signature.startswith(_TEXT):
        return thinking
    try:
        return base64.b64decode(signature[len(_TEXT) :], altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
