"""Access of writers to a collection: those that add share it, other work has it alone; who they
are, and whose turn to commit it is. The system frees what a process held that dies.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penult.collection.journal import refuse_links
from penult.collection.manifest import HOLDER, LOCK, WRITERS, now, store_errors
from penult.data.items import is_object
from penult.errors import CollectionLocked, StoreError
from penult.locking import Guard

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_INSTANT = 0.2  # seconds in which a lock may be held by somebody who only looks
_POLL = 0.02
_LONG = 30.0  # seconds of waiting for a turn that are told
_GATE, _TURN = "gate.lock", "turn.lock"
_NEXT = "next-"  # how the entries of those begin that wait to be alone
_HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
_MODE = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that writes, as it says; run_id: of its row in `runs`, empty where it has none."""

    pid: int
    command: str
    since: str
    run_id: str = ""

    @property
    def words(self) -> str:
        """In a sentence."""
        if not self.pid:  # it has its lock and has not said yet who it is
            return "another process"
        return f"process {self.pid} ({self.command}) since {self.since}"


class _Lock:
    """A lock of the system on a file, free once that is closed: also when the process dies."""

    def __init__(self, path: Path, flags: int = os.O_RDWR | _MODE) -> None:
        self.path, self._file = path, os.open(path, flags, 0o666)

    def take(self, shared: bool = False) -> bool:
        """Whether it is held now; not waited for."""
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            return False
        return True

    def write(self, text: str) -> None:
        try:
            os.pwrite(self._file, text.encode(), 0)
        except OSError as error:  # names no file
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def read(self) -> str:
        return os.pread(self._file, 1 << 10, 0).decode("ascii", "replace")

    def free(self) -> None:
        if fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.free()  # a forked process may have the file open, too
        os.close(self._file)


def _has_locks(folder: Path) -> bool:
    """Whether the disk has locks that several may share."""
    if fcntl is None:
        return False
    lock = _Lock(folder / _GATE)
    try:
        lock.take(shared=True)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return False
    finally:
        lock.close()
    return True


class Access:
    """One writer's access to a collection; see `accessed`.

    is_alone: no other process writes until this one ends.
    """

    def __init__(self, path: Path, command: str = "", run_id: str = "") -> None:
        since = now().isoformat("T", "seconds")
        self.holder = Holder(os.getpid(), command, since, run_id)
        self.is_alone, self._missed = True, False
        self._path, self._folder = path, path / WRITERS
        self._name = f"{run_id or uuid.uuid4().hex[:12]}.json"
        self._guard, self._turns = Guard(), 0
        self._before: Callable[[], None] = lambda: None
        self._see: Callable[[], None] = lambda: None
        self._sign = uuid.uuid4().hex  # of equal length for all: it is written over another's
        self._turn: _Lock | None = None
        self._wait_between = _POLL / 4  # seconds, for a turn
        self._whole: Any = None  # the lock of a disk that has none to be shared
        self._lock: _Lock | None = None
        self._held: dict[str, _Lock] = {}

    def others(self) -> list[Holder]:
        """The other writers that have begun. To be asked in a turn, where none can begin."""
        return [] if self.is_alone else _living(self._path, self._name)

    def follow(self, before: Callable[[], None], see: Callable[[], None]) -> None:
        """before: called ahead of each turn. see: at the beginning of one, where somebody else has
        had a turn since."""
        self._before, self._see = before, see

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """While nobody else commits. A turn in a turn is a part of it."""
        with self._guard:
            first = not self._turns
            if first:
                self._before()
            self._turns += 1
            try:
                if first and not self.is_alone and self._turn is not None:
                    self._await(self._turn)
                    if self._missed:
                        self._see()
                if first:
                    self._assure()
                yield
            finally:
                self._turns -= 1
                if first and self._turn is not None:
                    self._turn.free()

    @property
    def missed(self) -> bool:
        """Whether somebody else has had a turn since this writer's last one."""
        return not self.is_alone and self._turn is not None and self._turn.read() != self._sign

    def _await(self, lock: _Lock) -> None:
        began, told = time.monotonic(), False
        while not lock.take():
            if not told and time.monotonic() - began > _LONG:
                told = True
                others = [one.words for one in _living(self._path, self._name)]
                log.warning(
                    "%s: waits for a commit by %s", self._path, " or ".join(others) or "another"
                )
            time.sleep(self._wait_between)
        # Signed before anything is committed: also one that is killed then is seen to have been.
        self._missed = lock.read() != self._sign
        if self._missed:
            lock.write(self._sign)

    def _assure(self) -> None:
        """Nothing: the system frees a lock of a process that has ended, and of no other."""

    def register(self) -> None:
        """Says who is writing here, and takes away what killed ones said. In a turn."""
        self._clear_left()
        self._say(self._name)

    def be_alone(self, wait: bool = False, patience: float = _INSTANT) -> None:
        """From here on to its end the only writer. Not in a turn, which others may wait for.

        Raises:
            CollectionLocked: others write, after so many seconds; this one is still among them.
        """
        if self.is_alone or self._lock is None:
            return
        self._lock.free()  # two that wait for each other would never end
        try:
            self._exclude(wait, patience)
        except BaseException:
            self._share(wait=True)
            self._sign = uuid.uuid4().hex  # somebody may have been alone meanwhile, without a turn
            raise
        self._see()

    def enter(self, alone: bool, wait: bool) -> None:
        """Takes the lock.

        Raises:
            CollectionLocked: others do not leave it, and `wait` is false.
        """
        self._folder.mkdir(exist_ok=True)
        if not _has_locks(self._folder):
            self._enter_whole(wait)
            return
        self._lock, self._turn = _Lock(self._path / LOCK), _Lock(self._folder / _TURN)
        if alone:
            self._exclude(wait, _INSTANT)
            self.register()
        else:
            self._share(wait)

    def _enter_whole(self, wait: bool) -> None:
        """One writer at a time, where a disk cannot do more."""
        from filelock import FileLock, Timeout

        self._whole = FileLock(self._path / LOCK)
        try:
            self._whole.acquire(timeout=-1 if wait else _INSTANT)
        except Timeout as error:
            raise refusal(self._path, _living(self._path)) from error
        self._clear_left()
        (self._folder / self._name).write_text(json.dumps(asdict(self.holder)), "utf-8")

    def _share(self, wait: bool) -> None:
        """Among those that add, once nobody is alone, nor waits for its turn to be so."""
        assert self._lock is not None
        gate, began = _Lock(self._folder / _GATE), time.monotonic()
        try:
            while True:
                is_open = gate.take(shared=True)
                if is_open and self._lock.take(shared=True):
                    self.is_alone = False
                    return
                if is_open:
                    gate.free()
                if not wait and time.monotonic() - began > _INSTANT:
                    others = _living(self._path, self._name, "" if is_open else _NEXT)
                    raise refusal(self._path, others, is_open)
                time.sleep(_POLL)
        finally:
            gate.close()

    def _exclude(self, wait: bool, patience: float) -> None:
        """Alone, once those that add have ended. Who waits lets others begin as long as one is
        there that was there before it, which it has to wait for anyway; then no longer."""
        assert self._lock is not None
        gate, began = _Lock(self._folder / _GATE), time.monotonic()
        before = {one for one in _entries(self._folder) if one != self._name}
        closed = said = False
        try:
            while not self._lock.take():
                if not wait and time.monotonic() - began > patience:
                    raise refusal(self._path, _living(self._path, self._name))
                if wait and not said:
                    self._say(_NEXT + self._name)
                    said = True
                if wait and not closed and not any(map(self._lives, before)):
                    closed = gate.take()
                time.sleep(_POLL)
            self.is_alone = True
        finally:
            gate.close()
            self._unsay(_NEXT + self._name)

    def _lives(self, name: str) -> bool:
        return _is_held(self._folder / name) is not False

    def _say(self, name: str) -> None:
        if name in self._held or self._whole is not None:
            return
        lock = self._held[name] = _Lock(self._folder / name)
        while not lock.take():  # for an instant somebody asks whether it is held
            time.sleep(_POLL / 10)
        lock.write(json.dumps(asdict(self.holder)))

    def _unsay(self, name: str) -> None:
        with contextlib.suppress(OSError):
            if name in self._held or self._whole is not None:
                (self._folder / name).unlink(missing_ok=True)
        if name in self._held:
            self._held.pop(name).close()

    def _clear_left(self) -> None:
        """Takes away what killed writers said of themselves."""
        names = _entries(self._folder)
        if self.is_alone:
            names += _entries(self._folder, _NEXT)
        with contextlib.suppress(OSError):
            (self._path / HOLDER).unlink(missing_ok=True)  # of an earlier version
            for name in names:
                own = name == self._name or name in self._held
                if not own and (self._whole is not None or not self._lives(name)):
                    (self._folder / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Frees the lock."""
        self._unsay(self._name)
        for lock in self._held.values():
            lock.close()
        self._held.clear()
        for held in (self._turn, self._lock):
            if held is not None:
                held.close()
        if self._whole is not None:
            self._whole.release()


class LeasedAccess(Access):
    """One writer's access to a collection in an object store. Who writes has an entry there,
    renewed as the lease is; entries are made and looked at with the lease only."""

    def __init__(self, path: Path, command: str = "", run_id: str = "") -> None:
        from penult.collection import leases

        super().__init__(path, command, run_id)
        self._leases = leases
        self._lease = leases.Lease(str(self._folder / leases.TURN))
        self._entry = leases.WriterEntry(str(self._folder / self._name))
        self._turn = self._lease  # type: ignore[assignment]
        self._wait_between = leases.POLL
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def others(self) -> list[Holder]:
        """As of a disk."""
        if self.is_alone:
            return []
        living, _ = self._entries()
        return sorted(map(_holder_of, living.values()), key=lambda one: one.since)

    def _entries(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Those of others; see `leases.entries`."""
        living, gone = self._leases.entries(self._folder, self._lease.uri)
        living.pop(self._name, None)
        return living, [name for name in gone if name != self._name]

    def _fence(self) -> None:
        self._leases.fence(self._path)
        # All have to look at the tables again, this one too: what they know lies behind the fence.
        self._lease.write(uuid.uuid4().hex)
        self._missed = True

    def enter(self, alone: bool, wait: bool) -> None:
        """As of a disk."""
        self._thread = threading.Thread(target=self._renew, daemon=True, name="penult-lease")
        self._thread.start()
        self._begin(alone, wait, self._leases.INSTANT)

    def _begin(self, alone: bool, wait: bool, patience: float) -> None:
        began = time.monotonic()
        while True:
            with self._leased(wait, began, patience):
                others = self._clear_others().values()
                barred = [_holder_of(one) for one in others if alone or one.get("alone")]
                if not barred:
                    self.is_alone = alone
                    self._entry.write({**asdict(self.holder), "alone": alone})
                    return
            if not wait and time.monotonic() - began > patience:
                raise refusal(self._path, barred)
            time.sleep(self._leases.POLL)

    @contextlib.contextmanager
    def _leased(self, wait: bool, began: float, patience: float) -> Iterator[None]:
        while not self._lease.take():
            # A commit is waited for; a holder that is gone frees nothing, and is waited out.
            if not wait and time.monotonic() - began > patience + 2 * self._leases.LEASE:
                raise refusal(self._path, [])
            time.sleep(self._leases.POLL)
        try:
            if self._lease.was_left:
                self._fence()
            yield
        finally:
            self._lease.free()

    def _await(self, lock: _Lock) -> None:
        super()._await(lock)
        if self._lease.was_left:
            self._fence()

    def _assure(self) -> None:
        """Say that this one lives, behind its look at the tables: whoever counts it as gone later
        sets a fence, and what it commits fails.

        Raises:
            StoreError: it was counted as gone.
        """
        self._lease.renew()
        self._entry.renew()

    def register(self) -> None:
        """Nothing: it was done as this one began."""

    def _clear_others(self) -> dict[str, dict[str, Any]]:
        """The entries of others that live; those of killed ones, which may be only late, are taken
        away. With the lease, ahead of a look at the tables."""
        living, gone = self._entries()
        for name in gone:
            (self._folder / name).unlink(missing_ok=True)
        if gone:
            self._fence()
        return living

    def be_alone(self, wait: bool = False, patience: float = _INSTANT) -> None:
        """As of a disk."""
        if self.is_alone:
            return
        self._begin(True, wait, patience)
        self._see()

    def _renew(self) -> None:
        while not self._end.wait(self._leases.LEASE / self._leases.RENEWALS):
            try:
                self._assure()
            except OSError as error:
                log.warning("%s: %s", self._path, error)
            except StoreError as error:  # its next turn fails
                log.warning("%s", error)
                return

    def leave(self) -> None:
        """As of a disk."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self._entry.remove()
        self._lease.close()


def _holder_of(about: Mapping[str, Any]) -> Holder:
    try:
        texts = (str(about[name]) for name in ("command", "since", "run_id"))
        return Holder(int(about["pid"]), *texts)
    except (KeyError, TypeError, ValueError):
        return Holder(0, "", "")


@contextlib.contextmanager
def accessed(
    path: Path, command: str, run_id: str = "", *, alone: bool, wait: bool = False
) -> Iterator[Access]:
    """Access to a collection for one who adds, among others that do; or for one who is alone. Those
    that add `register` in their first turn.

    Raises:
        CollectionLocked: others write that do not go with it, and `wait` is false.
        StoreError: a part of the collection is a link to another place.
    """
    refuse_links(path)
    kind = LeasedAccess if is_object(path) else Access
    found = kind(path, command, run_id)
    try:
        with store_errors(path):
            found.enter(alone, wait)
        yield found
    finally:
        found.leave()


@contextlib.contextmanager
def locked(path: Path, command: str, wait: bool = False) -> Iterator[Access]:
    """The only writer of a collection.

    Raises:
        CollectionLocked: another process writes, and `wait` is false.
        StoreError: a part of the collection is a link to another place.
    """
    with accessed(path, command, alone=True, wait=wait) as found:
        yield found


def writers(path: Path) -> list[Holder] | None:
    """Those that write now, by their locks and not by what they wrote, the one that began first in
    front; None where that cannot be told, as on a disk without locks, or of an earlier version."""
    if is_object(path):
        from penult.collection.leases import has_entries

        # Only who writes something learns the store's time, and so which entries are of the living.
        return None if has_entries(path / WRITERS) else []
    held = {name: _is_held(path / WRITERS / name) for name in _entries(path / WRITERS)}
    if None in held.values():
        return None
    if any(held.values()):
        return _living(path)
    return [] if _is_held(path / LOCK) is False else None


def _is_held(path: Path) -> bool | None:
    """Whether a process holds the lock of a file; None where that cannot be told."""
    try:
        lock = _Lock(path, os.O_RDONLY | _MODE & ~os.O_CREAT)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return None if fcntl is None else not lock.take(shared=True)
    except OSError:
        return None
    finally:
        lock.close()


def _entries(folder: Path, begin: str = "") -> list[str]:
    """The names of what writers said of themselves: of those that have begun, or wait to."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".json")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name.startswith(_NEXT) == bool(begin)]


def _living(path: Path, but: str = "", begin: str = "") -> list[Holder]:
    """Those that have begun, or those that wait to be alone."""
    folder = path / WRITERS
    names = [name for name in _entries(folder, begin) if name != but]
    found = [_said(folder / name) for name in names if _is_held(folder / name) is not False]
    return sorted(found, key=lambda one: one.since)


def _said(file: Path) -> Holder:
    try:
        found = json.loads(file.read_text("utf-8"))
        return Holder(
            int(found["pid"]),
            *(str(found[name]) for name in ("command", "since", "run_id")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, "", "")


def refusal(path: Path, others: list[Holder], is_open: bool = True) -> CollectionLocked:
    """Why a writer has to wait."""
    words = " and ".join(dict.fromkeys(one.words for one in others)) or "another process"
    what = "is being written by" if is_open else "is wanted alone by"
    return CollectionLocked(
        f"{path} {what} {words}; try again when that has ended, or wait for it "
        "(--wait; reading and searching work meanwhile)"
    )
