"""Text in and out: tokenizers, chat templates, incremental detokenization, stop strings.

Everything here runs on the caller's side of the engine and imports neither jax nor any model code.
"""

from jaxinfer.errors import (
    ChatMessageError,
    ChatTemplateError,
    PromptTooLong,
    StopStringError,
    TextError,
    TooManyTokens,
)
from jaxinfer.text.detokenize import IncrementalDetokenizer, PromptEnd
from jaxinfer.text.errors import TokenizerError
from jaxinfer.text.files import VOCABULARY_FILES
from jaxinfer.text.loading import load_tokenizer
from jaxinfer.text.stop import MAX_STOP_LENGTH, MAX_STOP_STRINGS, StopStrings, stop_automaton
from jaxinfer.text.stopping import AnswerReading, AnswerStops
from jaxinfer.text.tokenizer import Tokenizer

__all__ = [
    "MAX_STOP_LENGTH",
    "MAX_STOP_STRINGS",
    "VOCABULARY_FILES",
    "AnswerReading",
    "AnswerStops",
    "ChatMessageError",
    "ChatTemplateError",
    "IncrementalDetokenizer",
    "PromptEnd",
    "PromptTooLong",
    "StopStringError",
    "StopStrings",
    "TextError",
    "Tokenizer",
    "TokenizerError",
    "TooManyTokens",
    "load_tokenizer",
    "stop_automaton",
]
