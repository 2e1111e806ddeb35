"""When a recording began, from its header or its file's name. Knows no collection and no model.

Forms of names: AudioMoth (`20210605_043000.WAV`, before 2019 hexadecimal seconds `5E90A4D4.WAV`),
Song Meter (`SITE_20210605_043000.wav`), SWIFT (`…_20210605_043000Z`), BAR-LT
(`20210605T043000+1000`), and dates with dashes. Headers of WAV: GUANO (`guan`), Wildlife Acoustics
(`wamd`), AudioMoth's comment (`LIST`, `ICMT`), broadcast extension (`bext`). FLAC, Ogg Vorbis and
Opus: the comment `DATE`, where it has a time of day, and AudioMoth's as a comment. Pictures: EXIF.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from penult.data import exif
from penult.data.files import file_size
from penult.data.items import Entry, Failure, Item
from penult.errors import ItemError, UsageError

RECORDED_AT = "recorded_at"  # the column of rows, a timestamp in UTC
CLOCK = ""  # in place of a time zone: as the recorder's clock showed, taken for UTC

_EARLIEST, _LATEST = 1980, 2099  # years; a recorder whose clock was not set writes 1970
_APART = timedelta(minutes=1)  # a header and a name that differ by more contradict each other
_NAMED = 5  # contradictions in a description
_LONGEST = 1 << 20  # bytes of a header's chunk; voice notes in `wamd` are longer
_CHUNKS = 1_000  # of a file
_OFFSET = r"(?P<zone>[Zz]|[+-](?:0\d|1[0-4]):?(?:00|15|30|45)(?!\d))?"
_COMPACT = re.compile(
    r"(?<!\d)(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)[_T$ -]?"
    r"(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d)(?:\.?(?P<fraction>\d{3}))?(?!\d)" + _OFFSET
)
_DASHED = re.compile(
    r"(?<!\d)(?P<year>\d{4})([-_.])(?P<month>\d\d)\2(?P<day>\d\d)[T_ -]"
    r"(?P<hour>\d\d)(?P<between>[-_.:]?)(?P<minute>\d\d)(?P=between)(?P<second>\d\d)"
    r"(?:\.(?P<fraction>\d{3}))?(?!\d)" + _OFFSET
)
_HEXADECIMAL = re.compile(r"(?=.*[A-Fa-f])[5-7][0-9A-Fa-f]{7}")  # seconds, from 2012 to 2038
_COMMENT = re.compile(
    r"Recorded at (\d\d):(\d\d):(\d\d)(?:\.(?P<fraction>\d{1,3}))? (\d\d)/(\d\d)/(\d{4}) "
    r"\(UTC(?P<zone>[+-]\d{1,2}(?::?[0-5]\d)?)?\)"
)
_WAMD_TIME = 5  # the field of `wamd` with the time


def in_name(name: str) -> datetime | None:
    """The time that a file's name gives, with its zone if it has one; None where it gives none, or
    one that cannot be."""
    stem = Path(name).stem
    if _HEXADECIMAL.fullmatch(stem):
        return datetime.fromtimestamp(int(stem, 16), UTC)
    for pattern in (_COMPACT, _DASHED):
        for found in pattern.finditer(stem):
            parts = ("year", "month", "day", "hour", "minute", "second", "fraction", "zone")
            *numbers, fraction, zone = found.group(*parts)
            if (when := _moment(numbers, fraction, zone)) is not None:
                return when
    return None


def _moment(
    numbers: Sequence[str], fraction: str | None = None, zone: str | None = None
) -> datetime | None:
    """numbers: year, month, day, hour, minute, second. fraction: digits behind the point."""
    try:
        when = datetime(*map(int, numbers), tzinfo=_offset(zone) if zone else None)  # type: ignore[misc, arg-type]
    except ValueError:  # of an offset too: there is no UTC+99
        return None
    return _possible(when + timedelta(milliseconds=int((fraction or "0").ljust(3, "0")[:3])))


def _possible(when: datetime) -> datetime | None:
    return when if _EARLIEST <= when.year <= _LATEST else None


def _offset(text: str) -> tzinfo:
    """`Z`, `+02:00`, `-0330` or `+2` as a zone."""
    if text in "Zz":
        return UTC
    digits = text[1:].replace(":", "")
    hours, minutes = (digits, "0") if len(digits) <= 2 else (digits[:-2], digits[-2:])
    size = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-size if text[0] == "-" else size)


def in_header(content: object) -> datetime | None:
    """The time that a file's header gives; of several, one that has its zone goes first.

    Raises:
        OSError, ItemError: it cannot be read at all.
    """
    if not isinstance(content, Path):
        return None
    file_size(content)  # refuses a pipe, which could block for ever
    found = list[datetime]()
    with content.open("rb") as file, suppress(struct.error):  # where it breaks off
        found += (when for when in _moments(file) if when is not None)
    return next((when for when in found if when.tzinfo is not None), found[0] if found else None)


def _moments(file: BinaryIO) -> Iterator[datetime | None]:
    """What a header says: of the chunks of a WAV file the ones that are exact first."""
    start = file.read(12)
    file.seek(0)
    if start[:4] in (b"fLaC", b"OggS"):
        yield from map(_of_tag, _vorbis_comments(file, is_flac=start[:4] == b"fLaC"))
        return
    if start[8:] != b"WAVE":
        yield _of_picture(file)
        return
    chunks = _header_chunks(file)
    yield _of_guano(chunks.get(b"guan", b""))
    yield _of_wamd(chunks.get(b"wamd", b""))
    yield _of_comment(chunks.get(b"LIST", b""))
    yield _of_broadcast(chunks.get(b"bext", b""))


def _header_chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """The chunks that may hold a time, by their names."""
    wanted = (b"guan", b"wamd", b"LIST", b"bext")
    found: dict[bytes, bytes] = {}
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return {}
    long = 0
    for _ in range(_CHUNKS):
        name, size = file.read(4), file.read(4)
        if len(size) < 4:
            break
        length = struct.unpack("<I", size)[0]
        place = file.tell()
        if name == b"ds64":
            sizes = file.read(16)
            long = struct.unpack("<Q", sizes[8:])[0] if len(sizes) == 16 else 0
        elif name in wanted and length <= _LONGEST:
            content = file.read(length)
            if name != b"LIST" or content[:4] == b"INFO":
                found.setdefault(name, content)
        if name == b"data" and length == 0xFFFFFFFF and long:
            length = long
        file.seek(place + length + length % 2)
    return found


def _of_guano(chunk: bytes) -> datetime | None:
    """`Timestamp: 2021-06-05T04:30:00+02:00`, a line of many."""
    found = re.search(r"^Timestamp\s*:\s*(\S.*?)\s*$", _text(chunk), re.MULTILINE)
    return _of_iso(found[1]) if found else None


def _of_wamd(chunk: bytes) -> datetime | None:
    """Fields of a number, a length and a content; the time is `2021-06-05 04:30:00+02:00`."""
    place = 0
    while place + 6 <= len(chunk):
        number, length = struct.unpack_from("<HI", chunk, place)
        if number == _WAMD_TIME:
            return _of_iso(_text(chunk[place + 6 : place + 6 + length]).strip())
        place += 6 + length
    return None


def _of_iso(text: str) -> datetime | None:
    try:
        return _possible(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _of_comment(chunk: bytes) -> datetime | None:
    """AudioMoth: `Recorded at 04:30:00 05/06/2021 (UTC+2) by AudioMoth …`."""
    found = _COMMENT.search(_text(chunk))
    if not found:
        return None
    hour, minute, second, _, day, month, year, _ = found.groups()
    numbers = (year, month, day, hour, minute, second)
    return _moment(numbers, found["fraction"], found["zone"] or "Z")


def _of_broadcast(chunk: bytes) -> datetime | None:
    """OriginationDate and OriginationTime of EBU Tech 3285: `2021-06-05`, `04:30:00`, any signs
    between."""
    found = re.fullmatch(r"(\d{4}).(\d\d).(\d\d)(\d\d).(\d\d).(\d\d)", _text(chunk[320:338]))
    return _moment(found.groups()) if found else None


def _of_picture(file: BinaryIO) -> datetime | None:
    """EXIF's `2021:06:05 04:30:00`."""
    time, offset, fraction = exif.taken(file) or ("", "", "")
    found = re.fullmatch(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)", time)
    zone = offset if re.fullmatch(_OFFSET, offset) else None
    return _moment(found.groups(), re.sub(r"\D.*", "", fraction), zone) if found else None


def _vorbis_comments(file: BinaryIO, is_flac: bool) -> Iterator[str]:
    """`DATE=2021-06-05T04:30:00Z` and others."""
    block = _flac_comments(file) if is_flac else _ogg_comments(file)
    (length,) = struct.unpack_from("<I", block)
    place = 4 + length  # behind the encoder's name
    (count,) = struct.unpack_from("<I", block, place)
    place += 4
    for _ in range(min(count, _CHUNKS)):
        (length,) = struct.unpack_from("<I", block, place)
        yield _text(block[place + 4 : place + 4 + length])
        place += 4 + length


def _flac_comments(file: BinaryIO) -> bytes:
    """The block of comments; struct.error where there is none."""
    file.seek(4)
    for _ in range(_CHUNKS):
        (head,) = struct.unpack(">I", file.read(4))
        kind, length = head >> 24, head & 0xFFFFFF
        if kind & 0x7F == 4:  # the first bit: it is the last block
            return file.read(min(length, _LONGEST))
        if kind & 0x80:
            break
        file.seek(length, 1)
    return b""


def _ogg_comments(file: BinaryIO) -> bytes:
    """The comments of the second packet of an Ogg file, which may lie on several pages."""
    packets = [b""]
    while len(packets) < 3 and sum(map(len, packets)) < _LONGEST:
        page = file.read(27)
        if page[:4] != b"OggS" or len(page) < 27:
            break
        for size in file.read(page[26]):
            packets[-1] += file.read(size)
            if size < 255:  # a packet ends with a shorter piece
                packets.append(b"")
    for start in (b"\x03vorbis", b"OpusTags"):
        if len(packets) > 1 and packets[1].startswith(start):
            return packets[1][len(start) :]
    return b""


def _of_tag(tag: str) -> datetime | None:
    name, _, value = tag.partition("=")
    if name.upper() == "DATE" and re.match(r"\S{8,10}[T ]\d", value):  # not a day alone
        return _of_iso(value.strip())
    return _of_comment(value.encode()) if name.upper() in ("COMMENT", "DESCRIPTION") else None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").replace("\0", " ")


@dataclass(slots=True, eq=False)
class RecordingTimes:
    """Reads when items were recorded, and counts what it meets.

    zone: for times that carry none, `Europe/Berlin`, `UTC`, `+02:00`, or CLOCK. anew: also of files
    whose rows have their time, since that was read with another zone. dated: items that
    have a time; undated: items that have none; without_zone: of the dated ones, those whose time
    is in the time zone that was given. contradictions: by id, header and name that
    are more than a minute apart.
    """

    zone: str = CLOCK
    anew: bool = False
    dated: int = 0
    undated: int = 0
    without_zone: int = 0
    contradictions: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        parse_zone(self.zone)  # refused now

    def of(self, item: Item) -> datetime | None:
        """The beginning of an item in UTC; None where nothing says it.

        A time that carries its zone goes before one that carries none, and a header before a name.
        """
        if not isinstance(item.content, Path):
            return None
        try:
            header = in_header(item.content)
        except (OSError, ItemError):  # told where it is embedded
            header = None
        given = [when for when in (header, in_name(item.content.name)) if when is not None]
        given.sort(key=lambda when: when.tzinfo is None)
        known = [self._in_utc(when) for when in given]
        with self._lock:
            self.dated += bool(given)
            self.undated += not given
            self.without_zone += bool(given) and given[0].tzinfo is None
            if len(known) == 2 and abs(known[0] - known[1]) > _APART:
                self.contradictions[item.id] = f"{_words(known[0])}, not {_words(known[1])}"
        return known[0] if known else None

    def entry(self, entry: Entry) -> Entry:
        """A region of an item with the item's beginning."""
        if isinstance(entry, Failure):
            return entry
        return replace(entry[0], recorded_at=self.of(entry[0])), entry[1]

    def _in_utc(self, when: datetime) -> datetime:
        return (when if when.tzinfo else when.replace(tzinfo=parse_zone(self.zone))).astimezone(UTC)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult embed --json` prints it."""
        return {
            "zone": self.zone or None,
            "dated": self.dated,
            "undated": self.undated,
            "without_zone": self.without_zone,
            "contradictions": {
                "count": len(self.contradictions),
                "first": dict(islice(self.contradictions.items(), _NAMED)),
            },
        }

    def words(self) -> list[str]:
        """What is to be told of a run, line by line."""
        told = []
        if self.dated or self.undated:
            without = f", {self.undated:,} without" if self.undated else ""
            told.append(f"times: {self.dated:,} files with a date{without}")
        if self.without_zone:
            meant = f"{self.zone} (--time-zone)" if self.zone else "UTC; --time-zone names another"
            told.append(f"{self.without_zone:,} of the times carry no zone: taken for {meant}")
        if self.contradictions:
            id, words = next(iter(self.contradictions.items()))
            told.append(
                f"{len(self.contradictions):,} files whose header and name give different times, "
                f"the first is {id}: {words} is taken"
            )
        return told


def _words(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}"


def parse_zone(name: str) -> tzinfo:
    """A zone of the IANA database, `UTC`, or an offset such as `+02:00`; CLOCK is UTC.

    Raises:
        UsageError: it is none of them.
    """
    if name == CLOCK or name.upper() in ("UTC", "Z"):
        return UTC
    if re.fullmatch(r"[+-](?:0?\d|1[0-4])(?::?[0-5]\d)?", name):
        return _offset(name)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"--time-zone {name!r} is no time zone; UTC, +02:00 and names such as Europe/Berlin are"
        ) from error


def at(item: Item, start: float | None) -> dict[str, datetime]:
    """The column `recorded_at` of a region that begins `start` seconds into an item; empty where
    the item's own beginning is not known, so that a table's column of this name stays."""
    if item.recorded_at is None:
        return {}
    return {RECORDED_AT: item.recorded_at + timedelta(seconds=start or 0.0)}
