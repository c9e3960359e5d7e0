#!/bin/sh
# check_wheel.sh PYTHON: builds the wheel, checks what is in it, installs it into a fresh environment and generates from
# the shipped demo in an empty folder.
set -eu
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$root"
wheel=$(echo "$work"/dist/*.whl)
"$root/.venv/bin/python" "$root/scripts/check_wheel_contents.py" "$wheel"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --constraint "$root/constraints.txt" "$wheel"
mkdir "$work/empty"
cd "$work/empty"
"$work/venv/bin/jaxinfer" generate --max-tokens 24 --temperature 0 "Once upon a time" | tee "$work/text"
test -s "$work/text"
echo "the wheel works: $(basename "$wheel"), $(wc -c <"$wheel") bytes"
