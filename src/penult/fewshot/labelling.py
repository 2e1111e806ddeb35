"""Labelled examples from the names of items, of rows or of the classifier's head, and the groups of
examples in cross-validation. Fits nothing.
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
from penult.data.sources import Source
from penult.data.windows import Layout
from penult.errors import LabelsError
from penult.fewshot import marks
from penult.fewshot.vectors import VectorSource, pairs_of

HEAD = ("classifier:", "head")  # how the id begins, and the region, of a row of the head


@dataclass(frozen=True, slots=True)
class LabelledExamples:
    """Examples of several classes: name, (id, region) and raw vector (d,) of each."""

    names: Sequence[str]
    keys: Sequence[Key]
    vectors: npt.NDArray[np.float32]

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples of each name."""
        return dict(Counter(self.names))


def by_item(
    source: VectorSource, items: Any, by: str, layout: Layout | None = None
) -> LabelledExamples:
    """Items, or the parts that a layout makes of them, with the names that their paths or tables
    give; items without one are left out.

    Raises:
        LabelsError: no item has a name.
        ItemError: one that cannot be embedded.
    """
    pairs = list(source.cut(pairs_of(items, source.modality), layout or Layout()))
    readable = [pair for pair in pairs if isinstance(pair, tuple)]
    name_of = namer(by, sorted({column for item, _ in readable for column in item.metadata}))
    named: dict[Key, str] = {}
    for item, region in readable:
        if (name := name_of(item.id, item.metadata)) is not None:
            named[item.id, region.key] = name
    if not named:
        raise LabelsError(f"no item has a name by {by!r}")
    used = [p for p in pairs if not isinstance(p, tuple) or (p[0].id, p[1].key) in named]
    return _with_vectors(named, source.vectors_of(used))


def by_row(source: VectorSource, by: str, where: str | None) -> LabelledExamples:
    """Rows of the collection with the names of a column, their paths or the classifier's labels.

    Raises:
        LabelsError: no row has a name, or there is no collection.
    """
    if source.collection is None:
        raise LabelsError("there is no collection whose rows could have names; give items")
    rows = marks.named_rows(source.collection, by, where)
    named = {key: name for name, keys in rows.items() for key in keys}
    return _with_vectors(named, marks.vectors_of(source.collection, list(named)))


def by_head(source: VectorSource) -> LabelledExamples:
    """The classifier's own classes: the rows of its linear head, at the prelogits.

    A row of weights is no vector of an item. With a collection it is carried to where the class's
    items lie, mean + covariance · (row − mean row), the reverse of a linear discriminant; without,
    its direction serves as it is (imprinting; Qi et al., 2018).

    Raises:
        HeadNotFound: not the prelogits, no proof, or no linear head; the message says why.
    """
    from penult.collection.comparison import entries_at_hand
    from penult.embedding.readings import head_rows
    from penult.embedding.source_sample import SourceSample

    embedder, sample = source.embedder, None
    if source.collection is not None:
        entries = entries_at_hand(source.collection.reader, embedder)
        sample = SourceSample(Source(lambda: iter(entries)))
    weights = head_rows(embedder, sample).astype(np.float64)
    if source.collection is not None:
        cloud = marks.sample(source.collection).astype(np.float64)
        moved = (weights - weights.mean(axis=0)) @ np.atleast_2d(np.cov(cloud.T))
        length = np.linalg.norm(cloud - cloud.mean(axis=0), axis=1).mean()
        weights = cloud.mean(axis=0) + unit(moved) * length
    names = list(source.embedder.classifier.labels)
    return LabelledExamples(
        names, [(HEAD[0] + name, HEAD[1]) for name in names], weights.astype(np.float32)
    )


def of_head(key: Key) -> bool:
    """Whether an example is a row of the classifier's head."""
    return key[0].startswith(HEAD[0]) and key[1] == HEAD[1]


class Groups:
    """The group of each example, read once.

    by: a column, `folder` or a pattern of the path; None makes no groups, but of several
    annotations of one span. known: groups that were read before.
    """

    def __init__(self, by: str | None, known: Mapping[Key, str | None] | None = None) -> None:
        self.by, self._known = by, dict(known or {})

    def of(self, source: VectorSource, keys: Sequence[Key]) -> list[str | None] | None:
        """The group of each of these examples; None where there are no groups.

        Raises:
            LabelsError: none of them has a group.
        """
        if self.by is None:
            return labels.span_groups(keys)
        if new := [key for key in keys if key not in self._known]:
            if source.collection is not None:
                self._known |= labels.groups_of(source.collection.reader, new, self.by)
            else:
                name_of = namer(self.by)
                self._known |= {key: name_of(key[0], {}) for key in new}
        named = [self._known.get(key) for key in keys]
        if keys and not any(named):
            raise LabelsError(f"no example has a group by {self.by!r}")
        return named


def _with_vectors(
    named: Mapping[Key, str], vectors: Mapping[Key, npt.NDArray[np.float32]]
) -> LabelledExamples:
    found = list(vectors)
    return LabelledExamples([named[key] for key in found], found, np.stack(list(vectors.values())))
