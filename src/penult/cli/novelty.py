"""`penult novelty`: rows that are unlike the normal ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from penult.cli.collection import Space, Store, space_of
from penult.cli.options import Json, Overwrite, RawCells, Seed, check_output
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
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.collection.novelty import Novelty


def novelty(
    collection: Store,
    normal: Annotated[
        str | None,
        typer.Option(help="SQL filter: the rows that are normal, as \"state = 'healthy'\"."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="A row is not scored by rows of its own group (day, machine, speaker): a column, "
            "folder or a path pattern."
        ),
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option(help="Score rows by a detector of --save, in place of --normal."),
    ] = None,
    space: Space = "raw",
    method: Annotated[
        str,
        typer.Option(
            help="knn, csls, mahalanobis, or auto: by changes planted in held-out normal rows."
        ),
    ] = "auto",
    k: Annotated[int, typer.Option("-k", help="Number of rows shown.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Write all rows, the most novel first, to this CSV file.")
    ] = None,
    raw_cells: RawCells = False,
    save: Annotated[
        Path | None, typer.Option(help="Save the detector to this .npz file, for --detector.")
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score rows by how unlike the normal ones they are, with p-values by held-out normal rows.

    Kept as columns for --where and exports: novelty and novelty_p.
    """
    from penult.collection import detectors
    from penult.collection.collection import Collection
    from penult.collection.novelty import P_VALUE, find_novelty, fit_detector
    from penult.fewshot.storage import check_free

    check_output(out)
    check_output(save)
    if (normal is None) == (detector is None):
        raise UsageError("give --normal WHERE, which rows are normal, or --detector FILE")
    if detector is not None and (groups or save or space != "raw" or method != "auto"):
        raise UsageError("--groups, --space, --method and --save are settled in the detector")
    if save is not None:
        check_free(detectors.check_suffix(save), overwrite)
    opened = Collection.open(collection, must_exist=True)
    if normal is None:
        made = detectors.read(str(detector))
    else:
        space_of(opened, space)
        with working("scoring normal rows"):
            made = fit_detector(opened.reader, normal, groups, space, method, seed)
    with working("scoring rows"):
        found = find_novelty(opened.reader, made, None if detector is None else str(detector))
    if save is not None:
        detectors.write(save, made)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, found.table(), raw_cells)
    for note in found.notes:
        print_note(printable(note))
    if json:
        print_json({"collection": str(opened.path), "method": made.method,
                    "auroc": made.about.get("auroc") or None, "normal": len(made.keys),
                    "groups": made.way, "level": found.level.to_dict(),
                    "rows": [row.to_dict() for row in found.rows],
                    "out": str(out) if out else None,
                    "saved": str(save) if save else None})  # fmt: skip
        return
    _show(found, k)
    path = printable_path(str(opened.path))
    advice = f'for filters: penult export {path} novel.csv --where "{P_VALUE} <= 0.05"'
    print_stored(advice if found.kept else "", {"all rows are": out, "the detector is": save})


def _show(found: Novelty, k: int) -> None:
    made, level = found.detector, found.level
    auroc = made.about.get("auroc") or {}
    means = {name: sum(one.values()) / len(one) for name, one in auroc.items()}
    figures = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    how = f": AUROC on planted changes {figures}" if figures else ""
    stdout.print(f"method {made.method}{how}", soft_wrap=True)
    of = f" of {counted(level.groups, 'group')}" if level.groups else ""
    text = f"{counted(len(made.keys), 'normal row')}{of}; p ≤ {level.alpha:g} for {level.share:.1%}"
    text += " of these, held out"
    if level.lowest is not None and level.highest is not None:
        text += f" by groups ({level.lowest:.1%} to {level.highest:.1%} of a group): the level for "
        text += "new groups"
    stdout.print(text, soft_wrap=True)
    others = [row for row in found.rows if not row.normal]
    low = sum(row.p_value <= level.alpha for row in others)
    stdout.print(f"{low:,} of {counted(len(others), 'other row')} have p ≤ {level.alpha:g}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("novelty", "p", "normal", "row"):
        right = name in ("novelty", "p")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    for row in found.rows[:k]:
        name = row_name(row.id, row.region)
        table.add_row(f"{row.novelty:.4f}", f"{row.p_value:.4f}", "yes" if row.normal else "", name)
    print_table(table)
