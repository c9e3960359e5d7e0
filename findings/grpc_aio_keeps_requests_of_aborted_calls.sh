#!/usr/bin/env bash
# Asked: is the request of a unary call freed when the call has ended, in a grpc.aio server that refuses it with
# `context.abort`?
# Version: grpcio 1.85.1 (Python 3.11, Linux x86-64).
# Behaviour: no. The call's state keeps the exception that `abort` raises, and the exception's traceback leads through the
# handler's frames back to the state and to the request: a reference circle. So each refused request stays in memory until
# Python's garbage collector comes upon it, which goes by numbers of objects and not by bytes: a server that refuses large
# messages grows by all of them in between. The request of a call that is answered is freed at once.
# Output seen (2026-11-30): answer: 0 of 20 requests still in memory (0 MB), 0 after gc.collect(); refuse: 20 of 20 requests
# still in memory (20 MB), 1 after gc.collect()
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$folder/venv/bin/python" - <<'PY'
import asyncio
import gc
import weakref

import grpc

CALLS, SIZE = 20, 1_000_000
alive = weakref.WeakSet()


class Request:
    def __init__(self, data):
        self.data = data
        alive.add(self)


async def answer(request, context):
    return b"fine"


async def refuse(request, context):
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too large")


def handler(method):
    return grpc.unary_unary_rpc_method_handler(method, request_deserializer=Request)


async def main():
    server = grpc.aio.server()
    methods = {"answer": handler(answer), "refuse": handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Service", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    left = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in methods:
            gc.collect()
            gc.disable()
            call = channel.unary_unary(f"/demo.Service/{name}")
            for _ in range(CALLS):
                try:
                    await call(bytes(SIZE))
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            await asyncio.sleep(0.5)
            left[name] = len(alive)
            held = sum(len(request.data) for request in alive)
            gc.collect()
            print(f"{name}: {left[name]} of {CALLS} requests still in memory ({held / 1e6:.0f} MB), "
                  f"{len(alive)} after gc.collect()")
            assert len(alive) <= 1
    await server.stop(None)
    return left


left = asyncio.run(main())
assert left["answer"] <= 1, left
assert left["refuse"] >= CALLS - 1, left
PY
