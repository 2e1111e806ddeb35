"""When a picture was taken, from its EXIF block: read by lengths, without a decoder.

JPEG (`APP1`), PNG (`eXIf`), WebP (`EXIF`), TIFF, and AVIF (the item of type `Exif`; ISO/IEC
14496-12 says where items lie, 23008-12 what is in front of the block). CIPA DC-008:
DateTimeOriginal, with OffsetTimeOriginal and SubSecTimeOriginal.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

_LONGEST = 1 << 20  # bytes of a block; JPEG's are 64 KiB at most
_BLOCKS = 1_000  # of a file
_EXIF_FOLDER = 0x8769  # the tag of the main folder with the place of EXIF's own
_TAKEN, _OFFSET, _FRACTION = 0x9003, 0x9011, 0x9291
_ASCII, _PLACES = 2, (4, 13)  # types of values
_TEXT = 64  # bytes of a value that is read: 20 of a time, 7 of an offset
_IN_TIFF = (b"II*\0", b"MM\0*")
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers of JPEG without a length


def taken(file: BinaryIO) -> tuple[str, str, str] | None:
    """Time as `2021:06:05 04:30:00`, offset from UTC as `+02:00` and digits behind the second, the
    last two perhaps empty; None where the file gives no time. file: at its beginning.

    Raises:
        OSError: it cannot be read.
        struct.error: it breaks off.
    """
    block = _block(file)
    if block is None:
        return None
    place = block.tell()
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block.read(4))
    if order is None:
        return None
    first = struct.unpack(order + "I", block.read(4))[0]
    main = _tags(block, place, first, order)
    if not isinstance(inner := main.get(_EXIF_FOLDER), int):
        return None
    tags = _tags(block, place, inner, order)
    if _TAKEN not in tags:
        return None
    return str(tags[_TAKEN]), str(tags.get(_OFFSET, "")), str(tags.get(_FRACTION, ""))


def _tags(file: BinaryIO, base: int, place: int, order: str) -> dict[int, str | int]:
    """The values of a folder that matter here, by their tags. base: what places count from."""
    file.seek(base + place)
    (count,) = struct.unpack(order + "H", file.read(2))
    entries = file.read(12 * count)
    found: dict[int, str | int] = {}
    for at in range(0, len(entries) - 11, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", entries, at)
        if tag == _EXIF_FOLDER and kind in _PLACES and length == 1:
            found[tag] = struct.unpack_from(order + "I", entries, at + 8)[0]
        elif tag in (_TAKEN, _OFFSET, _FRACTION) and kind == _ASCII and length <= _TEXT:
            value = entries[at + 8 : at + 8 + length]
            if length > 4:
                file.seek(base + struct.unpack_from(order + "I", entries, at + 8)[0])
                value = file.read(length)
            found[tag] = value.partition(b"\0")[0].decode("ascii", "replace").strip()
    return found


def _block(file: BinaryIO) -> BinaryIO | None:
    """The EXIF of a file, at its beginning; None where it has none."""
    head = file.read(12)
    if head[:4] in _IN_TIFF:
        file.seek(0)
        return file
    content = None
    if head[:2] == b"\xff\xd8":
        content = _of_jpeg(file)
    elif head[:8] == b"\x89PNG\r\n\x1a\n":
        content = _of_chunks(file, 8, ">I4s", b"eXIf")
    elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
        content = _of_chunks(file, 12, "<4sI", b"EXIF")
    elif head[4:8] == b"ftyp":
        content = _of_boxes(file)
    return None if content is None else io.BytesIO(content.removeprefix(b"Exif\0\0"))


def _of_jpeg(file: BinaryIO) -> bytes | None:
    """The segment with EXIF; where the pixels begin, the search ends."""
    file.seek(2)
    for _ in range(_BLOCKS):
        sign, marker = file.read(1), file.read(1)
        while marker == b"\xff":  # any number of them stands in front of a marker
            marker = file.read(1)
        if sign != b"\xff" or not marker or marker[0] in (0xD9, 0xDA):
            return None
        if marker[0] in _ALONE:
            continue
        length = struct.unpack(">H", file.read(2))[0] - 2
        if length < 0:
            return None
        content = file.read(length)
        if marker == b"\xe1" and content.startswith(b"Exif\0\0"):
            return content
    return None


def _of_chunks(file: BinaryIO, place: int, head: str, wanted: bytes) -> bytes | None:
    """The chunk of a PNG, which has a sum of four bytes behind it, or of a WebP, which is even."""
    for _ in range(_BLOCKS):
        file.seek(place)
        if len(start := file.read(8)) < 8:
            return None
        first, second = struct.unpack(head, start)
        name, length = (second, first) if isinstance(first, int) else (first, second)
        if name == wanted:
            return file.read(length) if length <= _LONGEST else None
        place += 8 + (length + 4 if isinstance(first, int) else length + length % 2)
    return None


def _of_boxes(file: BinaryIO) -> bytes | None:
    """The item with EXIF of an AVIF, or another picture in ISO's boxes."""
    size = file.seek(0, io.SEEK_END)
    found = {kind: (first, last) for kind, first, last in _boxes(file, 0, size)}
    if b"meta" not in found:
        return None
    start, end = found[b"meta"]
    inside = {kind: (first, last) for kind, first, last in _boxes(file, start + 4, end)}
    if not inside.keys() >= {b"iinf", b"iloc"}:
        return None
    item = _exif_item(file, *inside[b"iinf"])
    place = None if item is None else _item_place(file, *inside[b"iloc"], item)
    if place is None:
        return None
    method, at, length = place
    if method == 1 and b"idat" in inside:  # places in there, and not in the file
        at += inside[b"idat"][0]
    elif method != 0:
        return None
    if not 4 < length <= _LONGEST or at + length > size:
        return None
    file.seek(at)
    content = file.read(length)
    return content[4 + struct.unpack_from(">I", content)[0] :]


def _boxes(file: BinaryIO, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, where its content begins, where it ends) of each box in a part of a file."""
    for _ in range(_BLOCKS):
        if place + 8 > end:
            return
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if length == 1:  # the length has eight bytes
            length, head = struct.unpack(">Q", file.read(8))[0], 16
        last = end if length == 0 else place + length
        if not place + head <= last <= end:
            return
        yield kind, place + head, last
        place = last


def _exif_item(file: BinaryIO, start: int, end: int) -> int | None:
    """The number of the item with EXIF, by the box `iinf`."""
    file.seek(start)
    count = 2 if file.read(1) == b"\0" else 4
    for kind, at, _ in _boxes(file, start + 4 + count, end):
        file.seek(at)
        entry = file.read(14)
        width = {2: "H", 3: "I"}.get(entry[0]) if len(entry) == 14 else None
        if kind == b"infe" and width is not None:
            number, _, named = struct.unpack_from(f">{width}H4s", entry, 4)
            if named == b"Exif":
                return int(number)
    return None


def _item_place(file: BinaryIO, start: int, end: int, wanted: int) -> tuple[int, int, int] | None:
    """(how places count, where the item begins, its length), by the box `iloc`; of an item in one
    piece."""
    file.seek(start)
    content = io.BytesIO(file.read(min(end - start, _LONGEST)))

    def number(size: int) -> int:
        part = content.read(size)
        if len(part) < size:
            raise struct.error("the places of items break off")
        return int.from_bytes(part, "big")

    version, _ = number(1), number(3)
    sizes, more = number(1), number(1)
    wide = 4 if version == 2 else 2
    for _ in range(number(wide)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        elsewhere, base, pieces = number(2), number(more >> 4), number(2)
        places = []
        for _ in range(pieces):
            number(more & 15 if version else 0)
            places.append((number(sizes >> 4), number(sizes & 15)))
        if item == wanted:
            whole = len(places) == 1 and not elsewhere
            return (method, base + places[0][0], places[0][1]) if whole else None
    return None
