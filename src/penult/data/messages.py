"""Messages between a run and the processes that decode for it: a header in JSON, bytes behind it.

Nothing in a message can run. What such a process sends is checked word for word: it may be owned by
a flaw of a decoder.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from penult import errors
from penult.data.audio import AudioInfo
from penult.data.bytes import FileEnds
from penult.data.decode import HEADERS, Content, DecodedRegion, DecodeTarget, Header, HeaderPart
from penult.data.items import Item, is_object
from penult.data.regions import Region
from penult.errors import ItemError

_SIZES = struct.Struct("<QQ")  # bytes of the header and of the body
LONGEST_HEADER = 1 << 24  # bytes, of what a process sends
_MOST_INFO = 1 << 22  # bytes, of what a picture says of itself
_LONGEST_WORDS = 1 << 16
_SMALL = 1 << 16  # bytes of a body that memory is taken for before any of it is there
_PIECES = 256  # that one call writes

# What decoding gives, by modality: type and number of axes.
_ARRAYS: dict[str, tuple[np.dtype[Any], int]] = {
    "audio": (np.dtype(np.float32), 1),
    "video": (np.dtype(np.uint8), 4),
    "image": (np.dtype(np.uint8), 3),
}
_ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ItemError)
}

Head = dict[str, Any]
_ENCODER = json.JSONEncoder(separators=(",", ":"), default=np.generic.item)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """A region's content, or why there is none; and the seconds that decoding it took."""

    content: Content | ItemError
    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A process is there. bounds: what enforces the bounds of its doings, by name. failure: why it
    is not. open: what it could do nevertheless, where it was to try that."""

    bounds: tuple[str, ...]
    failure: str = ""
    open: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """What a process is told first: what to decode to, and how many bytes of memory that may take
    beyond what it has taken by then (None: as many as there are). trial: a folder, with a file,
    that it is to try its bounds on."""

    target: DecodeTarget
    memory: int | None = None
    trial: str | None = None


Parts = list[bytes | memoryview]  # of messages, one behind the other


def packed(header: Head, body: bytes | memoryview = b"") -> Parts:
    """One message as bytes."""
    text = _ENCODER.encode(header).encode()
    return [_SIZES.pack(len(text), len(body)) + text, *([body] if len(body) else [])]


def write(pipe: int, parts: Parts) -> None:
    """Write messages to a pipe, in as few calls as it takes."""
    rest = [memoryview(part) for part in reversed(parts)]
    while rest:
        count = os.writev(pipe, rest[: -_PIECES - 1 : -1])
        while rest and count >= len(rest[-1]):
            count -= len(rest.pop())
        if count:
            rest[-1] = rest[-1][count:]


def send(pipe: int, header: Head, body: bytes | memoryview = b"") -> None:
    """Write one message to a pipe."""
    write(pipe, packed(header, body))


def _received(pipe: IO[bytes], longest: int, most: int) -> tuple[Head, np.ndarray]:
    """A message's header and body (n,) uint8.

    Raises:
        EOFError: the pipe ends.
        ValueError: it is no message, or a longer one than these bytes.
    """
    sizes = pipe.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        raise EOFError
    head, size = _SIZES.unpack(sizes)
    if head > longest or size > most:
        raise ValueError(f"a message of {head} and {size} bytes is too long")
    header = _DECODER.decode(bytes(_bytes(pipe, head)).decode())
    if not isinstance(header, dict):
        raise ValueError("a message without a header")
    return header, _bytes(pipe, size)


def _bytes(pipe: IO[bytes], size: int) -> Any:
    if size <= _SMALL:
        data = bytearray(size)
        if pipe.readinto(data) < size:  # type: ignore[attr-defined]
            raise EOFError
        return data
    # Pages that nothing is read into take no memory, whatever size was promised.
    body = np.empty(size, np.uint8)
    got, rest = 0, body.data
    while got < size:
        count = pipe.readinto(rest[got:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        got += count
    return body


# From the run to a process.


def start_header(start: Start) -> Head:
    """The first message to a process."""
    return asdict(start)


def read_start(pipe: IO[bytes]) -> Start:
    """The reverse of `start_header`."""
    header, _ = _received(pipe, LONGEST_HEADER, 0)
    return Start(**header | {"target": DecodeTarget(**header["target"])})


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """Regions of one item. more: another task follows at once, and the answers to both may come
    together."""

    pairs: list[tuple[Item, Region]]
    more: bool = False


def send_tasks(pipe: int, tasks: Sequence[list[tuple[Item, Region]]]) -> None:
    """Regions of one item or several, each a file or bytes, whose answers may come together."""
    last = len(tasks) - 1
    write(pipe, [part for at, pairs in enumerate(tasks) for part in _task(pairs, at < last)])


def _task(pairs: list[tuple[Item, Region]], more: bool) -> Parts:
    content, rate = pairs[0][0].content, pairs[0][0].rate
    regions = [
        (
            one.kind,
            one.start,
            one.end,
            one.channel,
            one.box,
            one.annotation,
            one.page,
            one.chars,
            one.patch,
        )
        for _, one in pairs
    ]
    header: Head = {"regions": regions, "rate": rate, "more": more}
    if isinstance(content, Path) and is_object(content):
        known = [getattr(content, name, None) for name in ("size", "etag")]
        return packed(header | {"object": [str(content), *known]})
    if isinstance(content, Path):
        return packed(header | {"path": os.path.abspath(content)})  # noqa: PTH100
    assert isinstance(content, bytes)
    return packed(header, content)


def send_target(pipe: int, target: DecodeTarget) -> None:
    """What the tasks that follow are to be decoded to."""
    send(pipe, {"target": asdict(target)})


def read_task(pipe: IO[bytes]) -> DecodeTask | DecodeTarget:
    """One of the tasks of `send_tasks`, where the item has no name; the reverse of
    `send_target`."""
    header, body = _BACKLOG.popleft() if _BACKLOG else _received(pipe, 1 << 62, 1 << 62)
    if "target" in header:
        return DecodeTarget(**header["target"])
    content: Any = Path(header["path"]) if "path" in header else bytes(body)
    if "object" in header:
        from penult.data.object_store import ObjectPath

        uri, size, etag = header["object"]
        content = ObjectPath(uri, size=size, etag=etag)
    item = Item("", content, rate=header["rate"])
    return DecodeTask([(item, _region(*values)) for values in header["regions"]], header["more"])


# Bytes of an object: a process without a network asks the run for them, and works on once it has
# them. Tasks that come before the answer wait.

_BACKLOG: deque[tuple[Head, Any]] = deque()
_LONGEST_RANGE = 1 << 31


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """A range of bytes that a process asks for."""

    uri: str
    start: int
    stop: int


def ask_range(pipe: int, tasks: IO[bytes], uri: str, start: int, stop: int) -> bytes:
    """In a process: bytes of an object, from the run.

    Raises:
        ItemError: as the run met it.
    """
    send(pipe, {"range": [uri, start, stop]})
    while True:
        header, body = _received(tasks, 1 << 62, 1 << 62)
        if "range" in header:
            return bytes(body)
        if "refused" in header:
            name, words = header["refused"]
            raise _ERRORS[name](words)
        _BACKLOG.append((header, body))


def range_of(message: tuple[Head, Any]) -> RangeRequest | None:
    """The range that a message asks for; None where it is an answer.

    Raises:
        ValueError, TypeError: it is no range.
    """
    if "range" not in message[0]:
        return None
    uri, start, stop = message[0]["range"]
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
        raise ValueError("no range of bytes")
    if stop - start > _LONGEST_RANGE:
        raise ValueError("too many bytes")
    return RangeRequest(_words(uri), start, stop)


def send_range(pipe: int, found: bytes | ItemError) -> None:
    """The answer to a request."""
    if isinstance(found, ItemError):
        known = next(kind for kind in type(found).__mro__ if kind.__name__ in _ERRORS)
        send(pipe, {"refused": [known.__name__, str(found)[:_LONGEST_WORDS]]})
    else:
        send(pipe, {"range": len(found)}, found)


def _region(kind: str, start: Any, end: Any, channel: Any, box: Any, *rest: Any) -> Region:
    annotation, page, chars, patch = rest
    box, chars = (None if pair is None else tuple(pair) for pair in (box, chars))
    return Region(kind, start, end, channel, box, annotation, page, chars, patch)


# From a process to the run.


def send_ready(pipe: int, ready: Ready) -> None:
    """That a process is there, or why not."""
    send(pipe, asdict(ready) | {"failure": ready.failure[:_LONGEST_WORDS]})


def read_ready(pipe: IO[bytes]) -> Ready:
    """The reverse of `send_ready`.

    Raises:
        EOFError, ValueError, KeyError, TypeError: it is none.
    """
    header, _ = _received(pipe, LONGEST_HEADER, 0)
    bounds, free = (tuple(_words(one) for one in header[name]) for name in ("bounds", "open"))
    return Ready(bounds, _words(header["failure"]), free)


def send_answer(pipe: int, decoded: DecodedRegion) -> None:
    """A region's content, or why there is none."""
    write(pipe, packed_answer(decoded))


def packed_answer(decoded: DecodedRegion) -> Parts:
    """What `send_answer` writes."""
    content = decoded.content
    if isinstance(content, ItemError):
        known = next(kind for kind in type(content).__mro__ if kind.__name__ in _ERRORS)
        words = str(content)[:_LONGEST_WORDS]
        return packed({"seconds": decoded.seconds, "error": [known.__name__, words]})
    header: Head = {
        "seconds": decoded.seconds,
        "span": (content.start, content.end),
        "pages": content.pages,
        "notes": [note[:_LONGEST_WORDS] for note in content.notes],
        "left": content.left,
    }
    values = content.values
    if isinstance(values, HEADERS):
        return packed(header | {"values": _plain_header(values)})
    if isinstance(values, str):
        return packed(header, values.encode("utf-8", "surrogatepass"))
    if isinstance(values, FileEnds):
        sizes = {"ends": len(values.first), "size": values.size}
        return packed(header | sizes, values.first + values.last)
    if isinstance(values, np.ndarray):
        header["type"] = values.dtype.str
        flat = np.ascontiguousarray(values).reshape(-1)
        return packed(header | {"shape": values.shape}, flat.view(np.uint8).data)
    shape = (values.height, values.width, 3)
    return packed(header | {"shape": shape, "info": _plain(values.info)}, values.tobytes())


def read_answer(
    pipe: IO[bytes], modality: str, most: int, part: HeaderPart | None = None
) -> WorkerAnswer:
    """The reverse of `send_answer`. most: bytes that a content may have. part: of a header that is
    to be the content.

    Raises:
        EOFError, ValueError, KeyError, TypeError, MemoryError, RecursionError: it is none.
    """
    return answer_of(receive_answer(pipe, most), modality, part)


def receive_answer(pipe: IO[bytes], most: int) -> tuple[Head, Any]:
    """An answer that is not looked at yet. most: bytes that a content may have.

    Raises:
        EOFError, ValueError, MemoryError, RecursionError: it is no message.
    """
    return _received(pipe, LONGEST_HEADER, most)


def answer_of(
    message: tuple[Head, Any], modality: str, part: HeaderPart | None = None
) -> WorkerAnswer:
    """A message as what was asked for; see `read_answer`.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    header, body = message
    seconds = float(header["seconds"])
    if not seconds >= 0:
        raise ValueError("no seconds")
    if "error" in header:
        name, words = header["error"]
        return WorkerAnswer(_ERRORS[name](_words(words)), seconds)
    (start, end), pages = header["span"], header["pages"]
    left = header["left"]
    if (pages is not None and type(pages) is not int) or type(left) is not int:
        raise TypeError("no pages")
    notes = tuple(_words(note) for note in header["notes"])
    if part:
        values = _header_of(header["values"], part, modality)
    else:
        values = _values(header, body, modality)
    return WorkerAnswer(Content(values, _time(start), _time(end), pages, notes, left), seconds)


def _values(header: Head, body: Any, modality: str) -> Any:
    if modality == "text":
        return bytes(body).decode("utf-8", "surrogatepass")
    if modality == "bytes":
        return _ends(header, bytes(body))
    if modality == "array":
        return _any_array(header, body)
    kind, axes = _ARRAYS[modality]
    shape = header["shape"]
    whole = all(type(size) is int and size >= 0 for size in shape)
    if not whole or len(shape) != axes or math.prod(shape) * kind.itemsize != len(body):
        raise ValueError(f"{len(body)} bytes of the shape {shape}")
    if axes > 1 and shape[-1] != 3:
        raise ValueError(f"{shape[-1]} colours")
    if modality == "image":
        return _picture(shape, body, header["info"])
    return np.frombuffer(body, kind).reshape(shape)


def _ends(header: Head, body: bytes) -> FileEnds:
    first, size = header["ends"], header["size"]
    if type(first) is not int or type(size) is not int or not 0 <= first <= len(body):
        raise ValueError("no ends of a file")
    return FileEnds(body[:first], body[first:], size)


def _any_array(header: Head, body: Any) -> Any:
    kind, shape = np.dtype(_words(header["type"])), header["shape"]
    whole = all(type(size) is int and size >= 0 for size in shape)
    if kind.kind not in "biuf" or not whole or math.prod(shape) * kind.itemsize != len(body):
        raise ValueError(f"{len(body)} bytes of {kind} and the shape {shape}")
    return np.frombuffer(body, kind).reshape(shape)


def _picture(shape: list[int], body: Any, info: Any) -> Any:
    from PIL import Image

    height, width, _ = shape
    if not height or not width:
        raise ValueError("a picture without pixels")
    picture = Image.frombuffer("RGB", (width, height), body, "raw", "RGB", 0, 1)
    picture.info = dict(_entries(info))
    return picture


def _plain(info: Mapping[Any, Any]) -> list[tuple[str, str, Any]]:
    """What a picture says of itself, as far as it is numbers, words and bytes: (name, type, value)
    each."""
    kept, room = [], _MOST_INFO
    for name, value in info.items():
        kind, plain = type(value).__name__, value
        if isinstance(value, bytes):
            plain = value.hex()
        elif isinstance(value, tuple) and all(type(one) in (int, float) for one in value):
            kind = "tuple"
        elif type(value) not in (int, float, str, bool):
            continue
        room -= 64 + (len(plain) if isinstance(plain, str | tuple) else 0)
        if isinstance(name, str) and room >= 0:
            kept.append((name, kind, plain))
    return kept


def _entries(info: list[Any]) -> Iterator[tuple[str, Any]]:
    for name, kind, plain in info:
        if kind == "bytes":
            yield _words(name), bytes.fromhex(_words(plain))
        elif kind == "tuple":
            yield _words(name), tuple(one for one in plain if type(one) in (int, float))
        elif type(plain) in (int, float, str, bool):
            yield _words(name), plain


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("no time")
    return value  # type: ignore[no-any-return]


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no words")
    return value


def _plain_header(header: Header) -> Any:
    """A header as numbers and words, for JSON."""
    return astuple(header) if isinstance(header, AudioInfo) else header


_SOUND = (int, int, int, float, bool, int, str)
_LARGEST = 1 << 53  # of any number


def _header_of(values: Any, part: HeaderPart, modality: str) -> Header:
    """The reverse of `_plain_header`.

    Raises:
        ValueError, TypeError: it is no header of that kind.
    """
    if part == "pages":
        return int(_number(values, int, 1))
    if part == "size":
        width, height = values
        return int(_number(width, int, 1)), int(_number(height, int, 1))
    if part == "length" and modality == "video":
        return float(_number(values, float))
    if len(values) != len(_SOUND):
        raise ValueError("no header of sound")
    for value, kind in zip(values, _SOUND, strict=True):
        if kind in (int, float):
            _number(value, kind)
        elif type(value) is not kind:
            raise TypeError("no header of sound")
    return AudioInfo(*values)


def _number(value: Any, kind: type, least: int = 0) -> float:
    if type(value) not in (int, kind) or not least <= value <= _LARGEST or math.isnan(value):
        raise ValueError("no number of a header")
    return value  # type: ignore[no-any-return]
