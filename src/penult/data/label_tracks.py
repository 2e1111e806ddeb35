"""Audacity label tracks: a text file for each recording, and for each channel where rows have one.

A label is a line of start, end and text with tabs between; a line that begins with a backslash
gives its low and high frequency, -1 where one is not known (Audacity Manual, Importing and
Exporting Labels, extended format). It names neither a recording nor a channel: the file does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from penult.data.files import user_path
from penult.data.formulas import Cells
from penult.data.items import absolute, path_of
from penult.data.selection_tables import (
    CLASS,
    RavenSelection,
    band_of,
    cell_text,
    is_folder,
    write_texts,
)
from penult.errors import UsageError

SUFFIX = ".labels.txt"
CHANNEL = re.compile(rf"\.ch(\d+){re.escape(SUFFIX)}$", re.IGNORECASE)

_Track = tuple[str, int | None]  # a recording and its channel


def check_free(out: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to write over label tracks, before any work is done.

    Raises:
        UsageError: there is one, and overwrite is not set; or a file is where a folder has to be.
    """
    path = user_path(out)
    if is_folder(out) and path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; name a folder, or another file")
    found = sorted(path.rglob(f"*{SUFFIX}")) if is_folder(out) else [path] * path.exists()
    if found and not overwrite:
        raise UsageError(f"{found[0]} exists already; --overwrite replaces it")


def write_label_tracks(
    out: str | os.PathLike[str],
    selections: Sequence[RavenSelection],
    recordings: Iterable[str] = (),
    *,
    cells: Cells | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the labels of one recording, or into a folder (see `is_folder`) those of each, in the
    folders that the recordings lie in; gives the files. A label's text is its class.

    recordings: all that were looked at; tracks of theirs that are in the folder, and have no
    selection now, are emptied. cells: not used, for no spreadsheet opens them.

    Raises:
        UsageError: a selection without seconds, several recordings or channels for one file, a
            file that exists, without `overwrite`.
        StoreError: a file cannot be written.
    """
    path = user_path(out)
    tracks: dict[_Track, list[RavenSelection]] = {}
    for one in selections:
        tracks.setdefault((one.path, one.channel), []).append(one)
    if not is_folder(out):
        if len(tracks) > 1:
            raise UsageError(
                f"a label track is of one recording and channel, and these are {len(tracks)}; "
                "--out FOLDER/ writes one for each"
            )
        texts = {path: _text(selections)}
        write_texts(path, texts, overwrite, in_folder=False)
        return [path]
    names = _names([*tracks, *((recording, None) for recording in recordings)])
    texts = {path / names[track]: _text(labels) for track, labels in tracks.items()}
    former = dict.fromkeys(_former([path / name for name in names.values()]), "")
    write_texts(path, {**former, **texts} if overwrite else texts, overwrite, in_folder=True)
    return [*texts]


def _text(labels: Sequence[RavenSelection]) -> str:
    lines = []
    for one in sorted(labels, key=lambda label: (label.start or 0.0, label.end or 0.0)):
        if one.start is None or one.end is None:
            raise UsageError(
                f"a label track needs seconds, and {one.path} has none; write .csv instead"
            )
        lines.append(f"{one.start:.6f}\t{one.end:.6f}\t{cell_text(one.values.get(CLASS))}\n")
        band = band_of(one.values)
        if band != (None, None):
            low, high = (-1.0 if edge is None else edge for edge in band)
            lines.append(f"\\\t{low:.6f}\t{high:.6f}\n")
    return "".join(lines)


def _names(tracks: Sequence[_Track]) -> dict[_Track, Path]:
    """A file's name for each track: the recording's folders from the one that all have in common
    on, its name without extension where that tells it from others, and the channel."""
    files = {recording: absolute(path_of(recording)) for recording, _ in tracks}
    stems = [str(file.with_suffix("")).casefold() for file in files.values()]
    common = os.path.commonpath([file.parent for file in files.values()]) if files else ""
    found = dict[_Track, Path]()
    for recording, channel in tracks:
        file = files[recording]
        single = stems.count(str(file.with_suffix("")).casefold()) == 1
        end = SUFFIX if channel is None else f".ch{channel}{SUFFIX}"
        name = (file.stem if single else file.name) + end
        found[recording, channel] = file.parent.relative_to(common) / name
    return found


def _former(tracks: Iterable[Path]) -> Iterator[Path]:
    """The tracks that are there of the recordings that these are of, of every channel."""
    wanted = {track.with_name(CHANNEL.sub(SUFFIX, track.name)) for track in tracks}
    for folder in {track.parent for track in wanted}:
        for there in folder.glob(f"*{SUFFIX}"):
            if there.with_name(CHANNEL.sub(SUFFIX, there.name)) in wanted:
                yield there
