"""`penult explain`: where in a sound or a picture a similarity, or a class's score, comes from."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.collection import space_of
from penult.cli.options import (
    NO_OPTIONS,
    BoxOption,
    ChannelOfRows,
    Device,
    End,
    Json,
    ModelOptions,
    Overwrite,
    Pooling,
    PoolOver,
    RawCells,
    Start,
    Tap,
    check_output,
    of_part,
    query_part,
    source_of,
    with_model_options,
)
from penult.cli.output import (
    counted,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)
from penult.cli.teach import is_collection, load_class_space
from penult.errors import ItemError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from penult.analysis.space import Space
    from penult.collection.collection import Collection
    from penult.collection.search import QueryPart
    from penult.data.items import Item
    from penult.data.regions import Region
    from penult.embedding.attribution import Attribution
    from penult.embedding.embedder import Embedder
    from penult.fewshot.classspace import ClassSpace

_SHOWN = 10  # segments, or positions of a picture
_LEAST = 5e-5  # of a term that is printed


@with_model_options
def explain(
    place: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model, a saved embedder, a collection, or a class file (.npz) of teach.",
        ),
    ],
    item: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A sound or a picture; also a part of one as it is printed: 'a.wav 4-6'.",
        ),
    ],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="EXAMPLE",
            help="Explain the similarity to this file; of a collection also to a row.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Explain the similarity to a taught class, or the logit of a class of the "
            "classifier. Default: of its first label.",
        ),
    ] = None,
    space: Annotated[
        str, typer.Option(help="With --like and a collection: a space of its rows, such as centre.")
    ] = "raw",
    start: Start = None,
    end: End = None,
    channel: ChannelOfRows = None,
    box: BoxOption = None,
    tap: Tap = None,
    pooling: Pooling = None,
    pool_over: PoolOver = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture: the heat map over the spectrogram or the image, and the curve "
            "over time (.png, .svg, .pdf)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the stretches of a sound, or every position of a picture, to this CSV file."
        ),
    ] = None,
    overwrite: Overwrite = False,
    raw_cells: RawCells = False,
    model: Annotated[
        str | None,
        typer.Option(help="Embedder to use, where that of a collection or class file has moved."),
    ] = None,
    device: Device = "auto",
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Show which part of a sound or a picture a similarity, or a class's score, comes from.

    Each frame or patch gets its part of the score: gradient × hidden state, through the pooling.
    The parts sum to the score exactly where the score scales with the hidden states, as with every
    built-in pooling and a linear head behind it; else it is said. Where frames and patches lie in
    the file is measured.
    """
    _check(like, label, space, plot, out, overwrite)
    reading = {"tap": tap, "pooling": pooling, "pool_over": pool_over}
    subject = _subject(place, reading, (device, model), model_options)
    embedder = subject.embedder
    part = query_part(embedder.classifier.modality, start, end, channel, box)
    entry = _one_entry(item, part, embedder, subject.collection)
    if told := _other_length(subject, item, entry[1]):
        print_note(printable(told))
    with working("explaining"):
        found = _explained(subject, entry, like, label, space)
    if plot is not None:
        _draw(plot, found)
    table = _table(item, found)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, table, raw_cells)
    if json:
        files = {"plot": plot, "out": out}
        print_json({"item": item, "model": place, **found.to_dict(), **_segments(found), **files})
        return
    _show(item, found, table.slice(0, _SHOWN), {"picture": plot, "table": out})


@dataclass(frozen=True, slots=True)
class _Subject:
    """What explains: an embedder, and the collection or the taught classes that it is of."""

    place: str
    embedder: Embedder
    collection: Collection | None = None
    taught: ClassSpace | None = None


def _check(
    like: str | None, label: str | None, space: str, plot: Path | None, out: Path | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Refuse options that do not go together, before the model is opened."""
    from penult.fewshot.storage import check_free
    from penult.viz.plots import check_picture

    if like is not None and label is not None:
        raise UsageError("--like is of an example and --class of a class; give one of them")
    if space != "raw" and like is None:
        raise UsageError("--space is for --like; taught classes have their own space")
    for path in filter(None, (plot, out)):
        check_output(path)
        check_free(path, overwrite)
    if plot is not None:
        check_picture(plot)


def _subject(
    place: str,
    reading: dict[str, Any],
    opening: tuple[str, str | None],
    options: ModelOptions,
) -> _Subject:
    """The embedder of a model, of a collection or of a class file. opening: the device, and where
    the model is now.

    Raises:
        UsageError: a reading or an option of the model, which the collection says.
    """
    from penult.collection.collection import Collection
    from penult.embedding.embedder import open_embedder

    device, model = opening
    is_kept = is_collection(place)
    if not is_kept and not place.endswith(".npz"):
        if model is not None:
            raise UsageError(f"--model goes with a collection, and {place} is none: leave it out")
        with working(f"loading {place}"):
            return _Subject(place, open_embedder(place, **reading, device=device, **options))
    trust = bool(options.get("trust"))
    told = {**reading, **options, "trust": None}
    if given := [name for name, value in told.items() if value]:
        raise UsageError(f"--{given[0].replace('_', '-')} is what {place} says; leave it out")
    with working("loading the model"):
        if not is_kept:
            taught = load_class_space(place, model, device, trust)
            return _Subject(place, taught.source.embedder, None, taught)
        opened = Collection.open(place, must_exist=True)
        embedder = opened.embedder(model, device=device, trust=trust)
        taught = load_class_space(place, model, device, trust)
        return _Subject(place, embedder, opened, taught if taught.examples.names else None)


def _one_entry(
    item: str, part: QueryPart, embedder: Embedder, collection: Collection | None = None
) -> tuple[Item, Region]:
    """The item, or a part of it. item: a file, a row of the collection, or a part of a file as it
    is printed.

    Raises:
        UsageError: a folder or a table, which are several.
    """
    from penult.collection.row_names import row_of_name
    from penult.collection.search import QueryPart, path_of_name
    from penult.data.items import Failure
    from penult.data.regions import Region

    reader = None if collection is None else collection.reader
    if part == QueryPart() and (row := row_of_name(reader, item)) is not None:
        region = Region.of_key(row[1])
        item, part = row[0], QueryPart(replace(region, channel=None), region.channel)
    if reader is not None:
        item = path_of_name(reader, item)
    channel = None if part.channel is None else str(part.channel)
    source = of_part(source_of([item], channel, embedder.classifier.modality), part.region)
    entries = list(islice(source, 2))
    if len(entries) != 1:
        raise UsageError(f"{item} is not one item; explain takes one file, and one channel of it")
    if isinstance(entries[0], Failure):
        raise ItemError(entries[0].words())
    return entries[0]


def _other_length(subject: _Subject, item: str, region: Region) -> str:
    """In words that the rows of the collection are windows, and the item is one piece; empty where
    it is not so."""
    from penult.collection.row_layout import row_layout

    if subject.collection is None or region.start is not None:
        return ""
    window = row_layout(subject.collection.reader).layout.window
    if not window or subject.embedder.classifier.modality != "audio":
        return ""
    return (
        f"the rows of {subject.place} are windows of {window:g} s, and {item} is explained in one "
        f"piece, whose score is another one: --start 0 --end {window:g} explains a window"
    )


def _explained(
    subject: _Subject, entry: tuple[Item, Region], like: str | None, label: str | None, recipe: str
) -> Attribution:
    from penult.embedding.attribution import attribute_logit, attribute_similarity
    from penult.fewshot.fitted import prototype

    embedder, taught = subject.embedder, subject.taught
    if like is not None:
        vector, used = _example(subject, like, recipe)
        return attribute_similarity(embedder, entry, used(vector), used, like)
    if taught is None:
        return attribute_logit(embedder, entry, label)
    names = taught.fitted.names
    if label is None:
        raise UsageError(
            f"give --class: {', '.join(names)} (taught), or one of the classifier's own"
        )
    if label not in names:
        if label not in embedder.classifier.labels:
            raise UsageError(
                f"no class {label!r} was taught in {subject.place} ({', '.join(names)}), and "
                f"{embedder.classifier.spec} has none of this name either"
            )
        return attribute_logit(embedder, entry, label)
    point, space = prototype(taught.fitted, label), taught.fitted.space
    return attribute_similarity(embedder, entry, point, space, label)


def _example(subject: _Subject, like: str, space: str) -> tuple[Any, Space]:
    """The raw vector (d,) of an example, and the space.

    Raises:
        UsageError: a space without a collection, or an example of several parts.
        ItemError: the file cannot be opened.
    """
    from penult.analysis.space import RAW
    from penult.analysis.space import Space as Fitted
    from penult.collection.search import query_vectors
    from penult.embedding.stations import without_failure

    embedder, collection = subject.embedder, subject.collection
    if collection is not None:
        found = query_vectors(collection.reader, like, lambda: embedder)
        if len(found.vectors) != 1:
            raise UsageError(
                f"{like} is {counted(len(found.vectors), 'part')} as the rows of the collection "
                f"are; name one of them, such as '{like} {found.regions[0]}'"
            )
        return found.vectors[0], space_of(collection, space)
    if space != RAW:
        raise UsageError("--space is fitted to the rows of a collection; give one as MODEL")
    entry = _one_entry(like, query_part(embedder.classifier.modality), embedder)
    with closing(embedder.runner.stream([entry], alone=True, logits=False)) as outcomes:
        outcome: Any = without_failure(next(outcomes))
    return outcome.vector, embedder.space or Fitted(RAW, embedder.dim)


def _segments(found: Attribution) -> dict[str, Any]:
    if not found.places.is_sound:
        return {}
    return {"segments": [one.to_dict() for one in found.segments()]}


def _table(item: str, found: Attribution) -> pa.Table:
    """The stretches of a sound with more than their even share, or every position of a picture; the
    largest part first."""
    import numpy as np
    import pyarrow as pa

    if found.places.is_sound:
        rows = [{"path": item, **one.to_dict()} for one in found.segments()]
        names = ["path", "start", "end", "part", "density"]
    else:
        names = ["path", "x", "y", "part"]
        order = np.argsort(-found.parts, kind="stable")
        rows = [
            {"path": item, "x": float(x), "y": float(y), "part": float(found.parts[at])}
            for at in order
            for x, y in [found.places.centres[at]]
            if x == x
        ]
    columns = {name: [row[name] for row in rows] for name in names}
    kinds = {name: pa.string() if name == "path" else pa.float64() for name in names}
    return pa.table({name: pa.array(columns[name], kinds[name]) for name in names})


def _show(item: str, found: Attribution, table: pa.Table, files: dict[str, Path | None]) -> None:
    terms = [
        (
            float(found.parts[found.places.placed].sum()),
            counted(int(found.places.placed.sum()), "place"),
        ),
        (found.unplaced, "positions that see none of them (class tokens, padding)"),
        (found.rest, "no position"),
    ]
    words = " + ".join(f"{value:.4f} of {name}" for value, name in terms if abs(value) >= _LEAST)
    stdout.print(
        f"[bold]{printable(found.name)}[/] in {printable_path(item)}: {found.kind} "
        f"{found.score:.4f} = {words or '0'}",
        soft_wrap=True,
    )
    if found.exact:
        stdout.print("[green]exact[/]: the parts sum to the score")
    else:
        stdout.print(
            "[yellow]not exact[/]: the score does not scale with the hidden states here; the parts "
            "are first-order effects, which the rest makes up to the score",
            soft_wrap=True,
        )
    if found.kept is not None:
        stdout.print(f"[yellow]the model takes the first {found.kept:g} s alone[/]")
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in table.column_names[1:]:
        shown.add_column(name, justify="right")
    for row in table.to_pylist():
        digits = {"start": 3, "end": 3, "x": 0, "y": 0}
        shown.add_row(*(f"{row[n]:.{digits.get(n, 4)}f}" for n in table.column_names[1:]))
    print_table(shown)
    for name, file in files.items():
        if file is not None:
            stdout.print(f"{name}: {printable_path(str(file))}", soft_wrap=True)


def _draw(path: Path, found: Attribution) -> None:
    from penult.viz.plots import draw_picture_attribution, draw_sound_attribution

    opened = found.opened
    exact = "exact" if found.exact else "first-order effects"
    title = f"{found.name}: {found.kind} {found.score:.3f}, {exact}; red: more than an even share"
    if found.places.is_sound:
        edges, parts = found.over_time()
        heat = found.places.on_raster(found.parts, (64, 256)) if found.places.is_flat else None
        rate = len(opened.values) / opened.seconds
        draw_sound_attribution(
            path, (opened.values, rate, opened.start), (edges, parts), heat, title
        )
    else:
        draw_picture_attribution(
            path, opened.values, found.places.on_raster(found.parts, (96, 96)), title
        )
