"""What a class space says of one region, as the prediction that classifiers give too. Knows no
store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penult.classifiers.base import MULTI_LABEL, SINGLE_LABEL, Prediction
from penult.teaching.events import Window
from penult.teaching.taught import Taught


@dataclass(frozen=True, slots=True)
class Near:
    """An example near an item: what it is, its marks, and the cosine in the class space."""

    id: str
    region: str
    marks: dict[str, str]
    similarity: float


@dataclass(frozen=True, slots=True)
class Place:
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
    taught: Taught,
    vectors: npt.NDArray[np.float32],
    places: Sequence[Place],
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
