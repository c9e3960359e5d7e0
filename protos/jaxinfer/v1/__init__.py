"""Version 1: `inference.proto` and its generated modules `inference_pb2` and `inference_pb2_grpc`."""
