"""Examples by the names that items, rows or the classifier's head have already, and the groups that
they are held out by. Knows an origin of vectors; fits nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import unit
from penult.collection import labels
from penult.collection.schema import Key
from penult.data.items import namer
from penult.errors import LabelsError
from penult.fewshot import marks
from penult.fewshot.vectors import Origin, pairs_of

HEAD = ("classifier:", "head")  # how the id begins, and the region, of a row of the head


@dataclass(frozen=True, slots=True)
class Named:
    """Examples of several classes: a name, an (id, region) and a raw vector (d,) for each."""

    names: Sequence[str]
    keys: Sequence[Key]
    vectors: npt.NDArray[np.float32]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each name."""
        return dict(Counter(self.names))


def by_item(origin: Origin, items: Any, by: str) -> Named:
    """Items by what their paths or tables call them; those without a name are left out.

    Raises:
        LabelsError: a way that names nothing.
        ItemError: one that cannot be embedded.
    """
    pairs = list(pairs_of(items, origin.modality))
    there = [pair for pair in pairs if isinstance(pair, tuple)]
    name_of = namer(by, sorted({column for item, _ in there for column in item.metadata}))
    named: dict[Key, str] = {}
    for item, region in there:
        if (name := name_of(item.id, item.metadata)) is not None:
            named[item.id, region.key] = name
    if not named:
        raise LabelsError(f"no item has a name by {by!r}")
    wanted = [p for p in pairs if not isinstance(p, tuple) or (p[0].id, p[1].key) in named]
    return _gathered(named, origin.vectors_of(wanted))


def by_row(origin: Origin, by: str, where: str | None) -> Named:
    """The rows of the collection by a column, their paths, or the classifier's own labels.

    Raises:
        LabelsError: a way that names nothing, or no collection.
    """
    if origin.collection is None:
        raise LabelsError("there is no collection whose rows could have names; give items")
    rows = marks.named_rows(origin.collection, by, where)
    named = {key: name for name, keys in rows.items() for key in keys}
    return _gathered(named, marks.vectors_of(origin.collection, list(named)))


def by_head(origin: Origin) -> Named:
    """The classifier's own classes: the rows of its linear head, at the prelogits.

    A row of weights is no vector of an item. With a collection it is carried to where the class's
    items lie, mean + covariance · (row − mean row), the reverse of a linear discriminant; without,
    its direction serves as it is (imprinting; Qi et al., 2018).

    Raises:
        HeadNotFound: not the prelogits, no proof, or no linear head; it says what works.
    """
    from penult.embedding.readings import head_rows

    weights = head_rows(origin.embedder).astype(np.float64)
    if origin.collection is not None:
        cloud = marks.sample(origin.collection).astype(np.float64)
        moved = (weights - weights.mean(axis=0)) @ np.atleast_2d(np.cov(cloud.T))
        length = np.linalg.norm(cloud - cloud.mean(axis=0), axis=1).mean()
        weights = cloud.mean(axis=0) + unit(moved) * length
    names = list(origin.embedder.classifier.labels)
    return Named(names, [(HEAD[0] + name, HEAD[1]) for name in names], weights.astype(np.float32))


def of_head(key: Key) -> bool:
    """Whether an example is a row of the classifier's head."""
    return key[0].startswith(HEAD[0]) and key[1] == HEAD[1]


class Groups:
    """The group of each example, read once: what it must not share with those it is tried on.

    by: a column, `folder` or a pattern of the path; None makes no groups. known: those that were
    read before.
    """

    def __init__(self, by: str | None, known: Mapping[Key, str | None] | None = None) -> None:
        self.by, self._known = by, dict(known or {})

    def of(self, origin: Origin, keys: Sequence[Key]) -> list[str | None] | None:
        """One for each of these examples.

        Raises:
            LabelsError: a way that gives none of them a group.
        """
        if self.by is None:
            return None
        if new := [key for key in keys if key not in self._known]:
            if origin.collection is not None:
                self._known |= labels.groups_of(origin.collection, new, self.by)
            else:
                name_of = namer(self.by)
                self._known |= {key: name_of(key[0], {}) for key in new}
        named = [self._known.get(key) for key in keys]
        if keys and not any(named):
            raise LabelsError(f"no example has a group by {self.by!r}")
        return named


def _gathered(named: Mapping[Key, str], vectors: Mapping[Key, npt.NDArray[np.float32]]) -> Named:
    found = list(vectors)
    return Named([named[key] for key in found], found, np.stack(list(vectors.values())))
