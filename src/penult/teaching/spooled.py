"""Predictions of a long run, kept in a temporary file so that memory does not grow with them. Knows
no model and no collection.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

from penult.errors import StoreError
from penult.teaching.events import Window
from penult.teaching.predictions import ClassPrediction

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
