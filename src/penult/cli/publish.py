"""Commands about the Hugging Face hub: push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penult.cli.options import Json
from penult.cli.output import counted, print_json, print_note, printable, stdout, working

if TYPE_CHECKING:
    from penult.publishing.hub_repository import Publication


def push(
    path: Annotated[
        Path,
        typer.Argument(help="A saved embedder, a class space (.npz of teach) or a collection."),
    ],
    repo: Annotated[str, typer.Argument(help="The repository: owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="For your eyes, where the repository is made.")
    ] = False,
    kind: Annotated[
        str | None, typer.Option(help="What PATH has to be: embedder, classes or collection.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="For the card, as the hub names it: apache-2.0.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and show the card; push nothing.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    json: Json = False,
) -> None:
    """Push an embedder, a class space or a collection to the Hugging Face hub, with a card.

    Commands take what was pushed by its name, owner/name or owner/name@revision; a collection is
    fetched with penult pull. Paths of this machine, recorded graphs and indexes stay here. Who you
    are: hf auth login, or HF_TOKEN.
    """
    from penult.publishing.hub_repository import push as publish

    def tell(planned: Publication) -> None:
        if not json:
            _show(planned, "would push" if dry_run else "pushes")

    options: dict[str, Any] = {"private": private, "kind": kind, "license": license}
    with working("preparing" if dry_run else f"pushing to {repo}"):
        done = publish(path, repo, **options, dry_run=dry_run, message=message, tell=tell)
    if json:
        print_json({**done.to_dict(), "card": done.card, "dry_run": dry_run})
    elif dry_run:
        stdout.print()
        for line in done.card.splitlines():
            stdout.print(printable(line), highlight=False, soft_wrap=True)
    else:
        stdout.print(f"pushed: {printable(done.url)}", soft_wrap=True)
        stdout.print(f"revision {printable(done.revision)}", soft_wrap=True)


def _show(publication: Publication, verb: str) -> None:
    """What goes to the hub, file by file."""
    files = counted(len(publication.files), "file")
    place = f"{publication.repo_type} {publication.repo}"
    stdout.print(
        f"{verb} {files}, {publication.size:,} bytes, to the {printable(place)}", soft_wrap=True
    )
    for name, size in publication.files.items():
        stdout.print(f"  {size:>13,}  {printable(name)}", soft_wrap=True)
    for note in publication.notes:
        print_note(f"[yellow]{printable(note)}[/]")


def pull(
    repo: Annotated[
        str, typer.Argument(help="A collection on the hub: owner/name or owner/name@revision.")
    ],
    collection: Annotated[Path, typer.Argument(help="The new folder, for example calls.lance.")],
    json: Json = False,
) -> None:
    """Fetch a collection from the Hugging Face hub into a new folder.

    penult relocate says where its files are on this machine.
    """
    from penult.publishing.hub_repository import pull as fetch

    with working(f"fetching {repo}"):
        found = fetch(repo, collection)
    command = found.runs()["command"].to_pylist()[-1]
    revision = str(command).rpartition("@")[2]
    if json:
        facts = {"collection": str(found.path), "rows": found.count, "repo": repo}
        print_json({**facts, "revision": revision})
        return
    stdout.print(
        f"{counted(found.count, 'row')} in [bold]{printable(str(found.path))}[/], revision "
        f"{printable(revision)}",
        soft_wrap=True,
    )
