"""The space that examples are compared in, and what is fitted to them there. Knows an origin of
vectors; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from penult.classspace.origin import Origin
from penult.classspace.settings import Settings
from penult.classspace.teaching import of_head
from penult.space import RAW, Space
from penult.store import marking, spaces
from penult.teaching.examples import Examples
from penult.teaching.taught import AUTO, Taught, fitted

BACKGROUND = 5000  # rows that serve as anything


def space_of(origin: Origin, recipe: str, examples: Examples) -> Space:
    """The embedder's own space or one that is kept, if it is meant; else a recipe fitted to the
    rows of the collection, or to the examples.

    Rows of a head are no items: where they are not carried to the rows of a collection their
    directions alone mean something, so that nothing may be taken from them unasked.
    """
    if (own := _kept(origin, recipe)) is not None:
        return own
    if origin.collection is not None:
        return fitted(recipe, marking.sample(origin.collection))
    if recipe == AUTO and any(of_head(key) for key in examples.keys):
        recipe = RAW
    return fitted(recipe, examples.vectors)


def _kept(origin: Origin, recipe: str) -> Space | None:
    """The space that is there already: the embedder's own where none is asked for, or one that
    the collection keeps under this name."""
    if origin.collection is not None:
        return spaces.meant(origin.collection, recipe)
    return origin.embedder.space if recipe == AUTO else None


def taught_of(
    origin: Origin,
    settings: Settings,
    examples: Examples,
    space: Space,
    groups: Sequence[str | None] | None,
) -> Taught:
    """What is fitted to the examples, with rows of the collection as background."""

    def background() -> npt.NDArray[np.float32]:
        if origin.collection is None:
            return np.zeros((0, examples.dim), np.float32)
        return marking.sample(origin.collection, BACKGROUND, examples.keys)

    return Taught(examples, space, settings.method, settings.several, background, groups)
