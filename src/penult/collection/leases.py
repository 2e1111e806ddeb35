"""Access to a collection in an object store: leases in place of a disk's locks. A lease is a small
object that is written on a condition and renewed as long as its holder lives; one that is not
renewed may be taken by whoever waits for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penult.collection.access import Access, Holder, refusal
from penult.collection.manifest import WRITERS
from penult.data import object_store
from penult.data.object_store import Conflict
from penult.errors import StoreError

log = logging.getLogger(__name__)
LEASE = 30.0  # seconds without a renewal behind which a holder counts as gone
_RENEWALS = 5  # in that time
_POLL = 0.2  # seconds between two looks at a lease that somebody holds
_INSTANT = 1.0  # seconds for which somebody may hold what is not waited for
_TURN = "turn.lease"


class Lease:
    """A lock that one holds at a time, with the interface of a lock on a disk. It has a text, its
    `sign`, which stays when it is freed."""

    def __init__(self, uri: str) -> None:
        self.uri, self._token = uri, uuid.uuid4().hex
        self._guard = threading.RLock()
        self._etag = self._sign = ""  # while it is held
        self._seen: tuple[str, float] = "", 0.0  # another's version, and since when
        self._beats = 0

    @property
    def is_held(self) -> bool:
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
                    self._sign = ""
                    self._etag = self._put(self._token, new=True)
                    return True
                document, etag = there
                if document["holder"] and not self._is_left(etag):
                    return False
                self._sign = document["sign"]
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
        with self._guard:
            if self._etag:
                return self._sign
            there = self._read()
            return "" if there is None else there[0]["sign"]

    def write(self, text: str) -> None:
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
                raise StoreError(
                    f"{self.uri} was taken by another writer, since this one did not renew it for "
                    f"{LEASE:.0f} s; start the run again, it goes on where this one ended"
                ) from None

    def free(self) -> None:
        with self._guard:
            if not self._etag:
                return
            etag, self._etag = self._etag, ""
            with contextlib.suppress(Conflict, FileNotFoundError):
                self._put("", over=etag)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.free()


class LeasedAccess(Access):
    """One writer's access to a collection in a store. Who writes has an entry there, renewed as
    the lease is; entries are made and looked at in a turn only."""

    def __init__(self, path: Path, command: str = "", run_id: str = "") -> None:
        super().__init__(path, command, run_id)
        self._lease = Lease(str(self._folder / _TURN))
        self._turn = self._lease  # type: ignore[assignment]
        self._wait_between = _POLL
        self._entry = str(self._folder / self._name)
        self._lost: Exception | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def others(self) -> list[Holder]:
        return [] if self.is_alone else living(self._path, self._name, self._lease.uri)

    def enter(self, alone: bool, wait: bool) -> None:
        self._thread = threading.Thread(target=self._renew, daemon=True, name="penult-lease")
        self._thread.start()
        self._begin(alone, wait, _INSTANT)

    def _begin(self, alone: bool, wait: bool, patience: float) -> None:
        began = time.monotonic()
        while True:
            with self._leased(wait, began, patience):
                found = _entries(self._path, self._lease.uri)
                others = {name: one for name, one in found.items() if name != self._name}
                barred = [one for one, is_alone in others.values() if alone or is_alone]
                if not barred:
                    self.is_alone = alone
                    self._say_entry()
                    return
            if not wait and time.monotonic() - began > patience:
                raise refusal(self._path, barred)
            time.sleep(_POLL)

    @contextlib.contextmanager
    def _leased(self, wait: bool, began: float, patience: float) -> Iterator[None]:
        while not self._lease.take():
            # A commit is waited for; a holder that is gone frees nothing, and is waited out.
            if not wait and time.monotonic() - began > patience + 2 * LEASE:
                raise refusal(self._path, [])
            time.sleep(_POLL)
        try:
            yield
        finally:
            self._lease.free()

    def _say_entry(self) -> None:
        about = {**asdict(self.holder), "alone": self.is_alone}
        object_store.put(self._entry, json.dumps(about).encode())

    def register(self) -> None:
        """Takes away what killed ones said. In a turn."""
        here = _entries(self._path, self._lease.uri)
        for path in (self._path / WRITERS).iterdir():
            if path.name.endswith(".json") and path.name not in here:
                object_store.delete(str(path))

    def be_alone(self, wait: bool = False, patience: float = _INSTANT) -> None:
        if self.is_alone:
            return
        self._begin(True, wait, patience)
        self._see()

    def _renew(self) -> None:
        while not self._end.wait(LEASE / _RENEWALS):
            try:
                self._lease.renew()
                self._say_entry()
            except (OSError, StoreError) as error:
                self._lost = error
                log.warning("%s: %s", self._path, error)

    def leave(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            object_store.delete(self._entry)
        self._lease.close()


def _entries(path: Path, clock: str) -> dict[str, tuple[Holder, bool]]:
    """The writers that live, and whether each is to be alone, by the names of their entries.
    clock: an object that was written just now, by which the store's time is known."""
    try:
        now = object_store.head(clock).modified
    except FileNotFoundError:
        return {}
    found: dict[str, tuple[Holder, bool]] = {}
    for one in object_store.listed(f"{path}/{WRITERS}/"):
        name = one.uri.rpartition("/")[2]
        if not name.endswith(".json") or (now - one.modified).total_seconds() > LEASE:
            continue
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            about = json.loads(object_store.read(one.uri)[0])
            texts = (str(about[field]) for field in ("command", "since", "run_id"))
            found[name] = Holder(int(about["pid"]), *texts), bool(about["alone"])
    return found


def living(path: Path, but: str, clock: str) -> list[Holder]:
    """The other writers, the one that began first in front."""
    found = _entries(path, clock)
    return sorted((one for name, (one, _) in found.items() if name != but), key=lambda o: o.since)


def writers(path: Path) -> list[Holder] | None:
    """Those that write now; None, since only who writes something learns the store's time, where
    any entry is there."""
    names = [one.uri for one in object_store.listed(f"{path}/{WRITERS}/")]
    return None if any(name.endswith(".json") for name in names) else []
