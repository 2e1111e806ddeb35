"""Predictions of regions, and their spool on the disk for long runs."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from penult.errors import StoreError
from penult.fewshot.events import Window
from penult.fewshot.fitted import FittedClasses
from penult.models.base import MULTI_LABEL, SINGLE_LABEL, Prediction


@dataclass(frozen=True, slots=True)
class Near:
    """An example near an item: what it is, its marks, and the cosine in the class space."""

    id: str
    region: str
    marks: dict[str, str]
    similarity: float


@dataclass(frozen=True, slots=True)
class Location:
    """Where a vector is from. start, end: seconds; None where there are none."""

    id: str
    region: str
    start: float | None = None
    end: float | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class ClassPrediction(Prediction):
    """What a class space says of one region.

    label: None is unknown. scores: (K,) probabilities, for single-label given that it is one of
    the classes; score is the highest. logits: (K,) the scores that they were made from. said: all
    classes that are said, the best first. p_value: about how probable so low a score is for a
    member of any class; NaN where nothing tells. start, end (seconds), channel: of the region.
    nearest: the nearest examples, if they were asked for.
    """

    said: tuple[str, ...] = ()
    p_value: float = math.nan
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    nearest: tuple[Near, ...] = ()

    def window(self) -> Window:
        """The region with the classes that are said."""
        share = dict(zip(self.labels, self.scores.tolist(), strict=True))
        said = {name: share[name] for name in self.said}
        return Window(self.id, self.channel, self.start, self.end, said)


def predictions(
    taught: FittedClasses,
    vectors: npt.NDArray[np.float32],
    places: Sequence[Location],
    level: float,
    nearest: int = 0,
) -> Iterator[ClassPrediction]:
    """Raw vectors (m, d) of these places, judged."""
    judged = taught.judge(vectors, level)
    near = taught.nearest(vectors, nearest) if nearest else [[] for _ in places]
    examples = taught.examples
    for i, place in enumerate(places):
        label, shares = int(judged.label[i]), judged.probability[i]
        order = np.argsort(-shares, kind="stable")
        yield ClassPrediction(
            id=place.id,
            region=place.region,
            kind=MULTI_LABEL if taught.several else SINGLE_LABEL,
            label=taught.names[label] if label >= 0 else None,
            index=label if label >= 0 else None,
            score=float(shares[label] if label >= 0 else shares.max()),
            scores=shares.astype(np.float32),
            logits=judged.score[i].astype(np.float32),
            labels=taught.names,
            said=tuple(taught.names[k] for k in order if judged.said[i, k]),
            p_value=float(judged.p_value[i]),
            start=place.start,
            end=place.end,
            channel=place.channel,
            nearest=tuple(
                Near(*examples.keys[n], dict(examples.marks[n]), alike) for n, alike in near[i]
            ),
        )


Document = dict[str, Any]
UNKNOWN = "unknown"  # what a table says of an item that is in none of the classes
HEADER = ("path", "region", "start", "end", "channel", "class", "probability", "p_value", "said")


class Spool:
    """Predictions in the order they came. whole: with the scores of all classes and the nearest
    examples, else with the scores of what is said.

    tally: how many there are of each class, None for unknown. cut: whether one of them is of a part
    with seconds. first: the first `shown` of them, as they were.
    """

    def __init__(self, whole: bool = False, shown: int = 0) -> None:
        self.whole, self.shown = whole, shown
        self.tally: Counter[str | None] = Counter()
        self.first: list[ClassPrediction] = []
        self.cut = False
        self._file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115, closed by __exit__

    def add(self, one: ClassPrediction) -> None:
        """One more.

        Raises:
            StoreError: the disk is full.
        """
        self.tally[one.label] += 1
        self.cut = self.cut or (one.region != "whole" and one.start is not None)
        if len(self.first) < self.shown:
            self.first.append(one)
        try:
            self._file.write(json.dumps(_document(one, self.whole)) + "\n")
        except OSError as error:
            why = error.strerror or error
            raise StoreError(
                f"predictions cannot be kept in {tempfile.gettempdir()}: {why}; TMPDIR names "
                "another place"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what could not be written is told already
            self._file.close()

    def __len__(self) -> int:
        return self.tally.total()

    def __iter__(self) -> Iterator[Document]:
        """Each as a JSON document has it."""
        self._file.flush()
        self._file.seek(0)
        yield from map(json.loads, self._file)

    def windows(self) -> Iterator[Window]:
        """Each region with the classes that are said."""
        for one in self:
            said = {name: one["scores"][name] for name in one["said"]}
            yield Window(one["id"], one["channel"], one["start"], one["end"], said)

    def to_csv(self) -> Iterator[str]:
        """Line by line: a header and each region, unknown ones with an empty class; classes that
        are said with ; between."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for one in self:
            writer.writerow(_cells(one))
            yield text.getvalue()
            text.seek(0)
            text.truncate()
        yield text.getvalue()


def _document(one: ClassPrediction, whole: bool) -> Document:
    scores = dict(zip(one.labels, one.scores.tolist(), strict=True))
    return {
        "id": one.id,
        "region": one.region,
        "start": one.start,
        "end": one.end,
        "channel": one.channel,
        "label": one.label,
        "said": list(one.said),
        "score": one.score,
        "scores": scores if whole else {name: scores[name] for name in one.said},
        "p_value": one.p_value,
        "nearest": [
            {"id": n.id, "region": n.region, "marks": n.marks, "similarity": n.similarity}
            for n in one.nearest
        ]
        if whole
        else [],
    }


def _cells(one: Document) -> list[Any]:
    part = one["region"] != "whole"
    start, end = (one["start"], one["end"]) if part else (None, None)
    p_value = "" if math.isnan(one["p_value"]) else f"{one['p_value']:.6g}"
    shares = f"{one['score']:.6g}", p_value
    place = one["id"], one["region"], start, end, one["channel"]
    return [*place, one["label"] or UNKNOWN, *shares, ";".join(one["said"])]
