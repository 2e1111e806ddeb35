"""What an ingest hands on to be committed: rows, failures, what changed and what was revised.

Knows rows and what a runner gives; no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from penult.classifiers.base import REGRESSION, Classifier, predict
from penult.embedding.runner import Outcome
from penult.ingesting.rows import Known
from penult.regions import Region
from penult.sources import Failure, Item

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a store knows: rows by (id, region), their metadata, and failures."""

    rows: Mapping[Key, Known] = field(default_factory=dict)
    metadata: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[Key, Failure] = field(default_factory=dict)


@dataclass(slots=True)
class Step:
    """What is to be committed next.

    changed: ids whose content is another now, with its hash: their old rows go before the new
    ones come. revised: regions whose content is unchanged, with what else is new of them.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    revised: dict[Key, dict[str, Any]] = field(default_factory=dict)
    skipped: int = 0
    truncated: int = 0
    seconds: float = 0.0  # of audio or video in the new rows

    def batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """The rows as one record batch of the collection's schema."""
        return pa.RecordBatch.from_arrays(
            [_column([row.get(name) for row in self.rows], schema.field(name).type)
             for name in schema.names],
            schema=schema,
        )  # fmt: skip


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = np.concatenate(values).astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)


def row_of(classifier: Classifier, outcome: Outcome, content: str, logits: str) -> dict[str, Any]:
    """A region's row. content: its item's hash. logits: `all`, `top:K` or `none` of them."""
    values = outcome.class_logits
    prediction = predict(classifier.kind, classifier.labels, values)
    row: dict[str, Any] = {
        "id": outcome.item.id,
        "region": outcome.region.key,
        "kind": outcome.region.kind,
        "channel": outcome.region.channel,
        "start": outcome.start,
        "end": outcome.end,
        "vector": outcome.vector,
        "label": None if classifier.kind == REGRESSION else prediction.label,
        "score": prediction.score,
        "truncated": outcome.truncated,
        "content_hash": content,
        "size": outcome.item.size,
        "mtime_ns": outcome.item.mtime_ns,
        **outcome.item.metadata,
    }
    if logits == "all":
        row["logits"] = values
    elif logits != "none":
        best = np.argsort(-values, kind="stable")[: int(logits.partition(":")[2])]
        row["logits"] = [{"index": int(i), "logit": float(values[i])} for i in best]
    return row


class Summing:
    """The summary of one item's windows, or of one channel's: their mean, each weighted by the
    seconds that no earlier window covered, or their maximum, number by number."""

    def __init__(self, how: str, item: Item, channel: int | None) -> None:
        self.how, self.item, self.channel = how, item, channel
        self._sums: list[Any] = []
        self._weight = 0.0
        self._start: float | None = None
        self._end: float | None = None

    def add(self, outcome: Outcome) -> None:
        """One more window, in the order of their starts."""
        weight = 1.0
        if outcome.start is not None and outcome.end is not None:
            covered = outcome.start if self._end is None else max(self._end, outcome.start)
            weight = max(0.0, outcome.end - covered)
            self._start = outcome.start if self._start is None else self._start
            self._end = max(self._end or 0.0, outcome.end)
        values = [np.asarray(v, np.float64) for v in (*outcome.vectors, outcome.class_logits)]
        if self.how == "max":
            self._sums = [
                np.maximum(*two) for two in zip(self._sums or values, values, strict=True)
            ]
            return
        weighted = [weight * value for value in values]
        before = self._sums or [np.zeros_like(value) for value in values]
        self._sums = [a + b for a, b in zip(before, weighted, strict=True)]
        self._weight += weight

    def outcome(self) -> Outcome | None:
        """The summary; None if no window could be embedded."""
        if not self._sums:
            return None
        share = 1.0 if self.how == "max" else max(self._weight, 1e-12)
        *vectors, logits = [(value / share).astype(np.float32) for value in self._sums]
        region = Region("summary", channel=self.channel)
        return Outcome(self.item, region, tuple(vectors), logits, self._start, self._end)
