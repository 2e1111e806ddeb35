"""`penult predict`: what items are, by the classes that were taught or by their names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penult.cli.collections import Where
from penult.cli.embedding import parsed
from penult.cli.opened import items_of, source_of
from penult.cli.options import NOTHING, Asked, Channel, Device, Json, opening
from penult.cli.output import working
from penult.cli.said import facts_of, tell
from penult.cli.teaching import Model, opened

if TYPE_CHECKING:
    from penult.classspace import ClassSpace
    from penult.predictions import ClassPrediction
    from penult.sources import Failure

Found = list["ClassPrediction"]


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
    from penult.classfile import check_free
    from penult.errors import UsageError

    if out is not None and out.suffix not in (".csv", ".txt"):
        raise UsageError(f"--out {out}: .csv and .txt (a Raven selection table) can be written")
    check_free(out, overwrite)
    if names is not None:
        cut = {"--window": window, "--method": method, "--unknown": unknown, "--nearest": nearest}
        if given := [name for name, value in cut.items() if value]:
            raise UsageError(f"{given[0]} is for classes that were taught, not for --names")
        found, failures, facts = _by_names(
            place, items or [], names, names_model, mixed, where, device, channel, asked
        )
    else:
        said = {
            "space": space,
            "method": method,
            "unknown": unknown,
            "several": several,
            "groups": groups,
        }
        taught = opened(place, model, device, bool(asked.get("trust")), **said)
        found, failures = _judged(
            taught, items or [], where, unknown, nearest, parsed(window), parsed(hop), channel
        )
        facts = facts_of(taught, unknown)
    tell(place, found, failures, facts, merge_gap, windows, out, json)


COMMANDS = (predict,)


def _judged(
    taught: ClassSpace,
    items: list[str],
    where: str | None,
    level: float | None,
    nearest: int,
    window: float | None,
    hop: float | None,
    channel: str | None,
) -> tuple[Found, list[Failure]]:
    from penult.collection import Collection
    from penult.errors import UsageError
    from penult.layout import Layout
    from penult.predictions import ClassPrediction
    from penult.store import exists

    rows = len(items) == 1 and Path(items[0]).is_dir() and _is_collection(exists, Path(items[0]))
    if rows or not items:
        if window is not None or channel is not None:
            raise UsageError("rows of a collection are cut already: no --window, no --channel")
        if not items and taught.collection is None:
            raise UsageError("give items, or a collection whose rows are meant")
        asked = Collection.open(items[0], must_exist=True) if items else None
        with working("predicting"):
            return [*taught.predict_collection(asked, where, unknown=level, nearest=nearest)], []
    if where is not None:
        raise UsageError("--where is for the rows of a collection, not for files")
    source = source_of(items, channel, str(taught.manifest.model.get("modality")))
    with working("predicting"):
        found = list(taught.stream(source, Layout(window, hop), level, nearest))
    good = [one for one in found if isinstance(one, ClassPrediction)]
    return good, [one for one in found if not isinstance(one, ClassPrediction)]


def _is_collection(exists: Any, path: Path) -> bool:
    from penult.errors import CollectionError

    try:
        return bool(exists(path))
    except CollectionError:
        return False


def _by_names(
    place: str,
    items: list[str],
    names: str,
    folder: Path | None,
    mixed: int,
    where: str | None,
    device: str,
    channel: str | None,
    asked: Asked,
) -> tuple[Found, list[Failure], dict[str, Any]]:
    from penult.byname import ByName, text_embedder
    from penult.classifiers import load
    from penult.collection import Collection
    from penult.errors import UsageError
    from penult.predictions import ClassPrediction
    from penult.runner import Runner, device_of
    from penult.store import exists

    if folder is None:
        raise UsageError(
            "--names needs --names-model FOLDER, a local sentence-transformers model such as "
            "all-MiniLM-L6-v2"
        )
    wanted = names.split(",")
    facts = {"names": wanted, "names_model": str(folder)}
    if Path(place).is_dir() and _is_collection(exists, Path(place)):
        if items:
            raise UsageError("--names takes a collection's own rows; for files name the model")
        collection = Collection.open(place, must_exist=True)
        manifest = collection.manifest
        assert manifest is not None
        with working("predicting"):
            by_name = ByName(manifest.labels, str(manifest.model.get("kind")), wanted,
                             text_embedder(folder), mixed)  # fmt: skip
            return list(by_name.predict_collection(collection, where)), [], facts
    source = items_of(place, asked, items, channel)
    embed = text_embedder(folder)
    with working(f"loading {place}"):
        classifier = load(place, **asked)
        by_name = ByName(classifier.labels, classifier.kind, wanted, embed, mixed)
    with working("predicting"):
        found = list(by_name.stream(Runner(classifier, [], device_of(classifier, device)), source))
    good = [one for one in found if isinstance(one, ClassPrediction)]
    return good, [one for one in found if not isinstance(one, ClassPrediction)], facts
