"""The parts of scripts/bench_stalls.py: a server that measures itself, clients that watch it, and hostile requests."""
