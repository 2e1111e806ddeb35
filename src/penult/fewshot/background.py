"""Random rows of a collection, or items, that are held to be of none of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from penult.collection.schema import KEY, Key
from penult.collection.schema import keys as keys_of
from penult.errors import LabelsError
from penult.fewshot.examples import EVERY

if TYPE_CHECKING:
    from penult.fewshot.classspace import ClassSpace


def add_background(space: ClassSpace, background: int | Any, where: str | None = None) -> list[Key]:
    """Mark rows or items `no` for every class (`*`); gives their (id, region).

    background: a number of rows, drawn from those of the collection that have no mark and pass the
    filter `where`; or items, as `ClassSpace.add` takes them. They are random rows: some can be
    members of a class, and count for it once they are marked yes.

    Raises:
        LabelsError: a number below one, no collection for it, or no row without a mark.
    """
    if not isinstance(background, int):
        return space.add(EVERY, background, "no")
    if background < 1:
        raise LabelsError(f"a background of {background} rows; give one row or more")
    collection = space.source.collection
    if collection is None:
        raise LabelsError(
            f"a background of {background} rows is drawn from a collection, and a class space from "
            "a file has none; give files or a folder as the background"
        )
    marked = set(space.examples.keys)
    free = [
        key
        for batch in collection.reader.ordered(KEY, where)
        for key in keys_of(batch)
        if key not in marked
    ]
    if not free:
        raise LabelsError("no row without a mark" + (" passes the filter" if where else ""))
    # Other rows the second time: the rows that are marked are another number by then.
    random = np.random.default_rng(len(marked))
    drawn = np.sort(random.permutation(len(free))[:background])
    return space.add(EVERY, [free[i] for i in drawn], "no")
