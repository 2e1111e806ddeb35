"""Commands for the keeper of an archive: neighbours of rows, subsets of rows."""

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
    from penult.collection.collection import Collection
    from penult.collection.neighbours import Neighbours
    from penult.collection.subsets import Subset

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
    from penult.collection.columns import names
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
    advice = f'for filters: penult export {path} near.csv --where "{COLUMN} > {close:.3f}"'
    kept = COLUMN in names(opened.path) and COLUMN not in opened.reader.schema.names
    print_stored(advice if kept else "", {"the neighbours are": out})


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
        table.add_row(f"{number:,}", row_name(*found.keys[row]))
    print_table(table)


_ROW_FILES = (".csv", ".m3u", ".txt")


def select(
    collection: Store,
    k: Annotated[int, typer.Option("-k", help="Number of rows.")],
    by: Annotated[
        str,
        typer.Option(
            help="diverse: as far apart as can be; typical: the middle of each of k clusters; "
            "balanced: as many of each cluster, or of each value of --over."
        ),
    ] = "diverse",
    over: Annotated[
        str | None,
        typer.Option(
            help="As many rows of each value, as far as there are: a column, folder, or a path "
            "pattern."
        ),
    ] = None,
    space: Space = "raw",
    where: Where = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the rows to a .csv file, an .m3u playlist, or a .txt of ids."),
    ] = None,
    raw_cells: RawCells = False,
    json: Json = False,
) -> None:
    """Select rows to label or to listen to, with no doubles among them.

    The same rows and seed give the same selection. The number of each row in it is a column for
    --where and exports: selected.
    """
    from penult.collection.collection import Collection
    from penult.collection.subsets import COLUMN, SubsetOptions, select_rows
    from penult.errors import UsageError

    if out is not None and out.suffix.lower() not in _ROW_FILES:
        raise UsageError(f"{out.name!r} has no known ending for rows; {', '.join(_ROW_FILES)} work")
    check_output(out)
    opened = Collection.open(collection, must_exist=True)
    space_of(opened, space)
    with working("selecting rows"):
        found = select_rows(opened.reader, SubsetOptions(k, by, over, space, where, seed))
    if out is not None:
        _write_rows(out, found, opened, raw_cells)
    if json:
        print_json({"collection": str(opened.path), "by": by, "over": over, "space": space,
                    "seed": seed, **found.to_dict(), "column": COLUMN,
                    "out": str(out) if out else None})  # fmt: skip
        return
    if out is None:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("#", "item", "region", *(["stratum"] if found.strata else [])):
            table.add_column(name, justify="right" if name == "#" else "left", overflow="fold")
        for row in found.table().to_pylist():
            own = [printable(row["stratum"])] if found.strata else []
            table.add_row(str(row["number"]), printable_path(row["id"]), row["region"], *own)
        print_table(table)
    near = "" if found.known_doubles else "; penult duplicates finds those that are nearly the same"
    stdout.print(
        f"{counted(len(found.keys), 'row')} of {found.matching:,}, {printable(by)}"
        + (f", over {_strata(found.strata)}" if found.strata else "")
        + (f"; in [bold]{printable(str(out))}[/]" if out else ""),
        soft_wrap=True,
    )
    print_note(f"[dim]{counted(found.doubles, 'double')} left out{near}[/]")


def _strata(names: list[str]) -> str:
    number = len(set(names))
    return f"{number:,} {'stratum' if number == 1 else 'strata'}"


def _write_rows(out: Path, found: Subset, opened: Collection, raw_cells: bool) -> None:
    from penult.collection.export import write_csv
    from penult.collection.row_names import names_text
    from penult.data.files import write_file
    from penult.fewshot import events

    if out.suffix.lower() == ".csv":
        write_csv(out, found.table(), raw_cells)
        return
    if out.suffix.lower() == ".txt":
        text = names_text(found.keys)
    else:
        text = events.to_m3u(events.of_rows(found.keys, opened.reader.roots, found.strata))
    write_file(out, [text.encode("utf-8", "backslashreplace")])
