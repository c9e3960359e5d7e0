"""What each field of the OpenAPI document does to an answer, as test_every_field.py walks it."""

from __future__ import annotations

from typing import Any

from serving.http.models import ChatRequest, CompletionRequest
from serving.http.responses_models import ResponsesRequest

MESSAGES = [{"role": "user", "content": "What is 347 + 586?"}]
STORY = "Tell me a story about a dog."
ITEM = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LONG = "One day the little dog went to the park with a big red ball and a small cat. " * 6
SCRIPT = '<think>hm</think><tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "f"}</tool_call>'

BASES: dict[str, dict[str, Any]] = {
    "completion": {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0.9, "top_p": 1, "seed": 1},
    "chat": {
        "messages": [{"role": "user", "content": STORY}],
        "max_tokens": 20,
        "temperature": 1.5,
        "top_p": 1,
        "seed": 1,
    },
    "responses": {"input": STORY, "max_output_tokens": 20, "temperature": 1.5, "top_p": 1, "seed": 1},
}
PATHS = {"completion": "/v1/completions", "chat": "/v1/chat/completions", "responses": "/v1/responses"}
TYPES = {"completion": CompletionRequest, "chat": ChatRequest, "responses": ResponsesRequest}
SCHEMAS = {kind: each.__name__ for kind, each in TYPES.items()}

# "SCORED" stands for a prompt after which greedy decoding ends by itself, and its tokens; see `Walk`.
GREEDY = {"temperature": 0}
COMMON: dict[str, tuple[Any, dict[str, Any]]] = {  # field -> (value, what else differs from the base)
    "model": ("gpt-4", {}),
    "stream": (True, {}),
    "temperature": (0, {}),
    "top_p": (0.05, {}),
    "top_k": (1, {}),
    "min_p": (0.9, {}),
    "repetition_penalty": (2.0, {**GREEDY, "ENDLESS": True}),
    "presence_penalty": (2.0, {**GREEDY, "ENDLESS": True}),
    "frequency_penalty": (2.0, {**GREEDY, "ENDLESS": True}),
    "seed": (2, {}),
    "stop": ([" "], {**GREEDY, "ENDS": True}),
    "stop_token_ids": ("SOME TOKEN", {**GREEDY, "ENDS": True}),
    "include_stop_str_in_output": (True, {**GREEDY, "stop": "7", "ENDS": True}),
    "ignore_eos": (True, {**GREEDY, "ENDS": True}),
    "min_tokens": (50, {**GREEDY, "ENDS": True}),
    "logit_bias": ("SOME BIAS", {**GREEDY, "ENDS": True}),
    "allowed_token_ids": ([20, 21], {}),
    "bad_token_ids": ("SOME TOKEN", {**GREEDY, "ENDS": True}),
    "skip_special_tokens": (False, {"allowed_token_ids": [4]}),
    "truncate_prompt_tokens": (2, {}),
    "cache_salt": ("tenant", {"LONG": True}),
    "request_id": ("mine", {}),
}
TEXT: dict[str, tuple[Any, dict[str, Any]]] = {
    "n": (2, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "prompt_logprobs": (1, {}),
    "return_token_ids": (True, {}),
    "bad_words": ("SOME WORD", {**GREEDY, "ENDS": True}),
    "truncation_side": ("right", {"truncate_prompt_tokens": 2}),
    "logprob_token_ids": ([20, 21], {"logprobs": 1}),
}
EFFECTS: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "completion": {
        **COMMON,
        **TEXT,
        "prompt": ("The dog", {}),
        "max_tokens": (5, {}),
        "logprobs": (1, {}),
        "echo": (True, {}),
        "add_special_tokens": (False, {}),
        "return_tokens_as_token_ids": (True, {"logprobs": 1}),
    },
    "chat": {
        **COMMON,
        **TEXT,
        "logprob_token_ids": ([20, 21], {"logprobs": True, "top_logprobs": 1}),
        "messages": ([{"role": "user", "content": "What is 2 + 2?"}], {}),
        "tools": ([ITEM], {}),
        "add_generation_prompt": (False, {}),
        "continue_final_message": (True, {"messages": [*MESSAGES, {"role": "assistant", "content": "It is"}]}),
        "chat_template": ("terse", {}),
        "chat_template_kwargs": ({"style": "terse"}, {}),
        "documents": ([{"title": "t"}], {}),
        "reasoning_effort": ("low", {}),
        "max_tokens": (5, {}),
        "max_completion_tokens": (5, {"max_tokens": None}),
        "logprobs": (True, {}),
        "top_logprobs": (2, {"logprobs": True}),
        "tool_choice": ("none", {"tools": [ITEM]}),
        "return_tokens_as_token_ids": (True, {"logprobs": True}),
    },
    "responses": {
        **COMMON,
        "input": ("What is 2 + 2?", {}),
        "instructions": ("Be brief.", {}),
        "max_output_tokens": (5, {}),
        "include": (["message.output_text.logprobs"], {}),
        "top_logprobs": (2, {"include": ["message.output_text.logprobs"]}),
        "tools": ([{"type": "function", "name": "f"}], {}),
        "tool_choice": ("none", {"tools": [{"type": "function", "name": "f"}]}),
        "chat_template_kwargs": ({"style": "terse"}, {}),
        "metadata": ({"a": "b"}, {}),
        "reasoning": ({"effort": "low"}, {}),
        "text": ({"verbosity": "low"}, {}),
        "truncation": ("auto", {"TURNS": True}),
        "store": (False, {}),
        "previous_response_id": ("SOME RESPONSE", {}),
    },
}
# These show on a model that reasons and calls, or in what the engine is told.
FAKED = {
    "chat": {"include_reasoning": False, "parallel_tool_calls": False},
    "responses": {"include_reasoning": False, "parallel_tool_calls": False},
}
REASONS = {"chat": {"thinking_token_budget": 5}}  # the engine is told of these, by servers of models that reason
# Field -> its value, and what the engine is told.
ENGINE: dict[str, tuple[Any, dict[str, Any]]] = {
    "priority": (-3, {"priority": -3}),
    "session_id": ("talk", {"pin_answer": 300.0}),
    "prompt_cache_retention": ("24h", {"pin_answer": 86400.0}),
}
# These make a grammar of the answer, which the engine is told.
FORM = {
    "structured_outputs": {"regex": "[a-z]+"},
    "response_format": {"type": "json_object"},
    "text": {"format": {"type": "json_object"}},
}
STREAMS = {"stream_interval"}  # see test_events_have_several_tokens
NOT_NEUTRAL: dict[str, Any] = {"best_of": 5, "length_penalty": 2, "suffix": "end"}
