"""`penult predict --tile … --maps FOLDER`: the scores of a picture's tiles as heat maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penult.cli.output import printable
from penult.errors import ItemError, UsageError

if TYPE_CHECKING:
    from penult.data.roots import Roots
    from penult.fewshot.predictions import Spool

_CLASSES = 6  # of a picture: those that its tiles have most


def check_maps(maps: Path | None, is_tiled: bool, overwrite: bool) -> None:
    """Refuse maps of what has no tiles, and a place that is a file or has pictures already.

    Raises:
        UsageError: it is refused. MissingExtra: matplotlib is not installed.
    """
    from penult.extras import require

    if maps is None:
        return
    if not is_tiled:
        raise UsageError("--maps draws the tiles of pictures: give --tile, such as --tile 224")
    if maps.exists() and not maps.is_dir():
        raise UsageError(f"--maps {maps} is a file; name a folder")
    if not overwrite and any(maps.glob("*.png")):
        raise UsageError(
            f"{maps} has pictures already; --overwrite replaces those of the same name"
        )
    require("matplotlib")


def write_score_maps(maps: Path, found: Spool, roots: Roots) -> list[Path]:
    """One picture (.png) for each item, with a heat map of each class that its tiles have most.

    Raises:
        ItemError: a picture cannot be opened any more.
    """
    from penult.data.image import load
    from penult.viz.plots import draw_score_maps

    written: list[Path] = []
    for id, tiles in _pictures(found):
        counts = Counter(name for one in tiles for name in one["said"])
        names = [name for name, _ in counts.most_common(_CLASSES)] or [_best(tiles)]
        source = roots.path_of(id)
        path = _free_name(maps, source.stem, written)
        boxes = [tuple(one["box"]) for one in tiles]
        scores = {name: [one["scores"][name] for one in tiles] for name in names}
        draw_score_maps(path, load(source), boxes, scores, printable(source.name))
        written.append(path)
    if not written:
        raise ItemError("no picture was cut into tiles, so that there is no map")
    return written


def _pictures(found: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each picture's id and tiles."""
    from penult.data.regions import Region

    for id, rows in groupby(found, key=lambda one: one["id"]):
        boxes = ((row, Region.of_key(row["region"])) for row in rows)
        tiles = [{**row, "box": at.box} for row, at in boxes if at.box is not None]
        if tiles:
            yield id, tiles


def _best(tiles: Iterable[Mapping[str, Any]]) -> str:
    """The class with the highest score of any tile, where none is assigned."""
    scores = ((score, name) for one in tiles for name, score in one["scores"].items())
    return str(max(scores)[1])


def _free_name(folder: Path, stem: str, taken: list[Path]) -> Path:
    """A name that no other picture of this run has."""
    path, number = folder / f"{stem}.png", 1
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path
