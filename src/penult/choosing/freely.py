"""Readings ranked without any label, and how far that is to be trusted. Numpy in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.errors import LabelsError, SpaceError
from penult.measuring.measures import alpha_req, rank_me

MOST = 1000  # rows whose singular values are taken
LEAST = 10


@dataclass(frozen=True, slots=True)
class Free:
    """rank_me: directions in use. alpha: the exponent of the spectrum. See `measuring.measures`."""

    reading: str
    rank_me: float
    alpha: float


def ranked_freely(vectors: Mapping[str, npt.NDArray[np.float32]], seed: int = 0) -> list[Free]:
    """Every reading (n, d) by RankMe, the highest first.

    Raises:
        LabelsError: fewer than ten items.
        SpaceError: values that are not finite.
    """
    found = []
    for name, rows in vectors.items():
        if len(rows) < LEAST:
            raise LabelsError(
                f"{len(rows)} items without labels say nothing of a layer; give {LEAST} or more"
            )
        if not np.isfinite(rows).all():
            raise SpaceError(f"vectors of {name} have values that are not finite; leave them out")
        if len(rows) > MOST:
            chosen = np.random.default_rng(seed).choice(len(rows), MOST, replace=False)
            rows = rows[np.sort(chosen)]
        found.append(Free(name, rank_me(rows), alpha_req(rows)))
    return sorted(found, key=lambda one: -one.rank_me)
