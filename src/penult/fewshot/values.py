"""Values taught by rows of a collection and kept as versions or in a file, and their predictions of
items and rows.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penult.analysis.space import AUTO, Space
from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.labels import labelled
from penult.collection.manifest import Manifest, fingerprint_in
from penult.collection.row_layout import RowLayout
from penult.collection.schema import Key
from penult.collection.spaces import meant
from penult.data.decode import usual_decoding
from penult.data.files import user_path, write_file
from penult.data.formulas import Cells
from penult.data.hashes import digest
from penult.data.items import Entry, Failure
from penult.data.regions import span_of
from penult.data.roots import Roots
from penult.data.windows import Layout
from penult.errors import ItemError, LabelsError, StoreError, cause
from penult.fewshot import scorers, storage
from penult.fewshot.events import csv_lines, with_metadata
from penult.fewshot.predictions import Location
from penult.fewshot.value_model import FEWEST, LEVEL, FittedValue, model_bytes, model_from
from penult.fewshot.vectors import VectorSource, pairs_of, roots_of, run_items
from penult.fewshot.versions import (
    UNDONE,
    CollectionStore,
    LedgerEntry,
    array_of,
    bytes_of,
    hash_of,
    now,
)
from penult.memory import check_unpacked

if TYPE_CHECKING:
    from penult.fewshot.versions import Store

VALUE = "value"  # the kind of entry
KIND = "penult taught value"  # of files
MOST = 10_000  # rows that a value is taught by; of more as many are drawn
HEADER = ("path", "region", "start", "end", "channel", "name", "value", "low", "high", "outside",
          "far")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ValuePrediction:
    """The value of one region. low, high: the interval; infinite where too few groups support its
    level. far: whether it is as unlike all examples as hardly any of them is unlike the others.
    outside: whether the value is below or above those of all examples; of a probe neither is known.
    name: of the value. start, end: seconds."""

    id: str
    region: str
    value: float
    low: float
    high: float
    far: bool | None
    outside: bool | None
    name: str = ""
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult predict --json` prints it; there an infinite limit is null."""
        return asdict(self) | {"metadata": dict(self.metadata)}


@dataclass(frozen=True, slots=True)
class ValueVersion:
    """A value as it was taught. number: in order, from 1, of this name. groups: what they were
    named by. undone: whether it was taken back."""

    name: str
    number: int
    undone: bool
    current: bool
    about: Mapping[str, Any] = field(repr=False)
    id: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult classes --history --json` prints it."""
        facts = ("when", "groups", "where", "examples", "left_out", "space")
        return {
            "name": self.name, "number": self.number, "current": self.current,
            "undone": self.undone, **{one: self.about[one] for one in facts},
            **self.about["model"],
        }  # fmt: skip


class ValueLedger:
    """The values that a collection keeps, among its versions of classes."""

    def __init__(self, collection: Collection) -> None:
        self._store: Store = CollectionStore(collection.reader)
        found = fingerprint_in(collection.reader.require_manifest())
        self._ours = digest(dict(found.hashes)), *found.former

    def versions(self) -> list[ValueVersion]:
        """All of them, oldest first."""
        records = self._store.records()
        undone = {one.about.get("of") for one in records if one.kind == UNDONE}
        found = [one for one in records if one.kind == VALUE and not one.damaged]
        last = {
            one.about["name"]: one.id for one in found
            if one.id not in undone and one.about["fingerprint"] in self._ours
        }  # fmt: skip
        numbers: dict[str, int] = {}
        versions = []
        for one in found:
            name = one.about["name"]
            number = numbers[name] = numbers.get(name, 0) + 1
            current = last.get(name) == one.id
            versions.append(
                ValueVersion(name, number, one.id in undone, current, one.about, one.id)
            )
        return versions

    def current(self) -> dict[str, ValueVersion]:
        """The version of each value that predictions are from."""
        return {one.name: one for one in self.versions() if one.current}

    def named(self, name: str | None) -> list[ValueVersion]:
        """The one of this name, or all.

        Raises:
            LabelsError: there is none.
        """
        found = self.current()
        if name is not None and name not in found:
            there = f"; {', '.join(sorted(found))} is" if found else ""
            raise LabelsError(
                f"no value {name!r} is taught here{there}: penult teach COLLECTION --value {name}"
            )
        return [found[one] for one in sorted(found) if name in (None, one)]

    def keep(self, space: ValueSpace) -> None:
        """Append a version."""
        about, parts = _packed(space)
        about |= {"when": now(), "fingerprint": self._ours[0], "penult": version_of("penult")}
        self._store.append(LedgerEntry.of(VALUE, about), parts.values())

    def parts(self, version: ValueVersion) -> dict[str, bytes]:
        """What a version was kept with.

        Raises:
            StoreError: a part is gone, or is not as it was written; so is a later teaching, which
                may be of this value.
        """
        named, name = version.about["parts"], version.name
        found = self._store.parts(list(named.values()))
        records = self._store.records()
        place = next(at for at, one in enumerate(records) if one.id == version.id)
        later = [one for one in records[place:] if one.kind in (VALUE, UNDONE) and one.damaged]
        if later or any(id not in found for id in named.values()):
            what = f"version {version.number} of the value {name}"
            if later:
                when = str(later[-1].about["when"])[:16].replace("T", " ")
                what = f"a teaching of {when} UTC, later than version {version.number} of {name},"
            raise StoreError(
                f"{what} is not as it was kept: penult teach COLLECTION --value {name} --refit "
                "teaches it anew by the rows there are now"
            )
        return {name: found[id] for name, id in named.items()}

    def undo(self, name: str) -> ValueVersion:
        """Take the last teaching of a value back.

        Raises:
            LabelsError: there is nothing to take back.
        """
        (last,) = self.named(name)
        self._store.append(LedgerEntry.of(UNDONE, {"when": now(), "of": last.id}), [])
        return last


class ValueSpace:
    """A value taught by the rows of a collection that have one, and predicted of items.

    by: the column (or pattern of the path) with the number of each row; rows without one are left
    out, and of more than 10,000 as many are drawn. where: a filter of these rows. groups: a column,
    `folder` or pattern, see `penult.ClassSpace`. Nothing is kept unless `keep` is called: then
    `ValueSpace.of(collection, by)` is the same value, whatever rows are added.

    Raises:
        LabelsError: no such column, a cell that is no finite number, or see `FittedValue`.
    """

    def __init__(
        self, source: Collection, by: str, *, where: str | None = None, groups: str | None = None
    ) -> None:
        self.source, self.by = VectorSource.of(source), by
        self.where, self.groups = where, groups
        found = labelled(source.reader, [by, *([groups] if groups else [])], where)
        numbers = [_number(name, by, key) for key, name in zip(
            found.row_keys, found.names[by], strict=True)]  # fmt: skip
        there = [at for at, one in enumerate(numbers) if one is not None]
        self.left_out = len(numbers) - len(there)
        drawn = np.random.default_rng(0).permutation(len(there))[:MOST]
        kept = [there[at] for at in np.sort(drawn)]
        values = [one for one in (numbers[at] for at in kept) if one is not None]
        self.keys = [found.row_keys[at] for at in kept]
        if len(values) < FEWEST:
            raise LabelsError(
                f"{len(values)} row{'s have' if len(values) != 1 else ' has'} a value {by!r}"
                + (" and pass the filter" if where else "") + f"; {FEWEST} are needed"
            )  # fmt: skip
        named = found.names[groups] if groups else [f"{i} {span_of(r)}" for i, r in found.row_keys]
        self._space = meant(source.reader, AUTO)
        self._raw = bytes_of(found.vectors[kept])
        rows = self._moved(found.vectors[kept])
        grouped = scorers.groups_of(rows, [key[0] for key in self.keys], [named[i] for i in kept])
        self.fitted = FittedValue(rows, values, grouped).model

    @classmethod
    def of(cls, collection: Collection, by: str) -> ValueSpace:
        """A value as the collection keeps it.

        Raises:
            LabelsError: it keeps none of this name.
            StoreError: it is damaged.
        """
        ledger = ValueLedger(collection)
        (version,) = ledger.named(by)
        return cls._from(VectorSource.of(collection), version.about, ledger.parts(version))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ValueSpace:
        """A value from its file.

        Raises:
            LabelsError: no such file, or it is damaged.
        """
        source = user_path(path)
        try:
            check_unpacked(source)
            with np.load(source, allow_pickle=False) as file:
                parts = {name: file[name].tobytes() for name in file if name != "about"}
                text = file["about"].tobytes()
            about = json.loads(text)
            if about.get("kind") != KIND:
                raise ValueError(f"its kind is {about.get('kind')!r}")
            if {name: hash_of(data) for name, data in parts.items()} != about["parts"]:
                raise ValueError("it is not as it was saved")
            manifest = Manifest(about["fingerprint"], about["dim"], 0, about["embedder"])
            made, read = cls._from(VectorSource(manifest), about, parts), about["read"]
            made.source.rows = RowLayout(Layout(**read["layout"]), read["channel"])
            return made
        except Exception as error:  # whatever a broken file makes of zip, numpy and JSON
            raise LabelsError(
                f"{source} is no saved value ({cause(error)}): save it again with penult teach "
                f"COLLECTION --value COLUMN --save {source}"
            ) from error

    @classmethod
    def _from(
        cls, source: VectorSource, about: Mapping[str, Any], parts: Mapping[str, bytes]
    ) -> ValueSpace:
        made = cls.__new__(cls)
        made.source, made.by = source, about["name"]
        made.where, made.groups = about["where"], about["groups"]
        made.left_out = about["left_out"]
        keys = json.loads(zlib.decompress(parts["rows"]))
        made.keys = [(id, region) for id, region in keys]
        made._space = Space.from_bytes(parts["space"]) if "space" in parts else None
        made.fitted = model_from(
            parts["model"], made._moved(array_of(parts["vectors"])), about["model"]
        )
        made._raw = parts["vectors"]
        return made

    def keep(self) -> None:
        """Keep it in its collection, as a version."""
        assert self.source.collection is not None
        ValueLedger(self.source.collection).keep(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file (.npz) that needs no collection; no pickle.

        Raises:
            LabelsError: a name that does not end in .npz.
            StoreError: it cannot be written.
        """
        target = storage.check_suffix(user_path(path))
        about, parts = _packed(self)
        manifest = self.source.manifest
        about |= {"format": 1, "kind": KIND, "fingerprint": manifest.fingerprint,
                  "dim": manifest.dim, "embedder": manifest.model,
                  "read": asdict(self.source.rows)}  # fmt: skip
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {n: np.frombuffer(data, np.uint8) for n, data in parts.items()}
        text = json.dumps(about, default=float).encode()
        np.savez(buffer, about=np.frombuffer(text, np.uint8), **arrays)
        return write_file(target, [buffer.getvalue()])

    def _moved(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return vectors if self._space is None else self._space(vectors)

    def predict(self, items: Any, *, level: float = LEVEL) -> list[ValuePrediction]:
        """The values of items, in their order; nothing is added to the collection. items: as for
        `penult.ClassSpace.predict`, read as the rows of the collection. level: of the intervals.

        Raises:
            ItemError: an item that cannot be embedded.
        """
        predictions = []
        pairs = pairs_of(items, self.source.modality, roots_of(self.source))
        for one in value_predictions([self], pairs, level=level):
            if isinstance(one, Failure):
                raise ItemError(one.words())
            predictions.append(one)
        return predictions

    def predict_collection(
        self, where: str | None = None, *, level: float = LEVEL
    ) -> Iterator[ValuePrediction]:
        """The values of the rows of the collection, in the order of their keys."""
        assert self.source.collection is not None
        yield from value_rows([self], self.source.collection, where, level)

    def judged(
        self, places: Sequence[Location], vectors: npt.NDArray[np.float32], level: float
    ) -> Iterator[ValuePrediction]:
        """The values of raw vectors (m, d) from these places."""
        values, margin, far = self.fitted.judge(self._moved(vectors), level)
        for at, value, apart in zip(places, values.tolist(), far.tolist(), strict=True):
            outside = not self.fitted.span[0] <= value <= self.fitted.span[1]
            yield ValuePrediction(
                at.id, at.region, value, value - margin, value + margin, apart, outside, self.by,
                at.start, at.end, at.channel, at.metadata,
            )  # fmt: skip


def value_predictions(
    spaces: Sequence[ValueSpace],
    pairs: Iterable[Entry],
    layout: Layout | None = None,
    channel: int | str | None = None,
    level: float = LEVEL,
) -> Iterator[ValuePrediction | Failure]:
    """The values of (item, region) pairs as they come, each by all spaces of one source, and the
    items that failed."""
    from penult.embedding.runner import Outcome

    source, decoding = spaces[0].source, usual_decoding()
    for space in spaces:
        space.fitted.margin(level)  # a level that cannot be, before an item is opened
    for one in run_items(source, source.cut(pairs, layout, channel, decoding), decoding):
        if not isinstance(one, Outcome):
            yield one
            continue
        for space in spaces:
            yield from space.judged([Location.of(one)], one.vector[None], level)


def value_rows(
    spaces: Sequence[ValueSpace], collection: Collection, where: str | None, level: float = LEVEL
) -> Iterator[ValuePrediction]:
    """The values of the rows of a collection, in the order of their keys.

    Raises:
        FingerprintMismatch: it holds vectors of another embedder.
    """
    manifest = collection.reader.require_manifest()
    spaces[0].source.check(fingerprint_in(manifest), str(collection.path))
    extra = list(schema.metadata_of(collection.reader.schema))
    columns = ["id", "region", "start", "end", "channel", *extra, "vector"]
    for batch in collection.reader.ordered(columns, where):
        places = [Location.of_row(row) for row in batch.drop_columns("vector").to_pylist()]
        vectors = schema.matrix(batch.column("vector")).astype(np.float32)
        finite = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        kept = [places[at] for at in finite]
        each = [space.judged(kept, vectors[finite], level) for space in spaces]
        for found in zip(*each, strict=True):
            yield from found


def values_to_csv(
    found: Sequence[ValuePrediction], cells: Cells | None = None, roots: Roots = Roots()
) -> Iterator[str]:
    """Line by line: a header, and each value with the metadata of its item; an infinite limit is
    empty. roots: what ids begin with."""
    names = list(dict.fromkeys(name for one in found for name in one.metadata))
    rows = (
        [roots.shown(one.id), one.region,
         *((None, None) if one.region == "whole" else (one.start, one.end)), one.channel,
         one.name, f"{one.value:.6g}", *(f"{end:.6g}" if np.isfinite(end) else None
                                         for end in (one.low, one.high)),
         one.outside, one.far, *(one.metadata.get(name) for name in names)]
        for one in found
    )  # fmt: skip
    yield from csv_lines(with_metadata(HEADER, names), rows, cells)


def is_value_file(path: str) -> bool:
    """Whether a file holds a value."""
    try:
        with np.load(user_path(path), allow_pickle=False) as file:
            return bool(json.loads(file["about"].tobytes()).get("kind") == KIND)
    except Exception:  # then whoever opens it says what is wrong
        return False


def _packed(space: ValueSpace) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(all that is kept of a value, its parts by name)."""
    keys: list[Key] = space.keys
    parts = {
        "rows": zlib.compress(json.dumps(keys).encode()),
        "vectors": space._raw,
        "model": model_bytes(space.fitted),
        **({} if space._space is None else {"space": space._space.to_bytes()}),
    }
    about = {
        "name": space.by, "where": space.where, "groups": space.groups, "examples": len(keys),
        "left_out": space.left_out, "space": getattr(space._space, "recipe", "raw"),
        "model": space.fitted.to_dict(),
        "parts": {name: hash_of(data) for name, data in parts.items()},
    }  # fmt: skip
    return about, parts


def _number(name: str | None, by: str, key: Key) -> float | None:
    if name is None:
        return None
    try:
        found = float(name)
    except ValueError:
        raise LabelsError(
            f"{key[0]}: {by} is {name!r}, which is no number: a column of "
            "numbers teaches a value, and --from a column of names classes"
        ) from None
    if not np.isfinite(found):
        raise LabelsError(
            f"{key[0]}: {by} is {name}, which is no finite number; leave such rows out, as with "
            f'--where "{by} BETWEEN -1e9 AND 1e9"'
        )
    return found
