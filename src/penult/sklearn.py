"""`penult.sklearn`: the bridge to scikit-learn, under the name by which it is imported."""

from penult.bridges.sklearn import EmbeddingTransformer

__all__ = ["EmbeddingTransformer"]
