"""How predictions are told: as a table, as events, in a file, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from penult.cli.opened import failed
from penult.cli.output import SOME_FAILED, counted, emit_long, say, short, show, shown, stdout

if TYPE_CHECKING:
    from penult.classspace import ClassSpace
    from penult.sources import Failure
    from penult.teaching.events import Event
    from penult.teaching.predictions import ClassPrediction
    from penult.teaching.spooled import Spool

SHOWN = 20


def facts_of(taught: ClassSpace, level: float | None) -> dict[str, Any]:
    """What predictions rest on."""
    fitted = taught.taught
    wanted = taught.settings.unknown if level is None else level
    threshold, basis = fitted.threshold(wanted) if wanted else (None, "")
    return {
        "classes": list(fitted.names),
        "method": fitted.method,
        "accuracy": fitted.accuracy,
        "space": fitted.space.recipe,
        "several": fitted.several,
        "probabilities": fitted.probabilities.basis,
        "unknown": {"level": wanted, "threshold": threshold, "basis": basis} if wanted else None,
    }


@dataclass(frozen=True, slots=True)
class Form:
    """How to tell. gap: seconds between windows of one event. apart: do not merge windows."""

    gap: float
    apart: bool
    out: Path | None
    json: bool


def gathered(found: Iterable[ClassPrediction | Failure], spool: Spool) -> list[Failure]:
    """Keep predictions until all is done, for half an answer is not told; gives what failed."""
    from penult.teaching.predictions import ClassPrediction

    failures = []
    for one in found:
        if isinstance(one, ClassPrediction):
            spool.add(one)
        else:
            failures.append(one)
    return failures


def tell(
    place: str, found: Spool, failures: list[Failure], facts: dict[str, Any], form: Form
) -> None:
    """Tell predictions and what they rest on, or write them. Ends with exit code 3 where some
    items failed."""
    from penult.teaching import events

    heard = None
    if found.cut and not form.apart:
        heard = events.merged(found.windows(), form.gap)
    if form.out is not None:
        _write(form.out, found, heard)
    if form.json:
        emit_long({"place": place, **facts}, "predictions", found, {
            "events": None if heard is None else [_event(one) for one in heard],
            "out": form.out, "failures": [failed(one) for one in failures]})  # fmt: skip
    else:
        _say_basis(facts)
        if form.out is None:
            _show(found, "names" in facts) if heard is None else _show_events(heard)
        _sum_up(found, heard, form.out, failures)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _sum_up(
    found: Spool, heard: list[Event] | None, out: Path | None, failures: list[Failure]
) -> None:
    most = ", ".join(
        f"{shown(name or 'unknown')} {number:,}" for name, number in found.tally.most_common(8)
    )
    told = f"[bold green]{counted(len(found), 'prediction')}[/]"
    if heard is not None:
        told = f"[bold green]{counted(len(heard), 'event')}[/] of {counted(len(found), 'region')}"
    stdout.print(
        told + (f": {most}" if most else "") + (", …" if len(found.tally) > 8 else ""),
        soft_wrap=True,
    )
    if out is not None:
        stdout.print(f"written: [bold]{shown(str(out))}[/]", soft_wrap=True)
    for one in failures:
        say(f"[red]failed[/] {short(one.id)}: {shown(one.message)}")


def _write(out: Path, found: Spool, heard: list[Event] | None) -> None:
    from penult.teaching import events
    from penult.teaching.classfile import write_aside

    lines: Iterable[str]
    if out.suffix == ".txt":
        each = (event for window in found.windows() for event in window.events())
        lines = [events.to_raven(list(each) if heard is None else heard)]
    else:
        lines = found.to_csv() if heard is None else [events.to_csv(heard)]
    write_aside(out, (line.encode("utf-8", "backslashreplace") for line in lines))


def _say_basis(facts: dict[str, Any]) -> None:
    if "method" not in facts:
        return
    tried = ", ".join(f"{name} {value:.3f}" for name, value in facts["accuracy"].items()
                      if value == value)  # fmt: skip
    number = len(facts["classes"])
    say(
        f"[dim]{number} class{'' if number == 1 else 'es'}, {facts['method']}"
        + (f" (cross-validated: {tried})" if tried else "")
        + f", space {facts['space']}; probabilities: {facts['probabilities']}[/]"
    )
    best = max((value for value in facts["accuracy"].values() if value == value), default=None)
    if best is not None and number > 1 and best < 2 / number:
        say(
            f"[yellow]these examples hardly tell the classes apart: of those held out {best:.0%} "
            f"were right, and {1 / number:.0%} are by chance. Give more of each, or look for a "
            "better place to read with penult choose[/]"
        )
    if unknown := facts["unknown"]:
        say(f"[dim]unknown at {unknown['level']:g}: {unknown['basis']}[/]")


def _show(found: Spool, by_names: bool) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    near = any(one.nearest for one in found.first)
    measure = "cosine" if by_names else "probability"
    columns = ["item", "seconds", "class", measure, *(["nearest examples"] if near else [])]
    for name in columns:
        table.add_column(name, justify="right" if name == measure else "left", overflow="fold")
    for one in found.first:
        said = ", ".join(one.said) if one.said else None
        table.add_row(
            short(one.id),
            _span(one.start, one.end) if one.region != "whole" else "",
            shown(said) if said else "[dim]unknown[/]",
            f"{one.score:.3f}" if said else f"[dim]{one.score:.3f}[/]",
            *([_near(one)] if near else []),
        )
    show(table)
    _more(len(found))


def _show_events(heard: list[Event]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("item", "channel", "seconds", "class", "probability", "windows"):
        table.add_column(name, justify="right" if name in ("probability", "windows") else "left",
                         overflow="fold")  # fmt: skip
    for one in heard[:SHOWN]:
        table.add_row(short(one.id), "" if one.channel is None else str(one.channel),
                      _span(one.start, one.end), shown(one.label), f"{one.probability:.3f}",
                      str(one.windows))  # fmt: skip
    show(table)
    _more(len(heard))


def _more(count: int) -> None:
    if count > SHOWN:
        stdout.print(f"… and {count - SHOWN:,} more; --out FILE.csv writes all")


def _near(one: ClassPrediction) -> str:
    parts = []
    for near in one.nearest:
        name = Path(near.id).name + ("" if near.region == "whole" else f" {near.region}")
        marks = ", ".join(n if m == "yes" else f"{m} {n}" for n, m in near.marks.items())
        parts.append(f"{name} ({marks}) {near.similarity:.3f}")
    return shown("; ".join(parts))


def _span(start: float | None, end: float | None) -> str:
    return "" if start is None or end is None else f"{start:.2f}-{end:.2f}"


def _event(one: Event) -> dict[str, Any]:
    return {"id": one.id, "channel": one.channel, "start": one.start, "end": one.end,
            "label": one.label, "probability": one.probability, "windows": one.windows}  # fmt: skip
