"""A choice, an evaluation, tables or groups of items as a picture, or as one HTML file that needs
no network.

Knows the small objects that it shows; nothing of models or collections.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from penult.analysis.evaluation import Evaluation
from penult.analysis.selection import Choice, Score
from penult.errors import UsageError
from penult.extras import require
from penult.viz.plots import as_plain_text

KINDS = (".html", ".json", ".png")
DRAWN = "in a crowd"  # the measure of the picture

_LONG = 45  # letters of a cell that may wrap
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem .2rem 0;"
    "text-align:left;border-bottom:1px solid #ddd;vertical-align:middle}th{color:#555}"
    "audio,.t{vertical-align:middle}.t{max-width:10rem;max-height:8rem}"
    ".n{white-space:nowrap}.w{width:14rem}"
    ".b{background:#4878a8;height:.6rem;display:inline-block}.i{color:#777}img{max-width:100%}"
)
# No script runs, whatever a name holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src file: data:; media-src file:"


def check_kind(path: str | os.PathLike[str], kinds: Sequence[str] = KINDS) -> None:
    """Refuse a report of an unknown kind before any work is done.

    Raises:
        UsageError: another ending, or a folder that does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in kinds:
        raise UsageError(f"--report {path}: the name has to end in {' or '.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--report {path}: there is no folder {path.absolute().parent}")


def draw_choice(choice: Choice) -> bytes:
    """Draw the score of each layer as a PNG: one line per pooling, in the best space.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines: dict[str, dict[int, Score]] = {}
    others: dict[str, Score] = {}
    for score in choice.scores:
        tap, _, pooling = score.setting.readings[0].partition(" ")
        kind, _, number = tap.partition(":")
        places: dict[Any, Score] = lines.setdefault(pooling, {}) if kind == "layer" else others
        key = int(number) if kind == "layer" else f"{tap} {pooling}"
        if key not in places or _height(score) > _height(places[key]):
            places[key] = score
    for pooling, scores in sorted(lines.items()):
        layers = sorted(scores)
        if layers:
            heights = [100 * _height(scores[layer]) for layer in layers]
            line = axes.plot(layers, heights, marker="o", ms=3, label=pooling)[0]
            low = [100 * scores[layer].measured[DRAWN].low for layer in layers]
            high = [100 * scores[layer].measured[DRAWN].high for layer in layers]
            axes.fill_between(layers, low, high, alpha=0.08, color=line.get_color())
    for name, style in ((choice.finalists[0].setting.readings[0], "--"), ("prelogits mean", ":")):
        if name in others:
            axes.axhline(100 * _height(others[name]), ls=style, c="0.3", lw=1, label=name)
    axes.set_xlabel("layer")
    axes.set_ylabel("right class among 20, one example each, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Each layer and pooling in its best space, with 95 % intervals", fontsize=10)
    axes.legend(fontsize=8)
    as_plain_text(figure)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _height(score: Score) -> float:
    return score.measured[DRAWN].value


def choice_page(choice: Choice, title: str) -> str:
    """A choice as one HTML file; with the picture where matplotlib is installed."""
    try:
        picture = base64.b64encode(draw_choice(choice)).decode()
        image = f'<img alt="score by layer" src="data:image/png;base64,{picture}">'
    except UsageError:
        image = "<p class=i>No picture: matplotlib is not installed.</p>"
    measures = list(choice.scores[0].measured) if choice.scores else []
    finalists = _table(
        ["rule of choice", f"on {choice.judged_on}", "gain over the notebook's recipe", "setting"],
        (_texts(o.name, o.value.words(), o.gain.words(), o.setting.words())
         for o in choice.finalists),
    )  # fmt: skip
    candidates = _table(
        ["reading", "space", *measures],
        (
            _texts(
                one.setting.words().rpartition(", ")[0],
                one.setting.space,
                *(one.measured[name].words() for name in measures),
            )
            for one in choice.scores
        ),
    )
    kept = " (the notebook's recipe was kept)" if choice.kept else ""
    return _page(
        title,
        f"<p>Chosen: <b>{escape(choice.setting.words())}</b>{kept}</p>{_notes(choice.notes)}{image}"
        f"<p>The choice itself, on {choice.judged_on} than it was decided on: "
        f"<b>{choice.expected.words()}</b>, gain {choice.gain.words()}; the best of the tables "
        "below is flattered, since they decided.</p>"
        f"<h2>Finalists, tested on {choice.judged_on}</h2>{finalists}"
        f"<h2>Every reading in every space</h2><p class=i>{choice.ways}-way episodes; few-shot: "
        f"{choice.shots} examples.</p>{candidates}",
    )


def evaluation_page(found: Evaluation, title: str) -> str:
    """An evaluation as one HTML file."""
    estimates = _table(
        ["measure", "value (95 % interval)", ""],
        ([*_texts(name, one.words()), _bar(one.value)] for name, one in found.estimates.items()),
    )
    figures = _table(
        ["measure", "value"],
        (_texts(name, f"{value:.4f}") for name, value in found.figures.items()),
    )
    classes = _table(
        ["class", f"{found.ways}-way 1-shot", ""],
        (
            [*_texts(name, f"{100 * value:.1f} %"), _bar(value)]
            for name, value in found.per_class.items()
        ),
    )
    return _page(
        title,
        f"<p>{found.items:,} items, {found.classes:,} classes, {found.groups:,} groups; space "
        f"{escape(found.space)}.</p>{_notes(found.notes)}{estimates}{figures}"
        f"<h2>By class, the hardest first</h2>{classes}",
    )


def page_of_tables(
    title: str,
    lines: Sequence[str],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
) -> str:
    """Lines and tables of texts (title, head, rows) as one HTML file."""
    parts = [
        f"<h2>{escape(name)}</h2>" + _table(head, (_texts(*cells) for cells in rows))
        for name, head, rows in tables
    ]
    return _page(title, "".join(f"<p>{escape(line)}</p>" for line in lines) + "".join(parts))


@dataclass(frozen=True, slots=True)
class GroupItem:
    """An item of a group. name: of its row. note: what is to be known. path: its file, where it is
    one."""

    name: str
    note: str
    path: Path | None


def page_of_groups(
    title: str,
    lines: Sequence[str],
    groups: Sequence[tuple[str, Sequence[GroupItem]]],
    modality: str,
) -> str:
    """Groups of items (heading, items) as one HTML file, with pictures and players of the files
    where they are."""
    parts = []
    for number, (heading, items) in enumerate(groups, 1):
        rows = ([_shown(item, modality), *_texts(item.note)] for item in items)
        table = _table(["item", ""], rows)
        parts.append(f"<h2>{number}. {escape(heading)}</h2>{table}")
    return _page(title, "".join(f"<p>{escape(line)}</p>" for line in lines) + "".join(parts))


def _shown(item: GroupItem, modality: str) -> str:
    """A cell with a link to the file, and what it is."""
    if item.path is None:
        return _texts(item.name)[0]
    address = escape("file://" + quote(os.fsencode(item.path)))
    medium = {
        "image": f'<img class=t loading=lazy alt="" src="{address}">',
        "audio": f'<audio controls preload=none src="{address}"></audio>',
        "video": f'<video controls preload=none class=t src="{address}"></video>',
    }.get(modality, "")
    return f'<td>{medium} <a href="{address}">{escape(item.name)}</a></td>'


def _notes(notes: Iterable[str]) -> str:
    return "".join(f"<p class=i>{escape(note)}</p>" for note in notes)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _texts(*texts: str) -> list[str]:
    """Cells of text. Figures, intervals and names keep to one line, long settings may wrap."""
    return [
        f"<td>{escape(text)}</td>" if len(text) > _LONG else f"<td class=n>{escape(text)}</td>"
        for text in texts
    ]


def _bar(share: float) -> str:
    """A cell with a bar of this share; of none where it is no number."""
    width = min(max(share, 0.0), 1.0) if share == share else 0.0
    return f'<td style="width:14rem"><span class=b style="width:{100 * width:.1f}%"></span></td>'


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )
