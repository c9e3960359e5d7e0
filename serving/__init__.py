"""Network front ends over the engine. The engine runs in a process of its own; nothing here imports jax."""
