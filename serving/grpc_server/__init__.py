"""The gRPC server: our own service `jaxinfer.v1.Inference`, and what the gateways on its port share with it."""
