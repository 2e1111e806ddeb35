"""Pictures: a map of vectors with the names of its classes; a confusion matrix; a curve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.data.files import file_aside
from penult.errors import UsageError
from penult.extras import require

PICTURES = ("png", "svg", "pdf")


_FEW = 400  # points up to which each is drawn large and joined to the middle of its class
_LONGEST = 200  # characters of a line
_NAMED = 40  # classes whose names stand on the map; of more, the largest


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before any work is done.

    Raises:
        UsageError: the name has another ending than .png, .svg and .pdf.
        MissingExtra: matplotlib is not installed.
    """
    if path.suffix.lower().removeprefix(".") not in PICTURES:
        raise UsageError(f"a picture is written as .{', .'.join(PICTURES)}, not as {path.name!r}")
    require("matplotlib")


def draw_map(
    path: Path,
    points: npt.NDArray[np.float32],
    classes: Sequence[str | None],
    new: Collection[str],
    title: str,
    subtitle: str,
) -> None:
    """Write a picture (PNG, SVG, PDF by suffix) of points (n, 2); without a class: grey."""
    require("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), facecolor="#fbfaf7", layout="constrained")
    axes = figure.add_subplot(facecolor="#fbfaf7")
    names = sorted({name for name in classes if name is not None}, key=lambda n: (n in new, n))
    colours = matplotlib.colormaps["turbo"](np.linspace(0.04, 0.96, max(1, len(names))))
    tags = np.asarray(classes, object)
    few = len(points) <= _FEW
    spread = float(np.ptp(points, axis=0).max()) or 1.0
    nameless = points[[name is None for name in classes]]
    if len(nameless):
        axes.scatter(
            nameless[:, 0],
            nameless[:, 1],
            s=_size(len(points)),
            color="#c9c7c1",
            linewidths=0,
            zorder=1,
        )
    sizes = {name: int((tags == name).sum()) for name in names}
    named = set(sorted(names, key=lambda name: -sizes[name])[:_NAMED])
    for name, colour in zip(names, colours, strict=True):
        own = points[tags == name]
        star = name in new
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=190 if star else _size(len(points)),
            marker="*" if star else "o",
            color=[colour],
            edgecolors="#222222" if star else "white" if few else "none",
            linewidths=0.7 if few else 0,
            alpha=0.92 if few else 0.7,
            zorder=3,
        )
        if few:
            middle = np.median(own, axis=0)
            for point in own:
                ends = np.stack([middle, point]).T
                axes.plot(*ends, color=colour, alpha=0.22, linewidth=1, zorder=1)
        if name in named:
            _name(axes, name, own, colour, star, spread)
    axes.set_title(title, loc="left", fontsize=17, fontweight="bold", pad=26)
    axes.text(0, 1.015, subtitle, transform=axes.transAxes, fontsize=11, color="#555555")
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    for side in axes.spines.values():
        side.set_visible(False)
    save_figure(figure, path)


def _size(count: int) -> float:
    return 70 if count <= _FEW else max(2.0, min(26.0, 36_000 / count))


def _densest(own: npt.NDArray[np.float32], spread: float) -> npt.NDArray[np.float32]:
    """The densest place of a class, which may lie in several."""
    if len(own) <= 60:
        middle: npt.NDArray[np.float32] = np.median(own, axis=0)
        return middle
    from sklearn.neighbors import KDTree

    around = KDTree(own).query_radius(own, 0.03 * spread, count_only=True)
    densest: npt.NDArray[np.float32] = own[int(around.argmax())]
    return densest


def _name(
    axes: Any, name: str, own: npt.NDArray[np.float32], colour: Any, bold: bool, spread: float
) -> None:
    """Write the name of a class over the bulk of the group, away from outliers."""
    middle = _densest(own, spread)
    away = np.linalg.norm(own - middle, axis=1)
    near = own[away <= (2 * np.median(away) if len(own) <= 60 else 0.03 * spread)]
    axes.annotate(
        name,
        (middle[0], near[:, 1].max() + 0.018 * spread),
        ha="center",
        va="bottom",
        fontsize=13 if len(own) <= 60 else 10,
        fontweight="bold" if bold else "normal",
        color="#1a1a1a",
        zorder=4,
        bbox={"boxstyle": "round,pad=0.22", "fc": "white", "ec": colour, "alpha": 0.85},
    )


def draw_confusion(
    path: Path, counts: npt.NDArray[np.int64], classes: Sequence[str], title: str
) -> None:
    """Write a picture of a confusion matrix (K, K), true by predicted, each row as shares."""
    require("matplotlib")
    from matplotlib.figure import Figure

    count, classes = len(classes), list(map(_drawable, classes))  # each tick is written anew
    side = min(22.0, 3.2 + 0.42 * count)
    figure = Figure(figsize=(max(side, 7.5), side), facecolor="#fbfaf7", layout="constrained")
    axes = figure.add_subplot(facecolor="#fbfaf7")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= 40:
        for true, predicted in zip(*np.nonzero(counts), strict=True):
            dark = shares[true, predicted] > 0.55
            axes.text(
                predicted, true, f"{counts[true, predicted]:,}", ha="center", va="center",
                fontsize=9 if count <= 20 else 6, color="white" if dark else "#333333",
            )  # fmt: skip
    size = max(3.0, min(10.0, 320 / count))
    axes.set_xticks(
        range(count), classes, rotation=90 if max(map(len, classes)) > 3 else 0, fontsize=size
    )
    axes.set_yticks(range(count), classes, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, loc="left", fontsize=9, color="#333333", pad=10, wrap=True)
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    save_figure(figure, path)


def draw_curve(
    path: Path, recall: npt.NDArray[np.float64], precision: npt.NDArray[np.float64], title: str
) -> None:
    """Write a picture of precision by recall, (n,) each."""
    require("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), facecolor="#fbfaf7", layout="constrained")
    axes = figure.add_subplot(facecolor="#fbfaf7")
    axes.step(recall, precision, where="post", color="#2f6f9f")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(_drawable(title), loc="left", fontsize=9, color="#333333", wrap=True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, aside first, in the format of the suffix; its texts as they are."""
    check_picture(path)
    as_plain_text(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside:
        figure.savefig(aside, dpi=130, format=path.suffix.lower().removeprefix("."))


def as_plain_text(figure: Any) -> None:
    """Draw the texts of a figure without formulas: names come from outside, and a dollar in one
    would begin one. Long ones are cut, what no font can draw is written out."""
    from matplotlib.text import Text

    for one in figure.findobj(Text):
        one.set_parse_math(False)
        one.set_text("\n".join(map(_drawable, one.get_text().splitlines())))


def _drawable(line: str) -> str:
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
