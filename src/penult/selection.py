"""`penult.choose`: every reading of a classifier compared on a few labelled items, and the embedder
of the best one. Joins the classifier, the readings and the selection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis import selection
from penult.analysis.candidates import Material, Setting, limited
from penult.analysis.episodes import Rows, numbered, own_groups
from penult.analysis.metrics import LabelFreeRank, rank_without_labels
from penult.analysis.selection import Choice
from penult.analysis.space import RAW
from penult.collection.labels import span_groups
from penult.data.items import Failure, namer
from penult.data.sources import Source, from_objects
from penult.embedding.embedder import Embedder
from penult.embedding.readings import (
    ReadingSet,
    chains_of,
    check_memory,
    name_of,
    read_all,
    readings_of,
)
from penult.engines.base import Reading
from penult.errors import ItemError, LabelsError
from penult.models.base import Classifier

By = Sequence[object] | str | None  # a name for each item, or a rule that reads one from it
Names = Callable[[ReadingSet], list[str | None]]  # a name for each row that was read


@dataclass(frozen=True, slots=True)
class Progress:
    """Callbacks of a long run. tick: after each item, with whether it was embedded and its seconds
    of audio or video. stage: before each part of the work, with a line about it."""

    tick: Callable[[bool, float], None] = lambda embedded, seconds: None
    stage: Callable[[str], None] = lambda line: None


_SILENT = Progress()


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected embedder and how it was selected.

    embedder: gives the selected readings, in the selected space. setting: their names and the
    recipe of the space. report: the comparison, None without labels. ranking: the label-free
    ranking of readings, None with labels. counts: labelled and unlabelled items. failures: items
    that could not be read.
    """

    embedder: Embedder
    setting: Setting
    report: Choice | None
    ranking: list[LabelFreeRank] | None
    counts: Mapping[str, int]
    failures: list[Failure]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult choose --json` prints it, without the facts of the embedder."""
        document: dict[str, Any] = {
            "setting": self.setting.to_dict(),
            **self.counts,
            "failures": [one.to_dict() for one in self.failures],
        }
        if self.report is not None:
            document |= self.report.to_dict()
        if self.ranking is not None:
            document["ranked_without_labels"] = [one.to_dict() for one in self.ranking]
        return document


def choose(
    classifier: Classifier,
    items: Any,
    labels: By = None,
    groups: By = None,
    unlabelled: Any = None,
    *,
    device: str = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    progress: Progress = _SILENT,
) -> Selection:
    """Compare every layer, pooling and space of a classifier on items, and choose.

    items: as for `Embedder.run`. labels: the class of each item, None for one without; or a rule
    that reads it (`folder`, a column of a table, a pattern of the path: `{}_*`). groups: the
    speaker, recording or site of each item, or such a rule; each group is on one side of every
    comparison. unlabelled: more items, on which spaces are fitted too. Each item runs once.

    Without labels the notebook's recipe is kept, and readings are ranked by RankMe.

    Raises:
        LabelsError: labels that do not fit the items, or are too few to compare anything.
    """
    source = items if isinstance(items, Source) else from_objects(items, classifier.modality)
    more = _source_of(unlabelled, classifier.modality)
    if labels is None and (groups is not None or more is not None):
        extra = "groups" if groups is not None else "unlabelled items"
        raise LabelsError(
            f"{extra} were given without labels, and serve only beside labels; give labels too, or "
            "leave them out"
        )
    classes, group_names = (
        _names_by(by, source, kind) for by, kind in ((labels, "labels"), (groups, "groups"))
    )
    readings = readings_of(classifier)
    sources = [source] if more is None else [source, more]
    totals = [one.total for one in sources]
    check_memory(readings, None if None in totals else sum(total or 0 for total in totals))
    progress.stage(f"reading {len(readings)} readings of each item")
    sets = []
    for one in sources:
        sets.append(read_all(classifier, one, readings, device, progress.tick))
        if on_error == "raise" and sets[-1].failures:
            raise ItemError(sets[-1].failures[0].words())
    if classes is None:
        return _without_labels(classifier, sets[0], device)
    labelled, material = _material(sets, classes(sets[0]), group_names)
    counts = {"labelled": int(labelled.sum())}
    counts["unlabelled"] = sum(len(one.items) for one in sets) - counts["labelled"]
    material = limited(material)
    report = selection.choose(material, progress.stage)
    embedder = _embedder(classifier, readings, report.setting, material, device)
    failures = [failure for one in sets for failure in one.failures]
    return Selection(embedder, report.setting, report, None, counts, failures)


def _source_of(items: Any, modality: str) -> Source | None:
    return items if items is None or isinstance(items, Source) else from_objects(items, modality)


def _names_by(by: By, source: Source, kind: str) -> Names | None:
    """The rule or sequence as one function; refuses a sequence that does not fit the items."""
    if by is None:
        return None
    if isinstance(by, str):
        return lambda read: _by_rule(by, read, source)
    if source.total is not None and len(by) != source.total:
        raise LabelsError(
            f"{len(by)} {kind} were given for {source.total} items; give one for each, None for an "
            "item that has none"
        )

    def by_place(read: ReadingSet) -> list[str | None]:
        if len(read.index) and int(read.index.max()) >= len(by):
            raise LabelsError(f"{len(by)} {kind} were given for more items; give one for each")
        values = [by[place] for place in read.index.tolist()]
        return [None if value is None else str(value) for value in values]

    return by_place


def _by_rule(rule: str, read: ReadingSet, source: Source) -> list[str | None]:
    name = namer(rule, list(source.columns) or None)
    names = [name(item.id, item.metadata) for item in read.items]
    if names and not any(names):
        raise LabelsError(
            f"no item has a name by {rule!r}, for example {read.items[0].id}; `folder`, a column "
            "of the table or a pattern such as '{}_*' work"
        )
    return names


def _without_labels(classifier: Classifier, read: ReadingSet, device: str) -> Selection:
    """The notebook's recipe, and the label-free ranking of readings."""
    ranking = rank_without_labels(dict(zip(map(name_of, read.readings), read.vectors, strict=True)))
    setting = Setting((_baseline(read.readings),))
    embedder = _embedder(classifier, read.readings, setting, None, device)
    counts = {"labelled": 0, "unlabelled": len(read.items)}
    return Selection(embedder, setting, None, ranking, counts, list(read.failures))


def _baseline(readings: Sequence[Reading]) -> str:
    """The notebook's reading, of the backbone; without positions that is the prelogits."""
    named = {one.tap.name: name_of(one) for one in reversed(readings)}
    return named.get("backbone") or named.get("prelogits") or name_of(readings[0])


def _material(
    sets: Sequence[ReadingSet], classes: Sequence[str | None], group_names: Names | None
) -> tuple[npt.NDArray[np.bool_], Material]:
    """(which rows of the first set have a class, the labelled vectors); all other rows are
    unlabelled."""
    read, *more = sets
    names = [name_of(reading) for reading in read.readings]
    keys = [(item.id, region) for item, region in zip(read.items, read.regions, strict=True)]
    groups = span_groups(keys) if group_names is None else group_names(read)
    labelled = np.array([name is not None for name in classes], bool)
    unlabelled = {}
    if more or not labelled.all():
        parts = zip(read.vectors, *(one.vectors for one in more), strict=True)
        joined = [np.concatenate([own[~labelled], *others]) for own, *others in parts]
        unlabelled = dict(zip(names, joined, strict=True))
    material = Material(
        {name: rows[labelled] for name, rows in zip(names, read.vectors, strict=True)},
        numbered([name for name in classes if name is not None])[0],
        _groups(groups, labelled),
        _baseline(read.readings),
        unlabelled,
        chains_of(read.readings),
    )
    return labelled, material


def _groups(names: Sequence[str | None] | None, labelled: npt.NDArray[np.bool_]) -> Rows:
    """A group for each labelled row; an item without one is a group of its own."""
    if names is None:
        return np.arange(int(labelled.sum()))
    return numbered(np.array(own_groups(names))[labelled])[0]


def _embedder(
    classifier: Classifier,
    readings: Sequence[Reading],
    setting: Setting,
    material: Material | None,
    device: str,
) -> Embedder:
    by_name = {name_of(reading): reading for reading in readings}
    chosen = [by_name[name] for name in setting.readings]
    space = None
    if setting.space != RAW and material is not None:
        space = material.final_space(setting)
    return Embedder(
        classifier,
        [reading.tap for reading in chosen],
        ",".join(reading.pooling for reading in chosen),
        device=device,
        space=space,
    )
