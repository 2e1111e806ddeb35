"""`penult check --robust`: how far corruptions move readings, as a table, a picture or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from penult.cli.output import (
    counted,
    print_failure,
    print_json,
    print_note,
    print_table,
    printable,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.data.sources import Source
    from penult.embedding.embedder import Embedder
    from penult.embedding.robustness import Robustness

MIXED = 0.5  # of the distance between items, from which vectors lie by recorder as much as by item
_WORST = 3  # corruptions that a reading is listed with
_SHOWN = 12  # readings in the table; the picture and --json have all


def print_robustness(embedder: Embedder, source: Source, plot: Path | None, json: bool) -> None:
    """Measure, and print what was asked for."""
    from penult.embedding.robustness import robustness

    with working("running the items with every corruption"):
        found = robustness(embedder, list(source))
    if plot is not None:
        from penult.viz.plots import draw_robustness

        relative = {
            reading: [moved[name].relative for name in found.corruptions]
            for reading, moved in found.shifts.items()
        }
        draw_robustness(plot, relative, found.corruptions, counted(len(found.items), "item"))
    if json:
        print_json({"model": embedder.classifier.spec, **found.to_dict(), "plot": plot})
        return
    for failure in found.failures:
        print_failure(failure.id, failure.message)
    _show_corruptions(found)
    _show_readings(found)
    _show_meaning(found)


def _show_corruptions(found: Robustness) -> None:
    from penult.embedding.robustness import OWN

    stdout.print(f"[bold]{OWN}[/], {counted(len(found.items), 'item')}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("corruption", "moved", "cosine", "lowest", "neighbours", "found", "label"):
        table.add_column(column, justify="left" if column == "corruption" else "right")
    for name, one in found.shifts[OWN].items():
        style = "[bold red]" if one.relative >= MIXED else ""
        table.add_row(
            name,
            f"{style}{one.relative:.2f}",
            f"{one.cosine:.3f}",
            f"{one.lowest:.3f}",
            f"{one.neighbours:.0%}",
            f"{one.found:.0%}",
            f"{found.labels[name]:.0%}" if found.labels else "",
        )
    print_table(table)


def _show_readings(found: Robustness) -> None:
    """Every reading, those that move least first, with what moves each most."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("reading")
    table.add_column("moved, mean", justify="right")
    table.add_column("most by")
    means = {reading: _mean([one.relative for one in moved.values()])
             for reading, moved in found.shifts.items()}  # fmt: skip
    order = sorted(means, key=lambda name: means[name])
    for reading in order[:_SHOWN]:
        moved = found.shifts[reading]
        worst = sorted(moved, key=lambda name: -moved[name].relative)[:_WORST]
        words = ", ".join(f"{name} {moved[name].relative:.2f}" for name in worst)
        table.add_row(printable(reading), f"{means[reading]:.2f}", words)
    stdout.print()
    print_table(table)
    if more := len(order[_SHOWN:]):
        stdout.print(f"[dim]and {counted(more, 'reading')} that move more: --plot, --json[/]")


def _show_meaning(found: Robustness) -> None:
    from penult.embedding.robustness import OWN

    print_note(
        "[dim]moved: the distance to the item itself without the corruption, in distances between "
        "different items; neighbours: of the five nearest items as many stay; found: the nearest "
        "item is the original; label: the classifier says the same[/]"
    )
    mixed = [name for name, one in found.shifts[OWN].items() if one.relative >= MIXED]
    if mixed:
        stdout.print(
            f"[bold]{', '.join(mixed)}[/]: items that differ in this lie half as far apart as "
            "different items do, or farther; keep it the same for all, name it as a group "
            "(--groups), or take another reading",
            soft_wrap=True,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
