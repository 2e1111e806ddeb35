"""What a collection holds, counted: rows, labels, runs, failures, its index, size on the disk."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from penult.errors import CollectionError
from penult.store.collection import Collection
from penult.store.folder import store_errors

_BATCH = 8192


def describe(collection: Collection) -> dict[str, Any]:
    """For a JSON document; rows are counted, vectors are not read.

    Raises:
        CollectionError: there is no collection.
    """
    if (manifest := collection.manifest) is None:
        raise CollectionError(f"there is no collection at {collection.path}")
    kinds: Counter[str] = Counter()
    for batch in collection.scan(["kind"], batch_size=_BATCH):
        kinds.update(batch.column("kind").to_pylist())
    runs = collection.runs().to_pylist()
    labels = collection.labels()
    index = collection.index
    return {
        "collection": str(collection.path),
        "rows": sum(kinds.values()),
        "kinds": dict(kinds.most_common()),
        "dim": manifest.dim,
        "dtype": manifest.dtype,
        "logits": manifest.logits,
        "classes": len(manifest.labels),
        "model": manifest.model.get("spec"),
        "revision": manifest.model.get("revision"),
        "tap": manifest.model.get("tap"),
        "pooling": manifest.model.get("pooling"),
        "modality": manifest.model.get("modality"),
        "created": manifest.created,
        "fingerprint": dict(manifest.fingerprint),
        "columns": collection.columns,
        "labels": {"marks": len(labels), "classes": sorted(set(labels["class"].to_pylist()))},
        "spaces": len(collection.spaces()),
        "failures": len(collection.failures()),
        "runs": [{name: run[name] for name in _RUN} for run in runs],
        "bytes": _size(collection.path),
        "index": index.to_dict() if index else None,
    }


_RUN = (
    *("run_id", "status", "started", "ended", "command", "model", "revision", "device", "engine"),
    *("precision", "versions", "info", "done", "skipped", "replaced", "failed"),
)


def _size(folder: Path) -> int:
    with store_errors(folder):
        return sum(
            os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 - some thousand files
            for root, _, names in os.walk(folder)
            for name in names
        )
