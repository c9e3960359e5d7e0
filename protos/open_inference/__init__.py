"""KServe's open inference protocol with Triton's streaming: `grpc_service.proto` and its generated modules."""
