"""Commands about a collection: search, export, failures, info, merge, index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.options import Device, Json, Trust
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
    from penult.analysis.space import Space as Fitted
    from penult.collection.collection import Collection
    from penult.collection.search import Hit, Hits


Store = Annotated[Path, typer.Argument(help="A collection, for example calls.lance.")]
Where = Annotated[
    str | None,
    typer.Option(help="A filter in SQL over its columns: \"site = 'A' AND start > 60\"."),
]

Space = Annotated[
    str,
    typer.Option(
        help="Where to compare: raw, a recipe (centre, scale, whiten, pca:N, l2, joined by +: "
        "fitted on the collection at first use and kept there), or a space's name."
    ),
]


def space_of(collection: Collection, name: str) -> Fitted:
    """The space of this name; says so on stderr where it had to be fitted first."""
    from penult.collection.spaces import ready

    with working(f"fitting {name}"):
        space, about = ready(collection, name)
    if about is not None:
        of = "" if about.rows == about.matching else f" of {about.matching:,}, drawn by chance"
        print_note(
            f"[dim]space {printable(name)}: fitted on {counted(about.rows, 'row')}{of}, "
            f"kept in {printable(str(collection.path))}[/]"
        )
    return space


def search(
    collection: Store,
    query: Annotated[str, typer.Argument(help="A file, or the id of a row of the collection.")],
    k: Annotated[int, typer.Option("-k", help="How many neighbours.")] = 10,
    where: Where = None,
    start: Annotated[float | None, typer.Option(help="Query's beginning in seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="Query's end in seconds.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The embedder, if it is not where it was.")
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="Compare all rows, also where there is an index.")
    ] = False,
    space: Space = "raw",
    device: Device = "auto",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Find what is nearest to a file, by the cosine of their vectors, raw or in a space."""
    from penult.collection.collection import Collection
    from penult.collection.search import query_vector

    opened = Collection.open(collection, must_exist=True)
    with working("searching"):
        vector = query_vector(
            opened, query, start=start, end=end, model=model, device=device, trust=trust
        )
    used = space_of(opened, space)
    if not used.is_raw and opened.index is not None:
        print_note("the index is of raw vectors: in a space every row is compared")
    with working("searching"):
        hits = opened.search(vector, k=k, where=where, space=used, flat=flat)
    if json:
        facts = {"collection": str(opened.path), "query": query, "space": space}
        facts |= {"searched": hits.searched}
        print_json({**facts, "hits": [_hit(hit) for hit in hits]})
        return
    if not hits:
        stdout.print("no row matches the filter" if where else "the collection has no rows")
        return
    print_table(_hits_table(hits))
    print_note(f"[dim]searched: {hits.searched}[/]")


def export(
    collection: Store,
    out: Annotated[Path, typer.Argument(help="vectors.parquet, vectors.npy or vectors.csv.")],
    where: Where = None,
    logits: Annotated[bool, typer.Option(help="Logits too.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    json: Json = False,
) -> None:
    """Write vectors, logits and metadata to one file that other tools read."""
    from penult.collection.collection import Collection
    from penult.collection.export import export as write

    opened = Collection.open(collection, must_exist=True)
    rows = write(opened, out, where, logits, overwrite=overwrite)
    ids = out.with_suffix(".csv") if out.suffix == ".npy" else None
    if json:
        print_json({"file": str(out), "ids": str(ids) if ids else None, "rows": rows})
        return
    stdout.print(
        f"{counted(rows, 'row')} in [bold]{printable(str(out))}[/]"
        + (f", their ids in [bold]{printable(str(ids))}[/]" if ids else ""),
        soft_wrap=True,
    )


def failures(collection: Store, json: Json = False) -> None:
    """List the items that could not be embedded, and why."""
    from penult.collection.collection import Collection

    found = Collection.open(collection, must_exist=True).failures().to_pylist()
    if json:
        print_json({"collection": str(collection), "failures": found})
        return
    if not found:
        stdout.print("no failures")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("item", "region", "why"):
        table.add_column(name, overflow="fold")
    for row in found:
        region = "" if row["region"] == "whole" else row["region"]
        table.add_row(printable_path(row["id"]), printable(region), printable(row["message"]))
    print_table(table)


def _hits_table(hits: Hits) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    extra = list(hits[0].metadata) if hits else []
    for name in ("similarity", "item", "seconds", "label", "score", *extra):
        right = name in {"similarity", "score"}
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for hit in hits:
        whole = hit.start is None or hit.end is None
        table.add_row(
            f"{hit.similarity:.4f}",
            printable_path(hit.id),
            "" if whole else f"{hit.start:.2f}-{hit.end:.2f}",
            printable(hit.label or ""),
            "" if hit.score is None else f"{hit.score:.3f}",
            *(
                printable(str(hit.metadata[name])) if hit.metadata[name] is not None else ""
                for name in extra
            ),
        )
    return table


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "region": hit.region,
        "start": hit.start,
        "end": hit.end,
        "channel": hit.channel,
        "similarity": hit.similarity,
        "label": hit.label,
        "score": hit.score,
        "metadata": hit.metadata,
    }


Wait = Annotated[bool, typer.Option("--wait", help="Wait if another process is writing.")]


def info(collection: Store, json: Json = False) -> None:
    """What a collection holds: rows by kind, model, labels, runs, failures, index, size."""
    from penult.collection.collection import Collection
    from penult.collection.export import describe

    facts = describe(Collection.open(collection, must_exist=True))
    if json:
        print_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _lines(facts):
        table.add_row(name, printable(value))
    print_table(table)


def merge(
    collections: Annotated[
        list[Path], typer.Argument(help="Collections of one embedder, such as those of shards.")
    ],
    into: Annotated[Path, typer.Option(help="The collection that gets all; it may be there.")],
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Bring collections of one embedder together; of two rows with one key the newer run's counts.

    Labels, failures, runs and spaces come along. Done again, also after a kill, it gives the same.
    """
    from penult.collection.collection import Collection
    from penult.collection.transfer import merge as bring_together

    opened = [Collection.open(path, must_exist=True) for path in collections]
    target = Collection.open(into)
    with working("merging"):
        did = bring_together(opened, target, wait=wait)
    if json:
        print_json({"collection": str(into), "rows": target.count, **did.to_dict()})
        return
    stdout.print(
        f"[bold green]{did.new:,} new[/], {did.replaced:,} replaced, {did.there:,} there already; "
        f"{counted(did.labels, 'label')}, {counted(did.failures, 'failure')}, "
        f"{counted(did.runs, 'run')}",
        soft_wrap=True,
    )
    stdout.print(f"[bold]{printable(str(into))}[/]: {counted(target.count, 'row')}", soft_wrap=True)


def index(
    collection: Store,
    min_recall: Annotated[
        float,
        typer.Option(help="Of the ten nearest rows, the share it has to find; else no index."),
    ] = 0.95,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove the index: searches are exact again.")
    ] = False,
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Make searches fast and approximate, by an index whose recall is measured first."""
    from penult.collection import index
    from penult.collection.collection import Collection

    opened = Collection.open(collection, must_exist=True)
    if drop:
        dropped = index.drop(opened, wait)
        if json:
            print_json({"collection": str(collection), "dropped": dropped})
            return
        stdout.print("index removed; searches are exact" if dropped else "there was no index")
        return
    with working("building and measuring"):
        made = index.build(opened, min_recall, wait=wait)
    if json:
        print_json({"collection": str(collection), **made.to_dict()})
        return
    stdout.print(
        f"{counted(made.rows, 'row')} in {made.seconds:.1f} s; recall@10 {made.recall:.3f} on "
        f"{made.sample} of them, {made.milliseconds:.1f} ms a search (median)",
        soft_wrap=True,
    )


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in facts["kinds"].items())
    labels, runs, made = facts["labels"], facts["runs"], facts["index"]
    last = f"; the last is {runs[-1]['status']}: {runs[-1]['command']}" if runs else ""
    since = f", {made['since']:,} rows since" if made and made["since"] else ""
    return [
        ("rows", f"{facts['rows']:,}" + (f" ({kinds})" if kinds else "")),
        ("vectors", f"{facts['dim']} numbers, {facts['dtype']}; logits: {facts['logits']}"),
        ("model", f"{facts['model']}, {facts['classes']} classes"),
        ("tap, pooling", f"{facts['tap']}, {facts['pooling']}"),
        ("labels", f"{labels['marks']:,} ({', '.join(labels['classes'][:8]) or 'none'})"),
        ("failures", f"{facts['failures']:,}"),
        ("runs", f"{len(runs):,}{last}"),
        (
            "index",
            f"recall@10 {made['recall']:.3f}, {made['milliseconds']:.1f} ms{since}"
            if made
            else "none: searches compare all rows",
        ),
        ("on disk", f"{facts['bytes'] / 1e6:,.1f} MB"),
    ]


COMMANDS = (*(search, export, failures), *(info, merge, index))
