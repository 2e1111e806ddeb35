"""docs/formats.md: what is read of every container × codec that is written here, measured.

`python scripts/make_formats.py` writes the page, `--print` prints it; tests/test_formats.py
measures it again and compares.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from penult.data import audio  # noqa: E402
from penult.data.audio_stream import open_stream  # noqa: E402
from penult.data.items import Failure, Item  # noqa: E402
from penult.data.regions import WHOLE  # noqa: E402
from penult.data.windows import Layout  # noqa: E402
from penult.errors import ItemError  # noqa: E402
from sound_formats import FORMATS, LENGTHS, Format, other_length, samples, written  # noqa: E402

PAGE = ROOT / "docs" / "formats.md"
HEAD = """# Formats of sound

What comes out of every container and codec that libsndfile and FFmpeg (by PyAV) write here: 3 s of
sound written, changed as the column says, and read. `python scripts/make_formats.py` measures it
and writes this page; `tests/test_formats.py` fails where it differs.

- **all**: every sample that went in, and no more; **+n**: n more at the end, the padding of a
  codec's last block; **−n**: n that the encoder left out.
- **note**: read, and told that the header is wrong (printed by every command, `notes` of `embed
  --json`).
- **windows**: the item is a failure that names what is missing; with `--window` what is there is
  embedded, and the rest is the failure.
- **failure**: refused with the reason.
- **up to the cut**: nothing in such a file has its length, so that no reader can know that there
  was more.

`joined`: two recordings put one behind the other. `truncated`: cut after 60 % of the bytes. The
last four: the header's length is 0, half of what is there, left open as by a writer into a pipe,
or three times what is there.

"""
COLUMNS = ("whole", "joined", "truncated", "length 0", "too short", "left open", "too long")


def outcome(raw: bytes, format: Format, n: int) -> str:
    """How a file of n samples is read, in a few words."""
    try:
        clip = audio.load(raw, WHOLE, format.rate)
    except ItemError:
        return _in_windows(raw)
    more = len(clip.samples) - n
    if more < -4 * 1152 and not clip.notes:
        return "up to the cut"
    words = "all" if not more else f"+{more}" if more > 0 else f"−{-more}"
    return words + (", note" if clip.notes else "")


def _in_windows(raw: bytes) -> str:
    entries = list(Layout(0.1).apply([(Item("a", raw), WHOLE)], "audio"))
    regions = [entry[1] for entry in entries if not isinstance(entry, Failure)]
    found = list(audio.load_many(raw, regions, 16000))
    return "windows" if any(isinstance(one, audio.Clip) for one in found) else "failure"


def reader(raw: bytes) -> str:
    """The library that decodes a file."""
    with open_stream(raw, 0) as stream:
        return "FFmpeg" if "container" in stream.read.__qualname__ else "libsndfile"


def row(format: Format) -> list[str] | None:
    """One line of the table; None where this build of the library has no encoder."""
    n = 3 * format.rate
    try:
        raw = written(format, samples(n, format.rate))
    except Exception as error:
        if format.by_ffmpeg and type(error).__module__.startswith("av."):
            return None
        raise
    other = written(format, samples(n, format.rate, 1))
    cells = [format.name, reader(raw), outcome(raw, format, n), outcome(raw + other, format, 2 * n)]
    cells.append(outcome(raw[: len(raw) * 6 // 10], format, n))
    if not format.name.startswith(LENGTHS) or format.by_ffmpeg:
        return [*cells, *["–"] * 4]
    size = len(raw) // 64 * 64
    lengths = (0, size // 2, None, 3 * size)
    return [*cells, *(outcome(other_length(format.name, raw, one), format, n) for one in lengths)]


def page() -> str:
    """The page, measured now."""
    rows = [found for format in FORMATS if (found := row(format)) is not None]
    lines = [["container and codec", "read by", *COLUMNS], ["---"] * (2 + len(COLUMNS)), *rows]
    return HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Write the page, or print it."""
    logging.disable()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "--print" in sys.argv:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
