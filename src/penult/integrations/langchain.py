"""An embedder as the `Embeddings` of LangChain."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from penult.embedding.embedder import Embedder, open_embedder
from penult.errors import UsageError
from penult.extras import require

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
else:
    Embeddings = require("langchain_core.embeddings").Embeddings


class PenultEmbeddings(Embeddings):
    """Texts → vectors, by an embedder of texts. Of an embedder of sound, pictures or video the
    texts are paths of files, each of which gives one vector.

    embedder: an open one, or what `penult embed` takes as a model. Vectors are those of
    `Embedder.embed`, in the embedder's space where it has one.
    """

    def __init__(self, embedder: Embedder | str | os.PathLike[str]) -> None:
        self.embedder = embedder if isinstance(embedder, Embedder) else open_embedder(embedder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text or path, in their order.

        Raises:
            UsageError: something else than a list of texts. ItemError: one that cannot be embedded.
        """
        if isinstance(texts, str):
            raise UsageError("embed_documents takes a list of texts, received one; embed_query")
        if not texts:
            return []
        # A list names single files: a folder is refused as an item, and not walked.
        vectors = self.embedder.embed(list(texts), logits=False)
        return [[float(value) for value in row] for row in vectors]

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text or path."""
        return self.embed_documents([text])[0]
