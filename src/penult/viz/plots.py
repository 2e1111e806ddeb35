"""Pictures: a map of vectors with the names of its classes; a confusion matrix; a curve; parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.analysis.activity import ActivityCell
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


def draw_robustness(
    path: Path, moved: Mapping[str, Sequence[float]], corruptions: Sequence[str], title: str
) -> None:
    """Write a picture of how far each reading moves with each corruption, in distances between
    different items."""
    require("matplotlib")
    from matplotlib.figure import Figure

    values = np.array(list(moved.values()))
    size = 4 + 0.55 * len(corruptions), 2 + 0.2 * len(moved)
    figure = Figure(figsize=size, facecolor="#fbfaf7", layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(values, cmap="YlOrRd", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(corruptions)), corruptions, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(moved)), [_drawable(name) for name in moved], fontsize=7)
    axes.set_title(_drawable(title), loc="left", fontsize=9, color="#333333")
    bar = figure.colorbar(drawn, ax=axes, extend="max")
    bar.set_label("distance moved, in distances between different items", fontsize=8)
    save_figure(figure, path)


def draw_activity(path: Path, cells: Sequence[ActivityCell], title: str, zone: str | None) -> None:
    """Write a picture of events per recorded hour: bars over hours or days with the recorded time
    below, or a field of days and hours. Where nothing was recorded it is grey. zone: None where
    hours are those of recordings."""
    require("matplotlib")
    from matplotlib.figure import Figure

    field = all(cell.day is not None and cell.hour is not None for cell in cells)
    figure = Figure(figsize=(9, 5), facecolor="#fbfaf7", layout="constrained")
    if field:
        _draw_field(figure, cells, f"hour of the day, {zone}")
    else:
        unit = "hour of the day" if cells[0].day is None else "day"
        _draw_bars(figure, cells, "hour of the recording" if zone is None else f"{unit}, {zone}")
    figure.suptitle(_drawable(title), x=0.02, ha="left", fontsize=12, fontweight="bold")
    save_figure(figure, path)


def _draw_bars(figure: Any, cells: Sequence[ActivityCell], axis: str) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    places = np.arange(len(cells))
    upper.bar(places, [cell.rate or 0.0 for cell in cells], 0.86, color="#2f6f9f")
    silent = [place for place, cell in enumerate(cells) if cell.rate is None]
    for axes in (upper, lower):
        axes.set_facecolor("#fbfaf7")
        for place in silent:
            axes.axvspan(place - 0.5, place + 0.5, color="#e9e7e1", lw=0)
        for edge in ("top", "right"):
            axes.spines[edge].set_visible(False)
    lower.bar(places, [cell.effort / 3600 for cell in cells], 0.86, color="#9a978f")
    upper.set_ylabel("events per recorded hour")
    lower.set_ylabel("hours recorded")
    by_hour = cells[0].day is None
    names = [str(cell.hour) if by_hour else f"{cell.day:%d %b %Y}" for cell in cells]
    step = -(-len(cells) // (24 if by_hour else 12))
    lower.set_xticks(places[::step], names[::step], rotation=0 if len(names[0]) < 3 else 30,
                     ha="center" if by_hour else "right", fontsize=9)  # fmt: skip
    lower.set(xlim=(-0.6, len(cells) - 0.4))
    lower.set_xlabel(axis)


def _draw_field(figure: Any, cells: Sequence[ActivityCell], axis: str) -> None:
    axes = figure.add_subplot(facecolor="#e9e7e1")
    days = [cell.day for cell in cells[::24]]
    rates = np.array([np.nan if c.rate is None else c.rate for c in cells]).reshape(-1, 24)
    ends = (-0.5, len(days) - 0.5, -0.5, 23.5)
    drawn = axes.imshow(rates.T, cmap="viridis", aspect="auto", origin="lower", extent=ends, vmin=0)
    figure.colorbar(drawn, ax=axes, label="events per recorded hour")
    step = -(-len(days) // 12)
    axes.set_xticks(range(0, len(days), step), [f"{day:%d %b %Y}" for day in days[::step]],
                    rotation=30, ha="right", fontsize=9)  # fmt: skip
    axes.set_yticks(range(0, 24, 3))
    axes.set(ylabel=axis, xlabel="grey: nothing recorded")


@dataclass(frozen=True, slots=True)
class PartOfPicture:
    """A part of the rows. shares: (n,) of each of them from 0 to 1. auroc: None where it was not
    measured. differs: more than chance."""

    name: str
    shares: npt.NDArray[np.float64]
    auroc: float | None
    differs: bool


def draw_parts(
    path: Path, parts: Sequence[PartOfPicture], side: str, since: str | None, title: str
) -> None:
    """Write a picture of how much the rows of each part look like a side (median, quartiles, and
    from the 5th to the 95th percentile), and how well each part is told from the others. since: the
    first part behind a line."""
    require("matplotlib")
    from matplotlib.figure import Figure

    width = min(24.0, max(7.0, 2 + 0.28 * len(parts)))
    figure = Figure(figsize=(width, 6), facecolor="#fbfaf7", layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    places = np.arange(len(parts))
    colours = ["#c0562f" if one.differs else "#8a9aa6" for one in parts]
    for place, one, colour in zip(places, parts, colours, strict=True):
        low, first, middle, third, high = np.quantile(one.shares, (0.05, 0.25, 0.5, 0.75, 0.95))
        upper.plot([place, place], [low, high], color=colour, lw=1)
        upper.bar(place, third - first, 0.6, first, color=colour, alpha=0.55, lw=0)
        upper.plot([place - 0.3, place + 0.3], [middle, middle], color="#222222", lw=1.5)
    heights = [0.0 if one.auroc is None else one.auroc - 0.5 for one in parts]
    lower.bar(places, heights, 0.7, 0.5, color=colours)
    for axes in (upper, lower):
        axes.set_facecolor("#fbfaf7")
        axes.axhline(0.5, color="#777777", lw=0.8, ls=":")
        for edge in ("top", "right"):
            axes.spines[edge].set_visible(False)
        if since is not None:
            behind = next(at for at, one in enumerate(parts) if one.name == since)
            axes.axvline(behind - 0.5, color="#222222", lw=1.2, ls="--")
    upper.set(ylim=(-0.02, 1.02))
    upper.set_ylabel(f"rows like\n{_drawable(side)}", fontsize=9)
    lower.set_ylabel("AUROC against\nthe other parts", fontsize=9)
    lower.set(ylim=(min(0.4, 0.48 + min(heights)), 1.02), xlim=(-0.7, len(parts) - 0.3))
    step = -(-len(parts) // 60)
    lower.set_xticks(places[::step], [_drawable(one.name) for one in parts[::step]],
                     rotation=60, ha="right", rotation_mode="anchor", fontsize=8)  # fmt: skip
    figure.suptitle(_drawable(title), x=0.02, ha="left", fontsize=10, wrap=True)
    save_figure(figure, path)


def draw_sound_attribution(
    path: Path,
    sound: tuple[npt.NDArray[np.float32], float, float],
    parts: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    heat: npt.NDArray[np.float64] | None,
    title: str,
) -> None:
    """Write a picture of a spectrogram with the parts of a score over it, and their curve below.

    sound: samples (n,), samples per second, seconds of the first. parts: (n + 1,) edges of cells in
    seconds, (n,) their parts. heat: (height, width) over frequency, from 0 Hz, and time; None: the
    parts over all frequencies.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    (samples, rate, first), (edges, values) = sound, parts
    last = first + len(samples) / rate
    figure = Figure(figsize=(10, 5.5), facecolor="#fbfaf7", layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = min(len(samples), max(16, 1 << round(np.log2(0.025 * rate))))
    with np.errstate(divide="ignore"):  # silence has no decibels
        above.specgram(
            samples, width, rate, noverlap=width // 2, cmap="Greys", xextent=(first, last)
        )
    density = values * len(values)
    field = (density[None] if heat is None else heat) - values.sum()  # beyond the even share
    reach = float(np.nanmax(np.abs(field), initial=0.0)) or 1.0
    across = edges if heat is None else np.linspace(first, last, heat.shape[1] + 1)
    down = np.linspace(0, rate / 2, len(field) + 1)
    above.pcolormesh(across, down, field, cmap="RdBu_r", vmin=-reach, vmax=reach, alpha=0.45)
    above.set(ylabel="Hz")
    below.stairs(density, edges, fill=True, color="#c0504d", alpha=0.8)
    below.axhline(values.sum(), color="#333333", linewidth=0.8, linestyle="--")
    below.set(xlabel="seconds", ylabel="part × cells", xlim=(first, last))
    above.set_title(_drawable(title), loc="left", fontsize=10, color="#333333")
    save_figure(figure, path)


def draw_picture_attribution(
    path: Path, picture: Any, heat: npt.NDArray[np.float64], title: str
) -> None:
    """Write a picture beside itself with the parts of a score (height, width) over it."""
    require("matplotlib")
    from matplotlib.figure import Figure

    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(10, 5.2), facecolor="#fbfaf7", layout="constrained")
    known = np.isfinite(heat)
    field = heat - heat.mean(where=known) if known.any() else heat  # beyond the even share
    reach = float(np.abs(field).max(where=known, initial=0.0)) or 1.0
    plain, shown = figure.subplots(1, 2)
    plain.imshow(pixels, cmap="gray")
    shown.imshow(_in_grey(pixels), cmap="gray")
    drawn = shown.imshow(
        field, cmap="RdBu_r", vmin=-reach, vmax=reach, alpha=0.55, extent=(0, width, height, 0)
    )
    for axes in (plain, shown):
        axes.set_axis_off()
    figure.colorbar(drawn, ax=shown, shrink=0.8, label="beyond the even share, × positions")
    figure.suptitle(_drawable(title), x=0.02, ha="left", fontsize=10, color="#333333")
    save_figure(figure, path)


def _in_grey(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return pixels if pixels.ndim == 2 else pixels[..., :3].mean(axis=2)


def draw_score_maps(
    path: Path,
    picture: Any,
    boxes: Sequence[tuple[int, int, int, int]],
    scores: Mapping[str, Sequence[float]],
    title: str,
) -> None:
    """Write a picture beside itself with the scores of its tiles over it, once for each class;
    where tiles overlap, their mean.

    boxes: left, top, right, bottom of each tile in pixels. scores: from 0 to 1, by class.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    columns = len(scores) + 1
    figure = Figure(figsize=(4.2 * columns, 4.6), facecolor="#fbfaf7", layout="constrained")
    plain, *others = figure.subplots(1, columns)
    plain.imshow(pixels, cmap="gray")
    for axes, (name, values) in zip(others, scores.items(), strict=True):
        axes.imshow(_in_grey(pixels), cmap="gray")
        field = tile_means((height, width), boxes, values)
        drawn = axes.imshow(
            field, cmap="YlOrRd", vmin=0, vmax=1, alpha=0.55, extent=(0, width, height, 0)
        )
        axes.set_title(_drawable(name), fontsize=10, color="#333333")
    for axes in (plain, *others):
        axes.set_axis_off()
    figure.colorbar(drawn, ax=others[-1], shrink=0.8, label="probability")
    figure.suptitle(_drawable(title), x=0.02, ha="left", fontsize=10, color="#333333")
    save_figure(figure, path)


_RASTER = 512  # points of a map of tiles, to the longer side at most


def tile_means(
    size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]], values: Sequence[float]
) -> npt.NDArray[np.float64]:
    """(h, w) the mean of the values of the tiles over each point; NaN where no tile is. size: of
    the picture, (height, width) in pixels, to which h and w are in proportion."""
    scale = min(1.0, _RASTER / max(size))
    shape = tuple(max(1, round(one * scale)) for one in size)
    sums, counts = np.zeros(shape), np.zeros(shape)
    for (left, top, right, bottom), value in zip(boxes, values, strict=True):
        down = slice(round(top * scale), max(round(top * scale) + 1, round(bottom * scale)))
        across = slice(round(left * scale), max(round(left * scale) + 1, round(right * scale)))
        sums[down, across] += value
        counts[down, across] += 1
    with np.errstate(invalid="ignore"):
        means: npt.NDArray[np.float64] = sums / counts
    return means


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
