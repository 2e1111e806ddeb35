"""How near a converted embedder is to torch: the same items, alone and in one batch.

Knows outputs by name; no format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.conversion.base import CLASSES, LOGITS, VECTOR, ConversionRequest, Trial
from penult.data.decode import usual_decoding
from penult.data.items import Failure
from penult.data.sources import Source, from_objects
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder, native_runner
from penult.embedding.runner import Outcome
from penult.embedding.stations import decoded_values
from penult.engines.base import EXACT, PRECISIONS
from penult.engines.parity import cosine, relative_error
from penult.errors import ItemError
from penult.models.synthetic import content_of

ITEMS = 8
LONGEST = 10.0  # seconds of a recording that are run
_SIZES = (1.0, 0.313, 0.787, 0.471, 1.7)  # of made-up items, relative to a second or eight words
_VECTORS, _CLASSES = 1e-4, 1e-4  # by which vectors, relative, and probabilities may differ
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ConversionParity:
    """The worst of all items against torch in fp32. own: whether these are the user's items.
    cosine: of the vectors. vector, logits: the largest difference, relative to the largest value.
    batching: the same between an item alone and in a batch, in the conversion itself. classes: of
    probabilities."""

    items: int
    own: bool
    cosine: float
    vector: float
    logits: float | None = None
    batching: float = 0.0
    classes: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it is as near as precision `exact` promises."""
        exact = PRECISIONS[EXACT]
        return (
            self.cosine >= exact.cosine
            and self.vector <= _VECTORS  # a cosine does not see a length
            and (self.logits or 0.0) <= exact.logits
            and self.batching <= exact.batching
            and (self.classes or 0.0) <= _CLASSES
        )

    @property
    def words(self) -> str:
        """In a line."""
        parts = [
            f"cosine ≥ {np.floor(self.cosine * 1e7) / 1e7:.7f} to torch",
            f"vectors within {self.vector:.1e}",
        ]
        if self.logits is not None:
            parts.append(f"logits within {self.logits:.1e}")
        if self.classes is not None:
            parts.append(f"probabilities within {self.classes:.1e}")
        parts.append(f"alone and in a batch within {self.batching:.1e}")
        whose = "of your items" if self.own else "made-up items"
        return f"{', '.join(parts)}, on {self.items} {whose}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "ok": self.ok}


def measure(request: ConversionRequest, trial: Trial) -> ConversionParity:
    """Run the same items in the conversion and in torch.

    Raises:
        ItemError: no item can be run.
    """
    contents, expected = _reference(request)
    alone = [_rows(trial.run([one]))[0] for one in contents]
    again = list(alone)
    places = range(len(contents))
    if trial.mixed:
        again = _rows(trial.run(contents))
    else:  # the same item twice is a batch of equal lengths
        again = [_rows(trial.run([contents[at], contents[at]]))[1] for at in places]
    pairs = [(found, expected[at]) for rows in (alone, again) for at, found in enumerate(rows)]
    return ConversionParity(
        items=len(contents),
        own=request.source is not None,
        cosine=min(_cosine(found[VECTOR], want[VECTOR]) for found, want in pairs),
        vector=_worst(pairs, VECTOR) or 0.0,
        logits=_worst(pairs, LOGITS),
        batching=max(
            relative_error([one[name] for name in one], [other[name] for name in one])
            for one, other in zip(
                map(_cut_to_own, again, expected), map(_cut_to_own, alone, expected), strict=True
            )
        ),
        classes=max(
            (float(np.abs(f[CLASSES] - w[CLASSES]).max()) for f, w in pairs if CLASSES in f),
            default=None,
        ),
    )


def _cosine(found: FloatArray, expected: FloatArray) -> float:
    """Of two vectors whatever their length; 1 where both are zero."""
    largest = float(np.abs(expected).max(initial=0.0))
    if largest == 0.0:
        return float(not found.any())
    return cosine(found / np.float32(largest), expected / np.float32(largest))


def _worst(pairs: Sequence[Any], name: str) -> float | None:
    found = [
        relative_error([_cut_to_own(one, want)[name]], [want[name]])
        for one, want in pairs
        if name in one
    ]
    return max(found, default=None)


def _cut_to_own(found: dict[str, FloatArray], want: Mapping[str, FloatArray]) -> Any:
    """Of logits for each frame those of the item's own frames, which come first."""
    if LOGITS not in found or found[LOGITS].ndim < 2:
        return found
    return {**found, LOGITS: found[LOGITS][: len(want[LOGITS])]}


def _rows(outputs: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, FloatArray]]:
    """The outputs of each item of a batch."""
    count = len(outputs[VECTOR])
    return [{name: np.asarray(outputs[name][at]) for name in outputs} for at in range(count)]


def _reference(request: ConversionRequest) -> tuple[list[Any], list[dict[str, FloatArray]]]:
    """The decoded contents that torch runs, and its values for each."""
    embedder, classes = request.embedder, request.classes
    contents = _contents(embedder, request.source)
    runner = native_runner(embedder)
    pairs = from_objects(list(contents), embedder.classifier.modality)
    layout = Layout()
    taken, rows, reason = [], [], "there is none"
    with closing(runner.stream(layout.of(pairs, embedder.classifier.input), alone=True)) as found:
        for content, outcome in zip(contents, found, strict=True):
            if not isinstance(outcome, Outcome):
                reason = outcome.message
                continue
            raw = outcome.vector
            row = {VECTOR: raw, LOGITS: outcome.logits}
            if embedder.space is not None:
                row[VECTOR] = embedder.space(raw)
            if classes is not None:
                row[CLASSES] = classes.judge(raw[None]).probability[0].astype(np.float32)
            taken.append(content)
            rows.append(row)
    if not rows:
        raise ItemError(f"no item to measure the conversion on: {reason}")
    return taken, rows


def _contents(embedder: Embedder, source: Source | None) -> list[Any]:
    """Decoded items: the user's first ones, of recordings the first seconds; else made-up ones."""
    classifier = embedder.classifier
    one = classifier.input
    if source is None:
        made = enumerate(_SIZES)
        return [content_of(one.modality, seed, one.rate, one.frames, size) for seed, size in made]
    decoding = usual_decoding().briefly
    entries = (entry for entry in source if not isinstance(entry, Failure))
    regions = Layout().of(entries, classifier.input)
    pairs = islice((one for one in regions if isinstance(one, tuple)), ITEMS)
    target = native_runner(embedder).target(decoding)
    contents: list[Any] = []
    for pair in pairs:
        with suppress(ItemError):  # others are enough
            values = decoded_values(pair, target)
            if one.modality == "audio":
                # Each of another length, so that a batch has to be padded.
                seconds = LONGEST * (1 - len(contents) / (2 * ITEMS))
                values = values[: round(seconds * (one.rate or 1))]
            contents.append(values)
    return contents
