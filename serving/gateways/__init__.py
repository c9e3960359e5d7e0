"""Services that existing gateways and clients speak, beside our own on the same gRPC port (docs/gateways.md)."""
