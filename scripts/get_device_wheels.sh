#!/bin/sh
# Fetches into .whl what a machine with a device may lack, or have too old for our stubs (grpcio, protobuf), and
# scripts/device_check.py uses from there:
#
#     scripts/get_device_wheels.sh [PYTHON]     # PYTHON: of that machine, 3.12 by default
set -eu
cd "$(dirname "$0")/.."
exec python3 -m pip download --no-deps --only-binary=:all: --python-version "${1:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --constraint constraints.txt --dest .whl \
    jax-triton grpcio protobuf grpcio-health-checking grpcio-reflection msgspec starlette uvicorn httptools
