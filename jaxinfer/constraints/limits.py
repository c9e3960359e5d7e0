"""What a grammar may cost."""

from __future__ import annotations

# In llguidance's own units, so that the same one ends the same way on a busy machine. Its documentation says what they
# come to: 1000 units of lexer fuel are 0.02 ms of compiling or 0.07 ms of a mask, 1000 items 0.05 ms. So compiling has
# some 100 ms for its regular expressions, a mask some 20 ms.
LIMITS = {
    "initial_lexer_fuel": 5_000_000,
    "max_grammar_size": 500_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 100_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,  # of 1 to 2 KB each
    "verbose_errors": False,  # else errors quote the text so far
}
COMPILING_NICENESS = 5  # a third of an ordinary thread's share of a busy processor: texts go on, new grammars wait
