"""`penult drift`: weeks, sites or batches that differ more than chance, and since when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table

from penult.cli.collection import Space, Store, Where, space_of
from penult.cli.options import Json, RawCells, Seed, check_output
from penult.cli.output import (
    counted,
    print_json,
    print_note,
    print_stored,
    print_table,
    printable,
    printable_path,
    row_name,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.collection.drift import Drift, DriftPart

_PARTS = 60  # in the printed table


def drift(
    collection: Store,
    by: Annotated[
        str,
        typer.Option(
            help="Parts that are compared: a column (times, numbers, names), folder, or a path "
            "pattern such as '{}_*.wav'."
        ),
    ],
    every: Annotated[
        str | None,
        typer.Option(
            help="Length of parts by time: minute, hour, day, week, month or year. Default: the "
            "shortest with at most 60 parts."
        ),
    ] = None,
    as_names: Annotated[
        bool,
        typer.Option("--as-names", help="Numbers and dates are names, such as ids, without order."),
    ] = False,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Rows of one group (recording, day, machine) belong together and are exchanged "
            "together: a column, folder or a path pattern. Default: the item."
        ),
    ] = None,
    where: Where = None,
    space: Space = "raw",
    time_zone: Annotated[
        str | None,
        typer.Option(
            help="Zone of days and hours, as Europe/Berlin, UTC or +02:00. Default: that of "
            "the collection's times."
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="A part differs where its corrected p-value is not above this.")
    ] = 0.01,
    draws: Annotated[int, typer.Option(min=19, help="Number of permutations.")] = 999,
    k: Annotated[int, typer.Option("-k", help="Number of rows shown of either side.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Write all rows, the highest drift first, to this CSV file.")
    ] = None,
    raw_cells: RawCells = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the parts to drift.png, .svg or .pdf.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Test which weeks, sites or batches differ from the others more than chance, and since when.

    A linear discriminant tells held-out rows apart; its p-values are by permutations of whole
    items or groups, corrected for all comparisons. How much a row looks like what came later, or
    like the part that differs most, is a column for --where and exports: drift.
    """
    from penult.collection.collection import Collection
    from penult.collection.drift import COLUMN, DriftOptions, find_drift
    from penult.viz.plots import check_picture

    check_output(out)
    if picture is not None:
        check_picture(picture)
        check_output(picture, create=True)
    opened = Collection.open(collection, must_exist=True)
    space_of(opened, space)
    options = DriftOptions(by, groups, every, time_zone, where, space, alpha, draws, seed, as_names)
    with working("comparing parts"):
        found = find_drift(opened.reader, options)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, found.table(), raw_cells)
    if picture is not None:
        _draw(picture, found)
    for note in found.notes:
        print_note(printable(note))
    if json:
        print_json({"collection": str(opened.path), **found.to_dict(), "column": COLUMN,
                    "out": str(out) if out else None,
                    "picture": str(picture) if picture else None})  # fmt: skip
        return
    _show(found, k)
    path = printable_path(str(opened.path))
    advice = f'for filters: penult export {path} drift.csv --where "{COLUMN} > 0.95"'
    files = {"all rows are": out, "the picture is": picture}
    print_stored(advice if found.kept else "", files)


def _verdict(found: Drift) -> str:
    """In one sentence."""
    unit = f"{found.division.period}s" if found.division.period else "parts"
    tested = sum(one.p_value is not None for one in found.parts)
    if not found.is_alarm:
        return (
            f"{len(found.parts):,} {unit} differ no more than chance: smallest corrected p "
            f"{found.p_value:.3g}"
        )
    own = sum(_differs(found, one) for one in found.parts)
    text = (
        f"{unit} that differ from all others more than chance: {own:,} of {tested:,}"
        if tested
        else f"{len(found.parts):,} {unit}, each too small to be tested alone"
    )
    if (since := found.since) is not None:
        text += f"; since {since.part}: AUROC {since.auroc:.3f}, p {since.p_value:.3g}"
    return text


def _differs(found: Drift, one: DriftPart) -> bool:
    return one.p_value is not None and one.p_value <= found.options.alpha


def _show(found: Drift, k: int) -> None:
    stdout.print(printable(_verdict(found)), soft_wrap=True)
    unit = "items" if found.options.groups is None else "groups"
    shown = found.parts
    if found.division.kind == "text":
        shown = sorted(shown, key=lambda one: -(one.auroc or 0.0))
    table = Table(box=None, header_style="bold", pad_edge=False)
    head = (
        f"{found.division.period} of"
        if found.division.period == "week"
        else found.division.period or found.options.by
    )
    for name in (printable(head), "rows", unit, "AUROC", "p", "", "least like the others"):
        right = name in ("rows", unit, "AUROC", "p")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    for one in shown[:_PARTS]:
        auroc, p_value = (
            "" if value is None else f"{value:.3f}" for value in (one.auroc, one.p_value)
        )
        mark = "differs" if _differs(found, one) else ""
        most = row_name(*one.rows_most[0]) if mark else ""
        table.add_row(
            printable(one.part), f"{one.rows:,}", f"{one.blocks:,}", auroc, p_value, mark, most
        )
    print_table(table)
    if more := len(shown[_PARTS:]):
        stdout.print(f"[dim]and {counted(more, 'part')} more: --json[/]")
    if not found.is_alarm:
        return
    side = f"from {found.strongest.part} on" if found.splits else found.strongest.part
    rows = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("drift", "part", "row"):
        rows.add_column(name, overflow="fold", justify="right" if name == "drift" else "left")
    for row in [*found.rows[:k], *found.rows[len(found.rows) - k :]]:
        rows.add_row(f"{row.drift:.3f}", printable(row.part), row_name(row.id, row.region))
    stdout.print(f"most and least like {printable(side)}:", soft_wrap=True)
    print_table(rows)


def _draw(picture: Path, found: Drift) -> None:
    from penult.viz.plots import PartOfPicture, draw_parts

    by_part: dict[str, list[float]] = {}
    for row in found.rows:
        by_part.setdefault(row.part, []).append(row.drift)
    parts = [
        PartOfPicture(one.part, np.array(by_part[one.part]), one.auroc, _differs(found, one))
        for one in found.parts
    ]
    side = f"from {found.strongest.part} on" if found.splits else found.strongest.part
    draw_parts(picture, parts, side, found.since.part if found.since else None, _verdict(found))
