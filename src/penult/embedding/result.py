"""What a run gives: an embedder's rows in the order of the items, a classifier's predictions, and
what failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from penult.classifiers.base import Classifier, Prediction, predict
from penult.embedding.runner import Outcome, Runner, device_of
from penult.engines.base import FloatArray
from penult.errors import ItemError
from penult.regions import Region
from penult.sources import Failure, from_objects


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave, in the order of the items.

    vectors: (n, d) float32. logits: (n, K). labels: the n predicted labels. item_index: for each
    row, the item's place in the input. failures: the items that gave no row.
    """

    vectors: FloatArray
    logits: FloatArray
    labels: list[str]
    ids: list[str]
    regions: list[Region]
    item_index: npt.NDArray[np.int64]
    failures: list[Failure]


def gathered(
    outcomes: Iterable[Outcome | Failure | int | Any],
    labels: Sequence[str],
    on_error: Literal["raise", "skip"],
) -> Result:
    """All outcomes as one result. An int among them is the number of the item that follows.

    Raises:
        ItemError: an item failed, and `on_error` is `raise`.
    """
    rows: list[Outcome] = []
    failures: list[Failure] = []
    index: list[int] = []
    number = -1
    for outcome in outcomes:
        if isinstance(outcome, Outcome):
            rows.append(outcome)
            index.append(number)
        elif isinstance(outcome, Failure):
            if on_error == "raise":
                raise ItemError(outcome.words())
            failures.append(outcome)
        else:
            number = outcome
    given = [row.class_logits for row in rows if row.logits.size]
    logits = np.array(given, np.float32).reshape(-1, len(labels))
    return Result(
        vectors=np.array([row.vector for row in rows], np.float32),
        logits=logits,
        labels=[labels[i] for i in logits.argmax(axis=1)],
        ids=[row.item.id for row in rows],
        regions=[row.region for row in rows],
        item_index=np.array(index, np.int64),
        failures=failures,
    )


def prediction_of(classifier: Classifier, outcome: Outcome) -> Prediction:
    """A region's logits as a Prediction."""
    return predict(
        classifier.kind, classifier.labels, outcome.logits, outcome.item.id, outcome.region.key
    )


def predictions_of(
    classifier: Classifier, items: Any, on_error: str, device: str
) -> list[Prediction]:
    """See `Classifier.classify`."""
    runner = Runner(classifier, [], device_of(classifier, device))
    predictions = []
    for outcome in runner.stream(from_objects(items, classifier.modality)):
        if isinstance(outcome, Outcome):
            predictions.append(prediction_of(classifier, outcome))
        elif on_error == "raise":
            raise ItemError(outcome.words())
    return predictions


def answering(classifier: Classifier) -> Classifier:
    """The classifier, so that its `classify` runs it."""
    classifier._answer = predictions_of
    return classifier
