"""The layout of a collection's rows: windows, tiles, pages and channels, so that files are read as
its rows were. Knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from penult.collection import schema
from penult.collection.reader import Reader
from penult.data.decode import Describe
from penult.data.items import Entry
from penult.data.regions import PATCH
from penult.data.sources import by_channel
from penult.data.windows import ItemInput, Layout, TextDivider
from penult.data.workers import headers

WHOLE_ITEMS = Layout()
_BATCH = 8192
MIX = "mix"  # the mean over all channels


@dataclass(frozen=True, slots=True)
class FileInput:
    """What files are divided by into tiles, pages and channels: no model is needed for these."""

    modality: str
    rate: int | None = None
    divide: TextDivider | None = None


@dataclass(frozen=True, slots=True)
class RowLayout:
    """layout: windows, tiles or pages. channel: of recordings, the number of one, or `each`; None
    is the mean over all."""

    layout: Layout = WHOLE_ITEMS
    channel: int | Literal["each"] | None = None

    def __bool__(self) -> bool:
        return self != RowLayout()

    def chosen(self, channel: int | str | None, layout: Layout | None) -> RowLayout:
        """The same with another channel (`mix` is the mean over all) or layout; None changes
        nothing."""
        changed = self
        if channel is not None:
            changed = replace(changed, channel=None if channel == MIX else channel)  # type: ignore[arg-type]
        return changed if layout is None else replace(changed, layout=layout)

    def has(self, channel: int | None) -> bool:
        """Whether its rows are of this channel."""
        return channel is not None if self.channel == "each" else channel == self.channel

    @property
    def kind(self) -> str:
        """The kind of its rows."""
        return made_kind(self.layout) or "whole"

    def entries(
        self, pairs: Iterable[Entry], input: ItemInput, describe: Describe = headers
    ) -> Iterator[Entry]:
        """The pairs with each whole item and each segment as rows of the collection would be;
        regions that have a channel keep it."""
        placed = by_channel(((0, pair) for pair in pairs), self.channel, describe)
        return self.layout.of((entry for _, entry in placed), input, describe)

    def words(self, modality: str) -> str:
        """`windows of 5 s every 2.5 s, each channel by itself`; empty where items are whole, and
        channels are mixed."""
        found = [self.layout.words(modality)] if self.layout != WHOLE_ITEMS else []
        if self.channel == "each":
            found.append("each channel by itself")
        elif self.channel is not None:
            found.append(f"channel {self.channel}")
        return ", ".join(found)


_KNOWN: WeakKeyDictionary[Reader, tuple[int, RowLayout]] = WeakKeyDictionary()


def row_layout(reader: Reader) -> RowLayout:
    """How most rows of a collection were made: what its runs say, and the rows' own channels. Known
    again for the same version of the rows."""
    table = None if reader.manifest is None else reader.latest_rows()[1]
    if table is None:
        return RowLayout()
    version, known = int(table.version), _KNOWN.get(reader)
    if known is None or known[0] != version:
        known = _KNOWN[reader] = version, _count_layouts(reader)
    return known[1]


def _count_layouts(reader: Reader) -> RowLayout:
    counts: dict[str, Counter[Any]] = {name: Counter() for name in ("kind", "channel", "run_id")}
    for batch in reader.scan(list(counts), "kind != 'summary'", batch_size=_BATCH):
        for name, counter in counts.items():
            for one in batch.column(name).value_counts().to_pylist():
                counter[one["values"]] += one["counts"]
    if not counts["kind"]:
        return RowLayout()
    kind = counts["kind"].most_common(1)[0][0]
    rows: Counter[Layout] = Counter()
    each: set[bool] = set()
    for run in reader.side_table("runs").to_pylist():
        if number := counts["run_id"][run["run_id"]]:
            info = schema.run_info(reader.path, run["info"])
            layout = Layout(info.window, info.hop, info.tile, info.overlap, info.pages)
            if kind in (PATCH, made_kind(layout)):  # patches may be of windows, too
                rows[layout] += number
            if info.channel is not None:
                each.add(info.channel == "each")
    layout = rows.most_common(1)[0][0] if rows else WHOLE_ITEMS
    return RowLayout(layout, _channel_of(counts["channel"], each))


def made_kind(layout: Layout) -> str | None:
    """The kind of rows that a layout makes."""
    if layout.window is not None:
        return "window"
    if layout.tile is not None:
        return "box"
    return None if layout.pages is None else "page"


def _channel_of(rows: Counter[int | None], each: set[bool]) -> int | Literal["each"] | None:
    """rows: how many there are of each channel. each: whether runs took each channel, or one, as
    far as they say so."""
    mixed = rows.pop(None, 0)
    if mixed >= rows.total():
        return None
    if len(rows) == 1 and True not in each:
        return next(iter(rows))
    return "each"
