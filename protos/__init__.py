"""The gRPC interface: `jaxinfer/v1/*.proto` and the stubs generated from them. Imports nothing of the project."""
