"""Commands for the keeper of an archive: neighbours of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from penult.cli.collection import Space, Store, space_of
from penult.cli.options import Json, RawCells, check_output
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
    from penult.collection.neighbours import Neighbours

_HUBS = 5  # rows that are shown


def neighbours(
    collection: Store,
    k: Annotated[int, typer.Option("-k", help="Number of neighbours of each row.")] = 20,
    space: Space = "raw",
    groups: Annotated[
        str | None,
        typer.Option(
            help="Rows of one group are no neighbours: a column (id: of one item), folder, or a "
            "path pattern such as '{}_*.wav'."
        ),
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--approximate",
            help="Compare all rows, or those of like lists. Default: all of up to 100,000 rows.",
        ),
    ] = None,
    min_recall: Annotated[
        float, typer.Option(help="Least recall of the approximate way, measured on a sample.")
    ] = 0.95,
    out: Annotated[
        Path | None, typer.Option(help="Write each row's neighbours to this CSV file.")
    ] = None,
    raw_cells: RawCells = False,
    json: Json = False,
) -> None:
    """Find the nearest rows of every row, by cosine, and keep them with the collection.

    Given again after rows came or went, it brings the kept graph up to date. The similarity to the
    nearest row is a column for --where and exports: nearest_similarity.
    """
    from penult.collection.collection import Collection
    from penult.collection.neighbours import COLUMN, GraphOptions, find_neighbours

    check_output(out)
    opened = Collection.open(collection, must_exist=True)
    options = GraphOptions(k, space, groups, exact, min_recall)
    options.check()
    space_of(opened, space)
    with working("comparing rows"):
        found = find_neighbours(opened.reader, options)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, found.table(), raw_cells)
    if json:
        print_json({"collection": str(opened.path), **found.to_dict(), "column": COLUMN,
                    "out": str(out) if out else None})  # fmt: skip
        return
    _show_neighbours(found)
    close = found.nearest[int(0.99 * len(found.nearest))] if len(found.nearest) else 0.99
    path = printable_path(str(opened.path))
    stdout.print(
        f'stored; for filters: penult export {path} near.csv --where "{COLUMN} > {close:.3f}"'
        + (f"; the neighbours are in [bold]{printable(str(out))}[/]" if out else ""),
        soft_wrap=True,
    )


def _show_neighbours(found: Neighbours) -> None:
    came = (
        f"{found.made.new:,} new or changed, {found.made.gone:,} gone"
        if found.made.new or found.made.gone
        else ""
    )
    stdout.print(
        f"{found.k:,} nearest rows of {counted(len(found.keys), 'row')}: "
        f"{came or 'nothing has changed since they were kept'}",
        soft_wrap=True,
    )
    if found.made.searched == "all rows":
        stdout.print("all rows were compared: no nearer row is missed")
    else:
        stdout.print(
            f"compared by lists: recall@{found.k} {found.made.recall:.3f}, measured on "
            f"{counted(found.made.sample, 'row')}; --exact compares all",
            soft_wrap=True,
        )
    if found.made.undirected:
        print_note(
            f"[yellow]{counted(found.made.undirected, 'row')} of zeros: without a direction a "
            "vector has no neighbours and is none[/]"
        )
    if fewer := found.fewer - found.made.undirected:
        print_note(f"{counted(fewer, 'row')} with fewer than {found.k:,}: there are no more")
    if len(near := found.nearest):
        middle, high = near[len(near) // 2], near[int(0.95 * len(near))]
        stdout.print(f"similarity to the nearest row: median {middle:.3f}, 5 % above {high:.3f}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("neighbour of", justify="right")
    table.add_column("row", overflow="fold")
    for row, number in found.hubs(_HUBS):
        id, region = found.keys[row]
        name = printable_path(id) + ("" if region == "whole" else f" {printable(region)}")
        table.add_row(f"{number:,}", name)
    print_table(table)
