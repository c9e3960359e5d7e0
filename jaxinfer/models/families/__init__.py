"""One function for each architecture: what its config.json says, as a `ModelConfig`.

A function reads every key of its family from a `ConfigReader`, with the default that transformers 5 has for it
(`configuration_*.py`), and hands plain values to `build.build`. What nearly all families read alike is in `common`.
`jaxinfer.models.registry` knows the functions by the names of their architectures.
"""
