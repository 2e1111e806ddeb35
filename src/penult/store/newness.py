"""Which ids a table certainly does not have, at eight bytes each; spares asking it.

A lookup costs more with each commit until the next compaction, and of most items a growing
collection knows nothing: one hash, unlike all others, says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

_MERGE = 65_536  # hashes that wait to be sorted among the others

Hashes = npt.NDArray[np.int64]


class Ids:
    """Hashes of ids. Two ids may share one: then a new id is looked up in vain, no more."""

    def __init__(self, batches: Iterable[Sequence[str]] = ()) -> None:
        parts = [_hashes(batch) for batch in batches]
        self._sorted: Hashes = np.sort(np.concatenate(parts)) if parts else _hashes([])
        self._latest: set[int] = set()

    def perhaps(self, ids: Sequence[str]) -> list[str]:
        """Those that may be known; all others are certainly new."""
        hashes = _hashes(ids)
        places = np.searchsorted(self._sorted, hashes)
        found = np.zeros(len(hashes), bool)
        inside = places < len(self._sorted)
        found[inside] = self._sorted[places[inside]] == hashes[inside]
        return [
            id
            for id, there, value in zip(ids, found, hashes.tolist(), strict=True)
            if there or value in self._latest
        ]

    def add(self, ids: Iterable[str]) -> None:
        """Notes ids that the table has from now on."""
        self._latest.update(map(hash, ids))
        if len(self._latest) > _MERGE:
            latest = np.fromiter(self._latest, np.int64, len(self._latest))
            self._sorted = np.sort(np.concatenate([self._sorted, latest]))
            self._latest.clear()


def _hashes(ids: Sequence[str]) -> Hashes:
    return np.fromiter(map(hash, ids), np.int64, len(ids))
