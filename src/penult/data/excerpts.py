"""Excerpts of recordings and pictures as files: a span with what is around it, or a box."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penult.data import image
from penult.data.audio_stream import open_stream
from penult.data.files import file_aside, item_error
from penult.data.items import path_of
from penult.data.regions import WHOLE, Region, frame_at
from penult.errors import ItemError, RegionError, StoreError, UsageError

Format = Literal["wav", "flac"]
_LONGEST = 60  # characters of each part of a file's name
_SUBTYPES = {"wav": "PCM_16", "flac": "PCM_24"}  # where the format cannot hold the source's own


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of a file. label: its class. similarity: to what was searched for, or None."""

    id: str
    region: Region = WHOLE
    label: str | None = None
    similarity: float | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Excerpt:
        """The excerpt of a hit, an event or a prediction, as `--json` prints them."""
        key, start, end, channel = (row.get(n) for n in ("region", "start", "end", "channel"))
        if isinstance(key, str) and ("box:" in key or key.startswith("page:")):
            region = Region.of_key(key)
        elif start is None and end is None:
            region = Region(channel=channel)
        else:
            region = Region("segment", start, end, channel)
        return cls(str(row["id"]), region, row.get("label"), row.get("similarity"))

    @property
    def is_picture(self) -> bool:
        """Whether it is of a picture, by the file's name."""
        return path_of(self.id).suffix.lower() in image.EXTENSIONS

    def name(self, number: int, digits: int, format: Format) -> str:
        """`0001_rec_450.500-451.475_ch0_robin_0.953.wav`: sorts by the number, and tells file,
        seconds or box, channel, class and similarity."""
        region, parts = self.region, [f"{number:0{digits}}", path_of(self.id).stem]
        if region.page is not None:
            parts.append(f"page{region.page}")
        if region.box is not None:
            parts.append("box" + "-".join(map(str, region.box)))
        if region.start is not None or region.end is not None:
            end = "end" if region.end is None else f"{region.end:.3f}"
            parts.append(f"{region.start or 0.0:.3f}-{end}")
        if region.channel is not None:
            parts.append(f"ch{region.channel}")
        parts += [self.label] if self.label else []
        parts += [] if self.similarity is None else [f"{self.similarity:.3f}"]
        safe = (re.sub(r"[^\w.+-]+", "-", part)[:_LONGEST].strip("-.") for part in parts)
        return "_".join(filter(None, safe)) + (".png" if self.is_picture else f".{format}")

    def write(self, to: Path, before: float = 0.0, after: float = 0.0) -> None:
        """Write it to a file. before, after: seconds of sound around it, as far as there is any.

        Sound keeps its rate, its channels and, where the format can hold them, its samples.

        Raises:
            ItemError: the source cannot be read, or has no such part.
            StoreError: the file cannot be written.
        """
        path = path_of(self.id)
        if not path.is_file():
            raise ItemError("there is no such file")
        if self.is_picture:
            picture = image.load(path, self.region.box, self.region.page)
            with _written(to) as aside:
                picture.save(aside, "PNG")
            return
        _write_sound(path, to, self.region, (before, after))


@contextmanager
def _written(to: Path) -> Iterator[Path]:
    try:
        with file_aside(to) as aside:
            yield aside
    except OSError as error:
        raise StoreError(f"{to} cannot be written: {error.strerror or error}") from error


def _write_sound(path: Path, to: Path, region: Region, around: tuple[float, float]) -> None:
    import numpy as np
    import soundfile

    try:
        about = soundfile.info(path)
        floats = about.subtype in ("FLOAT", "DOUBLE")
        rate, frames, subtype = about.samplerate, about.frames, about.subtype
    except soundfile.LibsndfileError:  # what FFmpeg reads
        about, subtype = None, "FLOAT"
        with open_stream(path, 0) as stream:
            blocks = list(stream.read(0, None))
            rate, frames = stream.rate, sum(map(len, blocks))
    start = region.start or 0.0
    first = frame_at(max(0.0, start - around[0]), rate)
    last = frames if region.end is None else min(frames, frame_at(region.end + around[1], rate))
    if first >= last or frame_at(start, rate) >= frames:
        raise RegionError(f"start {start:g} s lies beyond the end: it lasts {frames / rate:.6g} s")
    try:
        if about is None:
            samples = np.concatenate(blocks)[first:last]
        else:
            kind = "float64" if floats else "int32"
            samples, _ = soundfile.read(path, last - first, first, dtype=kind, always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise item_error(error) from error
    format = to.suffix[1:].upper()
    if not soundfile.check_format(format, subtype):
        subtype = _SUBTYPES[to.suffix[1:]]
    with _written(to) as aside:
        soundfile.write(aside, samples, rate, subtype, format=format)


def write_excerpts(
    excerpts: Sequence[Excerpt],
    folder: Path,
    format: Format = "wav",
    around: tuple[float, float] = (0.0, 0.0),
    overwrite: bool = False,
) -> tuple[list[Path], list[tuple[Excerpt, str]]]:
    """Write each excerpt to a file of the folder; gives the files, and those that failed, and why.

    around: seconds before and after.

    Raises:
        UsageError: a file is there already, without `overwrite`; nothing is written then.
        StoreError: the folder or a file cannot be written.
    """
    digits = max(4, len(str(len(excerpts))))
    named = [
        (one, folder / one.name(number, digits, format)) for number, one in enumerate(excerpts, 1)
    ]
    if not overwrite and (there := [path for _, path in named if path.exists()]):
        raise UsageError(
            f"{there[0]} exists already{f', and {len(there) - 1} more' if there[1:] else ''}; "
            "--overwrite replaces them, another --out keeps them"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror or error}") from error
    written, failed = list[Path](), list[tuple[Excerpt, str]]()
    for one, path in named:
        try:
            one.write(path, *around)
            written.append(path)
        except ItemError as error:
            failed.append((one, str(error)))
    return written, failed
