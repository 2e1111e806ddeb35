"""`penult.integrations.sklearn` under its short name."""

from penult.integrations.sklearn import CollectionRow, EmbeddingTransformer, rows_of

__all__ = ["CollectionRow", "EmbeddingTransformer", "rows_of"]
