"""Access to a collection in an object store: leases in place of a disk's locks. A lease is a small
object that is written on a condition and renewed as long as its holder lives; one that is not
renewed may be taken by whoever waits for it. Whoever takes it sets a fence, since its holder may be
only late: what that one has begun to commit fails then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from penult.data import object_store
from penult.data.object_store import Conflict
from penult.errors import StoreError

log = logging.getLogger(__name__)
LEASE = 30.0  # seconds without a renewal behind which a holder counts as gone
RENEWALS = 5  # in that time
POLL = 0.2  # seconds between two looks at a lease that somebody holds
INSTANT = 1.0  # seconds for which somebody may hold what is not waited for
TURN = "turn.lease"


class Lease:
    """A lock that one holds at a time, with the interface of a lock on a disk. It has a text, its
    `sign`, which stays when it is freed."""

    def __init__(self, uri: str) -> None:
        self.uri, self._token = uri, uuid.uuid4().hex
        self._guard = threading.RLock()
        self._etag = self._sign = ""  # while it is held
        self._seen: tuple[str, float] = "", 0.0  # another's version, and since when
        self._beats = 0
        self.was_left = False  # whether it was taken from one that did not renew it

    @property
    def is_held(self) -> bool:
        """Whether this process holds it, as far as it knows."""
        return bool(self._etag)

    def _document(self, holder: str) -> bytes:
        self._beats += 1
        about = {"holder": holder, "sign": self._sign, "beat": f"{self._token}-{self._beats}"}
        return json.dumps(about).encode()

    def _put(self, holder: str, **condition: Any) -> str:
        return object_store.put(self.uri, self._document(holder), **condition)

    def _read(self) -> tuple[dict[str, str], str] | None:
        try:
            content, found = object_store.read(self.uri)
        except FileNotFoundError:
            return None
        try:
            document = json.loads(content)
            return {name: str(document[name]) for name in ("holder", "sign")}, found.etag
        except (ValueError, KeyError, TypeError):
            return {"holder": "", "sign": ""}, found.etag

    def take(self, shared: bool = False) -> bool:
        """Whether it is held now; not waited for."""
        with self._guard:
            if self._etag:
                return True
            there = self._read()
            try:
                if there is None:
                    self._sign, self.was_left = "", False
                    self._etag = self._put(self._token, new=True)
                    return True
                document, etag = there
                is_left = bool(document["holder"])
                if is_left and not self._is_left(etag):
                    return False
                self._sign, self.was_left = document["sign"], is_left
                self._etag = self._put(self._token, over=etag)
                return True
            except Conflict:  # somebody was faster
                return False

    def _is_left(self, etag: str) -> bool:
        """By this process's own clock: those of two machines may differ."""
        if self._seen[0] != etag:
            self._seen = etag, time.monotonic()
        if time.monotonic() - self._seen[1] < LEASE:
            return False
        log.warning("%s was not renewed for %.0f s: its holder is gone", self.uri, LEASE)
        return True

    def read(self) -> str:
        """Its sign."""
        with self._guard:
            if self._etag:
                return self._sign
            there = self._read()
            return "" if there is None else there[0]["sign"]

    def write(self, text: str) -> None:
        """Gives it another sign, by the one who holds it."""
        with self._guard:
            self._sign = text
            self.renew()

    def renew(self) -> None:
        """Says that the holder lives.

        Raises:
            StoreError: it was taken by somebody else.
        """
        with self._guard:
            if not self._etag:
                return
            try:
                self._etag = self._put(self._token, over=self._etag)
            except (Conflict, FileNotFoundError):
                self._etag = ""
                raise _late(self.uri) from None

    def free(self) -> None:
        """Leaves it to others; nothing where it is not held."""
        with self._guard:
            if not self._etag:
                return
            etag, self._etag = self._etag, ""
            with contextlib.suppress(Conflict, FileNotFoundError):
                self._put("", over=etag)

    def close(self) -> None:
        """As `free`, whether or not the store answers."""
        with contextlib.suppress(OSError):
            self.free()


class WriterEntry:
    """What a writer says of itself, renewed as its lease is. Others take it away once it is not."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._guard = threading.RLock()
        self._about: dict[str, Any] = {}
        self._etag: str | None = None  # empty: it was taken away
        self._beats = 0

    def _put(self, **condition: Any) -> str:
        self._beats += 1
        document = {**self._about, "beat": self._beats}
        return object_store.put(self.uri, json.dumps(document).encode(), **condition)

    def write(self, about: dict[str, Any]) -> None:
        """Says it, in place of what was said before."""
        with self._guard:
            self._about = about
            self._etag = self._put()

    def renew(self) -> None:
        """Says that the writer lives.

        Raises:
            StoreError: somebody has counted it as gone.
        """
        with self._guard:
            if self._etag is None:
                return
            try:
                self._etag = self._put(over=self._etag) if self._etag else ""
            except (Conflict, FileNotFoundError):
                self._etag = ""
            if not self._etag:
                raise _late(self.uri)

    def remove(self) -> None:
        """Takes it away; whether or not the store answers."""
        with self._guard, contextlib.suppress(OSError):
            if self._etag:
                object_store.delete(self.uri)
            self._etag = None


def _late(uri: str) -> StoreError:
    return StoreError(
        f"{uri} was taken by another writer, since this one did not renew it for {LEASE:.0f} s; "
        "start the run again, it goes on where this one ended"
    )


def entries(path: Path, clock: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the writers that live say of themselves, by the names of their entries; and the names of
    those of others. clock: an object that was written just now, by which the store's time is known.
    """
    try:
        now = object_store.head(clock).modified
    except FileNotFoundError:
        return {}, []
    living: dict[str, dict[str, Any]] = {}
    gone = []
    for one in object_store.listed(f"{path}/"):
        name = one.uri.rpartition("/")[2]
        if not name.endswith(".json"):
            continue
        if (now - one.modified).total_seconds() > LEASE:
            gone.append(name)
            continue
        with contextlib.suppress(FileNotFoundError, ValueError):
            living[name] = dict(json.loads(object_store.read(one.uri)[0]))
    return living, gone


def has_entries(path: Path) -> bool:
    """Whether there is an entry, of a writer that lives or is gone."""
    return any(one.uri.endswith(".json") for one in object_store.listed(f"{path}/"))


def fence(path: Path) -> None:
    """Makes each commit fail that somebody has begun and not ended: a version that restores another
    one goes with none that was begun before it. By whoever has the lease, before its first look."""
    import lance

    options = object_store.lance_options(str(path))
    for table in path.iterdir():
        if table.suffix != ".lance":
            continue
        data: Any = lance.dataset(str(table), storage_options=options)
        before = data.version
        data.restore()
        if data.version > before + 1:  # a commit came in between; it stands
            last = data.version - 1
            data = lance.dataset(str(table), version=last, storage_options=options)
            data.restore()
