"""`penult clips`: hits, events or named rows cut out of their files."""

from __future__ import annotations

import csv
import json as documents
import sys
import tempfile
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from penult.cli.options import AudioFolders, Json, Overwrite, with_columns
from penult.cli.output import (
    SOME_FAILED,
    counted,
    print_failure,
    print_json,
    printable,
    stdout,
    working,
)
from penult.data.excerpts import Excerpt, write_excerpts
from penult.errors import UsageError


@with_columns
def clips(
    parts: Annotated[
        list[str],
        typer.Argument(
            help="Tables with path, start and end, as search --out and predict --out write them; "
            "Raven tables, Audacity label tracks; names of rows such as 'rec/a.wav ch0:1.5-2.25'; "
            "files; or - for --json of search or predict, a CSV or names on stdin."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the files to.")],
    before: Annotated[
        float, typer.Option(min=0.0, help="Seconds of sound before each part.")
    ] = 0.5,
    after: Annotated[float, typer.Option(min=0.0, help="Seconds of sound after each part.")] = 0.5,
    format: Annotated[
        str, typer.Option(help="Format of sounds: wav or flac; pictures are PNG.")
    ] = "wav",
    audio: AudioFolders = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Cut hits of a search or events of predictions out of their files, with context.

    Sound keeps the rate and the channels of its source. The names of the files sort as the parts
    were given, and tell source, seconds, class and similarity.
    """
    from penult.data.sources import recordings_in

    if format not in ("wav", "flac"):
        raise UsageError(f"--format {format!r}: wav or flac")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    with recordings_in(audio or []):
        found = [one for part in parts for one in _excerpts(part)]
    if not found:
        raise UsageError("there is nothing to cut out: no hit, no event and no row was given")
    with working("cutting"):
        written, failed = write_excerpts(found, out, format, (before, after), overwrite)  # type: ignore[arg-type]
    if json:
        failures = [{"id": one.id, "region": one.region.key, "message": m} for one, m in failed]
        print_json({"out": str(out), "files": [str(one) for one in written], "failures": failures})
    else:
        for one, message in failed:
            print_failure(f"{one.id} {one.region.key}", message)
        stdout.print(
            f"[bold green]{counted(len(written), 'file')}[/] in [bold]{printable(str(out))}[/]",
            soft_wrap=True,
        )
    if failed:
        raise typer.Exit(SOME_FAILED)


def _excerpts(part: str) -> Iterator[Excerpt]:
    """The excerpts that an argument means.

    Raises:
        UsageError: no table, no file and no name of a row.
    """
    from penult.collection.row_names import row_of_name
    from penult.data.files import user_path
    from penult.data.regions import WHOLE, Region
    from penult.data.sources import TABLES

    if part == "-":
        yield from _of_text(sys.stdin.read())
    elif user_path(part).is_file():
        path = user_path(part).absolute()
        is_table = path.suffix.lower() in (*TABLES, ".txt")
        yield from _of_table(path) if is_table else [Excerpt(str(path), WHOLE)]
    elif (row := row_of_name(None, part)) is not None:
        yield Excerpt(row[0], Region.of_key(row[1]))
    else:
        raise UsageError(
            f"{part!r} is no file, no table and no name of a part such as 'rec/a.wav 1.5-2.25'"
        )


def _of_text(text: str) -> Iterator[Excerpt]:
    """The JSON of `search` or `predict`, a CSV, or a name in each line."""
    from penult.cli.teach import is_collection
    from penult.collection.reader import Reader
    from penult.data.roots import Roots

    if text.lstrip().startswith("{"):
        document: dict[str, Any] = documents.loads(text)
        rows = document.get("hits") or document.get("events") or document.get("predictions") or []
        place = str(document.get("collection") or document.get("place") or "")
        roots = Reader(place).roots if place and is_collection(place) else Roots()
        yield from (Excerpt.of_row({**row, "id": roots.shown(row["id"])}) for row in rows)
    elif "path" in text.partition("\n")[0].split(","):
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "stdin.csv")
            table.write_text(text, "utf-8")
            yield from [*_of_table(table)]
    else:
        for line in filter(None, map(str.strip, text.splitlines())):
            yield from _excerpts(line)


def _of_table(path: Path) -> Iterator[Excerpt]:
    """The lines of a table, by their class and similarity where it has them."""
    from penult.data.items import Failure
    from penult.data.sources import from_paths

    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        has_boxes = "left" in (reader.fieldnames or ())
        lines = {_place(row): number for number, row in reversed([*enumerate(reader)])}
    # A file in another folder (--audio) has its name in common with its line.
    named = {(Path(path).name, *cut): number for (path, *cut), number in lines.items()}
    found = []
    for entry in from_paths([path], "image" if has_boxes else "audio"):
        if isinstance(entry, Failure):
            raise UsageError(entry.words())
        item, region = entry
        known = {name.lower(): value for name, value in item.metadata.items()}
        label = known.get("class") or known.get("label") or known.get("label_given")
        similarity = known.get("similarity")
        score = float(similarity) if isinstance(similarity, int | float) else None
        one = Excerpt(str(item.content), region, None if label is None else str(label), score)
        cut = region.start, region.end
        name = Path(str(item.content)).name
        number = lines.get((str(item.content), *cut), named.get((name, *cut), len(lines)))
        found.append((number, one))  # sources give a file's parts by time
    yield from (one for _, one in sorted(found, key=itemgetter(0)))


def _place(row: dict[str, str]) -> tuple[str, float | None, float | None]:
    try:
        start, end = (float(row[name]) if row.get(name) else None for name in ("start", "end"))
    except ValueError:
        return "", None, None
    return row.get("path") or "", start, end
