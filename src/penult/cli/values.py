"""Values from examples on the command line: taught, listed, and their predictions as a table, a
file or JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from penult.cli.options import check_output
from penult.cli.output import (
    SOME_FAILED,
    counted,
    place_header,
    place_words,
    print_failures,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.collection.collection import Collection
    from penult.data.items import Failure
    from penult.data.roots import Roots
    from penult.fewshot.values import ValuePrediction, ValueSpace, ValueVersion

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ValueTeaching:
    """A value to be taught. name: its column. save: the file to write it to."""

    name: str
    where: str | None
    groups: str | None
    refit: bool
    undo: bool
    save: Path | None
    json: bool


def check_value(
    value: str | None,
    arguments: list[str],
    others: dict[str, Any],
    save: Path | None,
    overwrite: bool,
) -> None:
    """Refuse what does not go with --value.

    Raises:
        UsageError: it is refused.
    """
    from penult.errors import UsageError
    from penult.fewshot.storage import check_free, check_suffix

    if value is None:
        raise UsageError(
            "--save is for --value; penult classes PLACE --save FILE.npz is for classes"
        )
    given = [f"--{name}" for name, one in others.items() if one is not None]
    if arguments or given:
        raise UsageError(
            "--value COLUMN teaches by the rows of the collection that have a number there, with "
            f"--where and --groups; {(arguments + given)[0]} is for classes"
        )
    if save is not None:
        check_suffix(save)
        check_output(save)
        check_free(save, overwrite)


def teach_value(place: str, asked: ValueTeaching) -> None:
    """Teach a value by the rows of a collection, again with --refit, or take that back.

    Raises:
        UsageError: a class file, or options that do not go together.
    """
    from penult.collection.collection import Collection
    from penult.errors import UsageError
    from penult.fewshot.values import ValueLedger, ValueSpace

    if place.endswith(".npz"):
        raise UsageError(
            f"a value is taught by the rows of a collection, and {place} is a file: penult "
            "teach COLLECTION --value COLUMN --save FILE.npz writes a file of the value"
        )
    if asked.undo and (asked.refit or asked.save or asked.where or asked.groups):
        raise UsageError("--value COLUMN --undo takes the last teaching of the value back alone")
    store = Collection.open(place, must_exist=True)
    ledger = ValueLedger(store)
    if asked.undo:
        undone = ledger.undo(asked.name)
        _say_undone(place, undone, ledger.current().get(asked.name), asked.json)
        return
    where, groups = asked.where, asked.groups
    if asked.refit:
        (before,) = ledger.named(asked.name)
        where = before.about["where"] if where is None else where
        groups = before.about["groups"] if groups is None else groups
    with working("teaching"):
        space = ValueSpace(store, asked.name, where=where, groups=groups)
        space.keep()
        if asked.save is not None:
            space.save(asked.save)
    version = ledger.current()[asked.name]
    if asked.json:
        print_json({"place": place, "value": version.to_dict(), "saved": asked.save})
        return
    by = f" by {printable(groups)}" if groups else ""
    known = space.fitted.accuracy
    left = f", {counted(space.left_out, 'row')} without one left out" if space.left_out else ""
    stdout.print(
        f"[bold green]{counted(known.examples, 'example')}[/] of {printable(asked.name)} in "
        f"{counted(known.groups, 'group')}{by}{left}", soft_wrap=True,
    )  # fmt: skip
    _say_expected(space)
    stdout.print(f"[bold]{printable(place)}[/]: value {printable(asked.name)}, version "
                 f"{version.number}", soft_wrap=True)  # fmt: skip
    if asked.save is not None:
        stdout.print(f"written: [bold]{printable(str(asked.save))}[/]", soft_wrap=True)


def _say_undone(place: str, undone: ValueVersion, now: ValueVersion | None, json: bool) -> None:
    if json:
        value = None if now is None else now.to_dict()
        print_json({"place": place, "undone": undone.to_dict(), "value": value})
        return
    left = "it is no longer taught" if now is None else f"version {now.number} holds again"
    stdout.print(f"taken back: value {printable(undone.name)}, version {undone.number}; {left}",
                 soft_wrap=True)  # fmt: skip


def _say_expected(space: ValueSpace) -> None:
    """What held-out examples tell, and where that is nothing."""
    known = space.fitted.accuracy
    print_note(
        f"[dim]{printable(space.by)} on held-out examples: R² {known.r_squared:.3f}, concordance "
        f"{known.concordance:.3f}, mean absolute error {known.error:.4g} ({known.baseline:.4g} "
        "for always saying the mean)[/]"
    )
    if known.error >= known.baseline:
        print_note(
            "[yellow]held-out examples are predicted no better than by their mean: give more "
            "examples or groups, or select another layer with penult choose[/]"
        )


def values_of(collection: Collection | None) -> list[ValueVersion]:
    """The values that a collection keeps, as they count now."""
    from penult.fewshot.values import ValueLedger

    return [] if collection is None else ValueLedger(collection).named(None)


def show_values(versions: Sequence[ValueVersion], whole: bool = False) -> None:
    """A table of taught values. whole: with those that do not count any more."""
    if not versions:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ("value", "version", *(("when",) if whole else ()), "examples", "groups", "from",
               "to", "R²", "mean absolute error")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name in ("value", "when") else "right",
                         overflow="fold")  # fmt: skip
    for one in versions:
        facts = one.to_dict()
        known = facts["accuracy"]
        state = (" (current)" if one.current else " (undone)" if one.undone else "") * whole
        by = f" ({facts['groups']})" if facts["groups"] else ""
        table.add_row(
            printable(one.name), f"{one.number}{state}",
            *([facts["when"][:19].replace("T", " ")] if whole else []),
            f"{facts['examples']:,}", printable(f"{known['groups']:,}{by}"),
            *(f"{end:g}" for end in facts["span"]), f"{known['r_squared']:.3f}",
            f"{known['error']:.4g}",
        )  # fmt: skip
    print_table(table)


@dataclass(frozen=True, slots=True)
class ValueForm:
    """Form of the output of values. level: of the intervals. roots: what ids begin with."""

    level: float
    out: Path | None
    json: bool
    raw_cells: bool
    roots: Roots


def print_values(
    place: str,
    spaces: Sequence[ValueSpace],
    found: Sequence[ValuePrediction],
    failures: list[Failure],
    form: ValueForm,
) -> None:
    """Print or write values with what is to be expected of them. Exit code 3 where some items
    failed."""
    from dataclasses import asdict

    if form.out is not None:
        write_values(form.out, found, form)
    margins = {space.by: space.fitted.margin(form.level) for space in spaces}
    if form.json:
        facts: dict[str, Any] = {
            space.by: {"examples": len(space.keys), "groups": space.groups,
                       "margin": margins[space.by], "accuracy": asdict(space.fitted.accuracy)}
            for space in spaces
        }  # fmt: skip
        print_json({
            "place": place, "level": form.level, "values": facts, "out": form.out,
            "predictions": [one.to_dict() for one in found],
            "failures": [one.to_dict() for one in failures],
        })  # fmt: skip
    else:
        for space in spaces:
            _say_expected(space)
            if margins[space.by] == float("inf"):
                print_note(f"[yellow]{_no_interval(space, form.level)}[/]")
        if form.out is None:
            show_value_predictions(found, list(margins))
        stdout.print(f"[bold green]{counted(len(found), 'prediction')}[/]")
        if form.out is not None:
            stdout.print(f"written: [bold]{printable(str(form.out))}[/]", soft_wrap=True)
        print_failures(one.to_dict() for one in failures)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _no_interval(space: ValueSpace, level: float) -> str:
    groups = space.fitted.accuracy.groups
    return (
        f"no interval at {level:g}: {space.by} was taught by {counted(groups, 'group')}, which "
        f"support {groups / (groups + 1) - 5e-4:.3f} at most; --level gives a lower one"
    )


def show_value_predictions(found: Sequence[ValuePrediction], names: Sequence[str]) -> None:
    """A table of values of these names."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    several, shown = len(names) > 1, found[:_SHOWN]
    name = "" if several else names[0]
    for column in ("item", place_header(one.region for one in shown), *(["name"] * several),
                   "value" if several else printable(name), "from", "to", ""):  # fmt: skip
        right = column not in ("item", "seconds", "part", "name", "")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for one in shown:
        known = one.high != float("inf")
        flags = ["beyond all examples"] * bool(one.outside)
        flags += ["unlike all examples"] * bool(one.far)
        table.add_row(
            printable_path(one.id),
            place_words(one.region, one.start, one.end) if one.region != "whole" else "",
            *([printable(one.name)] * several), f"{one.value:.4g}",
            f"{one.low:.4g}" if known else "", f"{one.high:.4g}" if known else "",
            f"[dim]{'; '.join(flags)}[/]" if flags else "",
        )  # fmt: skip
    print_table(table)
    if len(found) > _SHOWN:
        stdout.print(f"… and {len(found) - _SHOWN:,} more; --out FILE.csv writes all of them")


def write_values(out: Path, found: Sequence[ValuePrediction], form: ValueForm) -> None:
    """A CSV with a line for each."""
    from penult.data.files import write_file
    from penult.data.formulas import Cells
    from penult.fewshot.values import values_to_csv

    cells = Cells(form.raw_cells)
    lines = values_to_csv(found, cells, form.roots)
    write_file(out, (line.encode("utf-8", "backslashreplace") for line in lines))
    cells.tell(out)
