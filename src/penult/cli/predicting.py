"""`penult predict`: what items are, by the classes that were taught or by their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penult.cli.collections import Where
from penult.cli.embedding import parsed
from penult.cli.opened import items_of, source_of
from penult.cli.options import NOTHING, Asked, Channel, Device, Json, opening
from penult.cli.output import working
from penult.cli.said import SHOWN, Form, facts_of, gathered, tell
from penult.cli.teaching import Model, opened

if TYPE_CHECKING:
    from penult.classspace import ClassSpace
    from penult.sources import Failure
    from penult.teaching.predictions import ClassPrediction

Found = Iterator["ClassPrediction | Failure"]


@opening
def predict(
    place: Annotated[
        str,
        typer.Argument(
            help="A collection, or a class space that was saved (FILE.npz); with --names also a "
            "model."
        ),
    ],
    items: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, tables, -, or one collection; none is the collection itself."
        ),
    ] = None,
    where: Where = None,
    method: Annotated[
        str | None,
        typer.Option(help="prototype, knn, ridge or logistic; else chosen by cross-validation."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Recipe of the class space: raw, centre, scale+l2, auto, …")
    ] = None,
    unknown: Annotated[
        float | None,
        typer.Option(
            help="About this share of the items of known classes is called unknown, at most; 0 "
            "calls none unknown. Else 0.05."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="What examples are not tried on among themselves, such as a speaker: a column, "
            "folder or pattern. The level then holds for new ones."
        ),
    ] = None,
    several: Annotated[
        bool | None,
        typer.Option("--several/--single", help="Several classes at once, or one; else as taught."),
    ] = None,
    nearest: Annotated[
        int, typer.Option(min=0, help="Name so many nearest examples of every prediction.")
    ] = 0,
    window: Annotated[
        str | None, typer.Option(help="Cut recordings into windows of 5s, 250ms.")
    ] = None,
    hop: Annotated[
        str | None, typer.Option(help="From one window's start to the next; else the window.")
    ] = None,
    channel: Channel = None,
    merge_gap: Annotated[
        float,
        typer.Option(min=0.0, help="Windows of one class so many seconds apart are one event."),
    ] = 0.0,
    windows: Annotated[
        bool, typer.Option("--windows", help="Every window by itself, not merged into events.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write them to .csv, or to .txt as a Raven table.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
    names: Annotated[
        str | None, typer.Option(help="Classes by their names alone, with commas between.")
    ] = None,
    names_model: Annotated[
        Path | None, typer.Option(help="Folder of a sentence-transformers model, for --names.")
    ] = None,
    mixed: Annotated[
        int, typer.Option(min=1, help="With --names: so many of the classifier's labels are mixed.")
    ] = 10,
    model: Model = None,
    device: Device = "auto",
    json: Json = False,
    asked: Asked = NOTHING,
) -> None:
    """Say what items are, or that they are unknown: by the classes that were taught, or by names.

    Windows of one class that follow each other become one event.
    """
    from penult.teaching.spooled import Spool

    _check_out(out, overwrite)
    parts = Parts(items or [], where, parsed(window), parsed(hop), channel)
    settings = {
        "space": space,
        "method": method,
        "unknown": unknown,
        "several": several,
        "groups": groups,
    }
    form = Form(merge_gap, windows, out, json)
    if names is not None:
        given = {**settings, "window": window, "hop": hop, "nearest": nearest or None}
        _check_names(given, names_model)
        found, facts = _by_names(place, Names(names, str(names_model), mixed), parts, device, asked)
    else:
        taught = opened(place, model, device, bool(asked.get("trust")), **settings)
        found, facts = _judged(taught, parts, unknown, nearest), None
    with Spool(whole=json, shown=SHOWN) as spool:
        with working("predicting"):
            failures = gathered(found, spool)
        rests_on = facts_of(taught, unknown) if facts is None else facts
        tell(place, spool, failures, rests_on, form)


COMMANDS = (predict,)


@dataclass(frozen=True, slots=True)
class Parts:
    """What is asked about: items, or the rows of a collection, and how recordings are cut."""

    items: list[str]
    where: str | None
    window: float | None
    hop: float | None
    channel: str | None


@dataclass(frozen=True, slots=True)
class Names:
    """Classes by name. folder: of the text model. mixed: labels that are mixed."""

    wanted: str
    folder: str
    mixed: int


def _check_out(out: Path | None, overwrite: bool) -> None:
    from penult.errors import UsageError
    from penult.teaching.classfile import check_free

    if out is not None and out.suffix not in (".csv", ".txt"):
        raise UsageError(f"--out {out}: .csv and .txt (a Raven selection table) can be written")
    check_free(out, overwrite)


def _check_names(given: dict[str, Any], folder: Path | None) -> None:
    from penult.errors import UsageError

    if odd := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"--{odd[0]} is for classes that were taught, not for --names")
    if folder is None:
        raise UsageError(
            "--names needs --names-model FOLDER, a local sentence-transformers model such as "
            "all-MiniLM-L6-v2"
        )


def _judged(taught: ClassSpace, parts: Parts, level: float | None, nearest: int) -> Found:
    from penult.errors import UsageError
    from penult.sources.layout import Layout
    from penult.store.collection import Collection

    items = parts.items
    rows = len(items) == 1 and _is_collection(items[0])
    if rows or not items:
        if (parts.window, parts.hop, parts.channel) != (None, None, None):
            raise UsageError(
                "rows of a collection are cut already: no --window, no --hop, no --channel"
            )
        if not items and taught.collection is None:
            raise UsageError("give items, or a collection whose rows are meant")
        asked = Collection.open(items[0], must_exist=True) if items else None
        return taught.predict_collection(asked, parts.where, unknown=level, nearest=nearest)
    if parts.where is not None:
        raise UsageError("--where is for the rows of a collection, not for files")
    source = source_of(items, parts.channel, str(taught.manifest.model.get("modality")))
    return taught.stream(source, Layout(parts.window, parts.hop), level, nearest)


def _is_collection(path: str) -> bool:
    from penult.errors import CollectionError
    from penult.store.folder import exists

    try:
        return Path(path).is_dir() and exists(Path(path))
    except CollectionError:
        return False


def _by_names(
    place: str, names: Names, parts: Parts, device: str, asked: Asked
) -> tuple[Found, dict[str, Any]]:
    from penult.classifiers import load
    from penult.classspace.byname import ByName, text_embedder
    from penult.embedding.runner import Runner, device_of
    from penult.errors import UsageError
    from penult.store.collection import Collection

    wanted = names.wanted.split(",")
    facts = {"names": wanted, "names_model": names.folder}
    if _is_collection(place):
        if parts.items:
            raise UsageError("--names takes a collection's own rows; for files name the model")
        collection = Collection.open(place, must_exist=True)
        manifest = collection.manifest
        assert manifest is not None
        kind, embed = str(manifest.model.get("kind")), text_embedder(names.folder)
        by_name = ByName(manifest.labels, kind, wanted, embed, names.mixed)
        return by_name.predict_collection(collection, parts.where), facts
    if parts.where is not None:
        raise UsageError("--where is for the rows of a collection, not for files")
    source = items_of(place, asked, parts.items, parts.channel)
    embed = text_embedder(names.folder)
    with working(f"loading {place}"):
        classifier = load(place, **asked)
        by_name = ByName(classifier.labels, classifier.kind, wanted, embed, names.mixed)
    return by_name.stream(Runner(classifier, [], device_of(classifier, device)), source), facts
