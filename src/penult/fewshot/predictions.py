"""Predictions of regions, and their spool on the disk for long runs."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from penult.data.formulas import Cells
from penult.data.items import Failure
from penult.data.recording_times import at
from penult.data.regions import Region, span_of
from penult.data.roots import Roots
from penult.errors import LabelsError, StoreError
from penult.fewshot.events import UNKNOWN, Window, csv_lines, with_metadata
from penult.fewshot.fitted import FittedClasses, Judgement
from penult.models.base import MULTI_LABEL, SINGLE_LABEL, Prediction

if TYPE_CHECKING:
    from penult.embedding.runner import Outcome


@dataclass(frozen=True, slots=True)
class NearExample:
    """An example near an item: its key, its marks, and the cosine in the class space."""

    id: str
    region: str
    marks: dict[str, str]
    similarity: float


@dataclass(frozen=True, slots=True)
class Location:
    """The place of a vector. start, end: seconds; None where there are none. metadata: of its
    item."""

    id: str
    region: str
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, outcome: Outcome) -> Location:
        """The place of an embedded region."""
        region = outcome.region
        times = outcome.start, outcome.end
        metadata = {**outcome.item.metadata, **at(outcome.item, outcome.start)}
        return cls(outcome.item.id, region.key, *times, region.channel, metadata)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Location:
        """The place of a row of a collection; columns that are not the place's are metadata."""
        own = ("id", "region", "start", "end", "channel")
        metadata = {name: value for name, value in row.items() if name not in own}
        return cls(**{name: row[name] for name in own}, metadata=metadata)

    def window(
        self,
        probabilities: Mapping[str, float],
        similarities: Mapping[str, float],
        nearest: tuple[float, float],
        p_value: float,
    ) -> Window:
        """The place with the classes assigned to it; see `Window`."""
        place = self.id, self.channel, self.start, self.end
        return Window(*place, probabilities, self.metadata, similarities, nearest, p_value)


def former(owner: object, names: Mapping[str, tuple[str, Callable[[Any], Any]]], name: str) -> Any:
    """The value of an attribute by its former name. names: for each, the new name and the value.

    Raises:
        AttributeError: there was no such name.
    """
    kind = type(owner).__name__
    if name not in names:
        raise AttributeError(f"{kind!r} object has no attribute {name!r}")
    new, value = names[name]
    warnings.warn(
        f"{kind}.{name} goes with the next version; {new} has its value",
        DeprecationWarning,
        stacklevel=3,
    )
    return value(owner)


NOWHERE = Window("", None, None, None, {})
_FORMER: Mapping[str, tuple[str, Callable[[ClassPrediction], Any]]] = {
    "said": ("detection.probabilities", lambda one: tuple(one.detection.probabilities)),
    "start": ("detection.start", lambda one: one.detection.start),
    "end": ("detection.end", lambda one: one.detection.end),
    "channel": ("detection.channel", lambda one: one.detection.channel),
    "window": ("detection", lambda one: lambda: one.detection),
}


@dataclass(frozen=True, slots=True)
class ClassPrediction(Prediction):
    """The prediction of a class space for one region.

    label: None is unknown. scores: (K,) probabilities, for single-label given that it is one of
    the classes; score is the highest. logits: (K,) the scores that they were made from. p_value:
    the probability of so low a score for a member of any class; NaN where it is not known.
    similarity: the cosine to the mean of the examples of the class that `score` is of; of classes
    by name the cosine to the name. cosines: (K,) that of each class; nothing where there are none.
    nearest: the nearest examples, if some were asked for.
    detection: seconds and channel of the region, all classes assigned to it, best first: one, or
    several with `several`, and the item's metadata.
    """

    p_value: float = math.nan
    similarity: float = math.nan
    nearest: tuple[NearExample, ...] = ()
    cosines: Sequence[float] = ()
    detection: Window = NOWHERE

    def to_dict(self, whole: bool = True) -> dict[str, Any]:
        """For JSON, as `penult predict --json` prints it. whole: with the scores and similarities
        of all classes and the nearest examples; else with those of the assigned classes."""
        at = self.detection
        similar = dict(zip(self.labels, self.cosines, strict=True)) if len(self.cosines) else {}
        scores = dict(zip(self.labels, self.scores.tolist(), strict=True))
        return {
            "id": self.id,
            "region": self.region,
            "start": at.start,
            "end": at.end,
            "channel": at.channel,
            "label": self.label,
            "said": list(at.probabilities),
            "labels": list(at.probabilities),
            "score": self.score,
            "scores": scores if whole else dict(at.probabilities),
            "similarity": self.similarity,
            "similarities": similar if whole and similar else dict(at.similarities),
            "p_value": self.p_value,
            "nearest": [asdict(one) for one in self.nearest] if whole else [],
            "metadata": dict(at.metadata),
        }

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return former(self, _FORMER, name)


def predictions(
    fitted: FittedClasses,
    vectors: npt.NDArray[np.float32],
    places: Sequence[Location],
    judged: Judgement,
    nearest: int = 0,
) -> Iterator[ClassPrediction]:
    """The predictions of raw vectors (m, d) from these places, as they were judged."""
    neighbours = fitted.nearest(vectors, nearest) if nearest else [[] for _ in places]
    examples = fitted.examples
    for i, place in enumerate(places):
        label, shares = int(judged.label[i]), judged.probability[i]
        best, cosines = label if label >= 0 else int(shares.argmax()), judged.similarity[i]
        scores = shares.astype(np.float32)
        order = [k for k in np.argsort(-shares, kind="stable") if judged.assigned[i, k]]
        yield ClassPrediction(
            id=place.id,
            region=place.region,
            kind=MULTI_LABEL if fitted.several else SINGLE_LABEL,
            label=fitted.names[label] if label >= 0 else None,
            index=label if label >= 0 else None,
            score=float(shares[best]),
            scores=scores,
            logits=judged.score[i].astype(np.float32),
            labels=fitted.names,
            p_value=float(judged.p_value[i]),
            similarity=float(cosines[best]),
            cosines=tuple(map(float, cosines)),
            nearest=tuple(
                NearExample(*examples.keys[n], dict(examples.marks[n]), similarity)
                for n, similarity in neighbours[i]
            ),
            detection=place.window(
                {fitted.names[k]: float(scores[k]) for k in order},
                {fitted.names[k]: float(cosines[k]) for k in order},
                (float(shares[best]), float(cosines[best])),
                float(judged.p_value[i]),
            ),
        )


@dataclass(frozen=True, slots=True)
class AssignmentLimits:
    """What a class has to reach for an item to be of it; an item that is left without any is
    unknown. probability, similarity: the least; None sets none. without: classes that no item is
    given to, though they take what is nearer to them than to the others.
    """

    probability: float | None = None
    similarity: float | None = None
    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, value, low in (("probability", self.probability, 0.0),
                                 ("similarity", self.similarity, -1.0)):  # fmt: skip
            if value is not None and not low <= value <= 1.0:
                raise LabelsError(f"a least {name} of {value}: it lies between {low:g} and 1")

    def check(self, names: Sequence[str]) -> None:
        """Refuse a class of `without` that is none of these.

        Raises:
            LabelsError: there is one.
        """
        if odd := sorted(self.without - set(names)):
            raise LabelsError(f"without {odd[0]!r}: the classes are {', '.join(names)}")

    def __call__(self, one: ClassPrediction) -> ClassPrediction:
        """The prediction with those of its classes that reach the limits."""
        at = one.detection
        kept = [name for name in at.probabilities if self._reaches(at, name)]
        if len(kept) == len(at.probabilities):
            return one
        shares = {name: at.probabilities[name] for name in kept}
        cosines = {name: at.similarities[name] for name in kept}
        detection = replace(at, probabilities=shares, similarities=cosines)
        if not kept:
            return replace(one, label=None, index=None, detection=detection)
        best = kept[0]
        if one.label in kept:
            best = one.label
        return replace(one, label=best, index=list(one.labels).index(best), score=shares[best],
                       similarity=cosines[best], detection=detection)  # fmt: skip

    def _reaches(self, at: Window, name: str) -> bool:
        likely = self.probability is None or at.probabilities[name] >= self.probability
        alike = self.similarity is None or at.similarities[name] >= self.similarity
        return likely and alike and name not in self.without

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult predict --json` prints it."""
        return asdict(self) | {"without": sorted(self.without)}


def is_summary(region: str) -> bool:
    """Whether a region's key is that of a summary."""
    return Region.of_key(span_of(region)).kind == "summary"


Document = dict[str, Any]
_MEASURED = 10_000  # regions whose lengths are kept
HEADER = ("path", "region", "start", "end", "channel", "class", "probability", "similarity",
          "p_value", "said")  # fmt: skip


class Spool:
    """Predictions on the disk, in their order. whole: see `ClassPrediction.to_dict`.

    tally: how many are of each class, None for unknown. cut: whether one of them is of a part
    with seconds. first: the first `shown` of them, in memory. seconds: of the first regions.
    """

    def __init__(self, whole: bool = False, shown: int = 0) -> None:
        self.whole, self.shown = whole, shown
        self.tally: Counter[str | None] = Counter()
        self.first: list[ClassPrediction] = []
        self.cut = False
        self.seconds: list[float] = []  # the lengths of the first regions
        self._count = 0
        self._metadata: dict[str, None] = {}  # the names of all columns
        self._file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115, closed by __exit__

    def add(self, one: ClassPrediction) -> None:
        """Append a prediction.

        Raises:
            StoreError: the disk is full.
        """
        self._count += 1
        self.tally.update(one.detection.probabilities.keys() or {None})
        self._metadata |= dict.fromkeys(one.detection.metadata)
        is_part = one.region != "whole" and not is_summary(one.region)
        self.cut = self.cut or (is_part and one.detection.start is not None)
        at = one.detection
        if len(self.seconds) < _MEASURED and at.start is not None and at.end is not None:
            self.seconds.append(at.end - at.start)
        if len(self.first) < self.shown:
            self.first.append(one)
        try:
            self._file.write(json.dumps(one.to_dict(self.whole), default=str) + "\n")
        except OSError as error:
            why = error.strerror or error
            raise StoreError(
                f"predictions cannot be written to {tempfile.gettempdir()}: {why}; TMPDIR names "
                "another folder"
            ) from error

    def extend(self, results: Iterable[ClassPrediction | Failure]) -> list[Failure]:
        """Append the predictions among these results; returns the failures.

        Raises:
            StoreError: the disk is full.
        """
        failures = []
        for one in results:
            if isinstance(one, ClassPrediction):
                self.add(one)
            else:
                failures.append(one)
        return failures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the failed write has raised its own error
            self._file.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Document]:
        """The `to_dict()` of each."""
        self._file.flush()
        self._file.seek(0)
        yield from map(json.loads, self._file)

    def windows(self) -> Iterator[Window]:
        """Each region with the classes assigned to it, but for summaries: they sum up others."""
        for one in self:
            if is_summary(one["region"]):
                continue
            assigned = {name: one["scores"][name] for name in one["said"]}
            place = one["id"], one["channel"], one["start"], one["end"]
            similar = {n: own for n, own in one["similarities"].items() if n in assigned}
            found = assigned, one["metadata"], similar
            yield Window(*place, *found, (one["score"], one["similarity"]), one["p_value"])

    def to_csv(
        self, cells: Cells | None = None, classes: Sequence[str] = (), roots: Roots = Roots()
    ) -> Iterator[str]:
        """Line by line: a header and each region; all assigned classes with ; between, and the
        metadata of the item. classes: where an item may be of several, so that `labels` and a
        column with the probability of each of them come too; of a spool of whole predictions.
        roots: what ids begin with."""
        names, own = list(self._metadata), cells or Cells()
        more = ["labels", *(f"probability:{name}" for name in classes)] if classes else []
        rows = ([roots.shown(one["id"]), *_cells(one, own),
                 *([own.joined(one["labels"])] if classes else []),
                 *(f"{one['scores'][name]:.6g}" for name in classes),
                 *(one["metadata"].get(name) for name in names)] for one in self)  # fmt: skip
        yield from csv_lines(with_metadata([*HEADER, *more], names), rows, own)


def _cells(one: Document, cells: Cells) -> list[Any]:
    part = one["region"] != "whole"
    start, end = (one["start"], one["end"]) if part else (None, None)
    p_value = "" if math.isnan(one["p_value"]) else f"{one['p_value']:.6g}"
    similarity = "" if math.isnan(one["similarity"]) else f"{one['similarity']:.6g}"
    shares = f"{one['score']:.6g}", similarity, p_value
    place = one["region"], start, end, one["channel"]
    return [*place, one["label"] or UNKNOWN, *shares, cells.joined(one["said"])]
