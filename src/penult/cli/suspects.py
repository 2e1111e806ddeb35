"""`penult suspects`: labels that are perhaps wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from penult.collection.suspects import Suspects


def suspects(
    collection: Store,
    labels: Annotated[
        str,
        typer.Option(
            help="Label of each row: a column, folder, labels (taught), or a path pattern such as "
            "'{}_*.wav'."
        ),
    ],
    groups: Annotated[
        str | None,
        typer.Option(
            help="Rows of one group (speaker, site) say nothing about each other: a column, folder "
            "or a path pattern."
        ),
    ] = None,
    space: Space = "raw",
    where: Where = None,
    k: Annotated[int, typer.Option("-k", help="Number of rows shown.")] = 20,
    folds: Annotated[int, typer.Option(help="Number of cross-validation folds.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Write all rows, the most suspect first, to this CSV file.")
    ] = None,
    raw_cells: RawCells = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rank rows by what speaks against their label: a probe of other rows, and the nearest rows.

    Above 0.5 another label is likelier. Kept as columns for --where and exports: suspect and
    suggested_label.
    """
    from penult.collection.collection import Collection
    from penult.collection.neighbours import GraphOptions
    from penult.collection.suspects import SUSPECT, find_suspects

    check_output(out)
    opened = Collection.open(collection, must_exist=True)
    options = GraphOptions(space=space, groups=groups)
    options.check()
    space_of(opened, space)
    with working("comparing labels"):
        found = find_suspects(opened.reader, labels, options, where, folds, seed)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, found.table(), raw_cells)
    for note in found.notes:
        print_note(printable(note))
    if json:
        print_json({"collection": str(opened.path), "labels": labels, "groups": groups,
                    "likely": found.likely, "rows": [row.to_dict() for row in found.rows],
                    "out": str(out) if out else None})  # fmt: skip
        return
    _show(found, k)
    path = printable_path(str(opened.path))
    advice = f'for filters: penult export {path} suspects.csv --where "{SUSPECT} > 0.5"'
    print_stored(advice if found.kept else "", {"all rows are": out})


def _show(found: Suspects, k: int) -> None:
    share = found.likely / len(found.rows)
    stdout.print(
        f"{found.likely:,} of {counted(len(found.rows), 'row')} ({share:.1%}) are likelier of "
        "another label; where labels are hard to tell apart, many of these are right",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("suspect", "label", "suggested", "row", "beside"):
        table.add_column(name, overflow="fold", justify="right" if name == "suspect" else "left")
    for row in found.rows[:k]:
        name = row_name(row.id, row.region)
        near = printable_path(row.against[0][0]) if row.against else ""
        table.add_row(
            f"{row.suspect:.3f}", printable(row.label), printable(row.suggested), name, near
        )
    print_table(table)
