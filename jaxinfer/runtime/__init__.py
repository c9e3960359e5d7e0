"""The device side: sharding, the KV pool's arrays, packing, sampling, the step and its runner."""
