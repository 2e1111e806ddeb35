"""`check`: every promise of an embedder, measured on the user's own items.

Knows an embedder and how to run it; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.data.items import Failure
from penult.embedding.embedder import Embedder, native_runner
from penult.embedding.fingerprint import distance_of
from penult.embedding.runner import Outcome, Runner
from penult.embedding.scheduling import PreparedRegion
from penult.engines.base import PRECISIONS
from penult.engines.batch_policy import axes_of
from penult.engines.batching import ALONE, Batch, BatchPolicy, collate
from penult.engines.parity import Parity, cosine, relative_error
from penult.engines.parity import compare as parity
from penult.errors import EmptyItem
from penult.models.patches import MAX, MEAN
from penult.tracing.certificate import TOLERANCE, Certificate

Stored = Callable[[str, str], "npt.NDArray[np.float32] | None"]
PLAIN, STORED = "plain padding", "stored rows"  # what the items alone are compared with as well
ITEMS = 16  # as many are run; each some six times
PATCHES = 8  # of an item


@dataclass(frozen=True, slots=True)
class Measure:
    """One comparison over all items: the largest absolute and relative difference of vectors and
    logits, and the smallest cosine between two vectors of one item."""

    max_abs: float
    relative: float
    cosine: float
    allowed: float = TOLERANCE

    @property
    def ok(self) -> bool:
        """Whether the padding law allows it, in the numbers that the engine multiplies in."""
        return self.relative <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        figures = {"max_abs": self.max_abs, "relative": self.relative, "cosine": self.cosine}
        return {**figures, "ok": self.ok}


@dataclass(slots=True)
class Report:
    """What was measured. batched: alone against together. order: together against together in
    the other order. drift: alone against alone again. against: alone against the usual padding,
    zeros behind the shorter ones and the mean over all positions, where an item is padded; and
    against the rows of a collection, where it has some of them. proved_on: the items of the
    certificate. parity: against torch in fp32, where another engine or precision runs the items."""

    policy: BatchPolicy
    certificate: Certificate
    proved_on: Sequence[str] = ()
    items: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    drift: Measure | None = None
    batched: Measure | None = None
    order: Measure | None = None
    against: dict[str, Measure] = field(default_factory=dict)
    engine: str = ""
    parity: Parity | None = None
    _apart: str = ""  # why the parity is too little

    @property
    def broken(self) -> list[str]:
        """Each promise that does not hold."""
        broken = [
            f"{promise}: off by {measure.relative:.1e}, and {measure.allowed:.0e} is allowed"
            for promise, measure in (
                ("the same item twice", self.drift),
                ("alone against in a batch", self.batched),
                ("in another order", self.order),
                ("as the collection has it", self.against.get(STORED)),
            )
            if measure is not None and not measure.ok
        ]
        if self._apart:
            broken.append(f"as in torch: {self._apart}")
        if not self.certificate.ok:
            broken.append(f"the head is not proved: {self.certificate.refusal}")
        return broken

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""

        def figures(measure: Measure | None) -> dict[str, Any] | None:
            return measure.to_dict() if measure else None

        return {
            "items": self.items,
            "law": self.policy.to_dict(),
            "engine": self.engine,
            "parity": self.parity.to_dict() if self.parity else None,
            "batches": self.batches,
            "shared_batches": shares_batches(self),
            "drift": figures(self.drift),
            "batched": figures(self.batched),
            "order": figures(self.order),
            "plain_padding": figures(self.against.get(PLAIN)),
            "stored": figures(self.against.get(STORED)),
            "certificate": self.certificate.to_dict(),
            "proved_on": list(self.proved_on),
            "broken": self.broken,
            "failures": [failure.to_dict() for failure in self.failures],
        }


def check(
    embedder: Embedder,
    pairs: Iterable[Any],
    certificate: Certificate,
    proved_on: Sequence[str] = (),
    stored: Stored = lambda id, region: None,
) -> Report:
    """Run the first items alone, again, together and in the other order, and compare.

    pairs: (item, region), of which the first 16 are taken; of one that is cut into patches the
    first 8, each of which is compared by itself. certificate: of the head, proved on these items.
    stored: the vector (d,) that a collection has of an id and a region.

    Raises:
        EmptyItem: none of the items could be opened.
    """
    report = Report(embedder.runner.policy, certificate, proved_on)
    report.engine = embedder.runner.mode.words
    bar = embedder.runner.mode.batch_error(embedder.precision)
    ready: list[PreparedRegion] = []
    regions = 0
    for prepared in embedder.runner.prepare(pairs):
        if isinstance(prepared, Failure):
            report.failures.append(prepared)
        elif isinstance(prepared, PreparedRegion):
            regions += prepared.patch == 0
            if regions > ITEMS:
                break
            ready += [prepared] if prepared.patch < PATCHES else []
        if regions == ITEMS and embedder.classifier.input.patches is None:
            break
    if not ready:
        raise EmptyItem("none of these items could be opened, so there is nothing to check")
    report.items = [one.item.id for one in ready if one.patch == 0]
    runner = embedder.runner
    singles = [[number] for number in range(len(ready))]
    alone = _run(runner, ready, singles)
    native = native_runner(embedder)
    if runner.mode.words != native.mode.words:  # measured on these items, whatever the run noted
        report.parity = parity(alone, _run(native, ready, singles))
        if not report.parity.holds(PRECISIONS[embedder.precision]):
            report._apart = f"{report.parity.words}, and {embedder.precision} asks for more"
    report.drift = compare(_run(runner, ready, singles), alone, bar)
    groups = _groups(report.policy, ready, 4 * runner.budget)
    report.batches = [len(group) for group in groups]
    together = _run(runner, ready, groups)
    report.batched = compare(together, alone, bar)
    backwards = [group[::-1] for group in groups[::-1]]
    report.order = compare(_run(runner, ready, backwards), together, bar)
    others = {
        PLAIN: _plain(runner, ready, alone),
        STORED: _as_stored(runner, ready, alone, stored, embedder.precision),
    }
    report.against = {name: measure for name, measure in others.items() if measure is not None}
    return report


def shares_batches(report: Report) -> bool:
    """Whether any two of the items ran in one batch: else alone is all that was measured."""
    return any(size > 1 for size in report.batches)


def _as_stored(
    runner: Runner,
    ready: Sequence[PreparedRegion],
    alone: Sequence[Values],
    stored: Stored,
    precision: str,
) -> Measure | None:
    """Each item's vector against its row, of those that have one. Where a row pools the patches of
    an item, all of them are run."""
    if runner.classifier.input.patches in (MEAN, MAX):
        ready = [one for one in ready if one.patch == 0]
        rows = [stored(one.item.id, one.region.key) for one in ready]
        pairs = ((r.item, r.region) for r, row in zip(ready, rows, strict=True) if row is not None)
        with closing(runner.stream(pairs, alone=True)) as outcomes:
            kept_rows = [(o, stored(o.item.id, o.region.key)) for o in outcomes
                         if isinstance(o, Outcome)]  # fmt: skip
        found = [[outcome.vector.ravel()] for outcome, _ in kept_rows]
        expected = [[row] for _, row in kept_rows if row is not None]
        allowed = distance_of(PRECISIONS[precision].cosine)
        return compare(found, expected, allowed) if found else None
    rows = [stored(one.item.id, one.region.key) for one in ready]
    kept = [number for number, row in enumerate(rows) if row is not None]
    if not kept:
        return None
    found = [[np.concatenate([part.ravel() for part in alone[n][1:]])] for n in kept]
    expected = [[row] for row in rows if row is not None]
    return compare(found, expected, distance_of(PRECISIONS[precision].cosine))


Values = list[npt.NDArray[np.float32]]  # one item's logits and its vectors


def compare(
    found: Sequence[Values], expected: Sequence[Values], allowed: float = TOLERANCE
) -> Measure:
    """The largest difference between two runs over the same items."""
    pairs = list(zip(found, expected, strict=True))
    return Measure(
        max_abs=max(_max_abs(a, b) for a, b in pairs),
        relative=max(relative_error(a, b) for a, b in pairs),
        cosine=min(cosine(a[-1], b[-1]) for a, b in pairs),
        allowed=allowed,
    )


def _max_abs(one: Values, other: Values) -> float:
    if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    return max(float(np.abs(a - b).max(initial=0)) for a, b in zip(one, other, strict=True))


def _groups(policy: BatchPolicy, ready: Sequence[PreparedRegion], most: int) -> list[list[int]]:
    """Batches of all items of one kind, however different their lengths: the hardest case.

    most: numbers in the padded inputs of a batch.
    """
    groups: dict[Any, list[list[int]]] = {}
    for number, one in enumerate(ready):
        item = one.inputs.tensors
        size = max(value.numel() for value in item.values())
        kind = number if policy.name == ALONE else policy.kind(item)
        batches = groups.setdefault(kind, [[]])
        if batches[-1] and (len(batches[-1]) + 1) * size > most:
            batches.append([])
        batches[-1].append(number)
    return [batch for batches in groups.values() for batch in batches]


def _run(
    runner: Runner, ready: Sequence[PreparedRegion], groups: Sequence[Sequence[int]]
) -> list[Values]:
    """Each item's values, run in these batches as any run would."""
    rows: dict[int, Values] = {}
    for group in groups:
        readout = runner.engine(runner.batch([ready[i] for i in group]))
        rows |= {index: readout.row(row) for row, index in enumerate(group)}
    return [rows[index] for index in range(len(ready))]


def _plain(
    runner: Runner, ready: Sequence[PreparedRegion], alone: Sequence[Values]
) -> Measure | None:
    """What a batch padded with zeros and without a mask would have given."""
    tensors = [one.inputs.tensors for one in ready]
    axes = axes_of(tensors)
    if not axes:
        return None
    bare = [{n: v for n, v in item.items() if not n.endswith("mask")} for item in tensors]
    padded = collate(bare, {n: a for n, a in axes.items() if n in bare[0]}, {})
    try:
        readout = runner.engine(Batch(padded))
    except Exception:  # the model needs its mask, so that nobody can leave it out
        return None
    rows = [readout.row(row) for row in range(len(tensors))]
    found = compare(rows, alone)
    return found if np.isfinite(found.max_abs) else None  # other shapes: logits of each frame
