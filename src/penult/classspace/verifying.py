"""Pairs of a collection's rows as same or different, and pairs of files by the threshold found.
Joins collections and `zeroshot.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penult import space as spaces
from penult.errors import LabelsError
from penult.store.collection import Collection
from penult.store.labelled import labelled
from penult.store.marking import sample
from penult.store.querying import query_vector
from penult.store.spaces import meant
from penult.teaching.taught import AUTO, fitted
from penult.teaching.zeroshot import Verification, verify


def verify_collection(
    collection: Collection,
    by: str,
    groups: str | None = None,
    where: str | None = None,
    space: str = AUTO,
    false_accepts: float = 0.01,
) -> tuple[Verification, spaces.Space]:
    """How well the rows that a filter leaves are told apart, and the space that they are in.

    Raises:
        LabelsError: a way that names nothing, no pair of the same, or none of different ones.
    """
    found = labelled(collection, [by, *([groups] if groups else [])], where)
    if not len(found.vectors):
        raise LabelsError(f"no row of {collection.path} matches the filter")
    there = meant(collection, space) or fitted(space, sample(collection))
    named = found.names[by]
    grouped = found.names[groups] if groups else None
    return verify(there(found.vectors), named, grouped, false_accepts), there


def same_or_different(
    collection: Collection, space: spaces.Space, pair: Sequence[str], device: str = "auto"
) -> float:
    """The cosine of two files or rows in the space."""
    vectors = np.stack([query_vector(collection, one, device=device) for one in pair])
    one, other = spaces.unit(space(vectors).astype(np.float64))
    return float(one @ other)
