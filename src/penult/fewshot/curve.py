"""Precision and recall of a class by the least probability, on marks that were held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from penult.errors import LabelsError
from penult.fewshot.fitted import FittedClasses
from penult.fewshot.scorers import OPEN, YES, Floats

WANTED = 0.9


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall (n,) of the predictions of a class that reach each of the thresholds
    (n,), which are probabilities in ascending order. yes, no: the held-out marks they are from."""

    name: str
    thresholds: Floats
    precision: Floats
    recall: Floats
    yes: int
    no: int

    def best(self, precision: float = WANTED) -> int | None:
        """The place of the threshold that finds most with at least this precision; None where no
        threshold reaches it.

        Raises:
            LabelsError: a precision outside of 0 to 1.
        """
        if not 0.0 < precision <= 1.0:
            raise LabelsError(f"a precision of {precision:g}: it lies between 0 and 1, as 0.9")
        enough = np.flatnonzero(self.precision >= precision)
        return int(enough[self.recall[enough].argmax()]) if len(enough) else None

    def point(self, place: int) -> dict[str, float]:
        """Threshold, precision and recall at a place."""
        return {
            "threshold": float(self.thresholds[place]),
            "precision": float(self.precision[place]),
            "recall": float(self.recall[place]),
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult classes --curve --json` prints it."""
        points = [self.point(place) for place in range(len(self.thresholds))]
        return {"class": self.name, "yes": self.yes, "no": self.no, "curve": points}


def precision_recall(fitted: FittedClasses, name: str) -> Curve:
    """The curve of a class. An example counts as predicted where the class has the highest
    probability of all (with several at once, where it is assigned).

    Raises:
        LabelsError: there is no such class, or no example of it, or none of anything else, could
            be held out.
    """
    if name not in fitted.names:
        raise LabelsError(f"there is no class {name!r}; there are {', '.join(fitted.names)}")
    place = fitted.names.index(name)
    shares, targets, assigned = fitted.held_out()
    known = ~np.isnan(shares[:, place]) & (targets[:, place] != OPEN)
    truth = targets[known, place] == YES
    yes, no = int(truth.sum()), int((~truth).sum())
    if not yes or not no:
        side = f"example of {name!r}" if not yes else "example of anything else"
        raise LabelsError(
            f"no {side} could be held out, so that nothing is known of precision; mark two "
            "items or more of each, yes and no"
        )
    share = np.where(assigned[known, place], shares[known, place], -1.0)
    thresholds = np.unique(share[share >= 0])
    predicted = share[None] >= thresholds[:, None]  # (n, marks)
    right = (predicted & truth).sum(axis=1)
    return Curve(name, thresholds, right / predicted.sum(axis=1), right / yes, yes, no)
