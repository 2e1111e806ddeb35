"""A collection as a dataset of Hugging Face's `datasets`, and a dataset as items to embed."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from penult.analysis.space import RAW, Space
from penult.collection import columns as derived
from penult.collection import schema, spaces
from penult.collection.collection import Collection
from penult.collection.export import PATH
from penult.collection.manifest import store_errors
from penult.collection.reader import Reader
from penult.data.files import file_aside, user_path
from penult.data.items import Item, file_item, text_item
from penult.errors import SourceError, UsageError
from penult.extras import require

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BATCH = 1000
_FILES = {"audio": "Audio", "image": "Image", "video": "Video"}  # modality → feature


def to_dataset(
    collection: Collection | Reader,
    file: str | os.PathLike[str] | None = None,
    *,
    where: str | None = None,
    space: str | Space = RAW,
    logits: bool = False,
    files: bool = True,
) -> Dataset:
    """The matching rows in key order as a `datasets.Dataset` on an Arrow file, which is mapped and
    not read into memory.

    file: the Arrow file, written anew; None: a temporary one that goes with the dataset. files:
    with a column `audio`, `image` or `video` that names each row's whole file where it exists
    (`start` and `end` say which part of it the row is), undecoded:
    `dataset.cast_column("audio", Audio())` has it decoded.

    Raises:
        CollectionError: there is no collection, or a filter that cannot be.
        SpaceError: there is no such space.
        StoreError: the file cannot be written.
    """
    library = require("datasets")
    rows = _DatasetRows.of(collection, where, space, (logits, files))
    folder = tempfile.mkdtemp(prefix="penult-") if file is None else None
    out = user_path(file) if file is not None else Path(str(folder)) / "rows.arrow"
    columns = rows.features.arrow_schema
    with store_errors(out), file_aside(out) as aside, pa.ipc.new_stream(aside, columns) as stream:
        for batch in rows.batches():
            stream.write_batch(batch)
    dataset: Dataset = library.Dataset.from_file(str(out))
    if folder is not None:
        weakref.finalize(dataset, shutil.rmtree, folder, ignore_errors=True)
    return dataset


def stream_dataset(
    collection: Collection | Reader,
    *,
    where: str | None = None,
    space: str | Space = RAW,
    logits: bool = False,
) -> IterableDataset:
    """As `to_dataset`, as a `datasets.IterableDataset`: rows are read from the collection while the
    dataset is iterated, and no file is written. Files are named in the column `path` alone.

    Raises:
        CollectionError: there is no collection. SpaceError: there is no such space.
    """
    library = require("datasets")
    rows = _DatasetRows.of(collection, where, space, (logits, False))
    found: IterableDataset = library.IterableDataset.from_generator(
        _examples, features=rows.features, gen_kwargs={"rows": rows}
    )
    return found


def items_of(
    dataset: Dataset | IterableDataset, column: str, id: str | None = None
) -> Iterable[Any]:
    """The items in one column of a dataset, to be embedded: `embedder.run(items_of(dataset,
    "audio"))`, `collection.add(embedder, items_of(dataset, "image", id="name"))`.

    Files are given by their paths where they are here, else by the bytes in the dataset; `datasets`
    decodes none of them. Texts, arrays and pictures are given as they are. id: a column whose
    values name the items; else paths, and hashes of contents.

    Raises:
        UsageError: there is no such column.
    """
    names = list(dataset.column_names or ())
    wanted = [column] if id is None else [column, id]
    if missing := [name for name in wanted if names and name not in names]:
        raise UsageError(f"the dataset has no column {missing[0]!r}; it has {', '.join(names)}")
    kind = type((dataset.features or {}).get(column)).__name__
    if kind in _FILES.values():
        feature = getattr(require("datasets"), kind)(decode=False)
        dataset = dataset.cast_column(column, feature)
    sized = hasattr(dataset, "num_rows")
    return (_SizedItemColumn if sized else _ItemColumn)(dataset.select_columns(wanted), column, id)


@dataclass(frozen=True)
class _ItemColumn:
    """Iterate over it for items, again and again."""

    dataset: Any
    column: str
    id: str | None

    def __iter__(self) -> Iterator[Any]:
        for row in self.dataset:
            yield _item(row[self.column], None if self.id is None else str(row[self.id]))


class _SizedItemColumn(_ItemColumn):
    def __len__(self) -> int:
        return int(self.dataset.num_rows)


def _item(value: Any, id: str | None) -> Any:
    """A cell as an item, under this name if it has one."""
    if isinstance(value, dict) and {"path", "bytes"} <= value.keys():
        path = Path(value["path"] or "")
        if path.is_absolute() and path.is_file():
            found = file_item(path)
            return found if id is None else Item(id, path, {}, found.size, found.mtime_ns)
        value = value["bytes"]
    if value is None:
        raise SourceError(f"a row of the dataset has no content{'' if id is None else f': {id}'}")
    if id is None:
        return value
    return text_item(value, id, {"text": value}) if isinstance(value, str) else Item(id, value)


def _examples(rows: _DatasetRows) -> Iterator[dict[str, Any]]:
    for batch in rows.batches():
        yield from batch.to_pylist()


@dataclass(frozen=True)
class _DatasetRows:
    """Rows of a collection as batches with the features of `datasets`. names: of the collection's
    columns. file_column: `audio`, `image` or `video`; empty for none."""

    reader: Reader
    where: str | None
    space: Space
    names: list[str]
    file_column: str
    features: Any

    @classmethod
    def of(
        cls,
        collection: Collection | Reader,
        where: str | None,
        space: str | Space,
        parts: tuple[bool, bool],
    ) -> _DatasetRows:
        """parts: with logits, with files."""
        reader = collection if isinstance(collection, Reader) else collection.reader
        manifest = reader.require_manifest()
        used = spaces.resolved(reader, space)
        found = derived.wider(reader.path, reader.schema)
        names = [name for name in found.names if parts[0] or name != "logits"]
        modality = str(manifest.model.get("modality"))
        named = modality if parts[1] and modality in _FILES and modality not in names else ""
        features = _features(pa.schema([found.field(name) for name in names]), used, named)
        return cls(reader, where, used, names, named, features)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """In key order, with the schema of the features."""
        columns = self.features.arrow_schema
        for batch in self.reader.ordered(self.names, self.where, _BATCH):
            arrays = {name: batch.column(name) for name in self.names}
            vectors = self.space(schema.matrix(arrays["vector"]))
            arrays["vector"] = pa.FixedSizeListArray.from_arrays(
                np.ascontiguousarray(vectors, np.float32).reshape(-1), self.space.width
            )
            paths = [self.reader.roots.shown(id) for id in arrays["id"].to_pylist()]
            arrays.setdefault(PATH, pa.array(paths, pa.string()))
            if self.file_column:
                kind = columns.field(self.file_column).type
                arrays[self.file_column] = pa.array(map(_file, paths), kind)
            cast = [arrays[field.name].cast(field.type) for field in columns]
            yield pa.RecordBatch.from_arrays(cast, schema=columns)


def _features(columns: pa.Schema, space: Space, file_column: str) -> Any:
    """The features of `datasets` for these columns, the vectors in a space."""
    library = require("datasets")
    width = space.width
    place = columns.get_field_index("vector")
    columns = columns.set(place, pa.field("vector", pa.list_(pa.float32(), width)))
    if PATH not in columns.names:
        columns = columns.append(pa.field(PATH, pa.string()))
    features = library.Features.from_arrow_schema(columns)
    if file_column:
        features[file_column] = getattr(library, _FILES[file_column])(decode=False)
    return features


def _file(path: str) -> dict[str, Any] | None:
    """A file as a feature keeps it."""
    is_here = Path(path).is_absolute() and Path(path).is_file()
    return {"bytes": None, "path": path} if is_here else None
