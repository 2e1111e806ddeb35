"""A map as one HTML page that works without a network: points, names and ids in, HTML out.

Everything that comes from outside is data in it, never code: JSON with every < written as \\u003c,
put on the page as text, under a policy that lets nothing but the page's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from penult.data.roots import Roots

_NO_NAME = "(no name)"


@dataclass(frozen=True, slots=True)
class MapPage:
    """Content of a map page. points: (N, 2). names: each point's class. columns: further values of
    each point. modality: how the page opens an item. roots: what ids of files begin with."""

    title: str
    subtitle: str
    points: npt.NDArray[np.float32]
    names: Sequence[str | None]
    ids: Sequence[str]
    regions: Sequence[str]
    columns: dict[str, Sequence[Any]]
    modality: str
    roots: Roots = field(default_factory=Roots)


def map_page(about: MapPage) -> str:
    """The HTML of a map, whole."""
    template = files("penult.viz").joinpath("map.html").read_text("utf-8")
    before, rest = template.split("<script>", 1)
    script, after = rest.split("</script>", 1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(_page_data(about), ensure_ascii=True, separators=(",", ":"))
    # ensure_ascii leaves no line separators that end a script; no < leaves no tag.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    before = before.replace("{{script}}", digest).replace("{{title}}", escape(about.title))
    return f"{before.replace('{{data}}', data)}<script>{script}</script>{after}"


def _page_data(about: MapPage) -> dict[str, Any]:
    low = about.points.min(axis=0) if len(about.points) else np.zeros(2)
    size = float(np.ptp(about.points, axis=0).max()) if len(about.points) else 0.0
    places = np.round((about.points - low) / (size or 1.0) * 65535).astype("<u2")
    files_of = [id.rpartition("/")[0] + "/" for id in about.ids if id.startswith("/")]
    root = os.path.commonpath(files_of).rstrip("/") + "/" if files_of else ""
    classes, codes = _coded([_NO_NAME if name is None else name for name in about.names])
    sizes = np.bincount(codes, minlength=len(classes))
    order = sorted(range(len(classes)), key=lambda c: (classes[c] == _NO_NAME, -sizes[c]))
    rank = {code: place for place, code in enumerate(order)}
    return {
        "title": about.title,
        "subtitle": about.subtitle,
        "none": _NO_NAME,
        "modality": about.modality,
        "places": base64.b64encode(places.tobytes()).decode(),
        "classes": [classes[code] for code in order],
        "codes": [rank[code] for code in codes],
        "root": root,
        "ids": [id[len(root) :] if id.startswith(root) else id for id in about.ids],
        "whole": [place for place, id in enumerate(about.ids) if not id.startswith(root)],
        "urls": _urls(about.ids, about.roots),
        "at": {
            f"{name}/": "file://" + quote(os.fsencode(about.roots.place(name))) + "/"
            for name in about.roots.roots
        },
        "regions": dict(zip(("values", "codes"), _coded(list(about.regions)), strict=True)),
        "columns": [
            {"name": name, **dict(zip(("values", "codes"), _coded(list(values)), strict=True))}
            for name, values in about.columns.items()
        ],
    }


def _urls(ids: Sequence[str], roots: Roots) -> dict[int, str]:
    """Addresses of files whose names are not UTF-8; the page makes all others from the ids."""
    return {
        place: "file://" + quote(os.fsencode(roots.path_of(id)))
        for place, id in enumerate(ids)
        if "\\udc" in id and str(path := roots.path_of(id)) != id and path.is_absolute()
    }


def _coded(values: list[Any]) -> tuple[list[Any], list[int]]:
    """Distinct values, and the index of each value among them."""
    places: dict[Any, int] = {}
    codes = [places.setdefault(_json_value(value), len(places)) for value in values]
    return list(places), codes


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return str(value)
