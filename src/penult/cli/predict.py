"""`penult predict`: the classes of items, by examples or by names, as a table, events, a file or
JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.collection import Where
from penult.cli.options import (
    NO_OPTIONS,
    Channel,
    Device,
    Json,
    ModelOptions,
    items_of,
    seconds_of,
    source_of,
    with_model_options,
)
from penult.cli.output import (
    SOME_FAILED,
    counted,
    print_json_stream,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)
from penult.cli.teach import Model, load_class_space

if TYPE_CHECKING:
    from penult.data.items import Failure
    from penult.fewshot.classspace import ClassSpace
    from penult.fewshot.events import Event
    from penult.fewshot.predictions import ClassPrediction, Spool


Found = Iterator["ClassPrediction | Failure"]


@with_model_options
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
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Say what items are, or that they are unknown: by the classes that were taught, or by names.

    Windows of one class that follow each other become one event.
    """
    from penult.fewshot.predictions import Spool

    _check_out(out, overwrite)
    parts = Parts(items or [], where, seconds_of(window), seconds_of(hop), channel)
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
        found, facts = _by_names(
            place, Names(names, str(names_model), mixed), parts, device, model_options
        )
    else:
        taught = load_class_space(
            place, model, device, bool(model_options.get("trust")), **settings
        )
        found, facts = _judged(taught, parts, unknown, nearest), None
    with Spool(whole=json, shown=SHOWN) as spool:
        with working("predicting"):
            failures = collect(found, spool)
        rests_on = facts_of(taught, unknown) if facts is None else facts
        print_predictions(place, spool, failures, rests_on, form)


COMMANDS = (predict,)


@dataclass(frozen=True, slots=True)
class Parts:
    """The items to predict, or the rows of a collection, and how recordings are cut."""

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
    from penult.fewshot.storage import check_free

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
    from penult.collection.collection import Collection
    from penult.data.windows import Layout
    from penult.errors import UsageError

    items = parts.items
    rows = len(items) == 1 and _is_collection(items[0])
    if rows or not items:
        if (parts.window, parts.hop, parts.channel) != (None, None, None):
            raise UsageError(
                "rows of a collection are cut already: no --window, no --hop, no --channel"
            )
        if not items and taught.collection is None:
            raise UsageError("give items, or a collection whose rows are meant")
        model_options = Collection.open(items[0], must_exist=True) if items else None
        return taught.predict_collection(model_options, parts.where, unknown=level, nearest=nearest)
    if parts.where is not None:
        raise UsageError("--where is for the rows of a collection, not for files")
    source = source_of(items, parts.channel, str(taught.manifest.model.get("modality")))
    return taught.stream(source, Layout(parts.window, parts.hop), level, nearest)


def _is_collection(path: str) -> bool:
    from penult.collection.manifest import exists
    from penult.errors import CollectionError

    try:
        return Path(path).is_dir() and exists(Path(path))
    except CollectionError:
        return False


def _by_names(
    place: str, names: Names, parts: Parts, device: str, model_options: ModelOptions
) -> tuple[Found, dict[str, Any]]:
    from penult.collection.collection import Collection
    from penult.embedding.runner import Runner, device_of
    from penult.errors import UsageError
    from penult.fewshot.zeroshot import ByName, text_embedder
    from penult.models.specs import load

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
    source = items_of(place, model_options, parts.items, parts.channel)
    embed = text_embedder(names.folder)
    with working(f"loading {place}"):
        classifier = load(place, **model_options)
        by_name = ByName(classifier.labels, classifier.kind, wanted, embed, names.mixed)
    return by_name.stream(Runner(classifier, [], device_of(classifier, device)), source), facts


SHOWN = 20


def facts_of(taught: ClassSpace, level: float | None) -> dict[str, Any]:
    """What predictions rest on."""
    fitted = taught.taught
    wanted = taught.settings.unknown if level is None else level
    threshold, basis = fitted.threshold(wanted) if wanted else (None, "")
    return {
        "classes": list(fitted.names),
        "method": fitted.method,
        "accuracy": fitted.accuracy,
        "space": fitted.space.recipe,
        "several": fitted.several,
        "probabilities": fitted.probabilities.basis,
        "unknown": {"level": wanted, "threshold": threshold, "basis": basis} if wanted else None,
    }


@dataclass(frozen=True, slots=True)
class Form:
    """How to tell. gap: seconds between windows of one event. apart: do not merge windows."""

    gap: float
    apart: bool
    out: Path | None
    json: bool


def collect(found: Iterable[ClassPrediction | Failure], spool: Spool) -> list[Failure]:
    """Keep predictions until all is done, for half an answer is not told; gives what failed."""
    from penult.fewshot.predictions import ClassPrediction

    failures = []
    for one in found:
        if isinstance(one, ClassPrediction):
            spool.add(one)
        else:
            failures.append(one)
    return failures


def print_predictions(
    place: str, found: Spool, failures: list[Failure], facts: dict[str, Any], form: Form
) -> None:
    """Tell predictions and what they rest on, or write them. Ends with exit code 3 where some
    items failed."""
    from penult.fewshot import events

    heard = None
    if found.cut and not form.apart:
        heard = events.merged(found.windows(), form.gap)
    if form.out is not None:
        _write(form.out, found, heard)
    if form.json:
        print_json_stream({"place": place, **facts}, "predictions", found, {
            "events": None if heard is None else [_event(one) for one in heard],
            "out": form.out, "failures": [one.to_dict() for one in failures]})  # fmt: skip
    else:
        _say_basis(facts)
        if form.out is None:
            _show(found, "names" in facts) if heard is None else _show_events(heard)
        _sum_up(found, heard, form.out, failures)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _sum_up(
    found: Spool, heard: list[Event] | None, out: Path | None, failures: list[Failure]
) -> None:
    most = ", ".join(
        f"{printable(name or 'unknown')} {number:,}" for name, number in found.tally.most_common(8)
    )
    told = f"[bold green]{counted(len(found), 'prediction')}[/]"
    if heard is not None:
        told = f"[bold green]{counted(len(heard), 'event')}[/] of {counted(len(found), 'region')}"
    stdout.print(
        told + (f": {most}" if most else "") + (", …" if len(found.tally) > 8 else ""),
        soft_wrap=True,
    )
    if out is not None:
        stdout.print(f"written: [bold]{printable(str(out))}[/]", soft_wrap=True)
    for one in failures:
        print_note(f"[red]failed[/] {printable_path(one.id)}: {printable(one.message)}")


def _write(out: Path, found: Spool, heard: list[Event] | None) -> None:
    from penult.data.files import write_file
    from penult.fewshot import events

    lines: Iterable[str]
    if out.suffix == ".txt":
        each = (event for window in found.windows() for event in window.events())
        lines = [events.to_raven(list(each) if heard is None else heard)]
    else:
        lines = found.to_csv() if heard is None else [events.to_csv(heard)]
    write_file(out, (line.encode("utf-8", "backslashreplace") for line in lines))


def _say_basis(facts: dict[str, Any]) -> None:
    if "method" not in facts:
        return
    tried = ", ".join(f"{name} {value:.3f}" for name, value in facts["accuracy"].items()
                      if value == value)  # fmt: skip
    number = len(facts["classes"])
    print_note(
        f"[dim]{number} class{'' if number == 1 else 'es'}, {facts['method']}"
        + (f" (cross-validated: {tried})" if tried else "")
        + f", space {facts['space']}; probabilities: {facts['probabilities']}[/]"
    )
    best = max((value for value in facts["accuracy"].values() if value == value), default=None)
    if best is not None and number > 1 and best < 2 / number:
        print_note(
            f"[yellow]these examples hardly tell the classes apart: of those held out {best:.0%} "
            f"were right, and {1 / number:.0%} are by chance. Give more of each, or look for a "
            "better place to read with penult choose[/]"
        )
    if unknown := facts["unknown"]:
        print_note(f"[dim]unknown at {unknown['level']:g}: {unknown['basis']}[/]")


def _show(found: Spool, by_names: bool) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    near = any(one.nearest for one in found.first)
    measure = "cosine" if by_names else "probability"
    columns = ["item", "seconds", "class", measure, *(["nearest examples"] if near else [])]
    for name in columns:
        table.add_column(name, justify="right" if name == measure else "left", overflow="fold")
    for one in found.first:
        said = ", ".join(one.said) if one.said else None
        table.add_row(
            printable_path(one.id),
            _span(one.start, one.end) if one.region != "whole" else "",
            printable(said) if said else "[dim]unknown[/]",
            f"{one.score:.3f}" if said else f"[dim]{one.score:.3f}[/]",
            *([_near(one)] if near else []),
        )
    print_table(table)
    _more(len(found))


def _show_events(heard: list[Event]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("item", "channel", "seconds", "class", "probability", "windows"):
        table.add_column(name, justify="right" if name in ("probability", "windows") else "left",
                         overflow="fold")  # fmt: skip
    for one in heard[:SHOWN]:
        table.add_row(printable_path(one.id), "" if one.channel is None else str(one.channel),
                      _span(one.start, one.end), printable(one.label), f"{one.probability:.3f}",
                      str(one.windows))  # fmt: skip
    print_table(table)
    _more(len(heard))


def _more(count: int) -> None:
    if count > SHOWN:
        stdout.print(f"… and {count - SHOWN:,} more; --out FILE.csv writes all")


def _near(one: ClassPrediction) -> str:
    parts = []
    for near in one.nearest:
        name = Path(near.id).name + ("" if near.region == "whole" else f" {near.region}")
        marks = ", ".join(n if m == "yes" else f"{m} {n}" for n, m in near.marks.items())
        parts.append(f"{name} ({marks}) {near.similarity:.3f}")
    return printable("; ".join(parts))


def _span(start: float | None, end: float | None) -> str:
    return "" if start is None or end is None else f"{start:.2f}-{end:.2f}"


def _event(one: Event) -> dict[str, Any]:
    return {"id": one.id, "channel": one.channel, "start": one.start, "end": one.end,
            "label": one.label, "probability": one.probability, "windows": one.windows}  # fmt: skip
