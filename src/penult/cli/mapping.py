"""`penult map`: a collection's rows as points, as a picture or as one page that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penult.cli.collections import Space, Store, Where, space_of
from penult.cli.options import Json
from penult.cli.output import counted, emit, say, shown, stdout, working

if TYPE_CHECKING:
    from penult.store.collection import Collection
    from penult.store.mapped import Map

_SHOWN = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
_KEYS = ("id", "region", "kind")


def map_(
    collection: Store,
    out: Annotated[Path, typer.Argument(help="map.html (one page, offline), map.png, .svg, .pdf.")],
    method: Annotated[
        str | None, typer.Option(help="tsne, umap or pca; else tsne up to 5,000 rows, then umap.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="What the colours are: label (the classifier's), cluster, labels, folder, a "
            "column, or a pattern of the path such as '{}_*.wav'."
        ),
    ] = "label",
    space: Space = "raw",
    where: Where = None,
    most: Annotated[
        int | None, typer.Option(help="Points at most, drawn by chance; 20,000 for tsne, 100,000.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Else the collection's name.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn by chance.")] = 0,
    json: Json = False,
) -> None:
    """Draw every vector as a point, near to those that are like it.

    The page can be searched, filtered and zoomed, and opens or plays what is clicked on.
    """
    from penult.cli.picture import PICTURES
    from penult.errors import UsageError
    from penult.extras import require
    from penult.store.collection import Collection
    from penult.store.mapped import make_map

    suffix = out.suffix.lower().removeprefix(".")
    if suffix not in ("html", *PICTURES):
        raise UsageError(f"a map is a .html, .{' or .'.join(PICTURES)} file, not {out.name!r}")
    if suffix != "html":
        require("matplotlib")
    opened = Collection.open(collection, must_exist=True)
    space_of(opened, space)
    with working("placing the points"):
        made = make_map(opened, by, method, space, where, most, seed)
    if len(made.rows) < made.matching:
        say(f"{len(made.rows):,} of {made.matching:,} rows, drawn by chance")
    _write(opened, made, out, title or opened.path.name)
    classes = len({name for name in made.names if name is not None})
    if json:
        facts = {"points": len(made.rows), "rows": made.matching, "classes": classes}
        told = {"method": made.method, "space": space, "by": by, "seed": seed}
        emit({"collection": str(opened.path), "file": str(out), **facts, **told})
        return
    stdout.print(
        f"[bold]{shown(str(out))}[/]: {counted(len(made.rows), 'point')} by "
        f"{_SHOWN[made.method]}, {classes:,} {'class' if classes == 1 else 'classes'} "
        f"by {shown(by)}",
        soft_wrap=True,
    )


map_.__name__ = "map"  # what typer calls the command
COMMANDS = (map_,)


def _write(opened: Collection, made: Map, out: Path, title: str) -> None:
    from penult.cli.picture import draw_map

    subtitle = f"{counted(len(made.rows), 'point')} · {_SHOWN[made.method]} · by {made.by}"
    subtitle += "" if made.space == "raw" else f" · space {made.space}"
    if out.suffix.lower() != ".html":
        draw_map(out, made.points, made.names, (), title, subtitle)
        return
    from penult.cli.mappage import Page, page
    from penult.store.folder import store_errors, write_aside

    manifest = opened.manifest
    columns = {name: made.rows[name].to_pylist() for name in made.rows.column_names
               if name not in _KEYS}  # fmt: skip
    text = page(
        Page(
            title,
            subtitle,
            made.points,
            made.names,
            made.rows["id"].to_pylist(),
            made.rows["region"].to_pylist(),
            {name: own for name, own in columns.items() if any(v is not None for v in own)},
            str(manifest.model.get("modality")) if manifest else "",
        )
    )
    with store_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_aside(out, text)
