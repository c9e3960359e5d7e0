#!/usr/bin/env bash
# Asked: can a program be compiled once and shipped with `jax.experimental.serialize_executable`, on a machine where the
# persistent compilation cache is on?
# Version: jax and jaxlib 0.10.2 (Python 3.11, Linux x86-64, CPU); 0.12.0 does the same.
# Behaviour: an executable that was compiled is serialized whole. One that came out of the cache (the same program, the
# second time) is serialized without some of its functions: `serialize` says nothing, `deserialize_and_load` says nothing,
# and the first call fails. So whether a shipped file works depends on whether its maker's cache was cold.
# Output seen (2026-11-30):
#   compiled: 14746 bytes, runs
#   from the cache: 9938 bytes, JaxRuntimeError: INTERNAL: Error dispatching computation: Error dispatching
#   computation: Function broadcast_divide_fusion not found (type id: 1)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/ship.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
from jax.experimental.serialize_executable import deserialize_and_load, serialize

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
x = jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64)
compiled = jax.jit(lambda x: jnp.tanh(x @ x) * jax.nn.softmax(x)).lower(x).compile()
data, inputs, outputs = serialize(compiled)
expected = compiled(x)
loaded = deserialize_and_load(data, inputs, outputs)
try:
    assert jnp.array_equal(loaded(x), expected)
    print(f"{len(data)} bytes, runs")
except jax.errors.JaxRuntimeError as error:
    print(f"{len(data)} bytes, JaxRuntimeError: {error}")
PY
export JAX_PLATFORMS=cpu
first=$("$folder/venv/bin/python" "$folder/ship.py" "$folder/cache" 2>"$folder/log") || { cat "$folder/log"; exit 1; }
second=$("$folder/venv/bin/python" "$folder/ship.py" "$folder/cache" 2>"$folder/log") || { cat "$folder/log"; exit 1; }
echo "compiled: $first"
echo "from the cache: $second"
[[ $first == *runs* && $second == *"not found"* ]]
