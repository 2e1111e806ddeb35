"""Commands about classes from examples: teach, classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.collection import Where
from penult.cli.curve import print_curve
from penult.cli.options import (
    Device,
    Json,
    Pooling,
    RawCells,
    Tap,
    Trust,
    check_output,
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
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.fewshot.classspace import ClassSpace
    from penult.fewshot.examples import Examples


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
        str,
        typer.Option(
            help="yes: an example of the class. no: a counter-example. unsure: kept, never used."
        ),
    ] = "yes",
    start: Annotated[
        float | None, typer.Option(help="Start of the example within the file, in seconds.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(help="End of the example within the file, in seconds.")
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Source of the class names: a column, folder, a path pattern such as '{}_*', or "
            "label (the classifier's predictions).",
        ),
    ] = None,
    where: Where = None,
    model: Model = None,
    tap: Tap = None,
    pooling: Pooling = None,
    device: Device = "auto",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Add examples of a class, one or more. Takes milliseconds; nothing is trained.

    Examples from outside the collection are embedded into it. Existing marks are never overwritten.
    With --model, a FILE.npz that does not exist yet is created and needs no collection.
    """
    from penult.data.files import user_path
    from penult.errors import UsageError

    arguments = list(examples or [])
    _check_teach(arguments, names, start, end)
    if model is not None and place.endswith(".npz") and not user_path(place).exists():
        check_output(Path(place))
        space = _new_class_space(model, tap, pooling, device, trust)
    elif tap is not None or pooling is not None:
        raise UsageError(
            "--tap and --pooling begin a new class space: a FILE.npz that does not exist yet, with "
            f"--model; the tap and pooling of {place} are fixed"
        )
    else:
        space = load_class_space(place, model, device, trust)
    with working("teaching"):
        if names is not None:
            taught = _add_named(space, arguments, names, where, mark)
        else:
            class_name, *files = arguments
            items: list[Any] = files
            if start is not None or end is not None:
                items = [(item, start, end) for item in files]
            taught = {class_name: len(space.add(class_name, items, mark))}  # type: ignore[arg-type]
        _save_file(space, place)
    if json:
        print_json(
            {
                "place": place,
                "mark": mark,
                "taught": taught,
                "classes": [one.to_dict() for one in space.classes],
            }
        )
        return
    total = sum(taught.values())
    several = "" if len(taught) == 1 else f" of {len(taught)} classes"
    marked = {"yes": "", "no": ", marked no", "unsure": ", marked unsure"}[mark]
    stdout.print(
        f"[bold green]{counted(total, 'example')}[/]{several}{marked}: "
        + printable(", ".join(list(taught)[:_SHOWN]))
        + (", …" if len(taught) > _SHOWN else ""),
        soft_wrap=True,
    )
    stdout.print(f"[bold]{printable(place)}[/]: {_counts(space)}", soft_wrap=True)


def _check_teach(
    arguments: list[str], names: str | None, start: float | None, end: float | None
) -> None:
    from penult.errors import UsageError

    if names is None and len(arguments) < 2:
        raise UsageError(
            "a class and its examples are needed: penult teach COLLECTION CLASS EXAMPLES…, or "
            "--from COLUMN for classes named by a column of the collection"
        )
    if names is not None and (start is not None or end is not None):
        raise UsageError("--start and --end are for one class and its examples, not with --from")


def _add_named(
    space: ClassSpace, items: list[str], names: str, where: str | None, mark: Any
) -> dict[str, int]:
    """Examples named by a column, folder or pattern: these items, or the collection's rows."""
    return (
        space.add_named(items, names, mark) if items else space.add_named(None, names, mark, where)
    )


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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    space: Annotated[
        str | None,
        typer.Option(
            help="Recipe of the vector space to save, for example raw, centre, scale+l2 or auto."
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
    """List classes and their examples; rename, merge, remove, export or save them."""
    from penult.data.files import write_file
    from penult.data.formulas import Cells
    from penult.errors import UsageError

    if bool(merge) != bool(into):
        raise UsageError("--merge and --into go together: --merge A --merge B --into C")
    if head and save is None and not place.endswith(".npz"):
        raise UsageError("--head needs --save FILE.npz: a collection keeps marks of its rows")
    _check_files(csv, save, plot, overwrite)
    taught = load_class_space(place, model, device, trust, space=space)
    if curve is not None:
        print_curve(taught, place, curve, precision, plot, json)
        return
    changes = _Changes(rename, merge or [], into or "", remove or [], head)
    if changes.apply(taught):
        _save_file(taught, place)
    if csv is not None:
        cells = Cells(raw_cells)
        write_file(csv, [taught.examples.to_csv(cells).encode("utf-8", "backslashreplace")])
        cells.tell(csv)
    if save is not None:
        taught.save(save)
    if json:
        facts = {"csv": csv, "saved": save, "missing": [list(key) for key in taught.missing]}
        print_json({"place": place, "classes": [one.to_dict() for one in taught.classes], **facts})
        return
    _show(taught, place)
    for path in filter(None, (csv, save)):
        stdout.print(f"written: [bold]{printable(str(path))}[/]", soft_wrap=True)


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
        return bool(self.rename or self.merge or self.remove or self.head)

    def _check(self, examples: Examples) -> None:
        """Make them on a copy, which raises what the changes themselves would raise."""
        if self.rename:
            examples = examples.renamed(*self.rename)
        if self.merge:
            examples = examples.merged(self.merge, self.into)
        for name in self.remove:
            examples = examples.without(name)


def _new_class_space(
    model: str, tap: str | None, pooling: str | None, device: str, trust: bool
) -> ClassSpace:
    from penult.embedding.embedder import open_embedder, require_proof
    from penult.fewshot.classspace import ClassSpace

    with working(f"opening {model}"):
        embedder = open_embedder(model, tap, pooling, device=device, trust=trust)
    with working("proving the head"):
        require_proof(embedder)
    return ClassSpace(embedder)


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

    chosen = {name: value for name, value in settings.items() if value is not None}
    if place.endswith(".npz"):
        taught = ClassSpace.load(place, **chosen)
    else:
        taught = ClassSpace(Collection.open(place, must_exist=True), **chosen)
    if model is not None or device != "auto" or trust:
        manifest = taught.source.manifest
        how: dict[str, Any] = {"device": device, "trust": trust, "file": place}
        taught.source.open_with(lambda: embedder_of(manifest, model, **how))
    if taught.missing:
        print_note(
            f"[yellow]{counted(len(taught.missing), 'mark')} not used: the marked rows are no "
            f"longer in {printable(place)}, for example {printable_path(taught.missing[0][0])}[/]"
        )
    return taught


def _save_file(space: ClassSpace, place: str) -> None:
    """Write a class space that lives in a file; a collection has stored its marks already."""
    if space.source.collection is None:
        space.save(place)


def _counts(space: ClassSpace) -> str:
    found = [one for one in space.classes if one.yes]
    return f"{len(found)} class{'' if len(found) == 1 else 'es'}, " + counted(
        len(space.examples.keys), "marked item"
    )


def _show(space: ClassSpace, place: str) -> None:
    if not space.classes:
        stdout.print(
            f"no classes yet: penult teach {printable(place)} CLASS EXAMPLES…", soft_wrap=True
        )
        return
    from penult.fewshot.examples import EVERY

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("class", "yes", "no", "unsure", "most typical example"):
        table.add_column(name, justify="right" if name in ("yes", "no", "unsure") else "left",
                         overflow="fold")  # fmt: skip
    for one in space.classes:
        typical = ""
        if one.medoid:
            region = "" if one.medoid[1] == "whole" else f" {one.medoid[1]}"
            typical = printable_path(one.medoid[0]) + printable(region)
        elif one.name == EVERY:
            typical = "[dim](background: of none of the classes)[/]"
        table.add_row(printable(one.name), str(one.yes), str(one.no), str(one.unsure), typical)
    print_table(table)
