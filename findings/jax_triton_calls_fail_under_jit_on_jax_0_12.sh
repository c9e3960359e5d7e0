#!/usr/bin/env bash
# Asked: can the newest jax-triton be used with the JAX that pip installs beside it?
# Version: jax-triton 0.4.1, triton 3.9.0, jax 0.12.0.1, Python 3.13 (jax 0.12 needs 3.12: PYTHON names the interpreter).
# Behaviour: no. pip sees no conflict, and a call works where nothing is jitted away, but whenever JAX eliminates dead code
# around it, as every jit does, the call's rule for that is called with three arguments and takes two: TypeError. With
# jax 0.11.2 the same program is traced. Nothing here needs a GPU: it fails before anything is compiled.
# Output seen (2026-11-30): jax 0.12.0.1: TypeError ... takes 2 positional arguments but 3 were given; jax 0.11.2: traced.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12) and "Python 3.12 or newer is needed: set PYTHON")'
cat >"$folder/program.py" <<'PY'
import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jax.interpreters import partial_eval


@triton.jit
def add_one(x, y, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(y + at, tl.load(x + at) + 1)


def call(x):
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax_triton.triton_call(x, kernel=add_one, out_type=out, grid=1, compute_capability=90, size=8)


traced = jax.make_jaxpr(call)(jnp.zeros(8))
try:
    partial_eval.dce_jaxpr(traced.jaxpr, [True])
except TypeError as error:
    print(f"jax {jax.__version__}: TypeError", error)
else:
    print(f"jax {jax.__version__}: traced")
PY
for version in 0.12.0.1 0.11.2; do
    "$python" -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version" \
        jax-triton==0.4.1 triton==3.9.0
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/program.py" | tee "$folder/$version.txt"
done
grep -q "TypeError.*2 positional arguments but 3 were given" "$folder/0.12.0.1.txt"
grep -q "traced" "$folder/0.11.2.txt"
