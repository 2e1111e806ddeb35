"""The rows of a collection as other stores of vectors take them: keys, plain values and vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.space import RAW, Space
from penult.collection import schema, spaces
from penult.collection.collection import Collection
from penult.collection.labels import standing
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.data.hashes import digest
from penult.errors import CollectionError, FingerprintMismatch

FloatArray = npt.NDArray[np.float32]
BATCH = 1000
COSINE, DOT, L2 = "cosine", "dot", "l2"
# Of each row, beside its metadata; sizes, hashes and runs belong to the collection alone.
OWN = ("id", "region", "kind", "channel", "start", "end", "label", "score")


@dataclass(frozen=True, slots=True)
class VectorOrigin:
    """What all vectors of one destination share: two that differ in it are not comparable.

    fingerprint: of the embedder. space: `raw`, or the id of the space the vectors are in. dim:
    numbers in a vector. metric: how the destination compares them.
    """

    fingerprint: str
    space: str
    dim: int
    metric: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], place: str) -> VectorOrigin:
        """As `to_dict` gave it.

        Raises:
            CollectionError: it is none.
        """
        try:
            text = [str(values[name]) for name in ("fingerprint", "space", "metric")]
            return cls(text[0], text[1], int(values["dim"]), text[2])
        except (KeyError, TypeError, ValueError) as error:
            raise CollectionError(
                f"{place} was not written by Penult: it does not say which embedder its vectors "
                "are from. Give another name"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"fingerprint": self.fingerprint, "space": self.space, "dim": self.dim,
                "metric": self.metric}  # fmt: skip

    def require_same(self, other: VectorOrigin, place: str) -> None:
        """Refuse to write beside vectors that are not comparable.

        Raises:
            FingerprintMismatch: the destination holds other ones.
        """
        differing = [
            f"{name} {theirs} and not {ours}"
            for name, ours in self.to_dict().items()
            if (theirs := other.to_dict()[name]) != ours
        ]
        if differing:
            raise FingerprintMismatch(
                f"{place} holds vectors of {'; '.join(differing)}: they are not comparable. Give "
                "another name"
            )


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """Rows: their keys, their values as JSON has them (`OWN`, `marks`, `metadata`), and their
    vectors (n, d)."""

    keys: list[Key]
    values: list[dict[str, Any]]
    vectors: FloatArray

    @property
    def hashes(self) -> list[str]:
        """Of each row's values and vector: another one where the row was changed."""
        found = []
        for value, vector in zip(self.values, self.vectors, strict=True):
            text = json.dumps(value, sort_keys=True, ensure_ascii=False)
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
            digest.update(np.ascontiguousarray(vector, "<f4").tobytes())
            found.append(digest.hexdigest()[:32])
        return found


@dataclass(frozen=True, slots=True)
class Transfer:
    """How many rows were written, were there already as they are, and were left out: vectors of
    zeros, which have no direction and which no search by cosine finds."""

    written: int
    unchanged: int
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class OutgoingRows:
    """Rows of one collection on their way to another store."""

    reader: Reader
    space: Space
    where: str | None

    @classmethod
    def of(
        cls,
        collection: Collection | Reader,
        space: str | Space = RAW,
        where: str | None = None,
    ) -> OutgoingRows:
        """space: as `Collection.search` takes it.

        Raises:
            CollectionError: there is no collection. SpaceError: there is no such space.
        """
        reader = collection if isinstance(collection, Reader) else collection.reader
        reader.require_manifest()
        return cls(reader, spaces.resolved(reader, space), where)

    def origin(self, metric: str) -> VectorOrigin:
        """What the vectors share; its width is that of the space."""
        manifest = self.reader.require_manifest()
        name = RAW if self.space.is_raw else self.space.id
        return VectorOrigin(digest(dict(manifest.fingerprint)), name, self.space.width, metric)

    def batches(self, size: int = BATCH) -> Iterator[VectorBatch]:
        """All rows in key order, `size` of them in memory."""
        names = [name for name in self.reader.schema.names if name != "logits"]
        metadata = [name for name in names if name not in schema.COLUMNS]
        marks = standing(self.reader)
        for batch in self.reader.ordered(names, self.where, size):
            own = batch.select(OWN).to_pylist()
            others = batch.select(metadata).to_pylist()
            keys = schema.keys(batch)
            values = [
                plain({**row, "marks": marks.get(key, {}), "metadata": more})
                for key, row, more in zip(keys, own, others, strict=True)
            ]
            yield VectorBatch(keys, values, self.space(schema.matrix(batch.column("vector"))))


def plain(value: Any) -> Any:
    """A value as JSON has it: times in ISO 8601, bytes in hexadecimal, no NaN."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def in_key_order(
    keys: Sequence[Key], values: Sequence[Mapping[str, Any]], vectors: FloatArray
) -> tuple[pa.Table, FloatArray]:
    """What was read back: a table of `OWN` columns, `marks` and `metadata` as JSON, and the
    vectors (n, d), by (id, region)."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    fields = {name: schema.row_schema(1, 0, "none").field(name).type for name in OWN}
    rows = [
        {name: values[place].get(name) for name in OWN}
        | {name: json.dumps(values[place].get(name) or {}) for name in _JSON}
        for place in order
    ]
    columns = pa.schema({**fields, **dict.fromkeys(_JSON, pa.string())})
    return pa.Table.from_pylist(rows, schema=columns), vectors[order]


_JSON = ("marks", "metadata")


def without_direction(vectors: FloatArray) -> npt.NDArray[np.bool_]:
    """Which of the vectors (n, d) are zeros."""
    zeros: npt.NDArray[np.bool_] = np.logical_not(vectors.any(axis=1))
    return zeros
