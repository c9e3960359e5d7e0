"""Namespace of the proto package `jaxinfer`; not the engine's package of that name."""
