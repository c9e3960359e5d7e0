"""What an answer must look like, as one grammar that the engine lets its tokens through by.

What a client asks for (a JSON schema, a regular expression, tool calls), the model's way of reasoning before an answer
and of writing calls become one string, the constraint, which crosses to the engine with a request. No jax;
llguidance is imported where it is used.
"""
