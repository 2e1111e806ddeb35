"""Predictions and events of a command: as tables, files, sums in words, or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from penult.cli.output import (
    SOME_FAILED,
    cell,
    counted,
    place_header,
    place_words,
    print_failures,
    print_json_stream,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    tables_in_words,
)
from penult.cli.score_maps import write_score_maps

if TYPE_CHECKING:
    from penult.data.items import Failure
    from penult.data.roots import Roots
    from penult.fewshot.events import Event
    from penult.fewshot.predictions import ClassPrediction, Spool


SHOWN = 20


@dataclass(frozen=True, slots=True)
class EventOptions:
    """How windows become events. gap: seconds between windows of one event. apart: keep windows
    apart. smooth: seconds, see `smoothed`. unknown: stretches without a class too."""

    gap: float = 0.0
    apart: bool = False
    smooth: float | None = None
    unknown: bool = False

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by name; None is unset."""
        return {"merge-gap": self.gap or None, "windows": self.apart or None,
                "smooth": self.smooth, "unknown-events": self.unknown or None}  # fmt: skip

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: it is refused.
        """
        from penult.errors import UsageError

        if self.apart and (self.smooth is not None or self.unknown):
            name = "unknown-events" if self.smooth is None else "smooth"
            raise UsageError(f"--{name} is of events, and --windows makes none; leave one out")
        if self.smooth is not None and not 0 < self.smooth < float("inf"):
            raise UsageError(f"--smooth {self.smooth:g}: give a number of seconds above 0")

    def events(self, found: Spool) -> list[Event] | None:
        """The events of predictions; None where there are none.

        Raises:
            UsageError: no item is cut into windows, which was asked for.
        """
        from penult.errors import UsageError
        from penult.fewshot.events import merged, smoothed

        if self.apart or not found.cut:
            if self.smooth is not None or self.unknown:
                raise UsageError(
                    "there are no events to smooth or to fill with unknown: every item was read "
                    "whole; --window cuts files into windows"
                )
            return None
        windows = found.windows()
        if self.smooth is not None:
            return merged(smoothed(windows, self.smooth), self.gap, self.unknown)
        return merged(windows, self.gap, self.unknown)


@dataclass(frozen=True, slots=True)
class Form:
    """Form of the output. events: how they are made. out: a file or a folder that `check_tables`
    has passed. raw_cells: texts in a table as they are. roots: what ids begin with. classes: where
    an item may be of several. format: of `TABLE_FORMATS`. maps: a folder for heat maps of tiles."""

    events: EventOptions
    out: str | None
    overwrite: bool
    json: bool
    raw_cells: bool
    roots: Roots
    classes: Sequence[str] = ()
    format: str | None = None
    maps: Path | None = None


def print_predictions(
    place: str, found: Spool, failures: list[Failure], facts: dict[str, Any], form: Form
) -> None:
    """Print or write predictions with the facts of the classes. Exit code 3 where some items
    failed."""
    merged = form.events.events(found)
    written = "" if form.out is None else _write(form.out, found, merged, form)
    drawn = [] if form.maps is None else write_score_maps(form.maps, found, form.roots)  # fmt: skip
    if form.json:
        print_json_stream({"place": place, **facts}, "predictions", found, {
            "events": None if merged is None else [one.to_dict() for one in merged],
            "out": form.out, "maps": drawn,
            "failures": [one.to_dict() for one in failures]})  # fmt: skip
    else:
        _say_basis(facts)
        if form.out is None:
            if merged is None:
                _show(found, "names" in facts, "probe" not in facts)
            else:
                _show_events(merged)
        if drawn:
            written = (
                f"{written}{', ' if written else ''}{counted(len(drawn), 'map')} in {form.maps}"
            )
        _sum_up(found, merged, written, failures)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _sum_up(
    found: Spool, merged: list[Event] | None, written: str, failures: list[Failure]
) -> None:
    from penult.fewshot.events import UNKNOWN

    most = ", ".join(
        f"{printable(name or 'unknown')} {number:,}" for name, number in found.tally.most_common(8)
    )
    summary = f"[bold green]{counted(len(found), 'prediction')}[/]"
    if merged is not None and found.tally[None] and all(one.label != UNKNOWN for one in merged):
        print_note("[dim]unknown stretches are no events; --unknown-events lists them too[/]")
    if merged is not None:
        summary = (
            f"[bold green]{counted(len(merged), 'event')}[/] of {counted(len(found), 'region')}"
        )
    stdout.print(
        summary + (f": {most}" if most else "") + (", …" if len(found.tally) > 8 else ""),
        soft_wrap=True,
    )
    if written:
        stdout.print(f"written: {written}", soft_wrap=True)
    print_failures(one.to_dict() for one in failures)


def _write(out: str, found: Spool, merged: list[Event] | None, form: Form) -> str:
    """Write the tables; gives them in words."""
    from penult.data.files import write_file
    from penult.data.formulas import Cells
    from penult.data.selection_tables import is_folder
    from penult.data.table_formats import table_format
    from penult.fewshot import events

    cells, roots = Cells(form.raw_cells), form.roots
    if is_folder(out) or out.endswith(".txt"):
        each = (event for window in found.windows() for event in window.events())
        selections = events.selections_of(each if merged is None else merged, roots)
        recordings = {roots.shown(window.id) for window in found.windows()}
        asked, overwrite = table_format(form.format), form.overwrite
        tables = asked.write(out, selections, recordings, cells=cells, overwrite=overwrite)
        return tables_in_words(tables, out, asked.title)
    lines: Iterable[str] = (
        found.to_csv(cells, form.classes, roots)
        if merged is None
        else [events.to_csv(merged, cells, roots)]
    )
    written = write_file(out, (line.encode("utf-8", "backslashreplace") for line in lines))
    cells.tell(out)
    return tables_in_words([written], str(written))


def _say_basis(facts: dict[str, Any]) -> None:
    if "method" not in facts:
        return
    number = len(facts["classes"])
    tried = _accuracies(facts) if number > 1 else ""
    print_note(
        f"[dim]{number} class{'' if number == 1 else 'es'}, {facts['method']}"
        + (f" (cross-validated: {tried})" if tried else "")
        + f", space {facts['space']}; probabilities: {facts['probabilities']}[/]"
    )
    if facts["several"]:
        print_note(f"[dim]{printable(_several_at_once(facts))}[/]")
    for name in ("lengths", "background"):
        if facts[name] and (note := facts[name]["note"]):
            print_note(f"[yellow]{printable(note)}[/]")
    if version := facts["version"]:
        own = "".join(f"; {name} {value} for this call"
                      for name, value in version["for_this_call"].items())  # fmt: skip
        print_note(
            f"[dim]version {version['number']} of {version['when'][:16].replace('T', ' ')} UTC "
            f"({printable(version['change'])}){printable(own)}[/]"
        )
    best = max((value for value in facts["accuracy"].values() if value == value), default=None)
    if best is not None and number > 1 and best < _low_accuracy(number):
        print_note(
            f"[yellow]low accuracy: {best:.0%} of held-out examples are right, against "
            f"{1 / number:.0%} by chance. Give more examples of each class, or select another "
            "layer with penult choose[/]"
        )
    if unknown := facts["unknown"]:
        if unknown["level"] is not None:
            real = "" if unknown["high"] is None else \
                f" (real: {unknown['low']:.2f} to {unknown['high']:.2f}, 95 %)"  # fmt: skip
            print_note(f"[dim]unknown at {unknown['level']:g}{real}: {unknown['basis']}[/]")
        else:
            basis = f"; unknown by {unknown['basis']}" if unknown["basis"] else ""
            nothing = "" if basis else ", so that only what marks of no rule out is called unknown"
            print_note(f"[yellow]no level of unknown: {unknown['why']}{nothing}{basis}[/]")


def _low_accuracy(classes: int) -> float:
    """Below it accuracy is low: twice that of chance, and of two classes half-way to all right."""
    return min(2 / classes, (1 + 1 / classes) / 2)


def _accuracies(facts: dict[str, Any]) -> str:
    """The cross-validated accuracy of each method, that of the chosen one with its interval, and
    for what it holds."""
    held, found = facts["held_out"], []
    for name, value in facts["accuracy"].items():
        if value == value:
            own = _interval((held["low"], held["high"])) if name == facts["method"] else ""
            found.append(f"{name} {value:.3f}{own}")
    return f"{', '.join(found)}; for {_FOR[held['kind']]}" if found else ""


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None or ends[0] != ends[0] else f" ({ends[0]:.2f} to {ends[1]:.2f})"


_FOR = {
    "items": "items of the same speakers, sites and days",
    "given": "other groups",
    "time": "the same recordings",
}


def _several_at_once(facts: dict[str, Any]) -> str:
    if (least := facts["limits"]["probability"]) is not None:
        return f"several classes at once, each from a probability of {least:g} on"
    if facts["thresholds"] is None:
        return "several classes at once: the best one, and each from a probability of 0.5 on"
    known = facts["expected"]
    each = [one["threshold"] for one in facts["thresholds"].values()]
    ends = known["intervals"] or {}
    ap, ranked, f1, micro = (
        f"{known[name]:.3f}{_interval(ends.get(name))}"
        for name in ("mean_average_precision", "lwlrap", "f1_macro", "f1_micro")
    )
    return (
        f"several classes at once, each from its own probability on ({min(each):.2f} to "
        f"{max(each):.2f}); on {counted(known['examples'], 'held-out example')}: mAP {ap}, lwlrap "
        f"{ranked}, F1 {f1} by class, {micro} over all"
    )


def _show(found: Spool, by_names: bool, with_similarity: bool = True) -> None:
    from penult.data.text import text_in

    table = Table(box=None, header_style="bold", pad_edge=False)
    with_examples = any(one.nearest for one in found.first)
    measure = "cosine" if by_names else "probability"
    similar = with_similarity and not by_names
    with_texts = any(one.detection.metadata.get("text") is not None for one in found.first)
    columns = [
        "item",
        place_header(one.region for one in found.first),
        *(["text"] if with_texts else []),
        "class",
        measure,
        *(["similarity"] if similar else []),
        *(["nearest examples"] if with_examples else []),
    ]
    for name in columns:
        right = name in (measure, "similarity")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for one in found.first:
        at = one.detection
        labels = ", ".join(at.probabilities)
        table.add_row(
            printable_path(one.id),
            place_words(one.region, at.start, at.end) if one.region != "whole" else "",
            *([cell(text_in(at.metadata, one.region))] if with_texts else []),
            printable(labels) if labels else "[dim]unknown[/]",
            f"{one.score:.3f}" if labels else f"[dim]{one.score:.3f}[/]",
            *([f"{one.similarity:.3f}"] if similar else []),
            *([_neighbours(one)] if with_examples else []),
        )
    print_table(table)
    _more(len(found))


def _show_events(merged: list[Event]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    numbers = ("probability", "similarity", "windows")
    for name in ("item", "channel", "seconds", "class", *numbers):
        right = name in numbers
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for one in merged[:SHOWN]:
        table.add_row(printable_path(one.id), "" if one.channel is None else str(one.channel),
                      _span(one.start, one.end), printable(one.label), f"{one.probability:.3f}",
                      "" if one.similarity != one.similarity else f"{one.similarity:.3f}",
                      str(one.windows))  # fmt: skip
    print_table(table)
    _more(len(merged))


def _more(count: int) -> None:
    if count > SHOWN:
        stdout.print(f"… and {count - SHOWN:,} more; --out FILE.csv writes all of them")


def _neighbours(one: ClassPrediction) -> str:
    parts = []
    for example in one.nearest:
        name = Path(example.id).name + ("" if example.region == "whole" else f" {example.region}")
        marks = ", ".join(n if m == "yes" else f"{m} {n}" for n, m in example.marks.items())
        parts.append(f"{name} ({marks}) {example.similarity:.3f}")
    return printable("; ".join(parts))


def _span(start: float | None, end: float | None) -> str:
    return "" if start is None or end is None else f"{start:.2f}-{end:.2f}"
