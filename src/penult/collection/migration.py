"""A collection under another version of what made its rows: accepted once its own rows, embedded
again, are as they are stored; the former fingerprint is kept beside the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from penult.collection import schema
from penult.collection.access import locked
from penult.collection.add import manifest_of
from penult.collection.comparison import entry_of, unlike_row
from penult.collection.manifest import (
    HISTORY,
    LATER,
    Manifest,
    completed,
    fingerprint_in,
    hash_written,
    now,
    require_same_shape,
    write_manifest,
)
from penult.collection.reader import Reader
from penult.collection.repair import keep_manifest
from penult.data.tables import PATH
from penult.embedding.behaviour import answers
from penult.embedding.embedder import Embedder, fingerprint_of, native_runner
from penult.embedding.fingerprint import (
    differing,
    distance,
    unlike_behaviours,
    version_changes,
)
from penult.errors import CollectionError, FingerprintMismatch

SAMPLE = 100
_SHOWN = 3  # rows in a refusal
_FIXED = ("precision", "pooling")  # asked for by the user, and no matter of versions
_WEIGHTS = "weights"
_COLUMNS = ("kind", "start", "end", "size", "mtime_ns", "content_hash", "logits", PATH, "text")


@dataclass(slots=True)
class Migration:
    """What was compared and measured. changed: each difference, in words. rows: of the collection;
    sampled: of these; measured: embedded again and as they are stored. left_out: rows whose file is
    gone or has changed since; failed: by id, the reason why a file could not be embedded now.
    worst: the largest distance between a vector and its row, relative to its length. added: what an
    earlier version did not write. written: whether the manifest is another one now."""

    changed: list[str] = field(default_factory=list)
    rows: int = 0
    sampled: int = 0
    measured: int = 0
    left_out: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    worst: float = 0.0
    added: list[str] = field(default_factory=list)
    written: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def migrate(
    reader: Reader,
    embedder: Embedder,
    sample: int | None = SAMPLE,
    *,
    dry: bool = False,
    wait: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Migration:
    """Accept an embedder of other versions for a collection, if a sample of its rows, embedded
    again, is as it is stored within the collection's precision.

    sample: rows, drawn by chance, the same ones each time; None for all. dry: write nothing. tick:
    called after each row.

    Raises:
        FingerprintMismatch: rows differ, none could be measured, or what differs is no matter of
            versions.
        CollectionLocked: another process is writing.
    """
    ours = reader.require_manifest()
    theirs = manifest_of(embedder, ours.logits, ours.dtype)
    require_same_shape(reader.path, ours, theirs)
    did = Migration(_changes(ours, embedder), reader.count_rows())
    did.added = [name for name in LATER if name in theirs.model and name not in ours.model]
    if not hash_written(reader.path):
        did.added.append("hash")
    if did.changed and did.rows:
        _require_migratable(reader, ours, embedder, sample)
        differ = _measure(reader, embedder, sample, did, tick)
        _require_parity(reader.path, did, differ)
    if (did.changed or did.added) and not dry:
        with locked(reader.path, "migrate", wait):
            if reader.require_manifest() != ours:
                raise CollectionError(
                    f"{reader.path} was changed while it was measured; say it again"
                )
            write_manifest(reader.path, _migrated(ours, theirs, did))
            keep_manifest(reader.path)
        did.written = True
    return did


def _changes(ours: Manifest, embedder: Embedder) -> list[str]:
    """Each difference between what made the rows and what is here, in words."""
    one, other = fingerprint_in(ours), fingerprint_of(embedder)
    words = [
        f"{name}: {one.hashes.get(name, 'absent')} → {other.hashes.get(name, 'absent')}"
        for name in differing(one, other)
    ]
    words += [line.strip() for line in unlike_behaviours(one, other)]
    return [*words, *version_changes(one, other)] if words else []


def _require_migratable(
    reader: Reader, ours: Manifest, embedder: Embedder, sample: int | None
) -> None:
    names = differing(fingerprint_in(ours), fingerprint_of(embedder))
    if fixed := [name for name in names if name in _FIXED]:
        raise FingerprintMismatch(
            f"{reader.path} was made with another {' and '.join(fixed)}, which is no matter of "
            f"versions: other vectors are asked for. {_anew(reader.path)}"
        )
    if _WEIGHTS in names and sample is not None:
        raise FingerprintMismatch(
            f"{reader.path} was made with other weights, by their hash. Where a library has only "
            "named them anew, all rows tell: penult migrate --all; other weights may agree on "
            f"a sample. {_anew(reader.path)}"
        )


def _anew(path: Path) -> str:
    return f"To embed the items anew: penult embed MODEL --like {path} --into another.lance"


def _measure(
    reader: Reader,
    embedder: Embedder,
    sample: int | None,
    did: Migration,
    tick: Callable[[], None],
) -> list[str]:
    """Embed a sample of rows again; a line for each that differs."""
    ours = reader.require_manifest()
    picked = {}
    rows = _sampled(reader, sample)
    did.sampled = len(rows)
    for row in rows:
        if (entry := entry_of(row, embedder, reader.roots)) is None:
            did.left_out += 1
        else:
            picked[entry[0].id, entry[1].key] = row, entry
    differ: list[str] = []
    runner = native_runner(embedder)
    pairs = [entry for _, entry in picked.values()]
    for outcome, answer in answers(runner, pairs, did.failed):
        row, _ = picked[outcome.item.id, outcome.region.key]
        did.worst = max(did.worst, distance(row["vector"], answer.vector))
        words = unlike_row(row, answer, ours, embedder)
        did.measured += not words
        differ += [words] if words else []
        tick()
    return differ


def _sampled(reader: Reader, sample: int | None) -> list[dict[str, Any]]:
    """Rows that were made of files or texts, with their vectors and logits."""
    names = [*schema.KEY, *(name for name in _COLUMNS if name in reader.schema.names)]
    table, vectors = reader.vectors("kind <> 'summary'", names, sample, 0)
    logits: Any = [None] * len(table)
    if "logits" in names:
        stored = table["logits"]
        if pa.types.is_fixed_size_list(stored.type) and not stored.null_count:
            logits = schema.matrix(stored)
        table = table.drop_columns(["logits"])
    return [
        {**row, "vector": vectors[place], "logits": logits[place]}
        for place, row in enumerate(table.to_pylist())
    ]


def _require_parity(path: Path, did: Migration, differ: list[str]) -> None:
    """Refuse rows that differ, and where there was none to measure."""
    changes = "".join(f"\n  {words}" for words in did.changed)
    if differ:
        of = did.measured + len(differ)
        lines = "".join(f"\n  {words}" for words in differ[:_SHOWN])
        more = f"\n  … and {len(differ) - _SHOWN:,} more" if len(differ) > _SHOWN else ""
        raise FingerprintMismatch(
            f"{len(differ):,} of {of:,} rows of {path} are others now (the worst by "
            f"{did.worst:.2g} of its length), so nothing is accepted:{lines}{more}\n"
            f"What changed:{changes}\n{_anew(path)}"
        )
    if not did.measured:
        raise FingerprintMismatch(
            f"none of {did.sampled:,} rows of {path} could be measured: {did.left_out:,} of their "
            f"files are gone or were changed, {len(did.failed):,} could not be embedded. "
            f"What changed:{changes}\nBring the files back, or {_anew(path)[0].lower()}"
            f"{_anew(path)[1:]}"
        )


def _migrated(ours: Manifest, theirs: Manifest, did: Migration) -> Manifest:
    """The manifest with the new fingerprint, and the former one in its history."""
    if not did.changed:
        return completed(ours, theirs)
    entry = {
        "when": now().isoformat(timespec="seconds"),
        "fingerprint": dict(ours.fingerprint),
        "id": fingerprint_in(ours).id,
        "changed": did.changed,
        "rows": did.measured,
        "worst": did.worst,
    }
    fresh = {name: theirs.model[name] for name in (*LATER, "taps") if theirs.model.get(name)}
    gone = {name: value for name, value in ours.model.items() if name not in LATER}
    history = [*ours.model.get(HISTORY, ()), entry]
    return replace(ours, fingerprint=theirs.fingerprint, model={**gone, **fresh, HISTORY: history})
