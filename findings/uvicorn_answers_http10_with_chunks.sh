#!/usr/bin/env bash
# Asked: what does a streamed answer look like to a client or proxy that speaks HTTP/1.0?
# Version: uvicorn 0.54.0 with httptools 0.8.0.
# Behaviour: an answer without a content-length is sent with `transfer-encoding: chunked` to an HTTP/1.0 request too, so
# the client takes the chunk sizes for part of the body. RFC 9112 section 6.1 forbids it; the answer should end by close.
# Output seen (2026-11-29): HTTP/1.1 200 OK, connection: close, transfer-encoding: chunked, body b'5\r\nhello\r\n0\r\n\r\n'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0 httptools==0.8.0
"$folder/venv/bin/python" - <<'PY'
import asyncio

import uvicorn


async def app(scope, receive, send):
    assert scope["type"] == "http" and scope["http_version"] == "1.0"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def main():
    server = uvicorn.Server(uvicorn.Config(app, port=0, http="httptools", lifespan="off", log_level="error"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\nHost: l\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    server.should_exit = True
    await task
    head, _, body = answer.partition(b"\r\n\r\n")
    print(head.decode())
    print(body)
    assert b"transfer-encoding: chunked" in head.lower() and body == b"5\r\nhello\r\n0\r\n\r\n", answer


asyncio.run(main())
PY
