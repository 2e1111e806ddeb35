"""`penult compare`: two embedders on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table

from penult.cli.collection import Space, Store, Where, space_of
from penult.cli.options import Json, RawCells, check_output
from penult.cli.output import (
    counted,
    print_json,
    print_stored,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.collection.embedder_comparison import ComparedRow, EmbedderComparison
    from penult.collection.schema import Key


class _Lines(NamedTuple):
    """A table, for the terminal and the page."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def compare(
    collection: Store,
    other: Annotated[
        Path, typer.Argument(help="A collection of the same items by another embedder.")
    ],
    k: Annotated[int, typer.Option("-k", help="Number of neighbours.")] = 10,
    labels: Annotated[
        str | None,
        typer.Option(
            help="For retrieval and a probe: the class of each row, a column of the first "
            "collection, folder, or a path pattern such as '{}_*.wav'."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Rows of one group (speaker, site) are not compared with each other, and "
            "intervals are over groups: a column, folder or a path pattern."
        ),
    ] = None,
    space: Space = "raw",
    where: Where = None,
    rows: Annotated[int, typer.Option(help="Number of rows shown that moved most.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="Write all rows, the one that moved most first, to this CSV file."),
    ] = None,
    raw_cells: RawCells = False,
    html: Annotated[Path | None, typer.Option(help="Write it all to this page, page.html.")] = None,
    json: Json = False,
) -> None:
    """Compare two embedders on the same items: what changed after a model update.

    Nearest rows kept, linear CKA, the rows that moved most and, with --labels, retrieval and a
    probe with the paired difference. Kept as columns of the second: moved and neighbours_kept.
    """
    from penult.collection.collection import Collection
    from penult.collection.embedder_comparison import MOVED, compare_embedders
    from penult.data.files import write_file
    from penult.errors import UsageError
    from penult.viz.report import page_of_tables

    check_output(out)
    if html is not None and html.suffix.lower() != ".html":
        raise UsageError(f"--html {html}: the name has to end in .html")
    check_output(html)
    first, second = (Collection.open(path, must_exist=True) for path in (collection, other))
    for opened in (first, second):
        space_of(opened, space)
    with working("comparing rows"):
        found = compare_embedders(first.reader, second.reader, k, labels, groups, space, where)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, found.table(), raw_cells)
    title = f"{printable_path(str(first.path))} and {printable_path(str(second.path))}"
    tables = _tables(found, rows)
    if html is not None:
        write_file(html, [page_of_tables(title, _summary(found), tables).encode()])
    if json:
        print_json({"first": str(first.path), "second": str(second.path), "labels": labels,
                    "groups": groups, "space": space, **found.to_dict(),
                    "out": str(out) if out else None,
                    "html": str(html) if html else None})  # fmt: skip
        return
    for line in _summary(found):
        stdout.print(printable(line), soft_wrap=True)
    for one in tables:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in one.head:
            table.add_column(printable(name), overflow="fold")
        for cells in one.rows:
            table.add_row(*map(printable, cells))
        stdout.print(f"[bold]{printable(one.title)}[/]")
        print_table(table)
    path = printable_path(str(second.path))
    advice = f'for filters: penult export {path} moved.csv --where "{MOVED} > 0.5"'
    print_stored(advice if found.stored else "", {"all rows are": out, "the page is": html})


def _summary(found: EmbedderComparison) -> list[str]:
    alone = ", ".join(
        f"{counted(number, 'row')} in the {which} only"
        for number, which in zip(found.only, ("first", "second"), strict=True)
        if number
    )
    return [
        f"first: {found.names[0]}",
        f"second: {found.names[1]}",
        f"{counted(len(found.rows), 'row')} of both" + (f"; {alone}" if alone else ""),
    ]


def _tables(found: EmbedderComparison, rows: int) -> list[_Lines]:
    one = found.cka
    cka = f"{one.value:.3f}"
    if one.low == one.low:
        cka += f" ({one.low:.3f} to {one.high:.3f})"
    figures = [
        (f"{found.k} nearest rows kept", found.kept.words(), f"by chance {found.chance:.1%}"),
        ("linear CKA", cka, "1: the same but for a turn and a scale"),
    ]
    if found.same_label is not None:
        figures.append(("same label of the classifier", f"{100 * found.same_label:.1f} %", ""))
    made = [_Lines("How alike", ("measure", "value (95 % interval)", ""), figures)]
    if found.measures:
        lines = [
            (one.name, one.first.words(), one.second.words(), one.difference.words())
            for one in found.measures
        ]
        head = ("measure", "first", "second", "second less first (95 % interval)")
        made.append(_Lines("How good", head, lines))
    if found.relabelled:
        changes = [(one, other, f"{count:,}") for one, other, count in found.relabelled]
        made.append(_Lines("Labels that changed most often", ("first", "second", "rows"), changes))
    names = ("moved", "kept", "row", "nearest by the first", "nearest by the second")
    made.append(_Lines("Rows that moved most", names, [_line(row) for row in found.rows[:rows]]))
    return made


def _line(row: ComparedRow) -> tuple[str, ...]:
    how, kept = (
        "" if value is None else f"{value:.3f}" for value in (row.moved, row.neighbours_kept)
    )
    return how, kept, _plain((row.id, row.region)), *map(_plain, row.nearest)


def _plain(key: Key | None) -> str:
    """The name of a row, which is made printable later."""
    if key is None:
        return ""
    return key[0] + ("" if key[1] == "whole" else f" {key[1]}")
