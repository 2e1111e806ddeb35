"""Commands that look after collections: info, merge, index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from penult.cli.collections import Store
from penult.cli.options import Json
from penult.cli.output import counted, emit, show, shown, stdout, working

Wait = Annotated[bool, typer.Option("--wait", help="Wait if another process is writing.")]


def info(collection: Store, json: Json = False) -> None:
    """What a collection holds: rows by kind, model, labels, runs, failures, index, size."""
    from penult.store.collection import Collection
    from penult.store.describing import describe

    facts = describe(Collection.open(collection, must_exist=True))
    if json:
        emit(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _lines(facts):
        table.add_row(name, shown(value))
    show(table)


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
    from penult.store.collection import Collection
    from penult.store.merging import merge as bring_together

    opened = [Collection.open(path, must_exist=True) for path in collections]
    target = Collection.open(into)
    with working("merging"):
        did = bring_together(opened, target, wait=wait)
    if json:
        emit({"collection": str(into), "rows": target.count, **did.to_dict()})
        return
    stdout.print(
        f"[bold green]{did.new:,} new[/], {did.replaced:,} replaced, {did.there:,} there already; "
        f"{counted(did.labels, 'label')}, {counted(did.failures, 'failure')}, "
        f"{counted(did.runs, 'run')}",
        soft_wrap=True,
    )
    stdout.print(f"[bold]{shown(str(into))}[/]: {counted(target.count, 'row')}", soft_wrap=True)


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
    from penult.store import indexing
    from penult.store.collection import Collection

    opened = Collection.open(collection, must_exist=True)
    if drop:
        dropped = indexing.drop(opened, wait)
        if json:
            emit({"collection": str(collection), "dropped": dropped})
            return
        stdout.print("index removed; searches are exact" if dropped else "there was no index")
        return
    with working("building and measuring"):
        made = indexing.build(opened, min_recall, wait=wait)
    if json:
        emit({"collection": str(collection), **made.to_dict()})
        return
    stdout.print(
        f"{counted(made.rows, 'row')} in {made.seconds:.1f} s; recall@10 {made.recall:.3f} on "
        f"{made.sample} of them, {made.milliseconds:.1f} ms a search (median)",
        soft_wrap=True,
    )


COMMANDS = (info, merge, index)


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
