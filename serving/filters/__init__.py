"""Hooks that see every prompt and every answer: they let it pass, change parts of it, or refuse it."""
