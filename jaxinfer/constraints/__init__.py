"""Grammars that answers follow: what clients ask for, and the masks of tokens that come of it. No jax."""
