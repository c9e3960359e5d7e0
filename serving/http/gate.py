"""The HTTP server's side of the check: an ASGI application around the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from serving.access.access import Access
from serving.access.caller import ADMIN, CALLER, INFER
from serving.errors import Refusal
from serving.http.errors import error_response, from_refusal

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

_OPEN = "open"
# Path, or what it begins with up to a slash -> role; None: any key. What is not here needs the admin's.
NEEDS: Mapping[str, str | None] = {
    "/": _OPEN,  # a page of its own; what it asks for needs a key like anybody's
    "/page/": _OPEN,
    "/health": _OPEN,
    "/ready": _OPEN,
    "/ping": _OPEN,
    "/v1/": INFER,
    "/v1/models": None,
    "/v1/models/": None,
    "/tokenize": INFER,
    "/detokenize": INFER,
    "/version": None,
    "/openapi.json": None,
    "/metrics": ADMIN,
    "/load": ADMIN,
    "/server_info": ADMIN,
    "/debug/": ADMIN,
}


def needed(path: str) -> tuple[str, str | None]:
    """Name of the rule, for the audit log, and the role. The longest that fits decides."""
    fitting = [name for name in NEEDS if path == name or (len(name) > 1 and name[-1] == "/" and path.startswith(name))]
    if not fitting:
        return "other", ADMIN
    name = max(fitting, key=len)
    return name, NEEDS[name]


class HttpGate:
    """Refuses before a byte of the body is read; leaves the caller in CALLER for whoever answers."""

    def __init__(self, app: App, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if self._access.open or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint, role = needed(scope["path"])
        if role == _OPEN:
            await self._app(scope, receive, send)
            return
        try:
            CALLER.set(self._access.admit(_presented(scope), role, "http", endpoint))
        except Refusal as refusal:
            await error_response(from_refusal(refusal))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _presented(scope: Scope) -> str | None:
    headers = {bytes(name).lower(): bytes(value).decode("latin-1") for name, value in scope["headers"]}
    scheme, _, key = headers.get(b"authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key") or None
