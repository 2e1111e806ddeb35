"""`penult novelty`: rows that are unlike the normal ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from penult.cli.collection import Space, Store, space_of
from penult.cli.options import Json, Overwrite, RawCells, Seed, check_output, check_tables
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
    tables_in_words,
    working,
)
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.collection.novelty import Novelty
    from penult.data.roots import Roots
    from penult.fewshot.novelty_events import NoveltyEvents


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
    events: Annotated[
        str | None,
        typer.Option(
            help="Write the events, windows with p of at most --alpha that follow each other, to a "
            ".csv file, a Raven table (.txt), or FOLDER/ with one for each recording."
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Level: rows with a p-value of at most this are novel.")
    ] = 0.05,
    merge_gap: Annotated[
        float, typer.Option(min=0.0, help="Longest gap in seconds between windows of one event.")
    ] = 0.0,
    save: Annotated[
        Path | None, typer.Option(help="Save the detector to this .npz file, for --detector.")
    ] = None,
    any_window: Annotated[
        bool,
        typer.Option(
            "--any-window",
            help="Take a --detector that was made for windows of another length; its p-values do "
            "not hold.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score rows by how unlike the normal ones they are, with p-values by held-out normal rows.

    Novel windows that follow each other are one event: --events, and how many in an hour. Kept as
    columns for --where and exports: novelty and novelty_p.
    """
    from penult.collection import detectors
    from penult.collection.collection import Collection
    from penult.collection.novelty import P_VALUE, find_novelty, fit_detector
    from penult.fewshot.novelty_events import novelty_events
    from penult.fewshot.storage import check_free

    check_output(out)
    check_output(save)
    check_tables(events, overwrite, None)
    if not 0 < alpha < 1:
        raise UsageError(f"--alpha {alpha:g}: a level lies between 0 and 1, as 0.05")
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
        source = None if detector is None else str(detector)
        found = find_novelty(opened.reader, made, source, alpha, any_window)
        heard = novelty_events(opened.reader, found, alpha, merge_gap)
    if save is not None:
        detectors.write(save, made)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, found.table(), raw_cells)
    written = (
        "" if events is None else _write(events, heard, opened.reader.roots, raw_cells, overwrite)
    )
    for note in found.notes:
        print_note(printable(note))
    if json:
        print_json({"collection": str(opened.path), "method": made.method,
                    "auroc": made.about.get("auroc") or None, "normal": len(made.keys),
                    "groups": made.way, "unheard": list(found.unheard), "notes": found.notes,
                    "level": found.level.to_dict(),
                    "rows": [row.to_dict() for row in found.rows],
                    "events": [one.to_dict() for one in heard.events],
                    "events_per_hour": {"normal": heard.rate(True), "others": heard.rate(False)},
                    "out": str(out) if out else None, "events_out": events,
                    "saved": str(save) if save else None})  # fmt: skip
        return
    _show(found, k, heard, written)
    path = printable_path(str(opened.path))
    advice = f'for filters: penult export {path} novel.csv --where "{P_VALUE} <= 0.05"'
    print_stored(advice if found.kept else "", {"all rows are": out, "the detector is": save})


def _write(out: str, heard: NoveltyEvents, roots: Roots, raw_cells: bool, overwrite: bool) -> str:
    """Write the events; gives the files in words."""
    from penult.data.files import write_file
    from penult.data.formulas import Cells
    from penult.data.selection_tables import write_selections
    from penult.fewshot.novelty_events import to_csv, to_selections

    cells = Cells(raw_cells)
    if not out.endswith(".csv"):
        recordings = [roots.shown(id) for id in heard.recordings]
        selections = to_selections(heard, roots)
        tables = write_selections(out, selections, recordings, cells=cells, overwrite=overwrite)
        return tables_in_words(tables, out, "Raven table")
    lines = to_csv(heard, cells, roots)
    written = write_file(out, (line.encode("utf-8", "backslashreplace") for line in lines))
    cells.tell(out)
    return tables_in_words([written], str(written))


def _show_events(heard: NoveltyEvents, written: str) -> None:
    parts = []
    for normal, name in ((False, "other rows"), (True, "normal rows")):
        rate, hours = heard.rate(normal), heard.seconds[normal] / 3600
        own = sum(one.normal == normal for one in heard.events)
        if rate is not None:
            parts.append(f"{own:,} in {hours:.3g} h of {name} ({rate:.3g} per hour)")
    if parts:
        stdout.print(f"{counted(len(heard.events), 'event')}: {', '.join(parts)}", soft_wrap=True)
    if written:
        stdout.print(f"{counted(len(heard.events), 'event')} written: {written}", soft_wrap=True)


def _show(found: Novelty, k: int, heard: NoveltyEvents, written: str) -> None:
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
    _show_events(heard, written)
