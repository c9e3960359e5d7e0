"""Runs Triton kernels in Triton's own interpreter, in a process of its own.

Triton decides when it is imported whether its functions are interpreted, so the process that does it does nothing else.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import importlib.util
import multiprocessing
import os
from typing import Any

import jax
import numpy as np
import pytest

from pallas_kernels.triton_support import Launch


def missing() -> str | None:
    """Why nothing can be interpreted here, if so."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: its interpreter is part of it"
    version = importlib.metadata.version("triton")
    if tuple(int(number) for number in version.split(".")[:2]) < (3, 9):
        return f"triton is {version}; its interpreter works with numpy 2.4 and later from 3.9 on"
    return None


interpreted = pytest.mark.skipif(missing() is not None, reason=str(missing()))
_multiplied: list[int] = []  # of the launch that is being interpreted, a number for each matrix product
_KINDS = {"float32": "fp32", "bfloat16": "bf16", "int32": "i32", "int8": "i8", "uint8": "u8"}  # Triton's names


class Interpreter:
    """A process that interprets; `run` takes the place of `triton_support.run`.

    Attributes:
        launches: those that were traced.
        multiplied: products of two numbers that matrix products have made so far.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.launches: list[Launch] = []
        self.multiplied = 0
        self._process = concurrent.futures.ProcessPoolExecutor(1, context, initializer=_prepare)

    def run(
        self, launch: Launch, arguments: tuple[Any, ...], outputs: tuple[jax.ShapeDtypeStruct, ...]
    ) -> tuple[jax.Array, ...]:
        """The launch as a callback of a jitted function."""
        self.launches.append(launch)
        numbers = {place: value for place, value in enumerate(arguments) if isinstance(value, int)}
        kinds = tuple((output.shape, np.dtype(output.dtype)) for output in outputs)

        def call(*arrays: jax.Array) -> tuple[np.ndarray, ...]:
            values: list[Any] = [np.asarray(array) for array in arrays]
            for place, value in numbers.items():
                values.insert(place, value)
            results, multiplied = self._process.submit(_interpret, launch, values, kinds).result()
            self.multiplied += multiplied
            return results

        arrays = [value for value in arguments if not isinstance(value, int)]
        return jax.pure_callback(call, outputs, *arrays)

    def close(self) -> None:
        """Ends the process."""
        self._process.shutdown()


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    _teach_bfloat16()
    _replace_functions_once()


def _interpret(
    launch: Launch, arguments: list[Any], outputs: tuple[tuple[Any, np.dtype], ...]
) -> tuple[tuple[np.ndarray, ...], int]:
    """The kernel over numpy arrays. Its outputs hold NaN where it does not write. And what it multiplied."""
    _multiplied.clear()
    results = tuple(np.full(shape, np.nan, dtype) for shape, dtype in outputs)
    values = [_Memory(value) if isinstance(value, np.ndarray) else value for value in (*arguments, *results)]
    with np.errstate(over="ignore", invalid="raise", divide="raise"):
        launch.load()[(launch.programs,)](*values, **launch.constants)
    return results, sum(_multiplied)


class _Memory:
    """What Triton's interpreter asks of a torch tensor, over the memory of a numpy array. So torch is not needed."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.dtype = array, _KINDS[array.dtype.name]

    def data_ptr(self) -> int:
        """The address."""
        return self._array.ctypes.data

    def _itself(self, *arguments: Any, **options: Any) -> Any:
        """For what would move a tensor to the CPU and back."""
        return self

    untyped_storage = cpu = new_empty = set_ = copy_ = storage_offset = size = stride = _itself


def _teach_bfloat16() -> None:
    """Triton's interpreter keeps bfloat16 as its bits. It multiplies and subtracts those as integers, and truncates
    where a GPU rounds to nearest even; all that is done right here, in the type that JAX uses."""
    import ml_dtypes
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, dot, fsub = builder.cast_impl, builder.create_dot, builder.create_fsub

    def numbers(source: Any) -> np.ndarray:
        return source.data.view(ml_dtypes.bfloat16) if source.dtype.scalar == tl.bfloat16 else source.data

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        kinds = (source.dtype.scalar, target.scalar)
        if tl.bfloat16 not in kinds:
            return cast(self, source, target)
        if kinds[1] == tl.bfloat16:
            return handle(numbers(source).astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)
        return handle(numbers(source).astype(interpreter._get_np_dtype(target)), kinds[1])

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        _multiplied.append(a.data.size * b.data.shape[-1])
        return dot(self, *(handle(numbers(x).astype(np.float32), tl.float32) for x in (a, b)), *rest)

    def create_fsub(self: Any, a: Any, b: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return fsub(self, a, b)
        return handle((numbers(a) - numbers(b)).view(np.uint16), a.dtype.scalar)

    builder.cast_impl, builder.create_dot, builder.create_fsub = cast_impl, create_dot, create_fsub


def _replace_functions_once() -> None:
    """At every call the interpreter replaces Triton's functions by its own, and takes them back: half of its time."""
    from triton.runtime import interpreter

    replace, done = interpreter._patch_lang, set()

    def replace_once(function: Any) -> Any:
        if function.__module__ not in done:
            done.add(function.__module__)
            replace(function)
        return interpreter._LangPatchScope()  # with nothing to put back

    interpreter._patch_lang = replace_once
