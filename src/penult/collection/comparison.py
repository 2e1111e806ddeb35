"""Whether an embedder's vectors are comparable to a collection's: its hashes, what it does to
made-up items, and the first rows, embedded again. One pass a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from penult.collection import schema
from penult.collection.manifest import (
    LATER,
    Manifest,
    check_same,
    fingerprint_in,
    require_comparable,
    store_errors,
    write_manifest,
)
from penult.collection.reader import Reader
from penult.collection.transfer import item_of_row
from penult.data.decode import Content, DecodedRegion, DecodeTarget, usual_decoding
from penult.data.items import Failure, Item
from penult.data.regions import WHOLE, Region
from penult.data.roots import Roots
from penult.data.tables import PATH
from penult.data.workers import headers_in_workers
from penult.embedding.behaviour import answers
from penult.embedding.embedder import Embedder, behaves_alike, has_record, native_runner
from penult.embedding.fingerprint import (
    LOGITS,
    Answer,
    Fingerprint,
    Remeasured,
    compare,
    newly_named,
    unlike,
)
from penult.errors import ItemError

log = logging.getLogger(__name__)

ROWS = 3  # that are embedded again
LOOKED_AT = 64  # rows among which they are
LONGEST = 30.0  # seconds
_HALF = 2e-3  # by how much stored logits may differ where rows have half the digits
_COLUMNS = ("kind", "start", "end", "size", "mtime_ns", "content_hash", "vector", "logits")
_MADE = "kind <> 'summary'"

Row = dict[str, Any]


def comparable(
    reader: Reader, ours: Manifest | None, embedder: Embedder, manifest: Manifest
) -> Manifest:
    """The manifest under which an embedder writes into a collection: its own, or the collection's
    where other code gives the same vectors, which is told. ours: the collection's.

    Raises:
        FingerprintMismatch: its vectors would not be comparable to the rows.
    """
    if ours is None or not reader.count_rows() or manifest.dim != ours.dim:
        return manifest
    theirs = fingerprint_in(manifest)
    require_same_numbers(reader.path, ours, theirs)
    same = has_record(embedder) and fingerprint_in(ours).is_same(theirs)
    rows = Remeasured(same=1) if same else remeasured(reader, embedder)
    found = compare(fingerprint_in(ours), theirs, rows=rows)
    equal = ours.fingerprint == theirs.hashes
    if found.refused and equal and not behaves_alike(embedder):
        log.warning(
            "%s gives other values each time for one item, so that nobody can say whether its "
            "vectors are comparable to those that are stored",
            embedder.classifier.spec,
        )
    else:
        require_comparable(reader.path, ours, found)
    check_same(reader.path, ours, replace(manifest, fingerprint=ours.fingerprint))
    for note in found.notes:
        log.warning("%s: %s", reader.path, note.strip())
    if names := newly_named(ours.labels, manifest.labels):
        log.warning(
            "%s: its classes had no names so far; new rows are labelled %s, earlier ones keep %s",
            reader.path,
            names,
            ", ".join(map(repr, ours.labels[:2])) + ", …",
        )
    kept = {} if found.renewed else _measured(ours)
    return replace(manifest, fingerprint=ours.fingerprint, model={**manifest.model, **kept})


def confirm(reader: Reader, before: Manifest | None, manifest: Manifest) -> None:
    """Once more, by the one who may write: nobody has written a behaviour since, which then counts;
    else what was measured is stored. before: the collection's manifest that was compared.

    Raises:
        FingerprintMismatch: somebody has, and it is another one.
    """
    now = reader.require_manifest()
    known = None if before is None else before.model.get("behaviour")
    if now.model.get("behaviour") not in (known, manifest.model.get("behaviour")):
        found = compare(fingerprint_in(now), fingerprint_in(manifest))
        require_comparable(reader.path, now, found)
    elif now.model.get("behaviour") != manifest.model.get("behaviour"):
        write_manifest(reader.path, replace(now, model={**now.model, **_measured(manifest)}))


def _measured(manifest: Manifest) -> dict[str, Any]:
    return {name: manifest.model[name] for name in LATER if manifest.model.get(name)}


def require_same_numbers(path: Path, ours: Manifest, theirs: Fingerprint) -> None:
    """Refuse other weights, settings and readings, before anything is measured; not other code.

    Raises:
        FingerprintMismatch: names every difference.
    """
    one, other = fingerprint_in(ours).without_behaviour, theirs.without_behaviour
    require_comparable(path, ours, compare(one, other, rows=Remeasured(same=1)))


def remeasured(reader: Reader, embedder: Embedder) -> Remeasured:
    """The first rows whose files are as they were, embedded again in the native engine."""
    manifest = reader.require_manifest()
    rows = list(_first_rows(reader))
    roots = reader.roots
    items = [(row, item) for row in rows if (item := _item(row, embedder, roots)) is not None]
    chosen = {(item.id, row["region"]): (row, item) for row, item in items if _is_short(row)}
    picked = dict(list(chosen.items())[:ROWS])
    pairs = [(item, region) for row, item in picked.values() if (region := _region(row))]
    same, differ = 0, []
    for outcome, answer in answers(native_runner(embedder), pairs):
        row, _ = picked[outcome.item.id, outcome.region.key]
        words = unlike_row(row, answer, manifest, embedder)
        if words:
            differ.append(f"  behaviour: {words}")
        same += not words
    return Remeasured(same, tuple(differ), lambda: _was_resampled(reader, embedder))


def unlike_row(row: Row, answer: Answer, manifest: Manifest, embedder: Embedder) -> str:
    """How far an answer is from the row that is stored, where that is more than the collection's
    precision allows; in words. row: with its vector and logits."""
    return unlike(
        f"{row['id']} ({row['region']})",
        Answer(row["vector"], row["logits"]),
        answer,
        manifest.precision or None,
        _devices(manifest, embedder),
        _HALF if manifest.dtype == "float16" else LOGITS,
    )


def entry_of(row: Row, embedder: Embedder, roots: Roots) -> tuple[Item, Region] | None:
    """A row as an item to be opened again, if it has the content that was embedded."""
    item, region = _item(row, embedder, roots), _region(row)
    return None if item is None or region is None else (item, region)


def entries_at_hand(reader: Reader, embedder: Embedder) -> list[tuple[Item, Region]]:
    """The first rows of a collection whose files are as they were, as items to be opened again."""
    found = (entry_of(row, embedder, reader.roots) for row in _first_rows(reader))
    return [pair for pair in found if pair is not None]


def _region(row: Row) -> Region | None:
    with contextlib.suppress(ItemError):
        region = Region.of_key(row["region"], row["kind"])
        return region if region.key == row["region"] else None
    return None


def _devices(manifest: Manifest, embedder: Embedder) -> tuple[str, ...]:
    measured = fingerprint_in(manifest).behaviour
    own = embedder.device.partition(":")[0]
    return (measured.device if measured else own, own)


def _first_rows(reader: Reader) -> Iterator[Row]:
    table = reader.open_rows()
    if table is None:
        return
    wanted = (*schema.KEY, *_COLUMNS, PATH, "text")
    names = [name for name in wanted if name in table.schema.names]
    with store_errors(reader.path):
        found = table.search().where(_MADE).select(names).limit(LOOKED_AT).to_arrow()
    vectors = schema.matrix(found["vector"])
    whole = "logits" in names and hasattr(found["logits"].type, "list_size")
    logits = schema.matrix(found["logits"]) if whole and not found["logits"].null_count else None
    rest = found.drop_columns([name for name in ("vector", "logits") if name in names])
    for place, row in enumerate(rest.to_pylist()):
        values = None if logits is None else logits[place]
        yield {**row, "vector": vectors[place], "logits": values}


def _is_short(row: Row) -> bool:
    return row["end"] is None or row["end"] - (row["start"] or 0.0) <= LONGEST


def _item(row: Row, embedder: Embedder, roots: Roots) -> Item | None:
    """The item of a row, if it still has the content that was embedded."""
    metadata = {name: row[name] for name in (PATH, "text") if row.get(name) is not None}
    item = item_of_row(row, metadata, embedder.classifier.modality, roots)
    if isinstance(item, Failure):
        return None
    if isinstance(item.content, Path):
        if item.size is None or item.size != row["size"]:
            return None
        if item.mtime_ns == row["mtime_ns"]:
            return item
        try:
            with item.content.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # other rows do as well; a run names the file
            return None
    else:
        found = hashlib.sha256(str(item.content).encode()).hexdigest()
    return item if found == row["content_hash"] else None


def _was_resampled(reader: Reader, embedder: Embedder) -> bool | None:
    """Whether one of the files of sound behind the rows has another rate than the model; None: not
    known, since one cannot be read, or they are too many to be asked each."""
    if embedder.classifier.modality != "audio":
        return None
    rate, asked = embedder.classifier.rate, DecodeTarget("audio", header="sound")
    until = time.monotonic() + _ASKING
    describe = headers_in_workers(usual_decoding().briefly)
    pairs = ((Item(str(path), path), WHOLE) for path in _files(reader))
    found = None
    with closing(describe(pairs, asked)) as headers:
        for one in headers:
            content = one.content if isinstance(one, DecodedRegion) else None
            if not isinstance(content, Content) or time.monotonic() > until:
                return None
            if content.values.rate != rate:
                return True
            found = False
    return found


def _files(reader: Reader) -> Iterator[Path]:
    """The files behind the rows, each once."""
    names = [name for name in ("id", PATH) if name in reader.schema.names]
    seen, roots = set[Path](), reader.roots
    for batch in reader.scan(names, _MADE):
        for row in batch.to_pylist():
            path = roots.path_of(row.get(PATH) or row["id"])
            if path not in seen:
                seen.add(path)
                yield path


_ASKING = 60.0  # seconds, for the headers of all files
