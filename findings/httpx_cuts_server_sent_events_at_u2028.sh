#!/usr/bin/env bash
# Asked: may a server write U+2028, U+2029 or U+0085 as they are into the JSON of a server-sent event?
# Version: httpx 0.28.1, requests 2.34.2.
# Behaviour: the event-stream format ends a line at CR, LF or CR LF only, and JSON allows the three characters inside a
# string. `httpx.Response.iter_lines()` and `requests.Response.iter_lines(decode_unicode=True)` cut the line there, as
# str.splitlines does, so a client that reads events with them gets half a JSON text and a second line without "data:".
# Output seen (2026-11-29): U+0085: httpx 2 lines, requests 2, bytes 1 (the same for U+2028 and U+2029)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1 requests==2.34.2
"$folder/venv/bin/python" - <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import requests

CHARACTERS = "\u0085\u2028\u2029"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        character = CHARACTERS[int(self.path[1:])]
        event = json.dumps({"text": f"one{character}two"}, ensure_ascii=False)
        body = f"data: {event}\n\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for i, character in enumerate(CHARACTERS):
    url = f"http://127.0.0.1:{server.server_port}/{i}"
    with httpx.stream("GET", url, trust_env=False) as response:
        by_httpx = [line for line in response.iter_lines() if line]
    session = requests.Session()
    session.trust_env = False
    answer = session.get(url, stream=True)
    answer.encoding = "utf-8"
    by_requests = [line for line in answer.iter_lines(decode_unicode=True) if line]
    raw = [line for line in session.get(url).content.split(b"\n") if line]
    print(f"U+{ord(character):04X}: httpx {len(by_httpx)} lines, requests {len(by_requests)}, bytes {len(raw)}")
    assert (len(by_httpx), len(by_requests), len(raw)) == (2, 2, 1)
PY
