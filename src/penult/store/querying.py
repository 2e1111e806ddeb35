"""From what a user asks with (a file, or the id of a row) to the vector that a search takes."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from penult.errors import CollectionError, FingerprintMismatch, ItemError, UsageError
from penult.regions import Region

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder
    from penult.store.collection import Collection
    from penult.store.folder import Manifest


class KeptEmbedder:
    """The embedder of a collection, opened once and kept until another one is asked for. Threads
    that ask at once get the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[tuple[Manifest, str | None, str, bool], Embedder] | None = None

    def get(self, manifest: Manifest, model: str | None, device: str, trust: bool) -> Embedder:
        """The embedder of this manifest; see `embedder_of`."""
        asked = (manifest, model, device, trust)
        with self._lock:
            if self._kept is None or self._kept[0] != asked:
                self._kept = None  # not two models in memory at once
                self._kept = asked, embedder_of(manifest, model, device=device, trust=trust)
            return self._kept[1]


def query_vector(
    collection: Collection,
    query: str | os.PathLike[str],
    *,
    start: float | None = None,
    end: float | None = None,
    model: str | None = None,
    device: str = "auto",
    trust: bool = False,
    embedder: Embedder | None = None,
) -> npt.NDArray[np.float32]:
    """The vector (d,) of a row of the collection, or of a file, embedded as its rows were: by this
    embedder, or by the collection's own, which `model`, `device` and `trust` open.

    A row serves as it is stored if its file has not changed; then no model is opened.

    Raises:
        CollectionError: there is no such file and no such row.
        UsageError: the file cannot be embedded.
        FingerprintMismatch: the embedder gives other vectors.
    """
    manifest = collection.manifest
    if manifest is None:
        raise CollectionError(f"there is no collection at {collection.path}")
    if embedder is not None:
        check_embedder(manifest, embedder)
    segment = start is not None or end is not None
    try:
        region = Region("segment", start or 0.0, end) if segment else Region()
    except ItemError as error:
        raise UsageError(f"the query's segment: {error}") from error
    query = os.fspath(query)
    stored = _stored(collection, query, region)
    if stored is not None:
        return stored
    text = manifest.model.get("modality") == "text"
    if not text and not Path(query).expanduser().is_file():
        raise CollectionError(
            f"{query!r} is neither a file nor the id of a row of {collection.path}"
        )
    opened = embedder or collection.embedder(model, device=device, trust=trust)
    try:
        return _embedded(opened, query, region)
    except ItemError as error:
        raise UsageError(f"the query {query}: {error}") from error


def _stored(collection: Collection, query: str, region: Region) -> npt.NDArray[np.float32] | None:
    path = Path(query).expanduser().absolute()
    for id in (query, str(path)):
        row = collection.get(id, region.key)
        if row is None:
            continue
        file = Path(row["id"])
        if row["size"] is not None and file.is_file():
            status = file.stat()
            if (status.st_size, status.st_mtime_ns) != (row["size"], row["mtime_ns"]):
                continue
        vector: npt.NDArray[np.float32] = row["vector"]
        return vector
    return None


def _embedded(embedder: Embedder, query: str, region: Region) -> npt.NDArray[np.float32]:
    from penult.sources import Failure, from_objects

    path = Path(query).expanduser()
    content = path if path.is_file() else query
    pair = next(iter(from_objects([content], embedder.classifier.modality)))
    if isinstance(pair, Failure):
        raise ItemError(pair.message)
    # A query is not labelled: the pass ends behind the tap.
    result = next(embedder.runner.stream([(pair[0], region)], logits=False))
    if isinstance(result, Failure):
        raise ItemError(result.message)
    vector: npt.NDArray[np.float32] = result.vector
    return vector


def embedder_of(
    manifest: Manifest, model: str | None = None, *, device: str = "auto", trust: bool = False
) -> Embedder:
    """The embedder that a collection was made with.

    Raises:
        FingerprintMismatch: what is there now would give other vectors.
    """
    from penult.classifiers.asked import current
    from penult.embedding.embedder import open_embedder

    about = manifest.model
    embedder = open_embedder(
        model or about["spec"],
        about["tap"],
        about["pooling"],
        pool_over=about.get("pool_over"),
        precision=manifest.fingerprint.get("precision"),
        engine="torch",  # for one item no other is worth opening
        device=device,
        **{**current(about.get("asked", {})), "trust": trust},
    )
    check_embedder(manifest, embedder, "Name the right one with --model")
    return embedder


def check_embedder(manifest: Manifest, embedder: Embedder, advice: str = "") -> None:
    """Refuses an embedder whose vectors are not comparable to those of a collection.

    Raises:
        FingerprintMismatch: the fingerprint differs; it says in what.
    """
    from penult.embedding.embedder import differences

    if differs := differences(manifest.fingerprint, embedder.fingerprint):
        raise FingerprintMismatch(
            f"{embedder.classifier.spec!r} is not what the collection was made with: "
            f"{'; '.join(differs)}. {advice or 'Leave embedder out, or give its own'}"
        )
