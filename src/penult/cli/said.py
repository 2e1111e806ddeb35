"""How predictions are told: as a table, as events, in a file, or as JSON."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from penult.cli.opened import failed
from penult.cli.output import SOME_FAILED, counted, emit, say, short, show, shown, stdout

if TYPE_CHECKING:
    from penult.classspace import ClassSpace
    from penult.events import Event
    from penult.predictions import ClassPrediction
    from penult.sources import Failure

SHOWN = 20
Found = list["ClassPrediction"]


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


def tell(
    place: str,
    found: Found,
    failures: list[Failure],
    facts: dict[str, Any],
    gap: float,
    apart: bool,
    out: Path | None,
    json: bool,
) -> None:
    """Tell predictions and what they rest on, or write them. Ends with exit code 3 where some
    items failed. gap: seconds between windows of one event. apart: do not merge windows."""
    from penult import events

    cut = any(one.region != "whole" and one.start is not None for one in found)
    timed = cut and not apart
    regions = [one.window() for one in found]
    heard = [e for one in regions for e in one.events()]
    heard = events.merged(regions, gap) if timed else heard
    if out is not None:
        _write(out, found, heard, timed)
    if json:
        emit({"place": place, **facts, "predictions": [_document(one) for one in found],
              "events": [_event(one) for one in heard] if timed else None,
              "out": out, "failures": [failed(one) for one in failures]})  # fmt: skip
    else:
        _say_basis(facts)
        if out is None:
            _show_events(heard) if timed else _show(found, "names" in facts)
        count = counted(len(heard), "event") if timed else counted(len(found), "prediction")
        tally = Counter(one.label or "unknown" for one in found)
        most = ", ".join(f"{shown(name)} {number:,}" for name, number in tally.most_common(8))
        stdout.print(f"[bold green]{count}[/]"
                     + (f" of {counted(len(found), 'region')}" if timed else "")
                     + (f": {most}" if most else "")
                     + (", …" if len(tally) > 8 else ""), soft_wrap=True)  # fmt: skip
        if out is not None:
            stdout.print(f"written: [bold]{shown(str(out))}[/]", soft_wrap=True)
        for one in failures:
            say(f"[red]failed[/] {short(one.id)}: {shown(one.message)}")
    if failures:
        raise typer.Exit(SOME_FAILED)


def _write(out: Path, found: Found, heard: list[Event], timed: bool) -> None:
    from penult import events
    from penult.classfile import write_aside
    from penult.predictions import to_csv

    if out.suffix == ".txt":
        text = events.to_raven(heard)
    else:
        text = events.to_csv(heard) if timed else to_csv(found)
    write_aside(out, text.encode("utf-8", "backslashreplace"))


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
    if unknown := facts["unknown"]:
        say(f"[dim]unknown at {unknown['level']:g}: {unknown['basis']}[/]")


def _show(found: Found, by_names: bool) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    near = any(one.nearest for one in found)
    measure = "cosine" if by_names else "probability"
    columns = ["item", "seconds", "class", measure, *(["nearest examples"] if near else [])]
    for name in columns:
        table.add_column(name, justify="right" if name == measure else "left", overflow="fold")
    for one in found[:SHOWN]:
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


def _document(one: ClassPrediction) -> dict[str, Any]:
    return {
        "id": one.id, "region": one.region, "start": one.start, "end": one.end,
        "channel": one.channel, "label": one.label, "said": list(one.said), "score": one.score,
        "scores": dict(zip(one.labels, one.scores.tolist(), strict=True)),
        "p_value": one.p_value,
        "nearest": [{"id": n.id, "region": n.region, "marks": n.marks, "similarity": n.similarity}
                    for n in one.nearest],
    }  # fmt: skip


def _event(one: Event) -> dict[str, Any]:
    return {"id": one.id, "channel": one.channel, "start": one.start, "end": one.end,
            "label": one.label, "probability": one.probability, "windows": one.windows}  # fmt: skip
