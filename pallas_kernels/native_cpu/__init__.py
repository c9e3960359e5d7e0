"""Kernels in C++ for CPUs, called by XLA through its foreign function interface.

XLA's own products of a few rows read weights at half of what memory gives (bfloat16, 8 rows, AVX-512) or a tenth (the
same without bfloat16 instructions), and its attention over pages is a loop of many small operations. These kernels are
compiled where the package runs, once, by the compiler that is there (`library.py`); without one XLA serves everything.
"""
