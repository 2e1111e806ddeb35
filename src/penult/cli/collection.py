"""Commands about a collection: search, export, failures, info, merge, index, repair, relocate,
forget."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.options import (
    BoxOption,
    ChannelOfRows,
    Device,
    End,
    Hop,
    Json,
    Overwrite,
    RawCells,
    Start,
    TableFormatName,
    Trust,
    WindowOfRows,
    check_output,
    check_parent,
    check_tables,
    query_part,
    with_limits,
)
from penult.cli.output import (
    by_item,
    cell,
    counted,
    place_header,
    place_words,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    reason_words,
    stdout,
    tables_in_words,
    working,
)

if TYPE_CHECKING:
    from penult.analysis.space import Space as Fitted
    from penult.collection.collection import Collection
    from penult.collection.forgetting import Forgetting
    from penult.collection.repair import Repair
    from penult.collection.search import Hits
    from penult.data.roots import Roots


Store = Annotated[Path, typer.Argument(help="A collection, for example calls.lance.")]
Where = Annotated[
    str | None,
    typer.Option(help="SQL filter over the collection's columns: \"site = 'A' AND start > 60\"."),
]

Space = Annotated[
    str,
    typer.Option(
        help="Vector space: raw, the name of a stored space, or a recipe (centre, scale, whiten, "
        "shrink, pca:N, l2, joined by +), which is fitted on the collection at first use and "
        "stored."
    ),
]


def space_of(collection: Collection, name: str) -> Fitted:
    """The space of this name; a note on stderr where it had to be fitted first."""
    from penult.collection.spaces import ready

    with working(f"fitting {name}"):
        space, about = ready(collection.reader, name)
    if about is not None:
        sample = "" if about.rows == about.matching else f" sampled from {about.matching:,}"
        print_note(
            f"[dim]space {printable(name)}: fitted on {counted(about.rows, 'row')}{sample}, "
            f"stored in {printable(str(collection.path))}[/]"
        )
    return space


@with_limits
def search(
    collection: Store,
    query: Annotated[str, typer.Argument(help="A file, or the id of a row.")],
    k: Annotated[int, typer.Option("-k", help="Number of neighbours.")] = 10,
    where: Where = None,
    start: Start = None,
    end: End = None,
    channel: ChannelOfRows = None,
    window: WindowOfRows = None,
    hop: Hop = None,
    box: BoxOption = None,
    model: Annotated[
        str | None, typer.Option(help="Embedder to use, where the recorded one has moved.")
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="Compare all rows, even where there is an index.")
    ] = False,
    space: Space = "raw",
    out: Annotated[
        str | None,
        typer.Option(
            help="Write the hits to a .csv file, a .txt Raven selection table (of several "
            "recordings with a list of them beside it) or an .m3u playlist, or to FOLDER/: a Raven "
            "table for each recording."
        ),
    ] = None,
    overwrite: Overwrite = False,
    format: TableFormatName = None,
    raw_cells: RawCells = False,
    device: Device = "auto",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Find the rows nearest to a file, by cosine similarity, in the raw space or another.

    The file is read as the rows of the collection were: in their windows, by their channels. Of
    several parts the nearest counts.
    """
    from penult.collection.collection import Collection
    from penult.collection.index import is_ready
    from penult.collection.search import INDEX, query_vectors

    check_tables(out, overwrite, format, _HIT_FILES)
    opened = Collection.open(collection, must_exist=True)
    modality = str(opened.reader.require_manifest().model.get("modality"))
    part = query_part(modality, start, end, channel, box, (window, hop))
    with working("searching"):
        opener = partial(opened.embedder, model, device=device, trust=trust)
        read = query_vectors(opened.reader, query, opener, part)
    for note in read.notes:
        print_note(f"[yellow]{printable(note)}[/]")
    used = space_of(opened, space)
    with working("searching"):
        found = opened.search(read.query, k=k, where=where, space=used, flat=flat)
        hits = read.named(found)
    if out is not None:
        tables = _write_hits(out, hits, (raw_cells, overwrite, format), opened.reader.roots)
    if json:
        facts = {"collection": str(opened.path), "query": query, "space": space}
        parts = {"parts": list(read.regions), "notes": list(read.notes)}
        print_json({**facts, **parts, **hits.to_dict()})
        return
    if not hits:
        stdout.print("no row matches the filter" if where else "the collection has no rows")
        return
    if out is None:
        print_table(_hits_table(hits))
    else:
        stdout.print(f"{counted(len(hits), 'hit')} in {tables}", soft_wrap=True)
    print_note(f"[dim]searched: {hits.searched}[/]")
    if not (used.is_raw or flat) and hits.searched != INDEX and is_ready(opened.path):
        print_note(
            "the index is not known to find enough of the nearest rows in this space; "
            f"penult index {printable(str(opened.path))} measures that"
        )


_HIT_FILES = (".csv", ".txt", ".m3u")


def _write_hits(out: str, hits: Hits, how: tuple[bool, bool, str | None], roots: Roots) -> str:
    """The hits as `predict --out` writes events: the class is the row's label; in a Raven table the
    confidence is the similarity. Gives the tables in words. how: raw cells, whether files are
    replaced, and the format."""
    from penult.data.files import write_file
    from penult.data.formulas import Cells
    from penult.data.regions import Region
    from penult.data.selection_tables import is_folder
    from penult.data.table_formats import table_format
    from penult.fewshot import events

    cells, found = Cells(how[0]), []
    is_raven = is_folder(out) or out.endswith(".txt")
    for hit in hits:
        box = Region.of_key(hit.region).box
        edges = dict(zip(("left", "top", "right", "bottom"), box or (), strict=False))
        score = hit.similarity if is_raven else hit.score
        place = roots.shown(hit.id), hit.channel, hit.start, hit.end, hit.label or ""
        found.append(
            events.Event(
                *place, nan if score is None else score, 1, hit.metadata | edges, hit.similarity
            )
        )
    if is_raven:
        asked, selections = (
            table_format(how[2]),
            events.selections_of(found, columns=events.OF_HITS),
        )
        tables = asked.write(out, selections, cells=cells, overwrite=how[1])
        return tables_in_words(tables, out, asked.title)
    text = (
        events.to_csv(found, cells, columns=events.OF_HITS)
        if out.endswith(".csv")
        else events.to_m3u(found)
    )
    file = write_file(out, [text.encode("utf-8", "backslashreplace")])
    cells.tell(out)
    return tables_in_words([file], str(file))


def export(
    collection: Store,
    out: Annotated[
        str,
        typer.Argument(
            help="vectors.parquet, vectors.npy or vectors.csv; selections.txt for Raven, or "
            "FOLDER/ for a Raven table of each recording."
        ),
    ],
    where: Where = None,
    logits: Annotated[bool, typer.Option(help="Include the logits.")] = True,
    overwrite: Overwrite = False,
    raw_cells: RawCells = False,
    json: Json = False,
) -> None:
    """Write vectors, logits and metadata to one file for other tools."""
    from penult.collection.collection import Collection
    from penult.collection.export import export as write
    from penult.data.selection_tables import is_folder

    if is_folder(out):
        check_parent(Path(out), create=True)
    else:
        check_output(Path(out))
    opened = Collection.open(collection, must_exist=True)
    rows = write(opened.reader, out, where, logits, overwrite=overwrite, raw_cells=raw_cells)
    ids = Path(out).with_suffix(".csv") if out.endswith(".npy") else None
    if json:
        print_json({"file": str(out), "ids": str(ids) if ids else None, "rows": rows})
        return
    stdout.print(
        f"{counted(rows, 'row')} in [bold]{printable(str(out))}[/]"
        + (f", ids in [bold]{printable(str(ids))}[/]" if ids else ""),
        soft_wrap=True,
    )


def failures(
    collection: Store,
    new: Annotated[
        bool, typer.Option("--new", help="Only those that the latest run met first.")
    ] = False,
    json: Json = False,
) -> None:
    """List the items that could not be embedded, with the reasons."""
    from penult.collection.collection import Collection
    from penult.collection.failures import new_failures

    opened = Collection.open(collection, must_exist=True)
    found = new_failures(opened.reader) if new else opened.failures().to_pylist()
    if json:
        print_json({"collection": str(collection), "failures": found})
        return
    if not found:
        stdout.print("no new failures" if new else "no failures")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("item", "region", "since", "tries", "reason"):
        table.add_column(name, overflow="fold", justify="right" if name == "tries" else "left")
    for rows, reason in by_item(found):
        part = place_words(rows[0]["region"]) if len(rows) == 1 else f"{len(rows):,} parts"
        since = min(row["since"] or row["when"] for row in rows)
        tries = max(row["tries"] or 1 for row in rows)
        table.add_row(
            *(printable_path(rows[0]["id"]), part, f"{since:%Y-%m-%d}", str(tries)),
            reason_words(reason),
        )
    print_table(table)


_SHOWN_COLUMNS = 20  # of metadata, in a table; --json has all


def _hits_table(hits: Hits) -> Table:
    from penult.data.text import text_in

    table = Table(box=None, header_style="bold", pad_edge=False)
    extra = list(hits[0].metadata)[:_SHOWN_COLUMNS] if hits else []
    part = place_header(hit.region for hit in hits)
    several = ["nearest part"] if any(hit.part is not None for hit in hits) else []
    for name in ("similarity", "item", part, "label", "score", *extra, *several):
        right = name in {"similarity", "score"}
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for hit in hits:
        values = {**hit.metadata, "text": text_in(hit.metadata, hit.region)}
        table.add_row(
            f"{hit.similarity:.4f}",
            printable_path(hit.id),
            place_words(hit.region, hit.start, hit.end),
            cell(hit.label),
            "" if hit.score is None else f"{hit.score:.3f}",
            *(cell(values[name]) for name in extra),
            *([place_words(hit.part or "")] if several else []),
        )
    return table


Wait = Annotated[bool, typer.Option("--wait", help="Wait while others are writing.")]


def info(collection: Store, json: Json = False) -> None:
    """Describe a collection: rows by kind, model, labels, runs, failures, index, size."""
    from penult.collection.collection import Collection
    from penult.collection.export import describe

    facts = describe(Collection.open(collection, must_exist=True).reader)
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
        list[Path],
        typer.Argument(
            help="Collections of one embedder, for example one per shard, or class files "
            "(FILE.npz)."
        ),
    ],
    into: Annotated[Path, typer.Option(help="Target collection or class file, new or existing.")],
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Merge collections of one embedder, or class files of several people.

    Of two rows with one key, the row of the newer run is kept. Labels, failures, runs and spaces
    are merged too. Running it again, even after a kill, gives the same result. Of class files with
    an item that is marked differently, the mark of the file that is named first holds; that of a
    file of --into holds before all.
    """
    from penult.collection.collection import Collection
    from penult.collection.transfer import merge as bring_together
    from penult.fewshot.merging import are_class_files

    if are_class_files([*collections, into]):
        _merge_class_files(collections, into, json)
        return

    opened = [Collection.open(path, must_exist=True) for path in collections]
    target = Collection.open(into)
    with working("merging"):
        did = bring_together([one.reader for one in opened], target.reader, wait=wait)
    for words in did.told:
        print_note(printable(words))
    if json:
        print_json({"collection": str(into), "rows": target.count, **did.to_dict()})
        return
    stdout.print(
        f"[bold green]{did.new:,} new[/], {did.replaced:,} replaced, {did.there:,} present "
        f"already; {counted(did.labels, 'label')}, {counted(did.failures, 'failure')}, "
        f"{counted(did.runs, 'run')}",
        soft_wrap=True,
    )
    stdout.print(f"[bold]{printable(str(into))}[/]: {counted(target.count, 'row')}", soft_wrap=True)


def _merge_class_files(files: list[Path], into: Path, json: bool) -> None:
    from penult.fewshot.merging import merge_class_files
    from penult.fewshot.storage import check_unchanged, state_of

    check_output(into)
    before = state_of(into)
    with working("merging"):
        merged = merge_class_files([*([] if before is None else [into]), *files])
        space = merged.space
        check_unchanged(into, before)
        space.save(into)
    found = [one for one in space.classes if one.yes]
    if json:
        print_json({"into": str(into), **merged.to_dict(),
                    "classes": [one.to_dict() for one in space.classes]})  # fmt: skip
        return
    for name, number in merged.added.items():
        stdout.print(f"[bold green]{counted(number, 'new example')}[/] of {printable(name)}",
                     soft_wrap=True)  # fmt: skip
    for one in merged.conflicts[:_SHOWN]:
        part = "" if one.region == "whole" else f" {one.region}"
        print_note(
            f"[yellow]{printable_path(one.id)}{printable(part)}: {one.mark} {printable(one.name)} "
            f"of {printable(one.file)} does not hold against {one.held_mark} "
            f"{printable(one.held_name)}[/]"
        )
    if (more := len(merged.conflicts) - _SHOWN) > 0:
        print_note(f"[yellow]and {counted(more, 'more mark')} that {'does' if more == 1 else 'do'} "
                   "not hold; --json has all[/]")  # fmt: skip
    for note in merged.notes:
        print_note(f"[yellow]{printable(note)}[/]")
    stdout.print(
        f"[bold]{printable(str(into))}[/]: {len(found)} class{'' if len(found) == 1 else 'es'}, "
        f"{counted(len(space.examples.keys), 'marked item')}",
        soft_wrap=True,
    )


_SHOWN = 10  # marks that do not hold


def index(
    collection: Store,
    min_recall: Annotated[
        float,
        typer.Option(help="Least recall of the ten nearest rows; below it no index is made."),
    ] = 0.95,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove the index; searches compare all rows again.")
    ] = False,
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Build an index for fast approximate search. Its recall is measured first."""
    from penult.collection.collection import Collection

    opened = Collection.open(collection, must_exist=True)
    if drop:
        dropped = opened.drop_index(wait)
        if json:
            print_json({"collection": str(collection), "dropped": dropped})
            return
        stdout.print(
            "index removed; searches compare all rows" if dropped else "there was no index"
        )
        return
    with working("building and measuring"):
        made = opened.build_index(min_recall, wait)
    if json:
        print_json({"collection": str(collection), **made.to_dict()})
        return
    stdout.print(
        f"{counted(made.rows, 'row')} indexed in {made.seconds:.1f} s; recall@10 "
        f"{made.recall:.3f} on {made.sample} queries, {made.milliseconds:.1f} ms per search "
        "(median)",
        soft_wrap=True,
    )
    for one in made.spaces:
        rest = "" if one.used else "; too few, all rows are compared there"
        stdout.print(
            f"in space {printable(one.name)}: recall@10 {one.recall:.3f}, "
            f"{one.milliseconds:.1f} ms per search{rest}",
            soft_wrap=True,
        )


def repair(
    collection: Store,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; change nothing.")] = False,
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Check every file of a collection, and restore its last whole version.

    After a power cut or damage on the disk. Nothing is deleted: what is torn is moved into the
    folder torn beside the tables. The next penult embed embeds again what was lost. Exit code 1:
    damaged (with --dry-run), or something cannot be restored.
    """
    from penult.collection.repair import repair as restore

    with working("checking every file"):
        found = restore(collection, dry_run=dry_run, wait=wait)
    if json:
        print_json(found.to_dict())
    else:
        for line in _repair_lines(found):
            stdout.print(printable(line), soft_wrap=True)
    if found.is_lost or (dry_run and not found.is_whole):
        raise typer.Exit(1)


def _repair_lines(found: Repair) -> Iterator[str]:
    names = {"restored": "restored" if found.done else "would be restored"}
    if found.manifest != "whole":
        yield f"collection.json: {names.get(found.manifest, 'lost; no copy of it is there')}"
    for table in found.tables:
        files = counted(table.files, "file")
        unknown = f", {table.unknown:,} of them without a checksum" if table.unknown else ""
        state = names.get(table.state, table.state)
        yield f"{table.name}: {state}, {counted(table.rows, 'row')}, {files}{unknown}"
        for file, reason in list(table.damaged.items())[:_DAMAGED]:
            yield f"  {file} {reason}"
        if len(table.damaged) > _DAMAGED:
            yield f"  … and {len(table.damaged) - _DAMAGED:,} more files"
        if table.state in ("restored", "rows lost"):
            verb = "is" if found.done else "would be"
            was = "" if table.version is None else f"version {table.version:,} {verb} the newest; "
            lost = "later rows" if table.lost is None else counted(table.lost, "row")
            yield f"  {was}{lost} lost"
    if found.aside is not None:
        yield f"what is torn lies in {found.aside}"
    if found.is_whole:
        yield f"{found.path} is whole"
    elif found.is_lost:
        yield f"{found.path} cannot be restored from what is here: take a copy, or embed again"
    elif found.done:
        yield f"{found.path} is whole again; penult embed embeds again what was lost"
    else:
        yield f"penult repair {found.path} does this"


_DAMAGED = 5  # files of a table that are named


def relocate(
    collection: Store,
    old: Annotated[
        str,
        typer.Argument(help="Name or place of a root; of absolute ids their former folder."),
    ],
    new: Annotated[Path, typer.Argument(help="Folder where the same files are now.")],
    check: Annotated[
        str,
        typer.Option(help="Files compared by their content: a number, all, or none."),
    ] = "100",
    dry: Annotated[bool, typer.Option("--dry-run", help="Look for the files only.")] = False,
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Name the new place of recordings that were moved.

    A sample of the files is compared by content there; where they are others, or most are missing,
    nothing is changed (exit code 2). Rows, marks and classes stay, and no file is touched.
    """
    from penult.collection.collection import Collection
    from penult.collection.relocation import relocate as relocated
    from penult.data.files import user_path
    from penult.data.items import absolute
    from penult.errors import UsageError

    if check not in ("all", "none") and not (check.isascii() and check.isdigit()):
        raise UsageError(f"--check {check!r} is neither a number of files nor all nor none")
    sample = {"all": None, "none": 0}.get(check) if check in ("all", "none") else int(check)
    opened = Collection.open(collection, must_exist=True)
    with working("comparing files"):
        did = relocated(opened.reader, old, absolute(user_path(new)), sample, dry=dry, wait=wait)
    if json:
        print_json({"collection": str(opened.path), **did.to_dict()})
        return
    found = did.found
    missing = f", {found.missing:,} missing" if found.missing else ""
    stdout.print(
        f"{found.same:,} of {counted(found.files, 'file')} compared, and the same{missing}",
        soft_wrap=True,
    )
    what = f"root {did.root}" if did.root else "ids"
    done = "" if did.written else " (--dry-run: nothing is written)"
    stdout.print(
        f"[bold]{printable(what)}[/]: {printable(did.old)} → {printable(did.new)}{done}",
        soft_wrap=True,
    )


def forget(
    collection: Store,
    items: Annotated[
        list[str] | None, typer.Argument(help="Ids or files, or folders with all of their items.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Also the items of rows that match this SQL filter.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them now; without it they are only listed.")
    ] = False,
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Remove items for good: rows, marks, failures, names, and what was fitted with them.

    With --yes no file of the collection holds their names or vectors any more, in older versions of
    its tables neither; searches that are running may have to be repeated. No recording is touched.
    """
    from penult.collection.collection import Collection
    from penult.collection.forgetting import find
    from penult.collection.forgetting import forget as forgotten

    reader = Collection.open(collection, must_exist=True).reader
    with working("forgetting" if yes else "looking for them"):
        given = items or []
        did = forgotten(reader, given, where, wait=wait) if yes else find(reader, given, where)
    if json:
        print_json({"collection": str(reader.path), **did.to_dict()})
        return
    for line in _forgotten_lines(did):
        stdout.print(printable(line), soft_wrap=True)


def _forgotten_lines(did: Forgetting) -> Iterator[str]:
    names = ", ".join(did.ids[:_SHOWN_IDS]) + (", …" if len(did.ids) > _SHOWN_IDS else "")
    numbers = {"row": did.rows, "mark": did.labels, "failure": did.failures}
    counts = ", ".join(counted(number, what) for what, number in numbers.items())
    what = f"{counted(len(did.ids), 'item')} ({names}) with {counts}"
    yield f"{'forgotten' if did.done else 'would go'}: {what}"
    if did.runs:
        yield f"  their names in {counted(did.runs, 'run')}"
    if did.derived:
        yield f"  their rows in what is kept of rows: {', '.join(did.derived)}"
    if did.index:
        yield "  the index; penult index makes it again"
    if did.versions:
        yield (
            "  all versions of classes and values and --undo, since one was fitted with them; "
            "classes are fitted anew from the marks that are left, values have to be taught again"
        )
    if did.spaces:
        yield (
            f"  spaces were fitted with such rows and stay: {', '.join(did.spaces)}; "
            "Collection.fit_space(recipe, name) fits them anew"
        )
    if did.torn:
        yield f"  {counted(did.torn, 'file')} that a repair has set aside in torn/"
    if not did.done:
        yield (
            "nothing is changed; --yes does it. Embedders and class files that were saved "
            "elsewhere keep what they have"
        )


_SHOWN_IDS = 5


def _writer_words(writer: dict[str, Any]) -> str:
    return f"by process {writer['pid']} since {writer['since']}: {writer['command']}"


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in facts["kinds"].items())
    labels, runs, made = facts["labels"], facts["runs"], facts["index"]
    last = f"; the last is {runs[-1]['status']}: {runs[-1]['command']}" if runs else ""
    since = f", {made['since']:,} rows since" if made and made["since"] else ""
    return [
        *((f"root {name}", place) for name, place in facts["roots"].items()),
        ("rows", f"{facts['rows']:,}" + (f" ({kinds})" if kinds else "")),
        ("vectors", f"{facts['dim']} numbers, {facts['dtype']}; logits: {facts['logits']}"),
        ("model", f"{facts['model']}, {facts['classes']} classes"),
        ("tap, pooling", f"{facts['tap']}, {facts['pooling']}"),
        ("labels", f"{labels['marks']:,} ({', '.join(labels['classes'][:8]) or 'none'})"),
        *(
            (f"column {one['name']}", f"derived {one['when']}: {one['made']}")
            for one in facts["derived"]
        ),
        ("failures", f"{facts['failures']:,}"),
        ("runs", f"{len(runs):,}{last}"),
        *(("being written", _writer_words(one)) for one in facts["writers"]),
        (
            "index",
            f"recall@10 {made['recall']:.3f}, {made['milliseconds']:.1f} ms, when it was built"
            f"{since}"
            if made
            else "none: searches compare all rows",
        ),
        *(
            (
                "migrated",
                f"{one['when'][:10]}, measured then on {counted(one['rows'], 'row')}: "
                + "; ".join(one["changed"]),
            )
            for one in facts["migrations"]
        ),
        ("on disk", f"{facts['bytes'] / 1e6:,.1f} MB"),
        *(("damage", f"{words}; see penult repair") for words in facts["damage"]),
    ]
