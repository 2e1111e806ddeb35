"""`penult suggest`: the rows of a collection that should be marked next for a class."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from penult.cli.collection import Where
from penult.cli.options import Json, Overwrite, RawCells, TableFormatName, check_tables
from penult.cli.output import (
    cell,
    counted,
    place_header,
    place_words,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    tables_in_words,
    working,
)
from penult.cli.teach import load_class_space

if TYPE_CHECKING:
    from penult.data.roots import Roots
    from penult.fewshot.suggestions import Suggestion


def suggest(
    place: Annotated[str, typer.Argument(help="A collection with taught classes.")],
    name: Annotated[str, typer.Argument(metavar="CLASS", help="The class to find more of.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of rows.")] = 20,
    where: Where = None,
    space: Annotated[
        str | None,
        typer.Option(help="Recipe of the vector space, for example raw, centre, shrink or auto."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Write the rows to a .csv file, to a .txt Raven selection table (of several "
            "recordings with a list of them beside it), or to FOLDER/: a Raven table for each "
            "recording."
        ),
    ] = None,
    overwrite: Overwrite = False,
    format: TableFormatName = None,
    raw_cells: RawCells = False,
    json: Json = False,
) -> None:
    """List the rows of a collection to mark next for a class: likely, uncertain, different ones.

    One example of the class is enough to begin. Rows whose answer is known are left out. Mark some
    rows with penult teach, and run it again.
    """
    from penult.fewshot.suggestions import suggest as suggest_rows

    check_tables(out, overwrite, format)
    taught = load_class_space(place, space=space)
    with working("ranking"):
        found = suggest_rows(taught, name, k, where)
    if out is not None:
        from penult.fewshot.vectors import roots_of

        how = raw_cells, overwrite, format
        written = _write(out, found, name, how, roots_of(taught.source))
    if json:
        rows = [one.to_dict() for one in found]
        print_json({"place": place, "class": name, "out": out, "suggestions": rows})
        return
    if not found:
        stdout.print("no row is left to mark" + (" that matches the filter" if where else ""))
        return
    if out is None:
        print_table(_table(found))
    else:
        stdout.print(f"{counted(len(found), 'row')} in {written}", soft_wrap=True)
    print_note(_how_to_mark(place, name, found[0], out))


def _how_to_mark(place: str, name: str, one: Suggestion, out: str | None) -> str:
    if out is not None and out.endswith(".csv"):
        command = printable(shlex.join(["penult", "teach", place, "--from", "class", out]))
        return f"[dim]write yes, no or unsure into its column mark, then: {command}[/]"
    words = ["penult", "teach", place, name, one.id]
    if one.region != "whole" and one.start is not None and one.end is not None:
        words += ["--start", str(one.start), "--end", str(one.end)]
    command = printable(shlex.join(words))
    return f"[dim]to mark one: {command} --mark yes (or no, unsure); then suggest again[/]"


def _table(found: list[Suggestion]) -> Table:
    from penult.data.text import text_in

    table = Table(box=None, header_style="bold", pad_edge=False)
    with_texts = any(one.metadata.get("text") is not None for one in found)
    for column in ("why", "score", "similarity", "item", place_header(one.region for one in found),
                   *(["text"] if with_texts else [])):  # fmt: skip
        right = column in ("score", "similarity")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for one in found:
        table.add_row(
            one.reason, f"{one.score:.3f}", f"{one.similarity:.3f}", printable_path(one.id),
            place_words(one.region, one.start, one.end) if one.region != "whole" else "",
            *([cell(text_in(one.metadata, one.region))] if with_texts else []),
        )  # fmt: skip
    return table


def _write(
    out: str, found: list[Suggestion], name: str, how: tuple[bool, bool, str | None], roots: Roots
) -> str:
    """Write the tables; gives them in words. how: raw cells, whether files are replaced, and the
    format."""
    from penult.data.files import write_file
    from penult.data.formulas import Cells
    from penult.data.table_formats import table_format
    from penult.fewshot import events, suggestions

    cells, overwrite, asked = Cells(how[0]), how[1], table_format(how[2])
    if out.endswith(".csv"):
        lines = suggestions.to_csv(found, name, cells, roots)
        file = write_file(out, (line.encode("utf-8", "backslashreplace") for line in lines))
        cells.tell(out)
        return tables_in_words([file], str(file))
    own = suggestions.events_of(found, name)
    selections = events.selections_of(own, roots, events.OF_HITS)
    tables = asked.write(out, selections, cells=cells, overwrite=overwrite)
    return tables_in_words(tables, out, asked.title)
