"""`penult migrate`: files of earlier versions, and of other libraries, brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penult.cli.collection import Wait
from penult.cli.options import (
    Device,
    Json,
    TimeZone,
    Trust,
    times_asked,
    with_limits,
)
from penult.cli.output import (
    SOME_FAILED,
    counted,
    metered,
    print_json,
    print_note,
    printable,
    printable_path,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.collection.collection import Collection
    from penult.collection.migration import Migration
    from penult.data.recording_times import RecordingTimes


@with_limits
def migrate(
    collection: Annotated[
        Path,
        typer.Argument(
            help="A collection; the folder of a saved embedder; a class file, with --like."
        ),
    ],
    like: Annotated[
        Path | None,
        typer.Option(help="Migrated collection whose fingerprint a class file takes over."),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="Bring ids that are absolute paths to roots, DIR or NAME=DIR; auto: the folders "
            "of all runs. The embedder is not looked at."
        ),
    ] = None,
    times: Annotated[
        bool,
        typer.Option(
            "--times",
            help="Fill the column recorded_at of all rows by headers and names of their files. "
            "The embedder is not looked at.",
        ),
    ] = False,
    time_zone: TimeZone = None,
    model: Annotated[
        str | None, typer.Option(help="Embedder to use, where the recorded one has moved.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows to embed again, drawn by chance.")] = 100,
    every: Annotated[bool, typer.Option("--all", help="Embed every row again.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Measure, and write nothing.")] = False,
    wait: Wait = False,
    device: Device = "auto",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Accept what another version of a library or of Penult made of a collection's embedder.

    Rows whose files are as they were are embedded again. Where all of them are as they are stored,
    the collection takes the new fingerprint, and keeps the former one in its history; else nothing
    is changed. What an earlier version did not write is added, to a saved embedder as well.
    """
    from penult.collection.collection import Collection
    from penult.collection.migration import migrate as migrated
    from penult.collection.search import embedder_now
    from penult.embedding.saving import is_embedder

    if like is not None:
        _migrate_classes(collection, like, dry, json)
        return
    if is_embedder(collection):
        _migrate_embedder(collection, trust, dry, json)
        return
    opened = Collection.open(collection, must_exist=True)
    if root:
        _migrate_to_roots(opened, root, dry, wait, json)
        return
    if (dated := times_asked(times or None, time_zone)) is not None:
        _migrate_times(opened, dated, dry, wait, json)
        return
    with working("loading the collection's model"):
        manifest = opened.reader.require_manifest()
        embedder = embedder_now(manifest, model, device=device, trust=trust, file=str(opened.path))
    rows = None if every else sample
    with metered("embedding rows again", not json) as meter:
        meter.expect(min(opened.count, sample) if rows else opened.count)
        did = migrated(
            opened.reader, embedder, rows, dry=dry, wait=wait, tick=lambda: meter.tick(True, 0.0)
        )
    if json:
        print_json({"collection": str(collection), **did.to_dict()})
    else:
        _show_migration(did, collection, dry)
    if did.failed:
        raise typer.Exit(SOME_FAILED)


def _show_migration(did: Migration, collection: Path, dry: bool) -> None:
    name = printable(str(collection))
    for words in did.changed:
        stdout.print(f"[bold]changed[/] {printable(words)}", soft_wrap=True)
    if did.changed and did.rows:
        stdout.print(
            f"{counted(did.measured, 'row')} of {did.rows:,} embedded again: as stored, the worst "
            f"differs by {did.worst:.1g} of its length"
            + (f"; {did.left_out:,} left out: gone or changed" if did.left_out else ""),
            soft_wrap=True,
        )
    for id, reason in list(did.failed.items())[:10]:
        print_note(f"[red]failed[/] {printable_path(id)}: {printable(reason)}")
    if did.added:
        stdout.print(f"[bold]missing[/] {', '.join(did.added)}")
    if did.written:
        kept = "; the former fingerprint is in its history" if did.changed else ""
        stdout.print(f"[bold green]migrated[/] {name}{kept}", soft_wrap=True)
    elif dry and (did.changed or did.added):
        stdout.print("nothing was written (--dry-run)")
    else:
        stdout.print(f"nothing to migrate: {name} fits this installation", soft_wrap=True)


def _migrate_to_roots(
    opened: Collection, root: list[str], dry: bool, wait: bool, json: bool
) -> None:
    from penult.collection.relocation import migrate_to_roots
    from penult.data.roots import AskedRoot

    asked = [] if root == ["auto"] else [AskedRoot.parse(one, must_exist=False) for one in root]
    with working("giving rows their new ids"):
        did = migrate_to_roots(opened.reader, asked, dry=dry, wait=wait)
    if json:
        print_json({"collection": str(opened.path), **did.to_dict()})
        return
    for name, place in did.roots.items():
        stdout.print(f"[bold]root[/] {printable(name)}: {printable(place)}", soft_wrap=True)
    outside = f"; {did.outside:,} lie outside of them and keep their paths" if did.outside else ""
    done = "begin with a root" if did.written else "would begin with a root (--dry-run)"
    stdout.print(f"the ids of {counted(did.rows, 'row')} {done}{outside}", soft_wrap=True)


def _migrate_times(
    opened: Collection, times: RecordingTimes, dry: bool, wait: bool, json: bool
) -> None:
    from penult.collection.timing import date_rows

    with working("reading headers and names"):
        did = date_rows(opened.reader, times, dry=dry, wait=wait)
    if json:
        print_json({"collection": str(opened.path), **did.to_dict()})
        return
    for words in did.times.words():
        stdout.print(printable(words), soft_wrap=True)
    done = "have" if did.written else "would have (--dry-run)"
    stdout.print(
        f"{did.changed:,} of {counted(did.rows, 'row')} {done} another recorded_at than before",
        soft_wrap=True,
    )


def _migrate_classes(file: Path, like: Path, dry: bool, json: bool) -> None:
    from penult.collection.collection import Collection
    from penult.fewshot.storage import migrate as migrated

    manifest = Collection.open(like, must_exist=True).reader.require_manifest()
    changed = migrated(file, manifest, dry)
    if json:
        print_json({"file": str(file), "written": changed and not dry})
        return
    done = "nothing was written (--dry-run)" if dry else f"migrated {printable(str(file))}"
    stdout.print(done if changed else "nothing to migrate: its fingerprint is the collection's")


def _migrate_embedder(folder: Path, trust: bool, dry: bool, json: bool) -> None:
    """Write the list of hashes of an embedder that has none, once it could be opened."""
    from penult.data.hashes import LIST, list_hash, write_list
    from penult.embedding.embedder import Embedder

    with working("opening the embedder"):
        Embedder.load(folder, trust=trust)
    before = list_hash(folder)
    if before is None and not dry:
        write_list(folder)
    if json:
        print_json({"folder": str(folder), "written": before is None and not dry})
        return
    done = "would be written" if dry else "written"
    words = f"{LIST} {done}" if before is None else "nothing to migrate: its list of hashes fits"
    stdout.print(words)
