"""`penult classes --curve`: precision and recall of a class as a table, a picture or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from penult.cli.output import (
    counted,
    print_json,
    print_note,
    print_table,
    printable,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.fewshot.classspace import ClassSpace
    from penult.fewshot.curve import Curve

_SHOWN = 12  # thresholds in the table; --json has all


def print_curve(
    taught: ClassSpace, place: str, name: str, precision: float, plot: Path | None, json: bool
) -> None:
    """Print the curve of a class, with the threshold for a precision."""
    from penult.fewshot.curve import precision_recall

    with working("holding examples out"):
        curve = precision_recall(taught.fitted, name)
    best = curve.best(precision)
    if plot is not None:
        from penult.viz.plots import draw_curve

        draw_curve(plot, curve.recall, curve.precision, f"{name}: {_basis(curve)}")
    if json:
        wanted = {"precision": precision, "point": None if best is None else curve.point(best)}
        print_json({"place": place, "method": taught.fitted.method, **curve.to_dict(),
                    "wanted": wanted, "plot": plot})  # fmt: skip
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("probability", "precision", "recall"):
        table.add_column(column, justify="right")
    last = len(curve.thresholds) - 1
    for at in np.unique(np.linspace(0, last, min(_SHOWN, last + 1)).round().astype(int)):
        table.add_row(*(f"{value:.3f}" for value in curve.point(int(at)).values()))
    print_table(table)
    if best is None:
        stdout.print(f"no threshold reaches a precision of {precision:g}: {_basis(curve)}")
    else:
        point = curve.point(best)
        stdout.print(
            f"precision {point['precision']:.3f} with [bold]--min-probability "
            f"{_rounded_down(point['threshold'])}[/], recall {point['recall']:.3f}: "
            f"{printable(_basis(curve))}",
            soft_wrap=True,
        )
    print_note(
        "[dim]precision is that of the marked items: where the class is rarer than among them, it "
        "is lower[/]"
    )


def _basis(curve: Curve) -> str:
    return f"{counted(curve.yes, 'example')} and {curve.no:,} others, held out"


def _rounded_down(threshold: float) -> str:
    """Six digits that are no higher, so that the last example of the threshold still passes."""
    return f"{np.floor(threshold * 1e6) / 1e6:g}"
