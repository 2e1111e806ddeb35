"""Containers of sound as they lie on the disk: recordings joined in one file, headers that are
contradicted by what lies behind them. Nothing is decoded.

Most files are as they should be, and read as they are. Elsewhere a file becomes parts, each made of
pieces: stretches of the file, and header bytes as they should be.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from penult.data.items import is_object
from penult.errors import DecodeError

Piece = bytes | tuple[int, int]  # bytes of a header, or a stretch of the file
Part = tuple[Piece, ...]

PLACEHOLDER = 0x7FFFF000  # what writers that cannot seek back leave as a length, or more
_BLOCK = 1 << 20
_NEGLIGIBLE = 64  # bytes behind a chunk of sound that are none
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_RECORDINGS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM")
_CONSTANT_RATE = {1, 3, 6, 7, 0xFFFE}  # PCM, float, A-law, µ-law: a byte rate is exact
# Where a second header of the same kind begins, a second recording does. The first bytes of a file,
# and how many of them are the same in each recording.
_SIGNATURES = {
    b"fLaC\0\0\0\x22": 8,
    b"caff\0\1": 8,
    b".snd": 8,
    b"TTA1": 8,
    b"riff\x2e\x91\xcf\x11": 16,  # W64
    b"Creative Voice File\x1a": 20,
    b"NIST_1A\n": 16,
    b"\x64\xa3": 16,  # IRCAM
    b"\x1a\x45\xdf\xa3": 16,  # Matroska
}


@dataclass(frozen=True, slots=True)
class Survey:
    """How to read a file.

    parts: empty where it is read as it is. notes: what its header has wrong, while the sound was
    read. cut: what shows that its end is missing. lost: how many bytes of sound are missing for
    each one that is there; None where this is not known.
    """

    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    cut: str = ""
    lost: float | None = None


class Spliced(io.RawIOBase):
    """Pieces of a file read as one file. A seek to before the beginning goes nowhere."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self._file, self._place = file, 0
        self._pieces: list[tuple[int, int, Piece]] = []
        size = 0
        for piece in part:
            length = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            self._pieces.append((size, size + length, piece))
            size += length
        self._size = size

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, and give it."""
        place = (0, self._place, self._size)[whence] + offset
        if place >= 0:
            self._place = place
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As many of the next bytes as the buffer takes and there are."""
        got = self.read(len(buffer))
        buffer[: len(got)] = got
        return len(got)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, up to `size` of them."""
        stop = self._size if size < 0 else min(self._size, self._place + size)
        found = []
        for begin, end, piece in self._pieces:
            first, last = max(begin, self._place), min(end, stop)
            if first >= last:
                continue
            if isinstance(piece, bytes):
                found.append(piece[first - begin : last - begin])
            else:
                self._file.seek(piece[0] + first - begin)
                found.append(self._file.read(last - first))
        self._place = max(self._place, stop)
        return b"".join(found)


@contextmanager
def opened(content: Path | bytes) -> Iterator[BinaryIO]:
    """The file of a path, or bytes as a file."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        yield file


def survey(content: Path | bytes) -> Survey:
    """How a file is to be read.

    Raises:
        DecodeError: a failing disk.
    """
    try:
        with opened(content) as file:
            return _survey(_Raw(file, isinstance(content, Path) and is_object(content)))
    except (
        struct.error,
        IndexError,
        ValueError,
    ):  # a header without rhyme or reason is for the decoders
        return Survey()
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or error}") from error


def _survey(raw: _Raw) -> Survey:
    head = raw.at(0, 20)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _wave(raw)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(raw)
    if head[:4] == b"OggS":
        return _ogg(raw)
    if head[4:8] == b"ftyp":
        return _boxes(raw)
    if head[:3] == b"ID3" or _mpeg_frame(head):
        return _mpeg(raw)
    for begin, length in _SIGNATURES.items():
        if head.startswith(begin):
            found = _joined(raw, head[:length])
            return found if found.parts else _single(raw, begin)
    return Survey()


_SEARCHED = 1 << 20  # bytes


class _Raw:
    """Bytes of a file by their place."""

    def __init__(self, file: BinaryIO, is_stored: bool = False) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        # Of a large object in a store not every byte is read to find further recordings in it.
        self.is_searched = not is_stored or self.size <= _SEARCHED

    def at(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(max(0, size))

    def number(self, place: int, form: str) -> int:
        """0 where the file ends before."""
        data = self.at(place, struct.calcsize(form))
        return int(struct.unpack(form, data)[0]) if len(data) == struct.calcsize(form) else 0

    def find(self, wanted: bytes, start: int, stop: int | None = None) -> int:
        """The first place from `start` on; -1 if there is none."""
        stop, overlap = self.size if stop is None else stop, len(wanted) - 1
        while start < stop:
            found = self.at(start, min(_BLOCK, stop - start)).find(wanted)
            if found >= 0:
                return start + found
            start += max(1, _BLOCK - overlap)
        return -1

    def is_filling(self, start: int) -> bool:
        """Whether nothing but one byte follows, again and again: 0, or 0xFF of erased memory."""
        first = self.at(start, 1)
        while start < self.size:
            block = self.at(start, _BLOCK)
            if block.count(first) != len(block):
                return False
            start += len(block)
        return True


def _slices(starts: list[int], size: int) -> tuple[Part, ...]:
    """Parts that begin at these places; none where there is one only."""
    if len(starts) < 2:
        return ()
    return tuple(((begin, end),) for begin, end in pairwise([*starts, size]))


def _joined(raw: _Raw, signature: bytes) -> Survey:
    starts = [0]
    if not raw.is_searched:
        return Survey()
    while (found := raw.find(signature, starts[-1] + len(signature))) >= 0:
        starts.append(found)
    return Survey(_slices(starts, raw.size))


def _single(raw: _Raw, begin: bytes) -> Survey:
    readers: dict[bytes, Callable[[_Raw], Survey]]
    readers = {b".snd": _au, b"fLaC": _flac, b"caff": _caf, b"riff": _w64, b"NIST": _nist}
    reader = readers.get(begin[:4])
    return Survey() if reader is None else reader(raw)


# ---- chunks: WAV, AIFF


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def _chunks(raw: _Raw, place: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, its length) of each chunk; one without its padding byte is
    followed too."""
    while _is_name(name := raw.at(place, 4)):
        length = raw.number(place + 4, f"{order}I")
        yield name, place + 8, length
        place += 8 + length
        if length % 2 and not _is_name(raw.at(place, 4)):
            place += 1


def _follows(raw: _Raw, end: int, order: str) -> tuple[str, int]:
    """What lies behind a chunk of sound: `nothing` to be read, `recording`, or `sound`; and where
    the recording begins, which other chunks may stand in front of."""
    for place in (end + end % 2, end):
        if raw.size - place < _NEGLIGIBLE or raw.at(place, 11).startswith(_TAGS):
            return "nothing", end
        last = None
        for name, begin, length in _chunks(raw, place, order):
            if name in _RECORDINGS and (
                begin - 8 == place or raw.at(begin, 4) in (b"WAVE", b"AIFF", b"AIFC")
            ):
                return "recording", begin - 8
            last = begin + length
        # Chunks up to the end; of the last one the padding or a part may be missing.
        if last is not None and raw.size - 8 <= last <= raw.size + 1:
            return "nothing", end
        if last is not None and raw.at(place, 4) in (b"LIST", b"id3 ", b"bext", b"iXML", b"cue "):
            return "nothing", end
    if any(name in raw.at(end, 64) for name in (b"LIST", b"id3 ")) or raw.is_filling(end):
        return "nothing", end
    return "sound", end


@dataclass(slots=True)
class _Sound:
    """Stretches of sound in a file of chunks, and what its header has wrong."""

    stretches: list[tuple[int, int]]
    notes: list[str]
    rebuilt: bool = False  # it can't be read as it is
    next: int | None = None  # where another recording begins
    cut: str = ""
    lost: float = 0.0


def _sound_of(raw: _Raw, begin: int, length: int, order: str, found: _Sound) -> None:
    """Add a chunk of sound whose header gives that length."""
    rest = raw.size - begin
    end = begin + length
    if length >= rest:
        found.stretches.append((begin, raw.size))
        if rest < length <= rest + begin:  # the size of the file, it seems
            found.notes.append(
                f"the header gives {length:,} bytes of sound and {rest:,} lie there; all were read"
            )
        elif rest < length < PLACEHOLDER:
            found.lost = (length - rest) / max(1, rest)
            found.cut = f"the header gives {length:,} bytes of sound and {rest:,} lie there"
        return
    after, place = _follows(raw, end, order)
    if after == "recording":
        found.next = place
    if after != "sound":
        found.stretches.append((begin, end))
        return
    found.stretches.append((begin, raw.size))
    found.rebuilt = True
    found.notes.append(
        f"the header gives {length:,} bytes of sound and {rest:,} lie there; read to the end"
    )


def _wave(raw: _Raw) -> Survey:
    order = ">" if raw.at(0, 4) == b"RIFX" else "<"
    form, found, odd = b"", _Sound([], []), False
    sizes, place = raw.at(0, 4) in (b"RF64", b"BW64"), 12
    long = 0
    for name, begin, length in _chunks(raw, 12, order):
        odd = odd or begin - 8 != place + place % 2
        odd = odd or (name == b"fmt " and form != b"") or (name == b"data" and not form)
        place = begin + length
        if name == b"ds64":
            long = raw.number(begin + 8, "<Q")
        elif name == b"fmt " and not form:
            form = raw.at(begin, length)
        elif name == b"data":
            length = long if sizes and length >= PLACEHOLDER else length
            _sound_of(raw, begin, length, order, found)
            if found.next is not None or found.stretches[-1][1] == raw.size:
                break
    if len(form) < 16 or not found.stretches:
        return Survey()
    _check_byte_rate(form, order, found)
    stretch = _first_stretch(found)
    first: Part = ((0, raw.size if found.next is None else found.next),)
    if found.rebuilt or len(found.stretches) > 1 or odd:
        first = _wave_header(form, stretch, order)
    elif found.next is None:
        return Survey((), tuple(found.notes), found.cut, found.lost)
    rest = () if found.next is None else _rest(raw, found.next)
    return Survey((first, *rest), tuple(found.notes), found.cut, found.lost)


def _check_byte_rate(form: bytes, order: str, found: _Sound) -> None:
    code, _, rate, told, align, _ = struct.unpack(f"{order}HHIIHH", form[:16])
    if code in _CONSTANT_RATE and told != rate * align:
        found.notes.append(
            f"the header gives {told:,} bytes a second, and its rate and frame size make "
            f"{rate * align:,}; the rate of {rate:,} Hz was taken"
        )


def _first_stretch(found: _Sound) -> tuple[int, int]:
    """The first chunk that has any sound, as sox and FFmpeg take it; the others are told."""
    filled = [one for one in found.stretches if one[1] > one[0]] or found.stretches
    if len(filled) > 1:
        left = sum(end - begin for begin, end in filled[1:])
        found.notes.append(
            f"{len(filled)} chunks of sound; the first was read, as sox and FFmpeg do, and "
            f"{left:,} bytes of sound behind it were not"
        )
    return filled[0]


def _wave_header(form: bytes, stretch: tuple[int, int], order: str) -> Part:
    size = stretch[1] - stretch[0]
    told = min(size, 0xFFFFFFFF)
    chunk = b"fmt " + struct.pack(f"{order}I", len(form)) + form + bytes(len(form) % 2)
    whole = min(4 + len(chunk) + 8 + size, 0xFFFFFFFF)
    magic = b"RIFX" if order == ">" else b"RIFF"
    head = magic + struct.pack(f"{order}I", whole) + b"WAVE" + chunk
    return (head + b"data" + struct.pack(f"{order}I", told), stretch)


def _rest(raw: _Raw, start: int) -> tuple[Part, ...]:
    """Recordings of chunks that follow the first one, each by its own length."""
    parts: list[Part] = []
    while start is not None and start < raw.size:
        order = "<" if raw.at(start, 4) in (b"RIFF", b"RF64") else ">"
        size = raw.number(start + 4, f"{order}I")
        if raw.at(start + 12, 4) == b"ds64":
            size = raw.number(start + 20, "<Q")
        end = start + 8 + size
        ends = (p for p in (end + end % 2, end) if raw.at(p, 4) == raw.at(start, 4))
        following = next(ends, raw.size)
        parts.append(((start, following),))
        start = following
    return tuple(parts)


def _aiff(raw: _Raw) -> Survey:
    found, common = _Sound([], []), 0
    for name, begin, length in _chunks(raw, 12, ">"):
        if name == b"COMM":
            common = begin
        elif name == b"SSND":
            # Eight bytes of offset and block size come first.
            _sound_of(raw, begin + 8, max(0, length - 8), ">", found)
            break
    if not found.stretches or not common:
        return Survey()
    if found.next is not None:
        return Survey((((0, found.next),), *_rest(raw, found.next)), lost=0.0)
    if not found.rebuilt or common > found.stretches[0][0]:
        return Survey((), tuple(found.notes), found.cut, found.lost)
    begin, end = found.stretches[0]
    head = bytearray(raw.at(0, begin))
    channels, bits = raw.number(common, ">H"), raw.number(common + 6, ">H")
    frame = max(1, channels * ((bits + 7) // 8))
    struct.pack_into(">I", head, 4, end - 8)
    struct.pack_into(">I", head, common + 2, (end - begin) // frame)
    struct.pack_into(">I", head, begin - 12, end - begin + 8)
    return Survey(((bytes(head), (begin, end)),), tuple(found.notes), lost=0.0)


def _au(raw: _Raw) -> Survey:
    begin, length = raw.number(4, ">I"), raw.number(8, ">I")
    rest = raw.size - begin
    if length >= rest or rest <= 0 or raw.is_filling(begin + length):
        return Survey()
    head = bytearray(raw.at(0, begin))
    struct.pack_into(">I", head, 8, 0xFFFFFFFF)
    note = f"the header gives {length:,} bytes of sound and {rest:,} lie there; read to the end"
    return Survey(((bytes(head), (begin, raw.size)),), (note,))


def _nist(raw: _Raw) -> Survey:
    """A header of lines, `sample_count -i 48000`; libsndfile counts what is there."""
    lines = raw.at(0, 1024).split(b"\n")
    size = int(lines[1]) if len(lines) > 1 and lines[1].strip().isdigit() else 0
    fields = dict(line.split(b" -i ", 1) for line in lines if b" -i " in line)
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if not size or not all(fields.get(name, b"").strip().isdigit() for name in names):
        return Survey()
    count, channels, width = (int(fields[name]) for name in names)
    length, rest = count * channels * width, raw.size - size
    if not 0 < rest < length:
        return Survey()
    words = f"the header gives {length:,} bytes of sound and {rest:,} lie there"
    return Survey((), (), words, (length - rest) / rest)


def _caf(raw: _Raw) -> Survey:
    place = 8
    while _is_name(name := raw.at(place, 4)):
        length = raw.number(place + 4, ">q")
        if name == b"data":
            # Four bytes of an edit count come first.
            return _long_chunk(raw, place + 4, ">q", (place + 16, length - 4), 4)
        place += 12 + max(0, length)
    return Survey()


def _w64(raw: _Raw) -> Survey:
    place = 40
    while len(name := raw.at(place, 16)) == 16:
        length = raw.number(place + 16, "<q")
        if name.startswith(b"data"):
            # The size has the 24 bytes of name and size in it.
            return _long_chunk(raw, place + 16, "<q", (place + 24, length - 24), 24)
        if length < 24:
            break
        place += length + -length % 8
    return Survey()


def _long_chunk(raw: _Raw, field: int, form: str, sound: tuple[int, int], more: int) -> Survey:
    """field: where the size of the chunk is written, which is by `more` larger than its sound.
    sound: where it begins, and its length by that size."""
    begin, length = sound
    rest = raw.size - begin
    after = raw.at(begin + max(0, length), 16) if length < rest else b""
    named = _is_name(after[:4]) and len(after) == 16  # another chunk
    if length == rest or rest <= 0:
        return Survey()
    if 0 < length < rest and (named or raw.is_filling(begin + length)):
        return Survey()
    head = bytearray(raw.at(0, begin))
    struct.pack_into(form, head, field, rest + more)
    part: Part = (bytes(head), (begin, raw.size))
    words = f"the header gives {max(0, length):,} bytes of sound and {rest:,} lie there"
    if length > rest:
        return Survey((part,), (), words, (length - rest) / rest)
    unknown = length + more == -1  # which CAF has for a recording under way
    return Survey((part,), () if unknown else (f"{words}; read to the end",), lost=0.0)


# ---- pages: Ogg


def _ogg(raw: _Raw) -> Survey:
    """Links of a chain: each begins with pages that have the mark of a beginning."""
    starts: list[int] = []
    place, began, ended = 0, False, False
    while place < raw.size:
        head = raw.at(place, 282)
        if head[:4] != b"OggS":
            place = raw.find(b"OggS", place + 1)
            if place < 0:
                break
            continue
        if len(head) < 27 or len(head) < 27 + head[26]:
            return _ogg_survey(raw, starts, cut=True)
        if head[5] & 2 and not began:
            starts.append(place)
        began, ended = bool(head[5] & 2), bool(head[5] & 4)
        place += 27 + head[26] + sum(head[27 : 27 + head[26]])
    return _ogg_survey(raw, starts, cut=place > raw.size, ended=ended)


def _ogg_survey(raw: _Raw, starts: list[int], cut: bool, ended: bool = True) -> Survey:
    notes = (
        ()
        if ended
        else ("ends without the mark of the last page: a live stream, or cut off; read to its end",)
    )
    starts = starts if starts[:1] == [0] else [0, *starts]
    return Survey(_slices(starts, raw.size), notes, "ends inside a page of Ogg" if cut else "")


# ---- boxes: MP4


def _boxes(raw: _Raw) -> Survey:
    starts, place = [0], 0
    while place + 8 <= raw.size:
        size, name = raw.number(place, ">I"), raw.at(place + 4, 4)
        if name == b"ftyp" and place:
            starts.append(place)
        size = raw.number(place + 8, ">Q") if size == 1 else size
        if size < 8:
            break
        place += size
    return Survey(_slices(starts, raw.size))


# ---- frames: MPEG layers, FLAC

_KBITS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mpeg_frame(head: bytes) -> int:
    """The length of the frame with this header; 0 where it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    index, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return 0
    bits = 1000 * _KBITS[1 if version == 3 else 2, layer][index]
    hertz, pad = _RATES[version][rate], head[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // hertz + pad) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // hertz + pad


def _tag_size(raw: _Raw, place: int) -> int:
    """Bytes of an ID3 tag at this place, 0 where there is none."""
    head = raw.at(place, 10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _mpeg(raw: _Raw) -> Survey:
    """Recordings whose first frame has their length; behind it the next one begins."""
    starts, place = [0], 0
    while (end := _mpeg_end(raw, place)) and (following := _mpeg_start(raw, end)) is not None:
        starts.append(following)
        place = following
    return Survey(_slices(starts, raw.size))


def _mpeg_end(raw: _Raw, place: int) -> int:
    """Where the recording ends that begins here, by its own header; 0 if it has no length."""
    while size := _tag_size(raw, place):
        place += size
    head = raw.at(place, 200)
    if not _mpeg_frame(head):
        return 0
    mark = max(head.find(b"Xing"), head.find(b"Info"))
    if mark < 0:
        return 0
    flags = int.from_bytes(head[mark + 4 : mark + 8], "big")
    counts = [int.from_bytes(head[mark + 8 + 4 * i : mark + 12 + 4 * i], "big") for i in (0, 1)]
    if flags & 2 and counts[flags & 1]:
        return place + counts[flags & 1]
    return _frames_end(raw, place, counts[0] + 1) if flags & 1 else 0


def _frames_end(raw: _Raw, place: int, count: int) -> int:
    while count and (size := _mpeg_frame(raw.at(place, 4))):
        place, count = place + size, count - 1
    return place


def _mpeg_start(raw: _Raw, end: int) -> int | None:
    """Where another recording begins, at this place or shortly behind; an ID3v2 tag belongs to
    it, and other tags to what stands before."""
    place = end
    while place < min(end + 4096, raw.size):
        head = raw.at(place, 8)
        if head[:3] == b"ID3":
            return place
        if head[:3] == b"TAG":
            place = end = place + 128
        elif head == b"APETAGEX":  # a header, what it tells the length of, and in it a footer
            header = raw.number(place + 20, "<I") & 1 << 29
            place = end = place + 32 + (raw.number(place + 12, "<I") if header else 0)
        elif _mpeg_frame(head) and _frames_end(raw, place, 3) >= place + 3 * 24:
            return place
        else:
            place += 1
    return None


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


def _flac(raw: _Raw) -> Survey:
    """A header with fewer samples than the last frame's place; a tag of MP3 at the end."""
    if raw.size > 170 and raw.at(raw.size - 128, 3) == b"TAG":
        return Survey((((0, raw.size - 128),),))  # which libsndfile takes for a damaged frame
    head = raw.at(0, 42)
    total = int.from_bytes(head[21:26], "big") & 0xFFFFFFFFF
    end = _flac_end(raw, int.from_bytes(head[10:12], "big"))
    if not total or end <= total:
        return Survey()
    mended = bytearray(head)
    mended[21] = mended[21] & 0xF0 | end >> 32
    mended[22:26] = (end & 0xFFFFFFFF).to_bytes(4, "big")
    note = f"the header gives {total:,} frames and {end:,} lie there; read to the end"
    return Survey(((bytes(mended), (42, raw.size)),), (note,))


def _flac_end(raw: _Raw, block: int) -> int:
    """The number of samples up to the end of the last frame, by its header; 0 if none is found."""
    begin = max(42, raw.size - (1 << 18))
    tail = raw.at(begin, raw.size - begin)
    place = len(tail)
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        if (end := _flac_frame_end(tail[place : place + 16], block)) > 0:
            return end
    return 0


def _flac_frame_end(head: bytes, block: int) -> int:
    """The last sample of the frame with this header; 0 where it is none."""
    if len(head) < 16 or head[1] not in (0xF8, 0xF9) or head[3] & 1:
        return 0
    width = 1 if head[4] < 0x80 else 8 - (head[4] ^ 0xFF).bit_length()
    if not 1 <= width <= 7:
        return 0
    number = head[4] if width == 1 else head[4] & (0x7F >> width)
    for byte in head[5 : 4 + width]:
        if byte & 0xC0 != 0x80:
            return 0
        number = number << 6 | byte & 0x3F
    code, place = head[2] >> 4, 4 + width
    extra = {6: 1, 7: 2}.get(code, 0)
    size = int.from_bytes(head[place : place + extra], "big") + 1 if extra else _flac_size(code)
    place += extra + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if not size or place >= len(head) or _crc8(head[:place]) != head[place]:
        return 0
    return number + size if head[1] & 1 else number * block + size


def _flac_size(code: int) -> int:
    if code == 1:
        return 192
    if 2 <= code <= 5:
        return 576 << code - 2
    return 256 << code - 8 if code >= 8 else 0
