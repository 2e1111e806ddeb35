"""Objects of S3, Google Cloud Storage and Azure as paths: listing, ranges of bytes, conditional
writes, and retries that are told. Nothing here is imported for a path of this machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import random
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from penult.data.items import Failure, Item, Placed, checked_uri
from penult.data.regions import WHOLE
from penult.errors import DecodeError, ItemError, PassingFault, SourceError, StoreError, UsageError
from penult.extras import require

log = logging.getLogger(__name__)
T = TypeVar("T")

_SMALL = 1 << 20  # bytes of an object that is read at once
_BLOCK, _LARGEST_BLOCK = 1 << 18, 1 << 22  # bytes of one range: more as reading goes on forwards
_KEPT_BLOCKS = 4
_TRIES = 7
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds
_PAGE = 1000  # objects of one answer to a listing


class ObjectFault(OSError):
    """A store that does not answer, or refuses, in words without an address that could hold a
    secret; passing, as a disk that fails is."""

    def __init__(self, words: str) -> None:
        super().__init__(errno.EIO, words)

    def __str__(self) -> str:
        return str(self.strerror)


class Conflict(Exception):
    """A conditional write found another version than it was to replace."""


class StoredObject(NamedTuple):
    """An object as a listing has it. etag: of its content, or its version."""

    uri: str
    size: int
    etag: str
    modified: datetime


class Status(NamedTuple):
    """What `Path.stat` tells, of an object. st_ino, st_mtime_ns: of its version, the latter below
    zero, as the time of no file is."""

    st_mode: int
    st_ino: int
    st_size: int
    st_mtime_ns: int
    st_dev: int = 0
    st_mtime: float = 0.0


def version_number(etag: str) -> int:
    """An ETag or a version as the integer that stands in the column `mtime_ns`; below zero."""
    digest = hashlib.blake2b(etag.encode(), digest_size=8).digest()
    return -1 - (int.from_bytes(digest) >> 2)


class ObjectPath(type(Path())):  # type: ignore[misc]
    """A path such as `s3://bucket/folder/file.wav`. Reading asks the store, writing is one
    conditional or plain put; `etag`: the version that is meant, where it is known.

    failure: why bytes of it could not be had, where a decoder in C cannot be told.
    """

    size: int | None = None
    etag: str | None = None
    failure: ItemError | None = None

    def __new__(cls, *parts: Any, size: int | None = None, etag: str | None = None) -> ObjectPath:
        made: ObjectPath = super().__new__(cls, *parts)
        made.size, made.etag = size, etag
        return made

    def __init__(self, *parts: Any, size: int | None = None, etag: str | None = None) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(*parts)

    def __str__(self) -> str:
        return re.sub(r"^([a-z0-9]+):/+", r"\1://", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (str(self), self.size, self.etag)

    @property
    def content_hash(self) -> str:
        """What stands for the hash of the content: only the store has read it."""
        return f"etag:{self._known().etag}"

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> ObjectPath:
        return self

    def resolve(self, strict: bool = False) -> ObjectPath:
        return self

    def expanduser(self) -> ObjectPath:
        return self

    def _known(self) -> StoredObject:
        if self.size is not None and self.etag is not None:
            return StoredObject(str(self), self.size, self.etag, datetime.min)
        if _fetch is not read_range:  # what the run did not find is not asked for again
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return head(str(self))

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        found = self._known()
        number = version_number(found.etag)
        return Status(stat.S_IFREG | 0o444, -number, found.size, number)

    lstat = stat

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        try:
            self._known()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return next(listed(f"{self}/"), None) is not None

    def size_below(self) -> int:
        """Bytes of all objects below the path."""
        return sum(one.size for one in listed(f"{self}/"))

    def is_symlink(self) -> bool:
        return False

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """A store has no folders."""

    def iterdir(self) -> Iterator[ObjectPath]:
        for name in names_below(f"{self}/"):
            yield self / name

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} can be opened to read bytes, not {mode!r}")
        return RangeReader(self)

    def open_quietly(self) -> RangeReader:
        """For a decoder in C, see `RangeReader`."""
        return RangeReader(self, quiet=True)

    def read_bytes(self) -> bytes:
        return read(str(self))[0] if self.etag is None else RangeReader(self).read()

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def put_text(self, text: str) -> None:
        """Replaces what is there, or makes it, in one step.

        Raises:
            ObjectFault: somebody else has written it meanwhile.
        """
        try:
            over: str | None = head(str(self)).etag
        except FileNotFoundError:
            over = None
        try:
            put(str(self), text.encode(), over=over, new=over is None)
        except Conflict:
            raise ObjectFault("another process has written it meanwhile; try again") from None

    def write_bytes(self, data: Any) -> int:
        put(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def unlink(self, missing_ok: bool = False) -> None:
        delete(str(self))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise StoreError(
            f"{self} is an object of a store, and this works on a disk only: copy the collection "
            "to one"
        )

    rename = replace = rmdir = touch = symlink_to = hardlink_to = chmod = glob = rglob = _refuse


def _restored(uri: str, size: int | None, etag: str | None) -> ObjectPath:
    return ObjectPath(uri, size=size, etag=etag)


_KNOWN_FOR, _MOST_KNOWN = 60.0, 256  # seconds, and paths: a table names one recording many times
_known_paths: dict[str, tuple[ObjectPath, float]] = {}


def known_path(name: str) -> ObjectPath:
    """The path that a table names, with the size and the version that its object has; without
    them where there is none.

    Raises:
        SourceError: as `checked_uri`.
    """
    uri = checked_uri(name)
    path, since = _known_paths.get(uri, (None, 0.0))
    if path is not None and time.monotonic() - since < _KNOWN_FOR:
        return path
    path = ObjectPath(uri)
    with contextlib.suppress(OSError):
        found = head(uri)
        path = ObjectPath(uri, size=found.size, etag=found.etag)
    while len(_known_paths) >= _MOST_KNOWN:
        _known_paths.pop(next(iter(_known_paths)), None)
    _known_paths[uri] = path, time.monotonic()
    return path


# ---- one store


_SCHEMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}


def _parts(uri: str) -> tuple[str, str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


def settings() -> tuple[tuple[str, str], ...]:
    """What the environment says of stores: another store for other settings."""
    own = ("AWS_", "GOOGLE_", "AZURE_")
    return tuple(sorted(one for one in os.environ.items() if one[0].startswith(own)))


def lance_options(uri: str) -> dict[str, str]:
    """What Lance's own client is told beside what it takes from the environment itself.

    Raises:
        UsageError: as `check_endpoint`.
    """
    check_endpoint(_parts(uri)[0])
    return {"client_max_retries": "10"}


@lru_cache(maxsize=16)
def _store(scheme: str, bucket: str, _: object) -> Any:
    """Where credentials come from is the store's own affair: AWS_…, GOOGLE_…, AZURE_… of the
    environment, or the machine's role."""
    stores = require("obstore.store")
    check_endpoint(scheme)
    try:
        # Retries are ours, since those of the library are told nobody.
        return getattr(stores, _SCHEMES[scheme])(
            bucket, retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=600)}
        )
    except Exception as error:
        raise UsageError(
            f"{scheme}://{bucket} cannot be used: {type(error).__name__}. Are the credentials of "
            f"the environment complete ({_VARIABLES[scheme]})?"
        ) from None


_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def check_endpoint(scheme: str) -> None:
    """Refuse to send anything in plain text, unless that is allowed.

    Raises:
        UsageError: the endpoint begins with http://, and AWS_ALLOW_HTTP is not true; or it has
            credentials in it.
    """
    endpoint = next(
        (os.environ[one] for one in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
         if os.environ.get(one)), ""
    )  # fmt: skip
    if "@" in endpoint.partition("://")[2].partition("/")[0]:
        raise UsageError(
            "AWS_ENDPOINT_URL has credentials in it, which would stand in logs; give them as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
    if scheme == "s3" and endpoint.lower().startswith("http://") and not allowed:
        raise UsageError(
            "AWS_ENDPOINT_URL begins with http://, which sends all of it in plain text; give an "
            "https:// address, or set AWS_ALLOW_HTTP=true for a store on your own network"
        )


def _asked(uri: str, what: str, ask: Callable[[Any, str], T]) -> T:
    """Asks a store, and again after a pause that doubles where it fails; each time is logged.

    Raises:
        FileNotFoundError: there is no such object. PermissionError: no access.
        Conflict: a condition was not met. ObjectFault: it fails again and again.
    """
    errors = require("obstore.exceptions")
    scheme, bucket, key = _parts(uri)
    store = _store(scheme, bucket, settings())
    for number in range(1, _TRIES + 1):
        try:
            return ask(store, key)
        except (FileNotFoundError, errors.NotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError):
            raise PermissionError(errno.EACCES, "no permission", uri) from None
        except (errors.AlreadyExistsError, errors.PreconditionError) as error:
            raise Conflict(uri) from error
        except Exception as error:
            words = _words(error)
            if number == _TRIES:
                raise ObjectFault(
                    f"{uri}: the store fails at {what}, {number} times: {words}"
                ) from None
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (number - 1))
            pause *= random.uniform(0.5, 1.0)  # noqa: S311
            log.warning("%s: %s failed (%s); again in %.1f s", uri, what, words, pause)
            time.sleep(pause)
    raise AssertionError


def _words(error: Exception) -> str:
    """What a library says of a failed request, without the address and the headers of that."""
    text = str(error)
    if found := re.search(r"status(?: code)?:? ?\(?(\d{3})", text) or re.search(
        r"\b(5\d\d) [A-Z]", text
    ):
        return f"status {found[1]}"
    for sign, words in (("timed out", "no answer in time"), ("timeout", "no answer in time"),
                        ("connect", "no connection"), ("body", "the answer broke off"),
                        ("credential", "no credentials")):  # fmt: skip
        if sign in text.lower():
            return words
    return type(error).__name__


def head(uri: str) -> StoredObject:
    """One object's size and version.

    Raises:
        OSError: as `_asked`.
    """
    obstore = require("obstore")
    return _found(uri, _asked(uri, "head", obstore.head))


def _found(uri: str, meta: Any) -> StoredObject:
    etag = meta["e_tag"] or meta["version"] or meta["last_modified"].isoformat()
    return StoredObject(uri, int(meta["size"]), str(etag), meta["last_modified"])


def read(uri: str) -> tuple[bytes, StoredObject]:
    """A whole object, and its version.

    Raises:
        OSError: as `_asked`.
    """
    obstore = require("obstore")

    def ask(store: Any, key: str) -> tuple[bytes, StoredObject]:
        answer = obstore.get(store, key)
        return bytes(answer.bytes()), _found(uri, answer.meta)

    return _asked(uri, "read", ask)


def read_range(uri: str, start: int, stop: int, etag: str | None) -> bytes:
    """Bytes of an object, of this version where one is given.

    Raises:
        Conflict: it has another version now. OSError: as `_asked`.
    """
    obstore = require("obstore")
    options: dict[str, Any] = {"range": (start, stop)}
    if etag and etag.startswith(('"', "W/")):
        options["if_match"] = etag
    return _asked(
        uri, "read", lambda store, key: bytes(obstore.get(store, key, options=options).bytes())
    )


def put(uri: str, content: bytes, *, over: str | None = None, new: bool = False) -> str:
    """Writes an object in one step; gives its ETag. over: the one that it replaces; new: it
    replaces none.

    Raises:
        Conflict: there is another one. OSError: as `_asked`.
    """
    obstore = require("obstore")
    mode: Any = "create" if new else {"e_tag": over} if over is not None else "overwrite"
    tried = 0

    def ask(store: Any, key: str) -> str:
        nonlocal tried
        tried += 1
        return str(obstore.put(store, key, content, mode=mode, use_multipart=False)["e_tag"])

    try:
        return _asked(uri, "write", ask)
    except Conflict:
        # A write whose answer was lost may have been done: then what is there is what was written.
        if tried > 1:
            with contextlib.suppress(FileNotFoundError):
                there, found = read(uri)
                if there == content:
                    return found.etag
        raise


def delete(uri: str) -> None:
    """Takes an object away; one that is not there is no error."""
    obstore = require("obstore")
    with contextlib.suppress(FileNotFoundError):
        _asked(uri, "delete", obstore.delete)


def listed(prefix: str) -> Iterator[StoredObject]:
    """The objects whose names begin so, in the store's order, a page at a time. After a fault it
    goes on behind the last one.

    Raises:
        OSError: as `_asked`.
    """
    obstore = require("obstore")
    scheme, bucket, _ = _parts(prefix)
    last: str | None = None
    while True:
        stream: Any = None

        def page(store: Any, key: str, after: str | None = last) -> Any:
            nonlocal stream
            if stream is None:
                stream = obstore.list(store, key.rstrip("/") or None, offset=after,
                                      chunk_size=_PAGE)  # fmt: skip
            try:
                return next(stream, None)
            except BaseException:
                stream = None
                raise

        found = _asked(prefix, "list", page)
        if not found:
            return
        for meta in found:
            last = str(meta["path"])
            uri = f"{scheme}://{bucket}/{last}"
            if uri.startswith(prefix):
                yield _found(uri, meta)


def names_below(prefix: str) -> list[str]:
    """The names of what lies directly below a prefix.

    Raises:
        OSError: as `_asked`.
    """
    obstore = require("obstore")

    def ask(store: Any, key: str) -> Any:
        return obstore.list_with_delimiter(store, key.rstrip("/") or None)

    found = _asked(prefix, "list", ask)
    paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
    return sorted({str(one).rstrip("/").rpartition("/")[2] for one in paths})


# ---- bytes of an object, a range at a time


Fetch = Callable[[str, int, int, str | None], bytes]
_fetch: Fetch = read_range


def fetch_by(fetch: Fetch) -> None:
    """In a process without a network: who is asked for the bytes instead."""
    global _fetch
    _fetch = fetch


def fetched(path: ObjectPath, start: int, stop: int) -> bytes:
    """Bytes of the version that is meant.

    Raises:
        DecodeError: there is no such object, or another version by now.
        PassingFault: no permission, or a store that fails.
    """
    try:
        return _fetch(str(path), start, stop, path.etag)
    except FileNotFoundError as error:
        raise DecodeError(f"no such object: {path}") from error
    except Conflict as error:
        raise DecodeError(
            f"was replaced by another version while it was read: {path}; the next run embeds that"
        ) from error
    except PermissionError as error:
        raise PassingFault(f"no permission to read: {path}") from error
    except OSError as error:
        raise PassingFault(f"cannot be read: {error}") from error


# Of the object that was read last: its blocks by where they begin, the latest last. A file is
# opened several times in a row, to look at its header and to decode it.
_last: tuple[tuple[str, str | None], dict[int, bytes]] = ("", None), {}


def _blocks_of(path: ObjectPath) -> dict[int, bytes]:
    global _last
    key = str(path), path.etag
    if _last[0] != key or path.etag is None:
        _last = key, {}
    return _last[1]


class RangeReader(io.RawIOBase):
    """An object as a file: ranges are asked for as they are read, larger ones as reading goes on
    forwards. quiet: a failure ends the file and is noted in the path, for a decoder in C."""

    def __init__(self, path: ObjectPath, quiet: bool = False) -> None:
        found = path.stat()
        self._path, self._size, self._quiet = path, int(found.st_size), quiet
        self._place, self._next = 0, _BLOCK
        self._blocks = _blocks_of(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            if self._quiet:  # as damaged headers ask for
                return self._place
            raise ValueError(f"a seek to {base + offset}")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        found = self.read(len(view))
        view[: len(found)] = found
        return len(found)

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._place + size)
        parts: list[bytes] = []
        while self._place < stop:
            try:
                part = self._part(stop)
            except ItemError as error:
                if not self._quiet:
                    raise OSError(errno.EIO, str(error)) from error
                self._path.failure = error
                break
            parts.append(part)
            self._place += len(part)
        return b"".join(parts)

    def readall(self) -> bytes:
        return self.read(-1)

    def _part(self, stop: int) -> bytes:
        """What is here from the place on, up to `stop`; at least one byte."""
        for begin, block in list(self._blocks.items()):
            if begin <= self._place < begin + len(block):
                return block[self._place - begin : stop - begin]
        begin = self._place
        if self._size <= _SMALL:
            begin, end = 0, self._size
        else:
            follows = any(at + len(one) == begin for at, one in list(self._blocks.items()))
            self._next = min(_LARGEST_BLOCK, 2 * self._next) if follows else _BLOCK
            end = min(self._size, max(stop if stop - begin <= 8 * _LARGEST_BLOCK else 0,
                                      begin + self._next))  # fmt: skip
        block = fetched(self._path, begin, end)
        if len(block) != end - begin:
            raise PassingFault(f"the store gave {len(block)} bytes of {end - begin}: {self._path}")
        self._blocks[begin] = block
        while len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.pop(next(iter(self._blocks)), None)
        return block[self._place - begin : stop - begin]


# ---- objects as items


def entries_at(name: str, accepted: frozenset[str]) -> Callable[[], Iterator[Placed]]:
    """The items of an object, or of all below a prefix, listed as they are asked for.

    Raises:
        SourceError: nothing fits, or no store answers.
    """
    uri = checked_uri(name)
    try:
        if not uri.endswith("/"):
            with contextlib.suppress(FileNotFoundError):
                found = head(uri) if _parts(uri)[2] else None
                if found is not None:
                    return lambda: iter([(0, _entry(head(uri)))])
        prefix = f"{uri.rstrip('/')}/"
        first = next(_fitting(prefix, accepted), None)
    except OSError as error:
        raise SourceError(f"{uri} cannot be listed: {error.strerror or error}") from error
    if first is None:
        kinds = " ".join(sorted(accepted))
        raise SourceError(
            f"there is no object {uri}, and below {prefix} none"
            + (f" that is {kinds}" * bool(kinds))
        )
    return lambda: _objects(prefix, accepted)


def _objects(prefix: str, accepted: frozenset[str]) -> Iterator[Placed]:
    try:
        for found in _fitting(prefix, accepted):
            yield 0, _entry(found)
    except OSError as error:
        raise SourceError(
            f"{prefix} cannot be listed further: {error.strerror or error}"
        ) from error


def _fitting(prefix: str, accepted: frozenset[str]) -> Iterator[StoredObject]:
    for found in listed(prefix):
        parts = found.uri[len(prefix) :].split("/")
        name = parts[-1]
        dot = name.rfind(".")
        suffix = name[dot:].lower() if 0 < dot < len(name) - 1 else ""
        if name and suffix in accepted and not any(part.startswith(".") for part in parts):
            yield found


def _entry(found: StoredObject) -> Any:
    path = ObjectPath(found.uri, size=found.size, etag=found.etag)
    if str(path) != found.uri:
        words = "a name with empty parts, or with . among them, cannot be the path of an item"
        return Failure(found.uri, WHOLE.key, SourceError.__name__, words)
    return Item(found.uri, path, {}, found.size, version_number(found.etag)), WHOLE
