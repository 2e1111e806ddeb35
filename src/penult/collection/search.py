"""Nearest rows: from a query (vector, file or row) to ranked hits, by the index or over all
rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.analysis.space import Space
from penult.collection import columns, index, lance, schema
from penult.collection.row_layout import RowLayout, row_layout
from penult.collection.row_names import row_of_name
from penult.collection.schema import COLUMNS
from penult.data import text
from penult.data.files import user_path
from penult.data.regions import WHOLE, Region, span_of
from penult.data.tables import PATH
from penult.data.windows import Layout
from penult.data.workers import prepare_worker
from penult.errors import CollectionError, FingerprintMismatch, ItemError, UsageError
from penult.locking import Guard

if TYPE_CHECKING:
    from penult.collection.manifest import Manifest
    from penult.collection.reader import Reader
    from penult.embedding.embedder import Embedder


log = logging.getLogger(__name__)
METRICS = ("cosine", "dot", "l2")
Searched = Literal["index", "all rows"]
INDEX: Searched = "index"
ALL_ROWS: Searched = "all rows"
DISTANCE = "_distance"
QUERY = "_query"  # the number of the nearest of several queries
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """One region that a search found.

    `similarity` is higher for nearer regions: the cosine, the dot product, or minus the
    Euclidean distance. `start` and `end` are seconds; None is the item's beginning and end.
    `part`: of a query with several parts, such as windows or channels, the region of the nearest.
    """

    id: str
    region: str
    start: float | None
    end: float | None
    channel: int | None
    label: str | None
    score: float | None
    similarity: float
    metadata: dict[str, Any] = field(default_factory=dict)
    part: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult search --json` prints it."""
        return {
            "id": self.id,
            "region": self.region,
            "start": self.start,
            "end": self.end,
            "channel": self.channel,
            "similarity": self.similarity,
            "label": self.label,
            "score": self.score,
            "metadata": self.metadata,
            "part": self.part,
        }


class Hits(list[Hit]):
    """The regions that a search found, nearest first.

    searched: `index` if an approximate index was asked, `all rows` if every matching row was
    compared.
    """

    def __init__(self, hits: Iterable[Hit] = (), searched: Searched = ALL_ROWS) -> None:
        super().__init__(hits)
        self.searched: Searched = searched

    def __repr__(self) -> str:
        return f"Hits({super().__repr__()}, searched={self.searched!r})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult search --json` prints it."""
        return {"searched": self.searched, "hits": [hit.to_dict() for hit in self]}


def as_query(vector: npt.ArrayLike, dim: int, metric: str = "cosine") -> npt.NDArray[np.float32]:
    """The query as (dim,) float32; of length one for cosine, so that no scale overflows.

    Raises:
        CollectionError: wrong size, values that are not finite, a zero vector for cosine, or an
            unknown metric.
    """
    if metric not in METRICS:
        raise CollectionError(f"metric {metric!r} is not known; {', '.join(METRICS)} work")
    query = np.asarray(vector, dtype=np.float64)
    if query.shape != (dim,):
        raise CollectionError(
            f"the query has shape {query.shape}, the collection's vectors have ({dim},); "
            "embed the query with the collection's own embedder"
        )
    if not np.isfinite(query).all():
        raise CollectionError("the query has values that are not finite")
    if metric == "cosine":
        length = float(np.linalg.norm(query))
        if length == 0:
            raise CollectionError("the query is a zero vector, which has no direction to compare")
        query = query / length
    return query.astype(np.float32)


def distances(
    query: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], metric: str
) -> npt.NDArray[np.float32]:
    """How far each of the vectors (n, d) is from the query (d,), as the store measures it: one
    minus the cosine or the dot product, or the squared Euclidean distance. Infinite where a zero
    vector has no cosine."""
    asked, rows = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        far = np.square(rows - asked).sum(axis=1)
    elif metric == "dot":
        far = 1.0 - rows @ asked
    else:
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(asked)
        none = lengths == 0
        far = np.where(none, np.inf, 1.0 - rows @ asked / np.where(none, 1.0, lengths))
    rounded: npt.NDArray[np.float32] = far.astype(np.float32)
    return rounded


def nearest_query(
    queries: FloatArray, vectors: FloatArray, metric: str
) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Of each of the vectors (n, d), how far the nearest of the queries (m, d) is, and which one
    that is."""
    far, which = distances(queries[0], vectors, metric), np.zeros(len(vectors), np.intp)
    for number, query in enumerate(queries[1:], 1):
        other = distances(query, vectors, metric)
        nearer = other < far
        far[nearer], which[nearer] = other[nearer], number
    return far, which


def is_cut_in_a_tie(distances: npt.NDArray[np.float32], k: int, asked: int) -> bool:
    """Whether of `asked` nearest rows the k-th is as far as the last: more may be as near."""
    distances = np.sort(distances)
    return len(distances) == asked > k and bool(distances[k - 1] == distances[-1])


def hits(found: pa.Table, k: int, metric: str = "cosine", searched: Searched = ALL_ROWS) -> Hits:
    """The k nearest of the found rows, nearest first; ties in the order of (id, region). Of several
    annotations of one span the first, since the others are the same part of the same file."""
    rows = one_per_span(_sorted(found)).to_pylist()
    extra = [name for name in found.column_names if name not in COLUMNS and name != DISTANCE]
    own = ("id", "region", "start", "end", "channel", "label", "score")
    found_hits = (
        Hit(
            **{name: row[name] for name in own},
            similarity=_similarity(row[DISTANCE], metric),
            metadata={name: row[name] for name in extra},
        )
        for row in rows[:k]
    )
    return Hits(found_hits, searched)


def _similarity(distance: float, metric: str) -> float:
    if metric == "l2":  # LanceDB gives the square
        return -float(np.sqrt(max(distance, 0.0)))
    similarity = 1.0 - distance
    return min(max(similarity, -1.0), 1.0) if metric == "cosine" else similarity


_BATCH = 4096
_MORE = 16  # rows asked for beyond k, so that a tie at the k-th is seen
_CANDIDATES, _FOR_EACH = 1000, 50  # of a search in a space by the index: at least, and of each hit
_LIMIT = 2**31 - 1  # rows that LanceDB can be asked for
_BEST = pa.schema(
    {
        **dict.fromkeys(schema.KEY, pa.string()),
        "place": pa.uint64(),
        DISTANCE: pa.float32(),
        QUERY: pa.int64(),
    }
)


def raw(
    path: Path, table: Any, query: FloatArray, k: int, where: str | None, metric: str, fast: bool
) -> Hits:
    """The k nearest rows by their stored vectors; `fast` asks the index."""
    where = columns.resolved(path, table, where)
    names = [*schema.scalar_columns(table.schema), DISTANCE]
    asked, matching, probes = k + _MORE, 0, 0
    if fast:
        with lance.query_errors(path, where, table.schema.names):
            count = matching = int(table.count_rows())
            if where is not None:
                matching = int(table.count_rows(where))
        probes = index.probes(count, matching)
    while True:
        with lance.query_errors(path, where, table.schema.names):
            builder = table.search(query, vector_column_name="vector").distance_type(metric)
            if where is not None:
                builder = builder.where(where, prefilter=True)
            builder = index.asked(builder, probes)
            found = builder.select(names).limit(min(asked, _LIMIT)).to_arrow()
        if probes and len(found) < min(asked, matching):  # too few rows in those lists
            probes = 0
        elif not _is_cut(found, k, asked):
            return hits(found, k, metric, INDEX if probes else ALL_ROWS)
        else:
            asked *= 4


def in_space(
    path: Path,
    table: Any,
    queries: FloatArray,
    k: int,
    where: str | None,
    metric: str,
    space: Space,
) -> Hits:
    """The k rows nearest to any of the queries in a space, exactly: every matching row goes through
    it.

    queries: (m, d'), already in the space. The part of each hit is the number of its query.
    """
    where = columns.resolved(path, table, where)
    best = _BEST.empty_table()
    for batch in lance.stream_rows(path, table, [*schema.KEY, "vector"], where, _BATCH, True):
        moved = space(schema.matrix(batch.column("vector")))
        distance, which = nearest_query(queries, moved, metric)
        own = [*(batch.column(name) for name in schema.KEY), batch.column(lance.ROW)]
        part = pa.table([*own, pa.array(distance), pa.array(which)], schema=_BEST)
        best = _nearest(pa.concat_tables([best, part.filter(pa.array(np.isfinite(distance)))]), k)
    places = best["place"].to_numpy()
    names = schema.scalar_columns(table.schema)
    found = pa.Table.from_batches(
        lance.take_rows(path, table, names, places) if len(places) else [],
        pa.schema([table.schema.field(name) for name in names]),
    )
    near = hits(found.append_column(DISTANCE, best[DISTANCE]), k, metric)
    if len(queries) == 1:
        return near
    which_of = dict(zip(schema.keys(best), best[QUERY].to_pylist(), strict=True))
    numbered = (replace(hit, part=str(which_of[hit.id, hit.region])) for hit in near)
    return Hits(numbered, near.searched)


def nearest_of(found: Sequence[Hits], k: int) -> Hits:
    """The k nearest of the hits of several queries; each row once, with the number of its nearest
    query."""
    best: dict[schema.Key, Hit] = {}
    for number, near in enumerate(found):
        for hit in near:
            key = hit.id, hit.region
            if key not in best or hit.similarity > best[key].similarity:
                best[key] = replace(hit, part=str(number))
    ranked = sorted(best.values(), key=lambda hit: (-hit.similarity, hit.id, hit.region))
    return Hits(ranked[:k], found[0].searched)


def in_space_by_index(
    path: Path, table: Any, query: FloatArray, k: int, where: str | None, space: Space
) -> Hits | None:
    """The k nearest rows in a space by cosine, of the candidates that the index of raw vectors
    has: those near to the query itself, and in the direction that the space gives. None where it
    has too few of them.

    query: (d,), raw.
    """
    where = columns.resolved(path, table, where)
    names = [*schema.scalar_columns(table.schema), "vector"]
    point = as_query(space(query), space(query).size)
    with lance.query_errors(path, where, table.schema.names):
        count = matching = int(table.count_rows())
        if where is not None:
            matching = int(table.count_rows(where))
    asked, parts = min(max(_CANDIDATES, _FOR_EACH * k), _LIMIT), []
    for direction in (space.direction(point), query):
        if not direction.any():
            continue
        for probes in index.more_probes(count, matching):
            with lance.query_errors(path, where, table.schema.names):
                builder = table.search(direction, vector_column_name="vector")
                if where is not None:
                    builder = builder.where(where, prefilter=True)
                builder = builder.distance_type("cosine").nprobes(probes).limit(asked)
                part = builder.select([*names, DISTANCE]).to_arrow()
            if len(part) == min(asked, matching):
                break
        else:
            return None
        parts.append(part.select(names))
    found = pa.concat_tables(parts)
    first = {key: place for place, key in reversed([*enumerate(schema.keys(found))])}
    found = found.take(pa.array(sorted(first.values()), pa.int64()))
    distance = distances(point, space(schema.matrix(found["vector"])), "cosine")
    found = found.drop_columns(["vector"]).append_column(DISTANCE, pa.array(distance))
    near = hits(found.filter(pa.array(np.isfinite(distance))), k, searched=INDEX)
    return near if len(near) == min(k, matching) else None


def _nearest(found: pa.Table, k: int) -> pa.Table:
    return one_per_span(_sorted(found))[:k]


def _sorted(found: pa.Table) -> pa.Table:
    return found.sort_by([(name, "ascending") for name in (DISTANCE, *schema.KEY)])


def one_per_span(found: pa.Table) -> pa.Table:
    """The rows without those of a span that is there already, as another annotation of it."""
    if not pc.any(pc.match_substring(found["region"], "#")).as_py():
        return found
    first: dict[tuple[str, str], int] = {}
    for place, (id, region) in enumerate(schema.keys(found)):
        first.setdefault((id, span_of(region)), place)
    return found.take(pa.array(first.values(), pa.int64()))


def _is_cut(found: pa.Table, k: int, asked: int) -> bool:
    """Whether there may be rows that belong to the k nearest and were not asked for: beyond a tie
    at the k-th, or behind several annotations of one span."""
    spans = one_per_span(_sorted(found))
    if len(spans) == len(found):
        return is_cut_in_a_tie(found[DISTANCE].to_numpy(), k, asked)
    if len(found) < asked:
        return False
    far = spans[DISTANCE].to_numpy()
    return len(far) < k or bool(far[k - 1] == found[DISTANCE].to_numpy().max())


class KeptEmbedder:
    """The embedder of a collection, opened once and kept until another one is asked for. Threads
    that ask at once get the same one."""

    def __init__(self) -> None:
        self._lock = Guard()
        self._kept: tuple[tuple[Manifest, str | None, str, bool], Embedder] | None = None

    def get(
        self, manifest: Manifest, model: str | None, device: str, trust: bool, file: str
    ) -> Embedder:
        """The embedder of this manifest; see `embedder_of`."""
        asked = (manifest, model, device, trust)
        with self._lock:
            if self._kept is None or self._kept[0] != asked:
                self._kept = None  # not two models in memory at once
                opened = embedder_of(manifest, model, device=device, trust=trust, file=file)
                self._kept = asked, opened
            return self._kept[1]


@dataclass(frozen=True, slots=True)
class QueryPart:
    """The part of a file that is searched for, and how it is read where not as the collection's
    rows are. region: a segment in seconds, or a box. channel: a number, `each` or `mix`."""

    region: Region = WHOLE
    channel: int | str | None = None
    layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """The vectors (m, d) of a query and the regions that they are of. notes: how it was read, where
    that is not as one whole, and what could not be read."""

    vectors: FloatArray
    regions: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def query(self) -> FloatArray:
        """For `Collection.search`: (d,) of one part, else (m, d)."""
        return self.vectors[0] if len(self.vectors) == 1 else self.vectors

    def named(self, found: Hits) -> Hits:
        """The hits with the region of the query for its number."""
        if len(self.regions) == 1:
            return found
        named = (replace(hit, part=self.regions[int(hit.part or 0)]) for hit in found)
        return Hits(named, found.searched)


def query_vectors(
    reader: Reader,
    query: str | os.PathLike[str],
    opener: Callable[[], Embedder],
    part: QueryPart = QueryPart(),
) -> QueryVectors:
    """The vectors of the rows of an item of the collection, or of a file, which is cut into windows
    and channels and embedded as the rows were, by the embedder that `opener` gives.

    Rows serve as they are stored if their file has not changed; then no model is opened.

    Raises:
        CollectionError: there is no such file and no such row.
        UsageError: the file cannot be embedded.
    """
    manifest = reader.require_manifest()
    own = row_layout(reader)
    rows = own.chosen(part.channel, part.layout)
    query = os.fspath(query)
    if part == QueryPart() and (row := row_of_name(reader, query)) is not None:
        region = Region.of_key(row[1])
        part = QueryPart(replace(region, channel=None), region.channel)
        query, rows = row[0], own.chosen(region.channel, None)
    if text.bare(query) is None or manifest.model.get("modality") != "text":
        query = path_of_name(reader, query)
    stored = _stored(reader, query, part, rows)
    if stored is None:
        modality = str(manifest.model.get("modality"))
        words = text.bare(query) if modality == "text" else None
        if words is None and not user_path(query).is_file():
            remedy = f"; {text.PREFIX}{query} means the words" if modality == "text" else ""
            raise CollectionError(
                f"{query!r} is neither a file nor the id of a row of {reader.path}{remedy}"
            )
        try:
            if words is None:
                prepare_worker(modality)
            stored = _embedded(opener(), query, part.region, words, rows)
        except ItemError as error:
            raise UsageError(f"the query {query}: {error}") from error
    notes = stored.notes
    if len(stored.regions) > 1:
        how = rows.words(str(manifest.model.get("modality")))
        notes = (
            f"{query}: searched by {len(stored.regions)} parts{f' ({how})' if how else ''}, as the "
            "rows of the collection are; similarity is that of the nearest part",
            *notes,
        )
    return replace(stored, notes=notes)


def path_of_name(reader: Reader, query: str) -> str:
    """A file's path, of an id that is no path from here."""
    if not user_path(query).exists() and reader.roots.root_of(query) is not None:
        return str(reader.roots.path_of(query))
    return query


def _stored(reader: Reader, query: str, part: QueryPart, rows: RowLayout) -> QueryVectors | None:
    """The vectors of the rows of an item, of its file as it is now; None where there are none."""
    window = rows.layout.window
    long = part.region.end is None or part.region.end - (part.region.start or 0.0) > (window or inf)
    if part.layout is not None or (part.region.start is not None and window and long):
        return None  # it is cut into other parts than rows
    names = ["id", "region", "kind", "channel", "size", "mtime_ns", "vector"]
    own = [PATH] if PATH in reader.schema.names else []
    for id in reader.roots.ids_of(query):
        where = f"id = {schema.quoted([id])} AND kind != 'summary'"
        if part.region != WHOLE:
            key = part.region.key
            same = f"region = {schema.quoted([key])}"
            if part.region.box is None:
                same += f" OR ends_with(region, {schema.quoted([f':{key}'])})"
            where += f" AND ({same})"
        table, vectors = reader.vectors(where, [*names[:-1], *own])
        found = [*zip(table.to_pylist(), vectors, strict=True)]
        if not found:
            continue
        first = found[0][0]
        file = reader.roots.path_of(first.get(PATH) or id)
        if first["size"] is not None and file.is_file():
            status = file.stat()
            if (status.st_size, status.st_mtime_ns) != (first["size"], first["mtime_ns"]):
                continue
        of_channel = [one for one in found if rows.has(one[0]["channel"])]
        if part.channel is None:
            found = of_channel or found
            found = [one for one in found if one[0]["kind"] == rows.kind] or found
        elif not (found := of_channel):
            continue
        return QueryVectors(
            np.stack([vector for _, vector in found]), tuple(row["region"] for row, _ in found)
        )
    return None


def _embedded(
    embedder: Embedder, query: str, region: Region, words: str | None, rows: RowLayout
) -> QueryVectors:
    from penult.data.items import Failure
    from penult.data.sources import item_of
    from penult.embedding.embedder import brief_runner

    content = user_path(query) if words is None else words
    item = item_of(content, embedder.classifier.modality)
    pairs = rows.entries([(item, region)], embedder.classifier.input)
    # A query is not labelled: the pass ends behind the tap.
    with closing(brief_runner(embedder).stream(pairs, logits=False)) as outcomes:
        results = list(outcomes)
    failed = [one for one in results if isinstance(one, Failure)]
    found = [one for one in results if not isinstance(one, Failure)]
    if not found:
        raise ItemError(failed[0].message if failed else "it has no part that can be embedded")
    notes = []
    if failed:
        notes.append(
            f"{query}: {len(failed)} of {len(results)} parts left out, the first {failed[0].region}"
            f": {failed[0].message}"
        )
    if used := [one for one in found if one.truncated is not None]:
        unit = {"text": "tokens", "image": "pages"}.get(embedder.classifier.modality, "s")
        notes.append(
            f"{query}: only the first {used[0].truncated:g} {unit} were used, as many as the model "
            "takes; --start and --end, or --window, choose other parts"
        )
    regions = tuple(one.region.key for one in found)
    return QueryVectors(np.stack([one.vector for one in found]), regions, tuple(notes))


_FILE = "the collection or class file"


def embedder_of(
    manifest: Manifest,
    model: str | None = None,
    *,
    device: str = "auto",
    trust: bool = False,
    file: str = _FILE,
) -> Embedder:
    """The embedder that a collection was made with. model: where it is now, by the user's own word.
    file: what the manifest is from, for messages.

    Raises:
        FingerprintMismatch: what is there now would give other vectors.
        UntrustedCode: the manifest names code that this user has neither typed nor trusted.
    """
    embedder = embedder_now(manifest, model, device=device, trust=trust, file=file)
    check_embedder(
        manifest,
        embedder,
        "Name the right one with --model; if only a library has another version, penult migrate "
        "measures it on the collection's own rows",
    )
    return embedder


def embedder_now(
    manifest: Manifest,
    model: str | None = None,
    *,
    device: str = "auto",
    trust: bool = False,
    file: str = _FILE,
) -> Embedder:
    """What is there now where the embedder of a collection was; it is not compared. model, file: as
    for `embedder_of`.

    Raises:
        UntrustedCode: the manifest names code that this user has neither typed nor trusted.
    """
    from penult.models.trust import named_by, typed

    typed(model)
    with named_by(file, has_option=True):
        return _opened_embedder(manifest, model, device, trust, file)


def _opened_embedder(
    manifest: Manifest, model: str | None, device: str, trust: bool, file: str
) -> Embedder:
    from penult.embedding.embedder import open_at_taps, open_embedder
    from penult.embedding.saving import is_embedder
    from penult.engines.base import EXACT
    from penult.engines.pooling import check_poolings
    from penult.models.options import is_network_path, reopened

    about = manifest.model
    check_poolings(about["pooling"].split(","), about.get("packages", {}))
    spec = model or about["spec"]
    if not isinstance(spec, str) or (model is None and is_network_path(spec)):
        raise CollectionError(
            f"{file} names {spec!r} as its model, which is no name of one on this machine; --model "
            "names it"
        )
    options: dict[str, Any] = {
        "precision": manifest.fingerprint.get("precision") or EXACT,
        "device": device,
        **reopened(about.get("asked", {}), file),
        "trust": trust,
    }
    taps = about.get("taps", ())
    # A module's side is found by its name; an operation only by counting, so that it is looked for.
    if taps and not any(tap["operation"] for tap in taps) and not is_embedder(spec):
        options["pool_over"] = about.get("pool_over") or "all"
        return open_at_taps(spec, taps, about["pooling"], **options)
    # For one item no other engine is worth opening.
    options |= {"pool_over": about.get("pool_over"), "engine": "torch"}
    return open_embedder(spec, about["tap"], about["pooling"], **options)


def check_embedder(manifest: Manifest, embedder: Embedder, advice: str = "") -> None:
    """Refuses an embedder whose vectors are not comparable to those of a collection.

    Raises:
        FingerprintMismatch: the fingerprint differs; it says in what.
    """
    from penult.collection.manifest import fingerprint_in
    from penult.embedding.embedder import fingerprint_of
    from penult.embedding.fingerprint import compare

    found = compare(fingerprint_in(manifest), fingerprint_of(embedder), "", "")
    if found.refused:
        raise FingerprintMismatch(
            f"{embedder.classifier.spec!r} is not what the collection was made with: "
            f"{found.words}. {advice or 'Leave embedder out, or give its own'}"
        )
    for note in found.notes:
        log.warning("%s", note)
