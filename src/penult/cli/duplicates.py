"""`penult duplicates`: doubles in a collection, or between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.table import Table

from penult.cli.collection import Space, Store, space_of
from penult.cli.options import Device, Json, RawCells, Trust, check_output
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
    import pyarrow as pa

    from penult.collection.collection import Collection
    from penult.collection.duplicates import Duplicates, Leak, MeasuredThreshold
    from penult.collection.leaks import LeakScores
    from penult.collection.overlap import Overlap

Group: TypeAlias = "tuple[str, float, Sequence[tuple[Collection, str, str]]]"
_SHOWN = 10  # groups and leaks; --json and --out have all


@dataclass(frozen=True, slots=True)
class Files:
    """What is written beside the terminal: out, a CSV; html, a page."""

    out: Path | None
    html: Path | None
    raw_cells: bool

    def check(self) -> None:
        """Refuse, before any work is done, what cannot be written.

        Raises:
            UsageError: a folder, one that does not exist, or a page of another ending.
        """
        from penult.errors import UsageError

        check_output(self.out)
        if self.html is not None and self.html.suffix.lower() != ".html":
            raise UsageError(f"--html {self.html}: the name has to end in .html")
        check_output(self.html)

    def write(
        self, table: pa.Table, title: str, lines: Sequence[str], groups: Sequence[Group]
    ) -> None:
        """Write both. groups: kind, similarity, and the items: collection, id, a note."""
        from penult.collection.export import write_csv
        from penult.data.files import write_file
        from penult.viz.report import GroupItem, page_of_groups

        if self.out is not None:
            write_csv(self.out, table, self.raw_cells)
        if self.html is None:
            return
        shown = [
            (f"{kind}, similarity {similarity:.4f}",
             [GroupItem(id, note, _file(store, id)) for store, id, note in items])
            for kind, similarity, items in groups
        ]  # fmt: skip
        found = {str(store.reader.require_manifest().model.get("modality"))
                 for _, _, items in groups for store, _, _ in items}  # fmt: skip
        page = page_of_groups(title, lines, shown, "".join(found))  # one embedder, one modality
        write_file(self.html, [page.encode("utf-8", "backslashreplace")])

    @property
    def named(self) -> dict[str, Path | None]:
        """By what is in them."""
        return {"the groups are": self.out, "the page is": self.html}

    def to_dict(self) -> dict[str, str | None]:
        """For JSON."""
        return {
            "out": str(self.out) if self.out else None,
            "html": str(self.html) if self.html else None,
        }


def _file(store: Collection, id: str) -> Path | None:
    """The file of an item, if it is there."""
    from penult.data.items import absolute

    path = absolute(store.reader.roots.path_of(id))
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):
        return None


def duplicates(
    collection: Store,
    other: Annotated[
        Path | None,
        typer.Argument(
            help="Another collection of the same embedder, such as the archive: its rows are kept, "
            "and it is only read. Rows of COLLECTION that it has, too, are doubles."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Cosine from which rows are nearly the same. Default: measured on re-encoded "
            "items of the collection."
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare contents of files only, and no vectors.")
    ] = False,
    space: Space = "raw",
    split: Annotated[
        str | None,
        typer.Option(
            help="Sides of a split, such as train and test: a column, folder, or a path pattern. "
            "Doubles across sides are listed as leaks."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="With --split: classes of rows, for the score of a linear probe with and without "
            "leaks."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Embedder to use, where the recorded one has moved.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write each item of a group to this CSV file.")
    ] = None,
    raw_cells: RawCells = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write all groups to this page, page.html, with pictures or players."),
    ] = None,
    device: Device = "auto",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Find items that are there twice: the same content, or nearly the same; with OTHER those that
    another collection has.

    By default the threshold is measured: some items are re-encoded, cut and set to another level,
    and looked for among the others. Windows and other parts of one item are no doubles. What each
    row is a double of is a column for --where and exports: duplicate_of, or duplicate_in_other.
    """
    from functools import partial

    from penult.collection.collection import Collection
    from penult.collection.duplicates import find_duplicates
    from penult.collection.leaks import leak_scores
    from penult.collection.overlap import find_overlap
    from penult.errors import UsageError

    files = Files(out, html, raw_cells)
    files.check()
    if labels is not None and split is None:
        raise UsageError("--labels is for the score across a split; give --split COLUMN too")
    if exact and threshold is not None:
        raise UsageError("--exact compares no vectors, and --threshold is for them; give one")
    if other is not None and split is not None:
        raise UsageError(f"--split is for one collection; with {other} each of the two is a side")
    opened = Collection.open(collection, must_exist=True)
    beside = None if other is None else Collection.open(other, must_exist=True)
    space_of(opened, space)
    opener = partial(opened.embedder, model, device=device, trust=trust)
    with working("comparing rows"):
        if beside is not None:
            shared = find_overlap(opened.reader, beside.reader, opener, threshold=threshold,
                                  near=not exact, space=space)  # fmt: skip
        else:
            found = find_duplicates(opened.reader, opener, threshold=threshold, near=not exact,
                                    space=space, split=split)  # fmt: skip
            scores = leak_scores(opened.reader, found, split, labels) if split and labels else None
    if beside is not None:
        _give_overlap(opened, beside, shared, files, json)
    else:
        _give_duplicates(opened, found, scores, files, json)


def _give_duplicates(
    opened: Collection, found: Duplicates, scores: LeakScores | None, files: Files, json: bool
) -> None:
    path = printable_path(str(opened.path))
    total = (
        f"{counted(len(found.groups), 'group')}: {found.doubles:,} of "
        f"{counted(found.rows, 'row')} are doubles of another one that is kept"
    )
    files.write(
        found.table(), f"Duplicates in {path}", [*_threshold_lines(found.threshold), total],
        [(one.kind, one.similarity,
          [(opened, id, "" if place else f"kept: {one.why}") for place, id in enumerate(one.ids)])
         for one in found.groups],
    )  # fmt: skip
    if json:
        print_json({"collection": str(opened.path), **found.to_dict(),
                    "scores": None if scores is None else scores.to_dict(),
                    **files.to_dict()})  # fmt: skip
        return
    _show_groups(
        found.threshold,
        ("items", "parts", "kind", "least similarity", "kept", "why", "doubles"),
        [(str(len(one.ids)), str(one.parts), one.kind, f"{one.similarity:.4f}",
          printable_path(one.ids[0]), one.why, _listed(one.ids[1:])) for one in found.groups],
    )  # fmt: skip
    stdout.print(total, soft_wrap=True)
    if found.leaks is not None:
        _show_leaks(found.leaks)
    for line in [] if scores is None else scores.words():
        stdout.print(printable(line), soft_wrap=True)
    advice = f'without doubles: penult export {path} once.csv --where "duplicate_of IS NULL"'
    print_stored(advice, files.named)


def _show_leaks(leaks: Sequence[Leak]) -> None:
    for leak in leaks[:_SHOWN]:
        first, second = row_name(*leak.row), row_name(*leak.other)
        stdout.print(
            f"  {printable(leak.split)} {first} = {printable(leak.other_split)} {second} "
            f"({leak.similarity:.4f})",
            soft_wrap=True,
        )
    stdout.print(f"{counted(len(leaks), 'pair')} of doubles on two sides of the split")


def _give_overlap(
    opened: Collection, other: Collection, found: Overlap, files: Files, json: bool
) -> None:
    from penult.collection.overlap import COLUMN

    first, second = (printable_path(str(one.path)) for one in (opened, other))
    total = (
        f"{counted(len(found.groups), 'group')}: {len(found.doubles):,} of "
        f"{counted(found.rows[0], 'row')} of {first} are doubles of one of "
        f"{counted(found.rows[1], 'row')} of {second}"
    )
    files.write(
        found.table(), f"Duplicates of {first} in {second}",
        [*_threshold_lines(found.threshold), total],
        [(one.kind, one.similarity,
          [(other, one.kept, f"kept, in {second}"), *((opened, id, "") for id in one.ids)])
         for one in found.groups],
    )  # fmt: skip
    if json:
        print_json({"collection": str(opened.path), "other": str(other.path), **found.to_dict(),
                    **files.to_dict()})  # fmt: skip
        return
    _show_groups(
        found.threshold,
        ("items", "parts", "kind", "least similarity", "kept, of the other", "doubles"),
        [(str(len(one.ids)), str(one.parts), one.kind, f"{one.similarity:.4f}",
          printable_path(one.kept), _listed(one.ids)) for one in found.groups],
    )  # fmt: skip
    stdout.print(total, soft_wrap=True)
    if found.parted:
        print_note(
            f"{counted(found.parted, 'row')} of other parts of files that both have, such as "
            "windows of another length, are no doubles by content"
        )
    advice = f'what is new: penult export {first} new.csv --where "{COLUMN} IS NULL"'
    print_stored(advice if found.kept else "", files.named)


def _show_groups(
    threshold: MeasuredThreshold | None, head: Sequence[str], lines: Sequence[Sequence[str]]
) -> None:
    for number, line in enumerate(_threshold_lines(threshold)):
        stdout.print(f"[yellow]{line}[/]" if number else line, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in head:
        right = column in ("items", "parts", "least similarity")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for cells in lines[:_SHOWN]:
        table.add_row(*cells)
    if lines:
        print_table(table)
    if more := len(lines[_SHOWN:]):
        stdout.print(f"[dim]and {counted(more, 'group')} more: --out, --json[/]")


def _listed(ids: Sequence[str]) -> str:
    """The first three, marked up."""
    more = f" and {len(ids) - 3:,} more" if len(ids) > 3 else ""
    return ", ".join(printable_path(id) for id in ids[:3]) + more


def _threshold_lines(found: MeasuredThreshold | None) -> list[str]:
    """The threshold and, where it finds few copies, a warning."""
    if found is None:
        return []
    if found.found is None:
        return [f"threshold {found.value:g}, given by hand: what it finds is not measured"]
    kinds = ", ".join(f"{printable(name)} {share:.0%}" for name, share in found.by_change.items())
    mistaken = (
        f"of {counted(found.different, 'nearest different item')} {found.mistaken:.1%} would be "
        "taken for doubles"
        if found.mistaken is not None
        else "no nearest item of other content was there to measure mistakes on"
    )
    lines = [
        f"threshold {found.value:.4f}, measured on {counted(found.sample, 'row')}: "
        f"{found.found:.1%} of re-encodings are found ({kinds}); {mistaken}"
    ]
    if found.found < 0.9:
        lines.append(
            "re-encodings lie no nearer to their originals than different items do: "
            "another reading or space tells them better apart (penult check --robust)"
        )
    return lines
