"""Robustness of readings: how far corruptions of sounds or pictures move vectors, beside how far
apart different items lie.

Knows a classifier and how to run it; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import unit
from penult.data.corruptions import PICTURE, SOUND
from penult.data.decode import usual_decoding
from penult.data.items import Entry, Failure
from penult.data.objects import item_of
from penult.data.regions import WHOLE
from penult.data.workers import decode
from penult.embedding.embedder import Embedder
from penult.embedding.readings import ReadingSet, name_of, read_all, readings_of
from penult.errors import EmptyItem, ItemError, UsageError
from penult.tracing.scores import SINGLE_LABEL

ITEMS = 32
FEWEST = 4  # items, between which distances say something
LONGEST = 30.0  # seconds of a recording
NEIGHBOURS = 5
OWN = "this embedder"
_CORRUPTIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {"audio": SOUND, "image": PICTURE}

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shift:
    """What one corruption does to one reading. cosine, lowest: of vectors with and without it, the
    median and the least. relative: the median distance (1 − cosine) that it moves a vector, in
    median distances between different items. neighbours: the share of the five nearest other items
    that stay. found: the share of corrupted items whose nearest item is their own original."""

    cosine: float
    lowest: float
    relative: float
    neighbours: float
    found: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Robustness:
    """shifts: by reading, then by corruption. labels: by corruption the share of items that keep
    the classifier's label; empty where it has no single one. failures: items that were left out."""

    items: Sequence[str]
    shifts: Mapping[str, Mapping[str, Shift]]
    labels: Mapping[str, float]
    failures: Sequence[Failure]

    @property
    def corruptions(self) -> list[str]:
        """In the order in which they were tried."""
        return list(self.shifts[OWN])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        shifts = {
            reading: {name: one.to_dict() for name, one in moved.items()}
            for reading, moved in self.shifts.items()
        }
        failures = [failure.to_dict() for failure in self.failures]
        return {"items": list(self.items), "readings": shifts, "labels_kept": dict(self.labels),
                "failures": failures}  # fmt: skip


def robustness(embedder: Embedder, pairs: Sequence[Entry]) -> Robustness:
    """Run items as they are and with each corruption, at all named readings and the embedder's own.

    pairs: (item, region), of which 32 are taken, spread evenly; of a recording the first 30 s, at
    the model's rate and mixed to one channel.

    Raises:
        UsageError: a model of texts or videos, or one that gives a row for each patch.
        EmptyItem: fewer than four items can be opened.
    """
    classifier = embedder.classifier
    corruptions = _CORRUPTIONS.get(classifier.modality)
    if corruptions is None:
        raise UsageError(
            f"--robust corrupts sounds and pictures, and {classifier.spec} takes "
            f"{classifier.modality}"
        )
    opened, failures = _opened(embedder, pairs)
    readings = {name_of(one): one for one in (*readings_of(classifier), *embedder.runner.readings)}
    device = embedder.device.split(",")[0]

    def read(values: Sequence[Any]) -> tuple[dict[str, Vectors], npt.NDArray[np.int64]]:
        items = [_item(value, classifier.modality, classifier.rate) for value in values]
        entries = [(item, WHOLE) for item in items]
        found = read_all(classifier, entries, list(readings.values()), device)
        if found.failures:
            raise ItemError(found.failures[0].words())
        return _by_name(found, list(readings), embedder), found.labels

    values = list(opened.values())
    base, said = read(values)
    shifts: dict[str, dict[str, Shift]] = {name: {} for name in base}
    kept: dict[str, float] = {}
    for name, change in corruptions.items():
        more = () if classifier.modality == "image" else (classifier.rate,)
        moved, now = read([change(value, *more) for value in values])
        kept[name] = float((now == said).mean())
        for reading, vectors in moved.items():
            shifts[reading][name] = shift(base[reading], vectors)
    single = classifier.kind == SINGLE_LABEL
    return Robustness(list(opened), shifts, kept if single else {}, failures)


def shift(before: Vectors, after: Vectors) -> Shift:
    """How far n vectors (n, d) moved, row by row."""
    one, other = (unit(np.asarray(rows, np.float64)) for rows in (before, after))
    own = (one * other).sum(axis=1)
    between, across = one @ one.T, other @ one.T
    apart = 1 - between[~np.eye(len(one), dtype=bool)]
    middle = float(np.median(apart))
    found = across.max(axis=1) <= np.diag(across) + 1e-9
    nearest = []
    for similarity in (between, across):
        others = np.where(np.eye(len(one), dtype=bool), -np.inf, similarity)
        nearest.append(np.argsort(-others, axis=1)[:, : min(NEIGHBOURS, len(one) - 1)])
    kept = [len(np.intersect1d(*both)) / nearest[0].shape[1] for both in zip(*nearest, strict=True)]
    moved = float(np.median(1 - own))
    return Shift(
        cosine=float(np.median(own)),
        lowest=float(own.min()),
        relative=moved / middle if middle > 0 else float("inf") if moved > 0 else 0.0,
        neighbours=float(np.mean(kept)),
        found=float(found.mean()),
    )


def _opened(embedder: Embedder, pairs: Sequence[Entry]) -> tuple[dict[str, Any], list[Failure]]:
    """Values by the items' names, decoded as a run decodes them; and what cannot be opened."""
    able = [one for one in pairs if not isinstance(one, Failure)]
    places = np.unique(np.linspace(0, len(able) - 1, min(ITEMS, len(able))).round().astype(int))
    values, failed = opened_values(embedder, [able[at] for at in places])
    if len(values) < FEWEST:
        raise EmptyItem(
            f"{len(values)} of {len(pairs)} items can be opened, and distances between items need "
            f"{FEWEST}; give more files"
        )
    opened = {f"{id}{'' if key == WHOLE.key else f' {key}'}": value
              for (id, key), value in values.items()}  # fmt: skip
    return opened, [*(one for one in pairs if isinstance(one, Failure)), *failed]


def opened_values(
    embedder: Embedder, pairs: Sequence[Entry]
) -> tuple[dict[tuple[str, str], Any], list[Failure]]:
    """Decoded sounds, (n,) at the model's rate, or pictures by id and region, of a recording the
    first 30 s; and what cannot be opened."""
    failures: list[Failure] = []
    decoding = replace(usual_decoding().briefly, first_seconds=LONGEST)
    target = replace(embedder.runner.target(decoding), kept_seconds=None)
    opened: dict[tuple[str, str], Any] = {}
    with closing(decode(list(pairs), target, decoding)) as regions:
        for one in regions:
            if isinstance(one, Failure):
                failures.append(one)
            elif isinstance(one.content, ItemError):
                failures.append(Failure.of(one.item, one.region, one.content))
            else:
                opened[one.item.id, one.region.key] = one.content.values
    return opened, failures


def _item(value: Any, modality: str, rate: int | None) -> Any:
    return item_of((value, rate) if modality == "audio" else value, modality)


def _by_name(found: ReadingSet, names: Sequence[str], embedder: Embedder) -> dict[str, Vectors]:
    """(n, d) by reading, and those of the embedder itself."""
    vectors = dict(zip(names, found.vectors, strict=True))
    own = np.concatenate([vectors[name_of(one)] for one in embedder.runner.readings], axis=1)
    return {OWN: own if embedder.space is None else embedder.space(own), **vectors}
