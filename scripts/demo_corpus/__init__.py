"""The demo's corpus, made from a seed."""

from demo_corpus.documents import Document, check_not_held_out, held_out_texts, long_documents, short_documents

__all__ = ["Document", "check_not_held_out", "held_out_texts", "long_documents", "short_documents"]
