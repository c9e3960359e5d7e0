"""What `test_sampling_fields.py` holds the program to: which half implements each field, which pairs of fields meet."""

from __future__ import annotations

from typing import NamedTuple


class Halves(NamedTuple):
    """What each half does for a field; "" where it takes no part. kind: what the field is about."""

    kind: str  # "draw" | "end" | "text" | "report" | "shape"
    engine: str
    caller: str


HALVES = {
    "temperature": Halves("draw", "scales the logits", ""),
    "top_p": Halves("draw", "cuts the distribution", ""),
    "top_k": Halves("draw", "cuts the distribution", ""),
    "min_p": Halves("draw", "cuts the distribution", ""),
    "repetition_penalty": Halves("draw", "changes the logits of tokens of prompt and output", ""),
    "presence_penalty": Halves("draw", "changes the logits of tokens of the output", ""),
    "frequency_penalty": Halves("draw", "changes the logits of tokens of the output", ""),
    "logit_bias": Halves("draw", "is added to the logits", ""),
    "allowed_token_ids": Halves("draw", "bans all others", ""),
    "bad_token_ids": Halves("draw", "bans them", ""),
    "structured_outputs": Halves("draw", "lets through only tokens that the grammar allows", "makes the grammar"),
    "thinking_token_budget": Halves("draw", "puts in the closing tag", "says which tags, and where the prompt is"),
    "seed": Halves("draw", "draws with it, each sequence apart", "draws one where there is none"),
    "max_tokens": Halves("end", "ends the sequence", "resolves it to what fits the context"),
    "min_tokens": Halves("end", "bans every token that would end the text", "no stop string ends within their text"),
    "stop": Halves("end", "is told to abort the sequence", "finds it in the text"),
    "stop_token_ids": Halves("end", "ends the sequence", "leaves the last one out of the text"),
    "ignore_eos": Halves("end", "does not end at end tokens", "shows them like any special token"),
    "include_stop_str_in_output": Halves("text", "", "keeps the stop string, or the token that ended the text"),
    "skip_special_tokens": Halves("text", "", "leaves special tokens out of the text, before stop strings are sought"),
    "logprobs": Halves("report", "scores the drawn token and the likeliest", "keeps them up to the end that it sees"),
    "prompt_logprobs": Halves("report", "scores the prompt, again after a preemption", "keeps each position once"),
    "n": Halves("shape", "makes so many sequences of one prompt", "has a text and stop strings for each"),
    "truncate_prompt_tokens": Halves("shape", "", "cuts the prompt before anything is counted"),
}

# Fields of the HTTP servers that set one of these by another name or in several parts.
HTTP_NAMES = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "top_logprobs": "logprobs",
    "logprobs": "logprobs",
    "bad_words": "bad_token_ids",
    "truncation_side": "truncate_prompt_tokens",
    "response_format": "structured_outputs",
    "text": "structured_outputs",
}
MEETING = ("end", "text", "report", "shape")
PROMPT = "prompt_logprobs are of the prompt, which is scored before anything is generated"
CUT = "the prompt is cut before the engine sees it, and nothing of the output depends on what was cut"
SCORED = "log-probabilities are of the raw logits, and one entry goes with each token, shown or not"

PAIRS = {
    ("max_tokens", "min_tokens"): "test_min_tokens_must_fit_max_tokens",
    ("max_tokens", "stop"): "test_a_stop_at_the_last_token_is_a_stop",
    ("max_tokens", "stop_token_ids"): "test_a_stop_at_the_last_token_is_a_stop",
    ("max_tokens", "ignore_eos"): "test_ignored_end_tokens_count_and_show_as_special_tokens_do",
    ("max_tokens", "include_stop_str_in_output"): "test_a_text_that_ends_by_length_loses_nothing",
    ("max_tokens", "skip_special_tokens"): "test_ignored_end_tokens_count_and_show_as_special_tokens_do",
    ("max_tokens", "logprobs"): "test_one_entry_for_each_token_up_to_the_end",
    ("max_tokens", "prompt_logprobs"): PROMPT,
    ("max_tokens", "n"): "test_every_sequence_ends_by_itself",
    ("max_tokens", "truncate_prompt_tokens"): "test_room_is_counted_behind_the_truncated_prompt",
    ("min_tokens", "stop"): "test_nothing_ends_a_text_before_min_tokens",
    ("min_tokens", "stop_token_ids"): "test_nothing_ends_a_text_before_min_tokens",
    ("min_tokens", "ignore_eos"): "test_ignored_end_tokens_are_banned_before_min_tokens_all_the_same",
    ("min_tokens", "include_stop_str_in_output"): "test_what_is_included_lies_behind_min_tokens",
    ("min_tokens", "skip_special_tokens"): "test_min_tokens_counts_tokens_without_text_too",
    ("min_tokens", "logprobs"): SCORED,
    ("min_tokens", "prompt_logprobs"): PROMPT,
    ("min_tokens", "n"): "test_every_sequence_ends_by_itself",
    ("min_tokens", "truncate_prompt_tokens"): "test_room_is_counted_behind_the_truncated_prompt",
    ("stop", "stop_token_ids"): "test_whichever_stop_comes_first_ends_the_text",
    ("stop", "ignore_eos"): "test_a_stop_string_spans_ignored_end_tokens",
    ("stop", "include_stop_str_in_output"): "test_what_is_included_lies_behind_min_tokens",
    ("stop", "skip_special_tokens"): "test_stop_strings_are_sought_in_what_is_shown",
    ("stop", "logprobs"): "test_one_entry_for_each_token_up_to_the_end",
    ("stop", "prompt_logprobs"): PROMPT,
    ("stop", "n"): "test_every_sequence_ends_by_itself",
    ("stop", "truncate_prompt_tokens"): CUT,
    ("stop_token_ids", "ignore_eos"): "test_an_ignored_end_token_may_still_be_a_stop_token",
    ("stop_token_ids", "include_stop_str_in_output"): "test_the_token_that_ends_the_text_is_shown_when_asked_for",
    ("stop_token_ids", "skip_special_tokens"): "test_the_token_that_ends_the_text_is_shown_when_asked_for",
    ("stop_token_ids", "logprobs"): "test_one_entry_for_each_token_up_to_the_end",
    ("stop_token_ids", "prompt_logprobs"): PROMPT,
    ("stop_token_ids", "n"): "test_every_sequence_ends_by_itself",
    ("stop_token_ids", "truncate_prompt_tokens"): CUT,
    ("ignore_eos", "include_stop_str_in_output"): "test_the_token_that_ends_the_text_is_shown_when_asked_for",
    ("ignore_eos", "skip_special_tokens"): "test_ignored_end_tokens_count_and_show_as_special_tokens_do",
    ("ignore_eos", "logprobs"): "test_one_entry_for_each_token_up_to_the_end",
    ("ignore_eos", "prompt_logprobs"): PROMPT,
    ("ignore_eos", "n"): "the engine has one set of end tokens for all sequences of a request",
    ("ignore_eos", "truncate_prompt_tokens"): CUT,
    ("include_stop_str_in_output", "skip_special_tokens"): "test_the_token_that_ends_the_text_is_shown_when_asked_for",
    ("include_stop_str_in_output", "logprobs"): SCORED,
    ("include_stop_str_in_output", "prompt_logprobs"): PROMPT,
    ("include_stop_str_in_output", "n"): "test_every_sequence_ends_by_itself",
    ("include_stop_str_in_output", "truncate_prompt_tokens"): CUT,
    ("skip_special_tokens", "logprobs"): "test_one_entry_for_each_token_up_to_the_end",
    ("skip_special_tokens", "prompt_logprobs"): PROMPT,
    ("skip_special_tokens", "n"): "each sequence has a detokenizer of its own, with the same settings",
    ("skip_special_tokens", "truncate_prompt_tokens"): CUT,
    ("logprobs", "prompt_logprobs"): "test_the_prompt_is_scored_once_for_all_sequences",
    ("logprobs", "n"): "test_the_prompt_is_scored_once_for_all_sequences",
    ("logprobs", "truncate_prompt_tokens"): CUT,
    ("prompt_logprobs", "n"): "test_the_prompt_is_scored_once_for_all_sequences",
    ("prompt_logprobs", "truncate_prompt_tokens"): "test_what_is_told_of_a_prompt_is_told_of_what_is_left_of_it",
    ("n", "truncate_prompt_tokens"): CUT,
    # What may be drawn meets what ends a text:
    ("allowed_token_ids", "min_tokens"): "test_bans_that_leave_nothing_are_refused",
    ("allowed_token_ids", "stop_token_ids"): "test_bans_that_leave_nothing_are_refused",
    ("allowed_token_ids", "ignore_eos"): "test_a_text_ends_only_by_tokens_that_may_be_drawn",
    ("bad_token_ids", "min_tokens"): "test_bans_that_leave_nothing_are_refused",
    ("bad_token_ids", "stop_token_ids"): "test_a_text_ends_only_by_tokens_that_may_be_drawn",
    ("allowed_token_ids", "bad_token_ids"): "test_bans_that_leave_nothing_are_refused",
    ("seed", "n"): "tests/jaxinfer/test_engine.py::test_n_sequences_differ_and_share_the_prompt",
}
