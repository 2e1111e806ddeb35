"""Draw a map of vectors: one colour per class, its name beside it, classes that were never trained
as stars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from penult.extras import require


def draw_map(
    path: Path,
    points: npt.NDArray[np.float32],
    classes: Sequence[str],
    new: Collection[str],
    title: str,
    subtitle: str,
) -> None:
    """Write a picture (PNG, SVG, PDF by suffix) of points (n, 2)."""
    require("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), facecolor="#fbfaf7", layout="constrained")
    axes = figure.add_subplot(facecolor="#fbfaf7")
    names = sorted(set(classes), key=lambda name: (name in new, name))
    colours = matplotlib.colormaps["turbo"](np.linspace(0.04, 0.96, len(names)))
    tags = np.asarray(classes)
    spread = np.ptp(points, axis=0).max() or 1.0
    for name, colour in zip(names, colours, strict=True):
        own = points[tags == name]
        star = name in new
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=190 if star else 70,
            marker="*" if star else "o",
            color=[colour],
            edgecolors="#222222" if star else "white",
            linewidths=0.7,
            alpha=0.92,
            zorder=3,
        )
        middle = np.median(own, axis=0)
        for point in own:
            axes.plot(*np.stack([middle, point]).T, color=colour, alpha=0.22, linewidth=1, zorder=1)
        # The name stands over the bulk of its group, not over an outlier.
        away = np.linalg.norm(own - middle, axis=1)
        near = own[away <= 2 * np.median(away)]
        axes.annotate(
            name,
            (middle[0], near[:, 1].max() + 0.018 * spread),
            ha="center",
            va="bottom",
            fontsize=13,
            fontweight="bold" if star else "normal",
            color="#1a1a1a",
            zorder=4,
            bbox={"boxstyle": "round,pad=0.22", "fc": "white", "ec": colour, "alpha": 0.85},
        )
    axes.set_title(title, loc="left", fontsize=17, fontweight="bold", pad=26)
    axes.text(0, 1.015, subtitle, transform=axes.transAxes, fontsize=11, color="#555555")
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(path, dpi=130)
