"""The command line over this folder: `jaxinfer serve` and `jaxinfer generate`."""
