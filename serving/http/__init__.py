"""The HTTP server: OpenAI's interface over the same engine as the gRPC server. docs/http.md is its description.

protocol, http_server, app: bytes and connections. models, convert, chat_input, responses_input: what a client asks.
api, generation, completions, chat, responses: what it gets. openapi: the document made from the models.
"""
