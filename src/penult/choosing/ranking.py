"""Single readings in every space ranked by their trials, and the few settings worth judging.

Numpy in, numpy out; knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from penult.choosing.material import Material, Setting
from penult.measuring.episodes import Array
from penult.measuring.trials import Plan
from penult.space import RAW

SPACES = (RAW, "centre+l2", "scale+l2", "whiten+l2")
WHITEN_MOST = 1024  # numbers in a vector that is whitened
FUSED = "scale+l2"
WITHIN = "scale+within+l2"
SIZES = (1, 3, 5, 8, 16)  # how many readings are fused
WIDEST = 4096  # numbers in a fused vector
NOTEBOOK = "notebook"


def ranked(material: Material, trials: Plan) -> dict[Setting, Array]:
    """For every reading in every space that fits, the scores (4, n) of its trials."""
    found = {}
    count = len(material.labels) // 2 + _extra(material)
    for name, vectors in material.vectors.items():
        for recipe in fitting(count, vectors.shape[1]):
            setting = Setting((name,), recipe)
            found[setting] = tried(material, setting, trials)
    return found


def fitting(count: int, width: int) -> tuple[str, ...]:
    """The spaces that `count` vectors are enough for."""
    whole = count >= width and width <= WHITEN_MOST
    return SPACES if whole else SPACES[:-1]


def tried(material: Material, setting: Setting, trials: Plan) -> Array:
    """The scores (4, n) of a setting, its space fitted on each support side."""
    vectors = material.joined(setting.readings)
    return trials.scores(vectors, lambda rows: material.space(setting, rows))


def evened(table: Mapping[Setting, Array], chains: Sequence[Sequence[str]]) -> dict[Setting, float]:
    """What settings are ranked by: the mean of the measures, half of it shared with the
    neighbouring layers, and half with the reading's other spaces. The best of hundreds of noisy
    values is not the best setting; neighbours tell noise from merit."""
    means = {setting: float(np.nanmean(scores_mean(scores))) for setting, scores in table.items()}
    beside: dict[str, list[str]] = {}
    for chain in chains:
        for at, name in enumerate(chain):
            beside[name] = [chain[i] for i in (at - 1, at + 1) if 0 <= i < len(chain)]
    smooth = {}
    for setting, mean in means.items():
        near = [
            means[other]
            for name in beside.get(setting.readings[0], [])
            if (other := Setting((name,), setting.space)) in means
        ]
        smooth[setting] = (2 * mean + sum(near)) / (2 + len(near))
    by_reading: dict[str, list[float]] = {}
    for setting, mean in smooth.items():
        by_reading.setdefault(setting.readings[0], []).append(mean)
    return {
        setting: 0.5 * mean + 0.5 * float(np.mean(by_reading[setting.readings[0]]))
        for setting, mean in smooth.items()
    }


def scores_mean(scores: Array) -> Array:
    """(4,) means over rows, without the measures that could not be taken."""
    known = np.isfinite(scores).any(axis=1)
    means: Array = np.nanmean(scores[known], axis=1)
    return means


def finalists(values: Mapping[Setting, float], material: Material) -> dict[str, Setting]:
    """The settings that are judged, by the name of the way in which they were made."""
    order = sorted(values, key=lambda setting: -values[setting])
    found = {NOTEBOOK: Setting((material.baseline,)), "best single": order[0]}
    readings = list(dict.fromkeys(setting.readings[0] for setting in order))
    for size in SIZES:
        names = _within_width(readings[:size], material)
        if size > 1:
            found[f"{size} fused"] = Setting(names, FUSED)
        found[f"{size} fused, within classes" if size > 1 else "best single, within classes"] = (
            Setting(names, WITHIN)
        )
    return found


def _within_width(readings: Sequence[str], material: Material) -> tuple[str, ...]:
    """The first of these, and the others as long as the vectors do not grow too wide."""
    chosen: list[str] = []
    width = 0
    for name in readings:
        own = material.vectors[name].shape[1]
        if not chosen or width + own <= WIDEST:
            chosen.append(name)
            width += own
    return tuple(chosen)


def _extra(material: Material) -> int:
    return len(next(iter(material.unlabelled.values()))) if material.unlabelled else 0
