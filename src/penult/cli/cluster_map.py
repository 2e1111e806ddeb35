"""`penult cluster` and `penult map`: groups of rows without labels; rows as points on a plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from penult.cli.collection import Space, Store, Where, space_of
from penult.cli.options import Json, RawCells, Seed, check_output
from penult.cli.output import (
    counted,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.analysis.clustering import Cluster
    from penult.collection.collection import Collection
    from penult.collection.derived import Clustered, Map


def cluster(
    collection: Store,
    method: Annotated[
        str | None,
        typer.Option(help="hdbscan (the default) or kmeans (the default with --clusters)."),
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="Number of clusters, for kmeans.")] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Fewest rows of a cluster. Default: √rows / 2, at least 5.")
    ] = None,
    space: Space = "raw",
    where: Where = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Classes to compare the clusters with: a column, folder, labels, or a path "
            "pattern such as '{}_*.wav'."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name to store the clusters under. Default: the method.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write each row's cluster to this CSV file.")
    ] = None,
    seed: Seed = 0,
    raw_cells: RawCells = False,
    json: Json = False,
) -> None:
    """Cluster the rows of a collection, without labels.

    Clusters are named by the classifier's predictions and shown with their medoids. They are stored
    in the collection: `penult map --by cluster` draws them.
    """
    from penult.analysis.clustering import ClusterOptions
    from penult.collection import derived
    from penult.collection.collection import Collection

    check_output(out)
    opened = Collection.open(collection, must_exist=True)
    method = method or ("kmeans" if clusters else "hdbscan")
    options = ClusterOptions(method, clusters, min_size, seed)
    space_of(opened, space)
    with working("clustering"):
        made = derived.find_clusters(opened.reader, options, space, where, by)
    kept = derived.keep_clusters(opened.reader, made, name)
    if out is not None:
        from penult.collection.export import write_csv

        write_csv(out, made.table(), raw_cells)
    for note in made.clustering.notes:
        print_note(note)
    if json:
        document = {"collection": str(opened.path), "name": kept, "space": space}
        print_json({**document, **made.to_dict()})
        return
    _show(made)
    path = printable_path(str(opened.path))
    stdout.print(
        f"stored as [bold]{printable(kept)}[/]: penult map {path} map.html --by cluster"
        + (f"; the cluster of each row is in [bold]{printable(str(out))}[/]" if out else ""),
        soft_wrap=True,
    )


def _show(made: Clustered) -> None:
    found = made.clustering
    table = Table(box=None, header_style="bold", pad_edge=False)
    right = ("#", "rows", "stable")
    for column in ("#", "rows", "stable", "name", "labels", *(["mostly"] if made.by else []),
                   "medoid"):  # fmt: skip
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    majorities = [f"{one[0]} {one[1]:.0%}" if one else "" for one in made.majorities()]
    for one in found.clusters:
        stable = "" if one.stability is None else f"{one.stability:.2f}"
        own = [printable(majorities[one.number])] if made.by else []
        medoid = printable_path(made.row_name(one.medoids[0]))
        cells = (str(one.number), f"{one.size:,}", stable, printable(one.name), _labels(one))
        table.add_row(*cells, *own, medoid)
    print_table(table)
    facts = f"{counted(len(found.clusters), 'cluster')} of {counted(len(found.numbers), 'row')}"
    facts += f", {found.noise:,} ({found.noise / len(found.numbers):.0%}) in no cluster"
    if found.stability is not None:
        facts += f"; agreement of subsamples {found.stability:.2f} (adjusted Rand index)"
    stdout.print(facts, soft_wrap=True)
    if (agree := made.agreement) is not None:
        stdout.print(
            f"agreement with {printable(str(made.by))}: adjusted Rand index {agree.ari:.3f}, "
            f"normalised mutual information {agree.nmi:.3f}; among the rows in clusters only: "
            f"{agree.clustered_ari:.3f} and {agree.clustered_nmi:.3f}",
            soft_wrap=True,
        )


def _labels(one: Cluster) -> str:
    return ", ".join(f"{printable(share.label)} {share.share:.0%}" for share in one.labels[:3])


_SHOWN = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
_KEYS = ("id", "region", "kind")


def map_(
    collection: Store,
    out: Annotated[
        Path, typer.Argument(help="map.html (one page, works offline), map.png, .svg or .pdf.")
    ],
    method: Annotated[
        str | None,
        typer.Option(help="tsne, umap or pca. Default: tsne up to 5,000 rows, umap above."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Class that colours each point: label (predicted), labels (taught), cluster, "
            "folder, a column, or a path pattern such as '{}_*.wav'."
        ),
    ] = "label",
    space: Space = "raw",
    where: Where = None,
    most: Annotated[
        int | None,
        typer.Option(
            help="Most points; more rows are sampled. Default: 20,000 for tsne, else 100,000."
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the map. Default: the collection's name.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Draw each vector as a point in two dimensions, with similar vectors close together.

    The page can be searched, filtered and zoomed; a click on a point plays or opens its file.
    """
    from penult.collection.collection import Collection
    from penult.collection.derived import make_map
    from penult.errors import UsageError
    from penult.viz.plots import PICTURES, check_picture

    suffix = out.suffix.lower().removeprefix(".")
    if suffix not in ("html", *PICTURES):
        raise UsageError(
            f"{out.name!r} has no known ending for a map; .html, .{', .'.join(PICTURES)} work"
        )
    if suffix != "html":
        check_picture(out)
    check_output(out, create=True)
    opened = Collection.open(collection, must_exist=True)
    space_of(opened, space)
    with working("computing the map"):
        made = make_map(opened.reader, by, method, space, where, most, seed)
    if len(made.rows) < made.matching:
        print_note(f"{len(made.rows):,} of {made.matching:,} rows, sampled at random")
    _write(opened, made, out, title or opened.path.name)
    classes = len({name for name in made.names if name is not None})
    if json:
        facts = {"points": len(made.rows), "rows": made.matching, "classes": classes}
        options = {"method": made.method, "space": space, "by": by, "seed": seed}
        print_json({"collection": str(opened.path), "file": str(out), **facts, **options})
        return
    stdout.print(
        f"[bold]{printable(str(out))}[/]: {counted(len(made.rows), 'point')} by "
        f"{_SHOWN[made.method]}, {classes:,} {'class' if classes == 1 else 'classes'} "
        f"by {printable(by)}",
        soft_wrap=True,
    )


map_.__name__ = "map"  # the name of the command


def _write(opened: Collection, made: Map, out: Path, title: str) -> None:
    from penult.viz.plots import draw_map

    subtitle = f"{counted(len(made.rows), 'point')} · {_SHOWN[made.method]} · by {made.by}"
    subtitle += "" if made.space == "raw" else f" · space {made.space}"
    if out.suffix.lower() != ".html":
        draw_map(out, made.points, made.names, (), title, subtitle)
        return
    from penult.collection.manifest import store_errors
    from penult.data.files import write_file
    from penult.viz.map_page import MapPage, map_page

    manifest = opened.manifest
    columns = {name: made.rows[name].to_pylist() for name in made.rows.column_names
               if name not in _KEYS}  # fmt: skip
    text = map_page(
        MapPage(
            title,
            subtitle,
            made.points,
            made.names,
            made.rows["id"].to_pylist(),
            made.rows["region"].to_pylist(),
            {name: own for name, own in columns.items() if any(v is not None for v in own)},
            str(manifest.model.get("modality")) if manifest else "",
            opened.reader.roots,
        )
    )
    with store_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, [text.encode()])
