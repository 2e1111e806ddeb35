"""Where a class space's vectors come from: an embedder, or a collection and what opens its embedder
again. Knows no class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from penult.classspace.gathering import Vectors, embedded, from_rows
from penult.errors import FingerprintMismatch, LabelsError, UsageError
from penult.locking import Guard
from penult.sources import Entry
from penult.store.collection import Collection
from penult.store.folder import Manifest
from penult.store.querying import embedder_of

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder


class Origin:
    """manifest: what all vectors share. collection: whose rows examples are, if they are rows."""

    def __init__(
        self,
        manifest: Manifest,
        collection: Collection | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.manifest, self.collection, self._embedder = manifest, collection, embedder
        self._guard = Guard()
        self._opener: Callable[[], Embedder] = lambda: (
            embedder_of(manifest) if collection is None else collection.embedder()
        )

    @classmethod
    def of(cls, source: Embedder | Collection) -> Origin:
        """Of an embedder, or of a collection.

        Raises:
            LabelsError: a collection that is not there.
            UsageError: neither.
        """
        if not isinstance(source, Collection):
            from penult.store.adding import manifest_of

            embedder = checked(source)
            return cls(manifest_of(embedder), embedder=embedder)
        if (manifest := source.manifest) is None:
            raise LabelsError(
                f"there is no collection at {source.path}; "
                f"penult embed MODEL FOLDER --into {source.path} makes one"
            )
        return cls(manifest, source)

    @property
    def embedder(self) -> Embedder:
        """What makes vectors of items; opened when it is first needed."""
        with self._guard:
            if self._embedder is None:
                self.use(self._opener())
            assert self._embedder is not None
            return self._embedder

    def opens(self, opener: Callable[[], Embedder]) -> None:
        """Open the embedder this way, once it is needed."""
        self._opener = opener

    def use(self, embedder: Embedder) -> None:
        """Take this embedder.

        Raises:
            FingerprintMismatch: it gives other vectors.
        """
        self.check(checked(embedder).fingerprint, embedder.classifier.spec)
        self._embedder = embedder

    @property
    def modality(self) -> str:
        """What kind of items there are."""
        return str(self.manifest.model.get("modality") or self.embedder.classifier.modality)

    def vectors_of(self, pairs: Iterable[Entry]) -> Vectors:
        """The raw vector of each (item, region); what is no row of the collection becomes one."""
        if self.collection is not None:
            return from_rows(self.collection, pairs, lambda: self.embedder)
        return embedded(self.embedder, pairs)

    def check(self, other: Mapping[str, str], name: str) -> None:
        """Refuse the vectors of another embedder.

        Raises:
            FingerprintMismatch: the fingerprint differs; it says in what.
        """
        from penult.embedding.embedder import differences

        if differs := differences(self.manifest.fingerprint, other):
            raise FingerprintMismatch(
                f"{name} gives other vectors than the class space was taught with: "
                f"{'; '.join(differs)}"
            )


def checked(source: object) -> Embedder:
    """The embedder that was given.

    Raises:
        UsageError: it is none.
    """
    from penult.embedding.embedder import Embedder

    if not isinstance(source, Embedder):
        raise UsageError(
            f"a class space is made of an Embedder or a Collection, not of a "
            f"{type(source).__name__}"
        )
    return source
