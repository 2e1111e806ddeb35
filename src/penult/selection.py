"""`penult.choose`: every reading of a classifier compared on a few labelled items, and the embedder
that serves them best. Joins the classifier, the readings and the decision; decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis import selection
from penult.analysis.candidates import Material, Setting
from penult.analysis.episodes import numbered
from penult.analysis.metrics import LabelFreeRank, rank_without_labels
from penult.analysis.selection import Choice
from penult.analysis.space import RAW
from penult.data.items import Failure, Item, namer
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

By = Sequence[object] | str | None
Tick = Callable[[bool, float], None]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen.

    embedder: reads what was chosen, in its space. setting: its readings and the recipe of its
    space. report: how it was decided, None without labels. free: the readings by a measure that
    needs no labels, None with labels. counts: items by what they served for. failures: items that
    could not be read.
    """

    embedder: Embedder
    setting: Setting
    report: Choice | None
    free: list[LabelFreeRank] | None
    counts: Mapping[str, int]
    failures: list[Failure]


def choose(
    classifier: Classifier,
    items: Any,
    labels: By = None,
    groups: By = None,
    unlabelled: Any = None,
    *,
    device: str = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    tick: Tick = lambda embedded, seconds: None,
    tell: Tell = lambda what: None,
) -> Selection:
    """Compare every layer, pooling and space of a classifier on items, and choose.

    items: what `Embedder.run` takes. labels: the class of each item, None for one without; or a
    way to read them (`folder`, a column of a table, a pattern of the path: `{}_*`). groups: the
    speaker, recording or site of each item, or a way to read it; no group is ever on both sides of
    a comparison. unlabelled: more items, that spaces are fitted on too. Each item runs once.

    Without labels the notebook's recipe is kept, and readings are ranked by RankMe.

    Raises:
        LabelsError: labels that do not fit the items, or are too few to compare anything.
    """
    source = items if isinstance(items, Source) else from_objects(items, classifier.modality)
    more = _source_of(unlabelled, classifier.modality)
    _check_asked(labels, groups, source, more)
    readings = readings_of(classifier)
    totals = [one.total for one in (source, more) if one is not None]
    check_memory(readings, None if None in totals else sum(total or 0 for total in totals))
    tell(f"reading {len(readings)} readings of each item")
    read = read_all(classifier, source, readings, device, tick)
    _refuse(read, on_error)
    if labels is None:
        return _without_labels(classifier, read, device)
    extra = None if more is None else read_all(classifier, more, readings, device, tick)
    if extra is not None:
        _refuse(extra, on_error)
    held, material = _material(read, extra, source, labels, groups)
    others = len(read.items) - int(held.sum()) + (len(extra.items) if extra else 0)
    counts = {"labelled": int(held.sum()), "unlabelled": others}
    report = selection.choose(material, tell)
    embedder = _embedder(classifier, readings, report.setting, material, device)
    failures = [*read.failures, *(extra.failures if extra else ())]
    return Selection(embedder, report.setting, report, None, counts, failures)


def _check_asked(labels: By, groups: By, source: Source, more: Source | None) -> None:
    """Refuse what does not fit before anything runs."""
    for given, what in ((groups, "groups"), (more, "unlabelled items")):
        if labels is None and given is not None:
            raise LabelsError(
                f"{what} were given without labels, and serve only beside labels; give labels too, "
                "or leave them out"
            )
    _match(labels, source, "labels")
    _match(groups, source, "groups")


def _without_labels(classifier: Classifier, read: ReadingSet, device: str) -> Selection:
    """The notebook's recipe, and the readings by a measure that needs no labels."""
    free = rank_without_labels(dict(zip(map(name_of, read.readings), read.vectors, strict=True)))
    setting = Setting((_baseline(read.readings),))
    embedder = _embedder(classifier, read.readings, setting, None, device)
    counts = {"labelled": 0, "unlabelled": len(read.items)}
    return Selection(embedder, setting, None, free, counts, list(read.failures))


def _baseline(readings: Sequence[Reading]) -> str:
    return next(name_of(one) for one in readings if one.tap.name == "backbone")


def _material(
    read: ReadingSet,
    extra: ReadingSet | None,
    source: Source,
    labels: Sequence[object] | str,
    groups: By,
) -> tuple[npt.NDArray[np.bool_], Material]:
    """Which rows have a label, and what is decided on."""
    names = [name_of(reading) for reading in read.readings]
    classes = _names_for_rows(labels, read, source, "labels")
    held = np.array([name is not None for name in classes], bool)
    others = {}
    if extra is not None or not held.all():
        parts = [read.vectors, *([extra.vectors] if extra else [])]
        joined = [np.concatenate([a[~held], *rest]) for a, *rest in zip(*parts, strict=True)]
        others = dict(zip(names, joined, strict=True))
    material = Material(
        {name: rows[held] for name, rows in zip(names, read.vectors, strict=True)},
        numbered([name for name in classes if name is not None])[0],
        _groups(groups, read, source, held),
        _baseline(read.readings),
        others,
        chains_of(read.readings),
    )
    return held, material


def _source_of(items: Any, modality: str) -> Source | None:
    if items is None or isinstance(items, Source):
        return items
    return from_objects(items, modality)


def _match(names: By, source: Source, what: str) -> None:
    """Refuse a sequence of another length than the items, before anything runs."""
    if names is None or isinstance(names, str) or source.total is None:
        return
    if len(names) != source.total:
        raise LabelsError(
            f"{len(names)} {what} were given for {source.total} items; give one for each, None for "
            "an item that has none"
        )


def _refuse(read: ReadingSet, on_error: str) -> None:
    if read.failures and on_error == "raise":
        raise ItemError(read.failures[0].words())


def _names_for_rows(
    by: Sequence[object] | str, read: ReadingSet, source: Source, what: str
) -> list[str | None]:
    """A name for each row that was read."""
    if isinstance(by, str):
        name = namer(by, list(source.columns) or None)
        names = [name(item.id, item.metadata) for item in read.items]
        if names and not any(names):
            raise LabelsError(
                f"no item has a name by {by!r}, for example {_example(read.items)}; `folder`, a "
                "column of the table or a pattern such as '{}_*' work"
            )
        return names
    if len(read.index) and int(read.index.max()) >= len(by):
        raise LabelsError(f"{len(by)} {what} were given for more items; give one for each")
    given = [by[place] for place in read.index.tolist()]
    return [None if value is None else str(value) for value in given]


def _example(items: Sequence[Item]) -> str:
    return items[0].id if items else "none"


def _groups(
    by: By, read: ReadingSet, source: Source, held: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """A group for each labelled row; an item without one is a group of its own."""
    if by is None:
        return np.arange(int(held.sum()))
    names = _names_for_rows(by, read, source, "groups")
    own = [f"group {name}" if name is not None else f"item {at}" for at, name in enumerate(names)]
    return numbered([name for name, kept in zip(own, held, strict=True) if kept])[0]


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
        space = material.space(setting, np.ones(len(material.labels), bool))
    return Embedder(
        classifier,
        [reading.tap for reading in chosen],
        ",".join(reading.pooling for reading in chosen),
        device=device,
        space=space,
    )
