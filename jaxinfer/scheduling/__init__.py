"""The host side: which tokens of which sequence the next step computes, and where their KV lives. No jax here."""
