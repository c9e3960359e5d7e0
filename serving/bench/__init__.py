"""Measures servers and engines: what `jaxinfer bench` and `jaxinfer profile` run. Commands parse and print."""
