"""What is published of an embedder, a class space or a collection: a copy without paths of this
machine and without what serves it alone, and the facts for its card.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from penult.collection import lance, schema
from penult.collection.manifest import Manifest, require_disk, store_errors
from penult.collection.manifest import exists as is_collection
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.collection.transfer import append_missing
from penult.collection.writer import writing
from penult.data.documents import of_others
from penult.data.files import user_path
from penult.data.hashes import digest, write_list
from penult.data.roots import Root
from penult.data.tables import PATH
from penult.embedding import saving
from penult.errors import CollectionError, ModelError, UsageError, cause, listed
from penult.fewshot import storage
from penult.fewshot.versions import FileStore
from penult.models.hub import CLASSES
from penult.models.specs import GRAPHS
from penult.publishing.paths import files_naming, is_absolute, own_folders, without_paths

Kind = Literal["embedder", "classes", "collection"]
EMBEDDER: Kind = "embedder"
CLASS_SPACE: Kind = "classes"
COLLECTION: Kind = "collection"
KINDS = (EMBEDDER, CLASS_SPACE, COLLECTION)
_BATCH = 4096
_ELSEWHERE = "/not-on-this-machine"  # where roots of a published collection are
_TEXTS = (".json", ".txt", ".md", ".py", ".model")
_SKIPPED = ("README.md",)  # the card is written anew


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is published. facts: for the card. notes: what differs from what is here, in words.
    warnings: for whoever pushes alone."""

    kind: Kind
    folder: Path
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, int]:
        """The size of each file in bytes, by its name in the repository."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}


def kind_of(path: Path) -> Kind:
    """What lies at a path.

    Raises:
        UsageError: nothing that can be published. StoreError: it is in an object store.
    """
    require_disk(path, "penult push")
    if path.suffix == storage.SUFFIX and path.is_file():
        return CLASS_SPACE
    if saving.is_embedder(path):
        return EMBEDDER
    if path.is_dir() and (path / "collection.json").is_file():
        return COLLECTION
    raise UsageError(
        f"{path} is nothing that can be pushed: give a saved embedder (penult convert MODEL "
        "FOLDER), a class space (an .npz of penult teach) or a collection"
    )


def prepare(path: str | os.PathLike[str], folder: Path, kind: Kind | None = None) -> Prepared:
    """Put what is published of `path` into an empty folder.

    Raises:
        UsageError: it is not of this kind, or names folders of this machine.
    """
    source = user_path(path)
    found = kind_of(source)
    if kind not in (None, found):
        raise UsageError(f"{source} is of the kind {found}, and --kind says {kind}")
    makers: dict[Kind, Callable[[Path, Path], Prepared]] = {
        EMBEDDER: _embedder,
        CLASS_SPACE: _class_space,
        COLLECTION: _collection,
    }
    prepared = makers[found](source, folder)
    return replace(prepared, warnings=[*prepared.warnings, *_checked(prepared, source)])


def _checked(prepared: Prepared, source: Path) -> list[str]:
    """Warnings of files of another form than text in which a folder of this machine is named.

    Raises:
        UsageError: a text names one.
    """
    files = [path for path in prepared.folder.rglob("*") if path.is_file()]
    warnings = []
    for path, folder in files_naming(files, own_folders(source)):
        name = path.relative_to(prepared.folder).as_posix()
        if path.suffix in _TEXTS or prepared.kind != EMBEDDER:
            raise UsageError(
                f"{name} names the folder {folder} of this machine, and nothing was pushed: take "
                "it out of there"
            )
        warnings.append(
            f"{name} names the folder {folder} of this machine, inside of its own format"
        )
    return list(dict.fromkeys(warnings))


# An embedder


def _embedder(source: Path, folder: Path) -> Prepared:
    saved = saving.read(source)
    left_out = [GRAPHS] if (source / GRAPHS).is_dir() else []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_dir() or hidden or name.parts[0] == GRAPHS or str(name) in _SKIPPED:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json" and path.parent == source:  # code/ has hashes of its own
            _copy_json(path, target)
        else:
            shutil.copyfile(path, target)
    write_list(folder)
    about = saved.description
    facts = {
        "fingerprint": digest(about["fingerprint"]),
        "source": without_paths(about.get("source", ""), "source"),
        "tap": ",".join(tap.name for tap in saved.taps),
        "pooling": about["pooling"],
        "space": saved.space.recipe if saved.space is not None else "raw",
        "labels": list(about.get("labels", ())),
        "certificate": about.get("certificate") or {},
        "modality": (about.get("classifier") or {}).get("modality", ""),
        "classifier": about.get("classifier") or {},
        "engine": about.get("engine", ""),
        "precision": about.get("precision", ""),
        "choice": about.get("choice") or {},
        "code": (folder / "code").is_dir(),
    }
    notes = ["graphs recorded for this machine stay here"] if left_out else []
    return Prepared(EMBEDDER, folder, facts, notes)


def _copy_json(path: Path, target: Path) -> None:
    """The file as it is where it names no folder of this machine, else without that."""
    content = path.read_bytes()
    try:
        before = of_others(content.decode())
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {cause(error)}") from error
    after = without_paths(before)
    target.write_bytes(content if after == before else json.dumps(after, indent=2).encode())


# A class space


def _class_space(source: Path, folder: Path) -> Prepared:
    saved = storage.read(source)
    ids = [id for id, _ in saved.examples.keys]
    names = _relative({id for id in ids if is_absolute(id)})
    notes = []
    model = without_paths(dict(saved.model))
    clean = replace(saved, model=model, read=None)
    if names:

        def renamed(key: Key) -> Key:
            return names.get(key[0], key[0]), key[1]

        keys = tuple(map(renamed, saved.examples.keys))
        clean = replace(
            clean,
            examples=replace(saved.examples, keys=keys),
            seconds={renamed(key): value for key, value in saved.seconds.items()},
            claims={renamed(key): value for key, value in saved.claims.items()},
            store=FileStore(),
        )
        notes = [
            "examples are named by their paths below the folder that holds them all",
            "earlier versions stay here",
        ]
    storage.write(folder / CLASSES, clean)
    examples = clean.examples
    counts = {one.name: one.yes for one in examples.classes()}
    facts = {
        "fingerprint": digest(dict(clean.fingerprint)),
        "labels": list(counts),
        "counts": counts,
        "examples": len(examples.keys),
        "settings": dict(clean.settings),
        "source": model.get("spec", ""),
        "tap": model.get("tap", ""),
        "pooling": model.get("pooling", ""),
        "modality": model.get("modality", ""),
        "dim": examples.dim,
    }
    return Prepared(CLASS_SPACE, folder, facts, notes)


def _relative(ids: set[str]) -> dict[str, str]:
    """New ids of absolute paths: below the folder that holds them all."""
    if not ids:
        return {}
    folders = [id.replace("\\", "/").split("/")[:-1] for id in ids]
    shared = 0
    while all(len(one) > shared for one in folders) and len({one[shared] for one in folders}) == 1:
        shared += 1
    return {id: "/".join(id.replace("\\", "/").split("/")[shared:]) for id in ids}


# A collection


def _collection(source: Path, folder: Path) -> Prepared:
    is_collection(source)
    reader = Reader(source)
    manifest = reader.require_manifest()
    _require_roots(reader, manifest)
    left_out = _with_paths(reader)
    roots = {name: Root(f"{_ELSEWHERE}/{name}") for name in manifest.roots or {}}
    clean = replace(manifest, model=without_paths(dict(manifest.model)), roots=roots)
    names = [name for name in reader.schema.names if name not in left_out]
    metadata = {
        name: kind
        for name, kind in schema.metadata_of(reader.schema).items()
        if name not in left_out
    }
    with writing(folder, clean, metadata, {"command": "penult push"}, alone=True) as writer:
        for batch in reader.ordered(names, None, _BATCH):
            writer.write(batch)
        append_missing(source, folder, "spaces", by="space_id")
        labels = _copy_labels(reader, folder)
        writer.finish("done")
    _copy_runs(reader, folder, writer.run_id)
    for name in ("writer.lock", "writers"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
    notes = ["the index, clusters, maps, failures and versions of classes stay here"]
    if left_out:
        notes.append(f"columns with paths of this machine stay here: {', '.join(left_out)}")
    facts = _collection_facts(reader, clean, labels)
    people = sorted({who for who in labels["who"].to_pylist() if who})
    warnings = [f"marks name who made them: {listed(people)}"] if people else []
    return Prepared(COLLECTION, folder, facts, notes, warnings)


def _require_roots(reader: Reader, manifest: Manifest) -> None:
    outside = "id LIKE '/%' OR id LIKE '_:%'"
    if manifest.roots is None or (reader.count_rows() and reader.count_rows(outside)):
        raise CollectionError(
            f"ids of {reader.path} are absolute paths of this machine, which are not published: "
            f"penult migrate {reader.path} --root DIR names files by roots"
        )


def _with_paths(reader: Reader) -> list[str]:
    """Columns of metadata that hold absolute paths."""
    types = schema.metadata_of(reader.schema)
    texts = [name for name, kind in types.items() if pa.types.is_string(kind)]
    found = dict.fromkeys([PATH] if PATH in texts else [], True)
    for batch in reader.scan(texts, batch_size=_BATCH) if texts else ():
        for name in texts:
            values = pc.drop_null(pc.unique(batch.column(name))).to_pylist()
            if any(is_absolute(value) for value in values):
                found[name] = True
    return list(found)


def _copy_labels(reader: Reader, folder: Path) -> pa.Table:
    """The marks of items that are named by roots."""
    table = reader.side_table("labels")
    kept = pa.array([not is_absolute(id) for id in table["id"].to_pylist()], pa.bool_())
    table = table.filter(kept)
    with store_errors(folder):
        if len(table):
            lance.create_table(folder, "labels", lance.SIDE["labels"]).add(table)
    return table


def _copy_runs(reader: Reader, folder: Path, own: str) -> None:
    """How rows were made, in place of the run that copied them."""
    runs = [
        {
            **run,
            "command": None,
            "model": without_paths(run["model"], "model"),
            "info": json.dumps(without_paths(json.loads(run["info"] or "{}"))),
        }
        for run in reader.side_table("runs").to_pylist()
    ]
    with store_errors(folder):
        table = lance.create_table(folder, "runs", lance.SIDE["runs"])
        table.delete(f"run_id = {schema.quoted([own])}")
        if runs:
            table.add(pa.Table.from_pylist(runs, schema=lance.SIDE["runs"]))


def _collection_facts(reader: Reader, manifest: Manifest, labels: pa.Table) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    for batch in reader.scan(["kind"], batch_size=_BATCH):
        kinds.update(batch.column("kind").to_pylist())
    model: Mapping[str, Any] = manifest.model
    return {
        "fingerprint": digest(dict(manifest.fingerprint)),
        "rows": sum(kinds.values()),
        "kinds": dict(kinds.most_common()),
        "dim": manifest.dim,
        "dtype": manifest.dtype,
        "source": model.get("spec", ""),
        "revision": model.get("revision"),
        "tap": model.get("tap", ""),
        "pooling": model.get("pooling", ""),
        "modality": model.get("modality", ""),
        "columns": list(schema.metadata_of(reader.schema)),
        "labels": sorted(set(labels["class"].to_pylist())),
        "marks": len(labels),
        "classes": list(manifest.labels),
        "roots": list(manifest.roots or {}),
    }
