"""The first items of a source, opened once: for the proof of the head and the choice of an engine.

Knows how items are opened and prepared; the proof is `inspect`'s, the measurement the engines'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from penult.data.decode import Decoding, usual_decoding
from penult.data.items import Failure
from penult.data.sources import Source
from penult.data.windows import Layout
from penult.data.workers import headers_in_workers
from penult.embedding.runner import Runner
from penult.embedding.scheduling import PreparedRegion
from penult.memory import free_memory

BEGINNING = 2.0  # seconds of a recording on which the head is proved
LONGEST_BEGINNING = 30.0  # of one that is cut into patches, of which a pass has one
BRIEF = 32  # items, for which no model is opened where an earlier run's graph is kept
ENTRIES = 16  # of the source, from which the sample is taken


@dataclass(frozen=True, slots=True)
class SourceSample:
    """The first items of a source that can be iterated again, prepared when they are needed.

    layout, decoding: how the run divides and opens its items.
    """

    source: Source
    layout: Layout = field(default_factory=Layout)
    decoding: Decoding = field(default_factory=usual_decoding)
    _whole: dict[tuple[str, str], PreparedRegion] = field(default_factory=dict)  # by id and region

    @property
    def total(self) -> int | None:
        """Regions of the whole run; None where items are cut into several, or are not counted."""
        return self.source.count() if self.layout == Layout() else None

    @property
    def memory(self) -> int:
        """Bytes that work beside the run may take: all that is free where no bound was given."""
        limits = self.decoding.limits
        return free_memory() if limits.memory is None else limits.bound.size

    @property
    def names(self) -> list[tuple[str, int | None, int | None]]:
        """Ids, sizes and times of the first items, which a proof may be made on."""
        entries = islice(self.source, ENTRIES)
        return [
            (one[0].id, one[0].size, one[0].mtime_ns) for one in entries if isinstance(one, tuple)
        ]

    @property
    def is_brief(self) -> bool:
        """Whether the source has no more than a few items; not known of one that is read once."""
        return not self.source.once and len(list(islice(self.source, BRIEF + 1))) <= BRIEF

    def beginnings(self, runner: Runner, count: int = 2) -> list[PreparedRegion]:
        """The first `count` items that can be opened; of a recording no more than two seconds: a
        proof keeps all of a pass in memory, and holds for every length. Of patches the first of
        each item, and further ones of the same item where there are too few."""
        found: list[PreparedRegion] = []
        further: list[PreparedRegion] = []
        classifier = runner.classifier
        rate, patches = classifier.rate or 0, classifier.input.patches
        seconds = BEGINNING if patches is None else LONGEST_BEGINNING
        brief = replace(self.decoding.briefly, first_seconds=seconds)
        entries = (
            entry for entry in islice(self.source, ENTRIES) if not isinstance(entry, Failure)
        )
        with closing(runner.prepare(entries, brief)) as prepared:
            for ready in prepared:
                if not isinstance(ready, PreparedRegion):
                    continue
                if ready.patch > 0:
                    further += [ready] if len(further) < count else []
                    continue
                found.append(ready)
                whole = classifier.modality != "audio" or ready.samples < BEGINNING * rate
                if whole and patches is None:
                    self._whole[ready.item.id, ready.region.key] = ready
                if len(found) == count:
                    break
        return [*found, *further][:count]

    def regions(self, runner: Runner, count: int, batches: int) -> list[PreparedRegion]:
        """At most `count` prepared regions of the run, spread over its first items. Fewer where
        they are more than so many batches."""
        entries = islice(self.source, max(count, ENTRIES))
        first = [entry for entry in entries if not isinstance(entry, Failure)]
        describe = headers_in_workers(self.decoding.briefly)
        divided = self.layout.of(first, runner.classifier.input, describe)
        regions = [entry for entry in divided if isinstance(entry, tuple)]
        found: list[PreparedRegion] = []
        size, enough = 0, batches * runner.budget
        for ready in self._prepared(runner, regions[:: max(1, len(regions) // count)]):
            found.append(ready)
            size += ready.size
            if len(found) == count or size > enough:
                break
        return found

    def _prepared(self, runner: Runner, regions: Sequence[Any]) -> Iterator[PreparedRegion]:
        """Those that are there already first."""
        known = [(item.id, region.key) for item, region in regions]
        yield from (self._whole[key] for key in known if key in self._whole)
        fresh = [pair for pair, key in zip(regions, known, strict=True) if key not in self._whole]
        with closing(runner.prepare(fresh, self.decoding.briefly)) as prepared:
            yield from (ready for ready in prepared if isinstance(ready, PreparedRegion))
