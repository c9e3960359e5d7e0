"""The demo model's training text, made from a seed: short stories from a grammar, and chats with exact answers."""

from demo_corpus.documents import Document, documents

__all__ = ["Document", "documents"]
