"""The rows nearest to a query: raw, by the store's own search, or in a space, through which each
row is streamed. Knows a table and its folder, no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.ingesting import rows
from penult.space import Space
from penult.store import indexing, scanning, tables
from penult.uses import search
from penult.uses.search import Hits

_BATCH = 4096
_MORE = 16  # rows asked for beyond k, so that a tie at the k-th is seen
FloatArray = npt.NDArray[np.float32]
_BEST = pa.schema(
    {
        **dict.fromkeys(rows.KEY, pa.string()),
        "place": pa.uint64(),
        search.DISTANCE: pa.float32(),
    }
)


def raw(
    path: Path, table: Any, query: FloatArray, k: int, where: str | None, metric: str, fast: bool
) -> Hits:
    """The k nearest rows by their stored vectors; `fast` asks the index."""
    names = [*rows.scalar_columns(table.schema), search.DISTANCE]
    asked, matching, probes = k + _MORE, 0, 0
    if fast:
        with tables.asking(path, where, table.schema.names):
            count = matching = int(table.count_rows())
            if where is not None:
                matching = int(table.count_rows(where))
        probes = indexing.probes(count, matching)
    while True:
        with tables.asking(path, where, table.schema.names):
            builder = table.search(query, vector_column_name="vector").distance_type(metric)
            if where is not None:
                builder = builder.where(where, prefilter=True)
            builder = indexing.asked(builder, probes)
            found = builder.select(names).limit(asked).to_arrow()
        if probes and len(found) < min(asked, matching):  # too few rows in those lists
            probes = 0
        elif not search.is_cut_in_a_tie(found[search.DISTANCE].to_numpy(), k, asked):
            return search.hits(found, k, metric, search.INDEX if probes else search.ALL_ROWS)
        else:
            asked *= 4


def in_space(
    path: Path, table: Any, query: FloatArray, k: int, where: str | None, metric: str, space: Space
) -> Hits:
    """The k nearest rows in a space, exactly: every matching row goes through it.

    query: (d',), already in the space.
    """
    best = _BEST.empty_table()
    for batch in scanning.stream(path, table, [*rows.KEY, "vector"], where, _BATCH, True):
        distance = search.distances(query, space(rows.matrix(batch.column("vector"))), metric)
        columns = [*(batch.column(name) for name in rows.KEY), batch.column(scanning.ROW)]
        part = pa.table([*columns, pa.array(distance)], schema=_BEST)
        best = _nearest(pa.concat_tables([best, part.filter(pa.array(np.isfinite(distance)))]), k)
    places = best["place"].to_numpy()
    names = rows.scalar_columns(table.schema)
    found = pa.Table.from_batches(
        scanning.taken(path, table, names, places) if len(places) else [],
        pa.schema([table.schema.field(name) for name in names]),
    )
    return search.hits(found.append_column(search.DISTANCE, best[search.DISTANCE]), k, metric)


def _nearest(found: pa.Table, k: int) -> pa.Table:
    order = [(search.DISTANCE, "ascending"), *((name, "ascending") for name in rows.KEY)]
    return found.sort_by(order)[:k]
