"""The page at `/`: a playground for whoever runs the server. Plain files of this package, no build step, nothing from
anywhere else: the Content-Security-Policy allows this server alone, and no markup that a script makes of text.

The files are public: what they ask for, they ask for as any client does, with a key where the server wants one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.http.errors import ApiError

FOLDER = Path(__file__).parent / "static"
_INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Trusted types: with none allowed, browsers that know them refuse to make markup of text (innerHTML and its like).
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again each time, and answered with 304 until the server is another one
}


class _File(NamedTuple):
    body: bytes
    headers: dict[str, str]


class Page:
    """Reads the files once. Raises FileNotFoundError where the package was installed without them."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {path.name: _read(path) for path in sorted(folder.iterdir()) if path.suffix in _MEDIA_TYPES}
        if _INDEX not in self._files:
            raise FileNotFoundError(f"{folder / _INDEX} is missing: the package was installed without its data files")

    def routes(self) -> list[Route]:
        return [
            Route("/", self.file, methods=["GET"]),
            Route("/page/{name}", self.file, methods=["GET"]),
        ]

    async def file(self, request: Request) -> Response:
        name = request.path_params.get("name", _INDEX)
        found = self._files.get(name)
        if found is None:
            raise ApiError(404, f"path is {request.url.path[:200]!r}; the page has no such file", code="not_found")
        if found.headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=found.headers)
        return Response(found.body, headers=found.headers, media_type=_MEDIA_TYPES[Path(name).suffix])


def _read(path: Path) -> _File:
    body = path.read_bytes()
    return _File(body, {**_HEADERS, "etag": f'"{hashlib.sha256(body).hexdigest()[:16]}"'})
