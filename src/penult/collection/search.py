"""Nearest rows: from a query (vector, file or row) to ranked hits, by the index or over all
rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penult.analysis.space import Space
from penult.collection import index, lance, schema
from penult.collection.schema import COLUMNS
from penult.data import text
from penult.data.files import user_path
from penult.data.regions import WHOLE, Region, span_of
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


@dataclass(frozen=True, slots=True)
class Hit:
    """One region that a search found.

    `similarity` is higher for nearer regions: the cosine, the dot product, or minus the
    Euclidean distance. `start` and `end` are seconds; None is the item's beginning and end.
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
FloatArray = npt.NDArray[np.float32]
_BEST = pa.schema(
    {
        **dict.fromkeys(schema.KEY, pa.string()),
        "place": pa.uint64(),
        DISTANCE: pa.float32(),
    }
)


def raw(
    path: Path, table: Any, query: FloatArray, k: int, where: str | None, metric: str, fast: bool
) -> Hits:
    """The k nearest rows by their stored vectors; `fast` asks the index."""
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
    path: Path, table: Any, query: FloatArray, k: int, where: str | None, metric: str, space: Space
) -> Hits:
    """The k nearest rows in a space, exactly: every matching row goes through it.

    query: (d',), already in the space.
    """
    best = _BEST.empty_table()
    for batch in lance.stream_rows(path, table, [*schema.KEY, "vector"], where, _BATCH, True):
        distance = distances(query, space(schema.matrix(batch.column("vector"))), metric)
        columns = [*(batch.column(name) for name in schema.KEY), batch.column(lance.ROW)]
        part = pa.table([*columns, pa.array(distance)], schema=_BEST)
        best = _nearest(pa.concat_tables([best, part.filter(pa.array(np.isfinite(distance)))]), k)
    places = best["place"].to_numpy()
    names = schema.scalar_columns(table.schema)
    found = pa.Table.from_batches(
        lance.take_rows(path, table, names, places) if len(places) else [],
        pa.schema([table.schema.field(name) for name in names]),
    )
    return hits(found.append_column(DISTANCE, best[DISTANCE]), k, metric)


def in_space_by_index(
    path: Path, table: Any, query: FloatArray, k: int, where: str | None, space: Space
) -> Hits | None:
    """The k nearest rows in a space by cosine, of the candidates that the index of raw vectors
    has: those near to the query itself, and in the direction that the space gives. None where it
    has too few of them.

    query: (d,), raw.
    """
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


def query_vector(
    reader: Reader,
    query: str | os.PathLike[str],
    opener: Callable[[], Embedder],
    start: float | None = None,
    end: float | None = None,
    part: Region = WHOLE,
) -> npt.NDArray[np.float32]:
    """The vector (d,) of a row of the collection, or of a file, embedded as its rows were by the
    embedder that `opener` gives. start, end: seconds of the file. part: a box of a picture.

    A row serves as it is stored if its file has not changed; then no model is opened.

    Raises:
        CollectionError: there is no such file and no such row.
        UsageError: the file cannot be embedded.
    """
    manifest = reader.require_manifest()
    segment = start is not None or end is not None
    try:
        region = Region("segment", start or 0.0, end) if segment else part
    except ItemError as error:
        raise UsageError(f"the query's segment: {error}") from error
    query = os.fspath(query)
    stored = _stored(reader, query, region)
    if stored is not None:
        return stored
    is_text = manifest.model.get("modality") == "text"
    words = text.bare(query) if is_text else None
    if words is None and not user_path(query).is_file():
        remedy = f"; {text.PREFIX}{query} means the words" if is_text else ""
        raise CollectionError(
            f"{query!r} is neither a file nor the id of a row of {reader.path}{remedy}"
        )
    try:
        if words is None:
            prepare_worker(str(manifest.model.get("modality")))
        return _embedded(opener(), query, region, words)
    except ItemError as error:
        raise UsageError(f"the query {query}: {error}") from error


def _stored(reader: Reader, query: str, region: Region) -> npt.NDArray[np.float32] | None:
    path = user_path(query).absolute()
    for id in (query, str(path)):
        row = reader.get(id, region.key)
        if row is None:
            continue
        file = Path(row["id"])
        if row["size"] is not None and file.is_file():
            status = file.stat()
            if (status.st_size, status.st_mtime_ns) != (row["size"], row["mtime_ns"]):
                continue
        vector: npt.NDArray[np.float32] = row["vector"]
        return vector
    return None


def _embedded(
    embedder: Embedder, query: str, region: Region, words: str | None
) -> npt.NDArray[np.float32]:
    from penult.data.items import Failure
    from penult.data.sources import item_of
    from penult.embedding.embedder import brief_runner

    content = user_path(query) if words is None else words
    item = item_of(content, embedder.classifier.modality)
    # A query is not labelled: the pass ends behind the tap.
    with closing(brief_runner(embedder).stream([(item, region)], logits=False)) as outcomes:
        result = next(outcomes)
    if isinstance(result, Failure):
        raise ItemError(result.message)
    vector: npt.NDArray[np.float32] = result.vector
    return vector


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
