"""Commands about classes from examples: teach, classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.collection import Where
from penult.cli.curve import print_curve
from penult.cli.options import (
    AudioFolders,
    ChannelOfRows,
    Device,
    End,
    Hop,
    Json,
    Overwrite,
    Pooling,
    RawCells,
    Start,
    Tap,
    Trust,
    WindowOfRows,
    check_output,
    query_part,
    with_columns,
    with_limits,
)
from penult.cli.output import (
    counted,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    row_name,
    stdout,
    working,
)
from penult.cli.values import ValueTeaching, check_value, show_values, teach_value, values_of

if TYPE_CHECKING:
    from penult.data.windows import Layout
    from penult.fewshot.classspace import ClassSpace
    from penult.fewshot.examples import Examples
    from penult.fewshot.labelling import ClassCounts


Place = Annotated[str, typer.Argument(help="A collection or a saved class space (FILE.npz).")]
Model = Annotated[
    str | None, typer.Option(help="Embedder to use, where the recorded one has moved.")
]
_SHOWN = 8


@with_columns
@with_limits
def teach(
    place: Place,
    examples: Annotated[
        list[str] | None,
        typer.Argument(
            help="CLASS, then EXAMPLES: files, folders, tables with start and end, ids of rows. "
            "With --from: EXAMPLES only, or nothing for the rows of the collection."
        ),
    ] = None,
    mark: Annotated[
        str | None,
        typer.Option(
            help="yes: an example of the class. no: a counter-example. unsure: kept, never used. "
            "Default: yes, or with --from the column mark of the table or rows; given, it counts "
            "instead of it."
        ),
    ] = None,
    start: Start = None,
    end: End = None,
    channel: ChannelOfRows = None,
    window: WindowOfRows = None,
    hop: Hop = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Source of the class names: a column, folder, a path pattern such as '{}_*', or "
            "label (the classifier's predictions).",
        ),
    ] = None,
    audio: AudioFolders = None,
    where: Where = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Kept from now on: prototype, knn, ridge, logistic or agile; auto selects among "
            "the first four by cross-validation."
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="Kept from now on: recipe of the vector space, for example raw or auto."),
    ] = None,
    several: Annotated[
        bool | None,
        typer.Option(
            "--several/--single",
            help="Kept from now on: an item may be of several classes, or of one: then the class "
            "that an example was marked for last counts.",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Kept from now on: a column, folder or pattern that gives the group (speaker, "
            "site) of an example, never on both sides of a cross-validation split; items: every "
            "item by itself; auto: items, and clusters of them for the level of unknown."
        ),
    ] = None,
    background: Annotated[
        list[str] | None,
        typer.Option(
            help="A number: so many random rows of the collection, held to be of no class. For a "
            "FILE.npz: a file, folder, table or collection of other items than the examples, to "
            "which the space is fitted and on which thresholds rest; repeatable."
        ),
    ] = None,
    value: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Teach a number, such as an age, by the rows that have one in this column "
            "(--where, --groups), for predict; again to take in further rows. By itself: no "
            "classes. With --undo it is taken back, with --refit taught as before.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="With --value: write the value to this file (.npz) as well."),
    ] = None,
    overwrite: Overwrite = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit everything anew to the rows there are now.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the last teaching back; repeatable.")
    ] = False,
    model: Model = None,
    tap: Tap = None,
    pooling: Pooling = None,
    device: Device = "auto",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Add examples of a class, one or more. Takes milliseconds; nothing is trained.

    Examples from outside the collection are embedded into it. What is fitted is kept as a version:
    classes mean the same until somebody teaches, whatever rows are added. Marks are never
    overwritten: --undo goes back. Without examples, --refit or a setting fits anew. With --model, a
    FILE.npz that does not exist yet is created and needs no collection.
    """
    from penult.collection.row_names import rows_of_names
    from penult.data.sources import recordings_in

    arguments = list(examples or [])
    if value is not None or save is not None:
        others = {"mark": mark, "start": start, "end": end, "channel": channel, "window": window,
                  "hop": hop, "from": names, "method": method, "space": space,
                  "several": several, "background": background or None}  # fmt: skip
        check_value(value, arguments, others, save, overwrite)
        teach_value(place, ValueTeaching(str(value), where, groups, refit, undo, save, json))
        return
    settings = {"method": method, "space": space, "several": several, "groups": groups}
    refits = refit or bool(background) or any(value is not None for value in settings.values())
    _check_teach(arguments, names, start, end, refits, undo)
    if names is None and mark is None:
        _check_tables(arguments[1:])
    taught = _opened(place, (model, tap, pooling, device, trust), settings)
    before = taught.examples
    part = query_part(taught.source.modality, start, end, channel, cut=(window, hop))
    cut = part.layout, part.channel
    with working("teaching"), recordings_in(audio or []):
        counts, undone = dict[str, int](), None
        if undo:
            undone = taught.history.undo()
        elif names is not None:
            counts = _add_named(taught, arguments, names, where, mark, cut)
        elif arguments:
            class_name, *files = arguments
            collection = taught.source.collection
            items: list[Any] = rows_of_names(collection.reader if collection else None, files)
            if start is not None or end is not None:
                items = [(item, start, end) for item in files]
            added = taught.add(class_name, items, mark or "yes", *cut)  # type: ignore[arg-type]
            counts = {class_name: len(added)}
        elif not background:
            taught.history.refit()
        if background:
            counts |= _give_background(taught, background, where)
        _fit(taught, undo)
        _save_file(taught, place)
    _show_taught(place, taught, before, Teaching(counts, mark or "yes", undone), json)


def _give_background(taught: ClassSpace, places: list[str], where: str | None) -> dict[str, int]:
    """A number of random rows that are held to be of no class, or other items of a class file; the
    number of marks that were given.

    Raises:
        UsageError: a number or a collection beside something else.
    """
    from penult.collection.collection import Collection
    from penult.errors import UsageError
    from penult.fewshot.background import add_background
    from penult.fewshot.examples import EVERY

    numbers = [place for place in places if place.isdecimal() and not Path(place).exists()]
    collections = [place for place in places if is_collection(place)]
    if len(places) > 1 and (numbers or collections):
        raise UsageError("--background takes a number, one collection, or files and folders")
    if numbers:
        return {EVERY: len(add_background(taught, int(places[0]), where))}
    taught.history.give_background(
        Collection.open(places[0], must_exist=True) if collections else places
    )
    return {}


@dataclass(frozen=True, slots=True)
class Teaching:
    """What was taught: the number of examples of each class, their mark where no table has one for
    each, what was undone."""

    counts: dict[str, int]
    mark: str
    undone: str | None

    @property
    def marks(self) -> dict[str, int]:
        """The number of examples by mark."""
        total = sum(self.counts.values())
        return getattr(self.counts, "marks", {self.mark: total} if total else {})

    @property
    def left_out(self) -> int:
        """Rows of a table that have no mark yet."""
        return getattr(self.counts, "left_out", 0)


def _opened(
    place: str, how: tuple[str | None, str | None, str | None, str, bool], settings: dict[str, Any]
) -> ClassSpace:
    """The class space of a place, or a new one in a file. how: model, tap, pooling, device,
    trust."""
    from penult.data.files import user_path
    from penult.errors import UsageError

    model, tap, pooling, device, trust = how
    if model is not None and place.endswith(".npz") and not user_path(place).exists():
        check_output(Path(place))
        return _new_class_space(model, tap, pooling, device, trust, settings)
    if tap is not None or pooling is not None:
        raise UsageError(
            "--tap and --pooling begin a new class space: a FILE.npz that does not exist yet, with "
            f"--model; the tap and pooling of {place} are fixed"
        )
    return load_class_space(place, model, device, trust, **settings)


def _fit(taught: ClassSpace, undo: bool) -> None:
    """Fit the classes, so that a version is kept; what cannot be fitted is taken back.

    Raises:
        LabelsError: examples that the settings do not fit.
    """
    from penult.errors import LabelsError
    from penult.fewshot.examples import any_members

    if not any_members(taught.examples):
        return
    try:
        _ = taught.fitted
    except LabelsError as error:
        if undo:
            raise
        taught.history.undo()
        raise LabelsError(f"{error}. Nothing was changed") from error


def _show_taught(
    place: str, taught: ClassSpace, before: Examples, done: Teaching, json: bool
) -> None:
    from penult.fewshot.examples import EVERY, moves

    moved = [] if done.undone else moves(before, taught.examples)
    version = taught.history.current
    if json:
        print_json(
            {
                "place": place,
                "mark": next(iter(done.marks), done.mark) if len(done.marks) < 2 else None,
                "marks": done.marks,
                "left_out": done.left_out,
                "taught": done.counts,
                "moved": [one.to_dict() for one in moved],
                "undone": done.undone,
                "version": None if version is None else version.to_dict(),
                "classes": [one.to_dict() for one in taught.classes],
            }
        )
        return
    total, number = sum(done.counts.values()), len(done.counts.keys() - {EVERY})
    several = "" if number < 2 else f" of {number} classes"
    marked = _marked(done.marks)
    if done.undone is not None:
        stdout.print(f"taken back: {printable(done.undone)}", soft_wrap=True)
    elif done.counts:
        stdout.print(
            f"[bold green]{counted(total, 'example')}[/]{several}{marked}: "
            + printable(", ".join(list(done.counts)[:_SHOWN]))
            + (", …" if number > _SHOWN else ""),
            soft_wrap=True,
        )
    if done.left_out:
        print_note(f"[yellow]{counted(done.left_out, 'row')} without a mark left out[/]")
    last = "" if version is None else f"; version {version.number}"
    stdout.print(f"[bold]{printable(place)}[/]: {_counts(taught)}{last}", soft_wrap=True)


def _marked(marks: dict[str, int]) -> str:
    if set(marks) <= {"yes"}:
        return ""
    if len(marks) == 1:
        return f", marked {next(iter(marks))}"
    numbers = (f"{marks[mark]:,} {mark}" for mark in ("yes", "no", "unsure") if mark in marks)
    return f", marked {', '.join(numbers)}"


def _check_tables(files: list[str]) -> None:
    """Refuse a table with marks of its own, which would all be taken as yes.

    Raises:
        UsageError: there is one.
    """
    from penult.errors import UsageError
    from penult.fewshot.mark_table import MarkTable

    for file in files:
        if (table := MarkTable.of(file)) is not None and table.has_marks:
            raise UsageError(
                f"{file} has a column mark, which --from reads: penult teach PLACE --from class "
                f"{file}; or --mark yes takes all of its rows as examples of this class"
            )


def _check_teach(
    arguments: list[str],
    names: str | None,
    start: float | None,
    end: float | None,
    refits: bool,
    undo: bool,
) -> None:
    from penult.errors import UsageError

    if undo and (arguments or names is not None or refits):
        raise UsageError("--undo takes the last teaching back; give it nothing else but the place")
    if names is None and len(arguments) < 2 and (arguments or not (refits or undo)):
        raise UsageError(
            "a class and its examples are needed: penult teach COLLECTION CLASS EXAMPLES…, or "
            "--from COLUMN for classes named by a column of the collection"
        )
    if names is not None and (start is not None or end is not None):
        raise UsageError("--start and --end are for one class and its examples, not with --from")


def _add_named(
    space: ClassSpace,
    items: list[str],
    names: str,
    where: str | None,
    mark: Any,
    cut: tuple[Layout | None, int | str | None],
) -> ClassCounts:
    """Examples named by a column, folder or pattern: these items, or the collection's rows.

    Raises:
        UsageError: rows, which are cut already, with a window or channel.
    """
    from penult.errors import UsageError

    if items:
        return space.add_named(items, names, mark, None, *cut)
    if cut != (None, None):
        raise UsageError("--window and --channel cut files; rows of the collection are cut already")
    return space.add_named(None, names, mark, where)


def classes(
    place: Place,
    rename: Annotated[tuple[str, str] | None, typer.Option(help="Rename a class: OLD NEW.")] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(help="Merge this class into the class of --into; repeatable."),
    ] = None,
    into: Annotated[str | None, typer.Option(help="Target class of --merge.")] = (None),
    remove: Annotated[
        list[str] | None, typer.Option(help="Remove this class; its items stay in the collection.")
    ] = None,
    head: Annotated[
        bool,
        typer.Option(
            "--head", help="Add the classifier's own classes, from the weights of the head."
        ),
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write all marks to this CSV file.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Save the class space to this file (.npz).")
    ] = None,
    overwrite: Overwrite = False,
    space: Annotated[
        str | None,
        typer.Option(
            help="Recipe of the vector space to save, for example raw, centre, scale+l2 or auto."
        ),
    ] = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history",
            help="List the versions: what was fitted, when, and what was taught before.",
        ),
    ] = False,
    diff: Annotated[
        str | None,
        typer.Option(
            metavar="VERSIONS",
            help="Count the rows that two versions label differently: now (the current version and "
            "a refit now), 2 (version 2 and the current one) or 2:4. Of a class file the rows are "
            "its examples and its background.",
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="COLLECTION",
            help="With --diff: the rows of this collection of the same embedder.",
        ),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    trust: Trust = False,
    raw_cells: RawCells = False,
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="Print precision and recall of this class on held-out marks, by the least "
            "probability, and change nothing.",
        ),
    ] = None,
    precision: Annotated[
        float, typer.Option(help="With --curve: the precision to find a threshold for.")
    ] = 0.9,
    plot: Annotated[
        Path | None, typer.Option(help="With --curve: write it as a picture (.png, .svg, .pdf).")
    ] = None,
    json: Json = False,
) -> None:
    """List classes and their examples, or their versions; rename, merge, remove, export or save."""
    from penult.errors import UsageError

    changes = _Changes(rename, merge or [], into or "", remove or [], head)
    changing = changes.any or csv or save or space
    if (history or diff is not None) and (changing or (history and diff is not None)):
        raise UsageError("--history and --diff change nothing; give one of them by itself")
    if rows is not None and diff is None:
        raise UsageError("--rows names the rows for --diff; give both, or neither")
    if bool(merge) != bool(into):
        raise UsageError("--merge and --into go together: --merge A --merge B --into C")
    if head and save is None and not place.endswith(".npz"):
        raise UsageError("--head needs --save FILE.npz: a collection keeps marks of its rows")
    _check_files(csv, save, plot, overwrite)
    taught = load_class_space(place, model, device, trust, space=space)
    if taught.history.damage is not None:
        print_note(f"[yellow]{printable(taught.history.damage)}[/]")
    if curve is not None:
        print_curve(taught, place, curve, precision, plot, json)
    elif history:
        _list(taught, place, json)
    elif diff is not None:
        _compare(taught, place, diff, rows, json)
    else:
        _change(taught, place, changes)
        _write(taught, csv, save, raw_cells)
        _show(taught, place, csv, save, json)


def _change(taught: ClassSpace, place: str, changes: _Changes) -> None:
    """Make the changes, and keep what they make of the classes."""
    from penult.fewshot.examples import any_members

    if changes.apply(taught):
        if any_members(taught.examples):
            _ = taught.fitted  # and keep it as a version
        _save_file(taught, place)


def _write(taught: ClassSpace, csv: Path | None, save: Path | None, raw_cells: bool) -> None:
    from penult.data.files import write_file
    from penult.data.formulas import Cells

    if csv is not None:
        cells = Cells(raw_cells)
        from penult.fewshot.vectors import roots_of

        text = taught.examples.to_csv(cells, roots_of(taught.source))
        write_file(csv, [text.encode("utf-8", "backslashreplace")])
        cells.tell(csv)
    if save is not None:
        taught.save(save)


def _list(taught: ClassSpace, place: str, json: bool) -> None:
    """The versions of a class space."""
    from penult.fewshot.values import ValueLedger

    versions, collection = taught.history.versions, taught.source.collection
    values = [] if collection is None else ValueLedger(collection).versions()
    if json:
        facts = {"values": [one.to_dict() for one in values], "damage": taught.history.damage}
        print_json({"place": place, "versions": [one.to_dict() for one in versions], **facts})
        return
    if not versions and not values:
        stdout.print(
            f"no version was kept yet: penult teach {printable(place)} --refit keeps one",
            soft_wrap=True,
        )
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("version", "when", "change", "classes", "examples", "method", "space", "unknown"):
        right = name in ("version", "classes", "examples")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for one in versions:
        if one.damaged:
            when = printable(one.when[:19].replace("T", " "))
            table.add_row(str(one.number), when, f"[yellow]{printable(one.change)}[/]",
                          *[""] * 5)  # fmt: skip
            continue
        state = " (current)" if one.current else " (undone)" if one.undone else ""
        level = "none"
        if one.level is not None and one.level["level"] is not None:
            level = f"{one.level['level']:g}: {one.level['threshold']:.3f}"
        table.add_row(f"{one.number}{state}", one.when[:19].replace("T", " "),
                      printable(one.change), str(one.classes), str(one.examples), one.method,
                      one.space, level)  # fmt: skip
    if versions:
        print_table(table)
    show_values(values, whole=True)


def _compare(taught: ClassSpace, place: str, text: str, rows: Path | None, json: bool) -> None:
    """The rows that two versions label differently. rows: the collection that they are of."""
    from penult.collection.collection import Collection

    old, new = _versions_in(text, taught, place)
    store = None if rows is None else Collection.open(rows, must_exist=True)
    with working("comparing"):
        found = taught.history.diff(old, new, store)
    if store is None and taught.source.collection is None and not json:
        print_note(
            f"[dim]rows are the {counted(len(taught.examples.keys), 'example')} of the file"
            + (f" and {counted(number, 'row')} of its background"
               if (number := taught.history.background) else "")
            + "; --rows COLLECTION names others[/]"
        )  # fmt: skip
    names = [f"version {one}" if one is not None else "a refit now" for one in (old, new)]
    if old is None:
        names[0] = "today's"
    total = sum(found.changed.values())
    if json:
        changed = []
        for pair, number in found.changed.items():
            id, region = found.examples[pair]
            example = {"id": id, "region": region}
            changed.append({"from": pair[0], "to": pair[1], "rows": number, "example": example})
        facts = {"old": old, "new": new, "rows": found.rows, "changed": total}
        print_json({"place": place, **facts, "changes": changed})
        return
    stdout.print(
        f"[bold]{total:,} of {counted(found.rows, 'row')}[/] would be labelled differently: "
        f"{names[0]} → {names[1]}",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("from", "to", "rows", "for example"):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for pair, number in list(found.changed.items())[:20]:
        place_of = row_name(*found.examples[pair])
        table.add_row(*(printable(name or "unknown") for name in pair), f"{number:,}", place_of)
    if found.changed:
        print_table(table)


def _versions_in(text: str, taught: ClassSpace, place: str) -> tuple[int | None, int | None]:
    """`now`, `2` or `2:4` as two versions; None is a refit now, or fits that are not kept."""
    from penult.errors import UsageError

    current = taught.history.current
    if text == "now":
        return (None if current is None else current.number), None
    old, _, new = text.partition(":")
    if not old.isdecimal() or (new and not new.isdecimal()) or text.endswith(":"):
        raise UsageError(f"--diff {text!r}: now, a version such as 2, or two of them such as 2:4")
    if new:
        return int(old), int(new)
    if current is None:
        kept = [one.number for one in taught.history.versions]
        remedy = (
            f"name two of {', '.join(map(str, kept))}, such as {kept[-2]}:{kept[-1]}"
            if len(kept) > 1
            else f"{kept[0] if kept else 'none'} is kept; penult teach {place} --refit keeps what "
            "is fitted now"
        )
        raise UsageError(f"--diff {text}: no version is the current one; {remedy}")
    return int(old), current.number


def _check_files(csv: Path | None, save: Path | None, plot: Path | None, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before any work is done."""
    from penult.fewshot.storage import check_free, check_suffix
    from penult.viz.plots import check_picture

    for path in (csv, save, plot):
        check_output(path)
        check_free(path, overwrite)
    if save is not None:
        check_suffix(save)
    if plot is not None:
        check_picture(plot)


@dataclass(frozen=True, slots=True)
class _Changes:
    """Changes to the classes of a class space, made in this order."""

    rename: tuple[str, str] | None
    merge: list[str]
    into: str
    remove: list[str]
    head: bool

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self.rename or self.merge or self.remove or self.head)

    def apply(self, space: ClassSpace) -> bool:
        """Make all of them, or none where one cannot be made; whether there were any."""
        self._check(space.examples)
        if self.rename:
            space.rename(*self.rename)
        if self.merge:
            space.merge(self.merge, self.into)
        for name in self.remove:
            space.remove(name)
        if self.head:
            space.add_head()
        return self.any

    def _check(self, examples: Examples) -> None:
        """Make them on a copy, which raises what the changes themselves would raise."""
        if self.rename:
            examples = examples.renamed(*self.rename)
        if self.merge:
            examples = examples.merged(self.merge, self.into)
        for name in self.remove:
            examples = examples.without(name)


def _new_class_space(
    model: str,
    tap: str | None,
    pooling: str | None,
    device: str,
    trust: bool,
    settings: dict[str, Any],
) -> ClassSpace:
    from penult.embedding.embedder import open_embedder, require_proof
    from penult.fewshot.classspace import ClassSpace

    with working(f"opening {model}"):
        embedder = open_embedder(model, tap, pooling, device=device, trust=trust)
    with working("proving the head"):
        require_proof(embedder)
    return ClassSpace(embedder, **settings)


def load_class_space(
    place: str,
    model: str | None = None,
    device: str = "auto",
    trust: bool = False,
    **settings: Any,
) -> ClassSpace:
    """The class space of a collection, or of a file. settings: see ClassSpace; None is unset.

    Raises:
        LabelsError: there is no such collection or file.
    """
    from penult.collection.collection import Collection
    from penult.collection.search import embedder_of
    from penult.fewshot.classspace import ClassSpace
    from penult.models.hub import is_repository

    chosen = {name: value for name, value in settings.items() if value is not None}
    if place.endswith(".npz") or is_repository(place):
        taught = ClassSpace.load(place, **chosen)
    else:
        taught = ClassSpace(Collection.open(place, must_exist=True), **chosen)
    if model is not None or device != "auto" or trust:
        manifest = taught.source.manifest
        how: dict[str, Any] = {"device": device, "trust": trust, "file": place}
        taught.source.open_with(lambda: embedder_of(manifest, model, **how))
    if missing := taught.source.missing:
        print_note(
            f"[yellow]{counted(len(missing), 'mark')} not used: the marked rows are no longer in "
            f"{printable(place)}, for example {printable_path(missing[0][0])}[/]"
        )
    return taught


def _save_file(space: ClassSpace, place: str) -> None:
    """Write a class space that lives in a file; a collection has stored its marks already."""
    if space.source.collection is None:
        space.save(place)


def is_collection(path: str) -> bool:
    """Whether there is a collection at this path."""
    from penult.collection.manifest import exists
    from penult.data.places import place_of
    from penult.errors import CollectionError

    try:
        place = place_of(path)
        return place.is_dir() and exists(place)
    except CollectionError:
        return False


def _counts(space: ClassSpace) -> str:
    found = [one for one in space.classes if one.yes]
    return f"{len(found)} class{'' if len(found) == 1 else 'es'}, " + counted(
        len(space.examples.keys), "marked item"
    )


def _show(space: ClassSpace, place: str, csv: Path | None, save: Path | None, json: bool) -> None:
    if json:
        missing = [list(key) for key in space.source.missing]
        facts = {"csv": csv, "saved": save, "missing": missing}
        none = dict.fromkeys(("threshold", "chosen", "average_precision", "f1"))
        thresholds = _thresholds(space)
        each = [one.to_dict() | thresholds.get(one.name, none) for one in space.classes]
        values = [one.to_dict() for one in values_of(space.source.collection)]
        print_json({"place": place, "classes": each, "values": values, **facts})
        return
    _show_classes(space, place)
    show_values(values_of(space.source.collection))
    for path in filter(None, (csv, save)):
        stdout.print(f"written: [bold]{printable(str(path))}[/]", soft_wrap=True)


def _show_classes(space: ClassSpace, place: str) -> None:
    if not space.classes:
        stdout.print(
            f"no classes yet: penult teach {printable(place)} CLASS EXAMPLES…", soft_wrap=True
        )
        return
    from penult.fewshot.examples import EVERY

    table = Table(box=None, header_style="bold", pad_edge=False)
    thresholds = _thresholds(space)
    measures = ["threshold", "AP", "F1"] if thresholds else []
    for name in ("class", "yes", "no", "unsure", *measures, "most typical example"):
        table.add_column(name, overflow="fold", justify="left" if name in
                         ("class", "most typical example") else "right")  # fmt: skip
    for one in space.classes:
        typical = ""
        if one.medoid:
            region = "" if one.medoid[1] == "whole" else f" {one.medoid[1]}"
            typical = printable_path(one.medoid[0]) + printable(region)
        elif one.name == EVERY:
            typical = "[dim](background: of none of the classes)[/]"
        own = thresholds.get(one.name, {})
        shown = [f"{own[name]:.3f}" if own.get(name, math.nan) == own.get(name) else ""
                 for name in ("threshold", "average_precision", "f1")]  # fmt: skip
        table.add_row(printable(one.name), str(one.yes), str(one.no), str(one.unsure),
                      *(shown if measures else []), typical)  # fmt: skip
    print_table(table)


def _thresholds(space: ClassSpace) -> dict[str, dict[str, Any]]:
    """What the current version keeps of each class, where an item may be of several."""
    from penult.fewshot.examples import any_members

    if space.history.current is None or not any_members(space.examples):
        return {}
    return space.fitted.to_dict()["thresholds"] or {}
