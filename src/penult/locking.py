"""Locks for objects that several threads share: one call never disturbs another. And what a forked
process needs, which has the memory of its parent, but none of the parent's other threads.

Order in which locks are taken: an object's own guard, then that of what it is made of, and a
module's lock last.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar, overload
from weakref import WeakKeyDictionary, WeakSet

from penult.errors import UsedBeforeFork

T = TypeVar("T")
ENGINES = "engine"  # how the names of threads begin in which models run


class Guard:
    """A lock of one object, for `with`; the thread that holds it may enter again. A copy of the
    object, also in another process, has a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _GUARDS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Guard, ()

    def free(self) -> None:
        """In a forked process: a lock that is free, unless this thread holds it. The thread that
        held it was left behind, and would be waited for for ever."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock = threading.RLock()


_GUARDS: WeakSet[Guard] = WeakSet()
_LOCKS: WeakKeyDictionary[Any, Guard] = WeakKeyDictionary()
_LOCKS_GUARD = Guard()


def lock_of(module: Any) -> Guard:
    """Held by whoever sets hooks on a torch module or changes its modes, and runs it: two passes
    at once would see each other's hooks."""
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(module, Guard())


def _after_fork() -> None:
    """In the forked process. torch's own threads are gone as well, and a pass that was to be shared
    with them would never end: it runs in one thread."""
    for guard in list(_GUARDS):
        guard.free()
    torch = sys.modules.get("torch")
    if _LOCKS and torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that Python handles wait for the end of the block: a commit is whole before Ctrl-C
    ends a run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, Any]] = []
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in (getattr(signal, n) for n in names)}
    before = {number: handler for number, handler in found.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in came[:1]:
            before[number](number, frame)


class HomeProcess:
    """The process that opened something that no forked process can use: a model on a GPU."""

    def __init__(self, what: str) -> None:
        self._what, self._process = what, os.getpid()

    def require(self) -> None:
        """Refuse another process.

        Raises:
            UsedBeforeFork: this one was forked since.
        """
        if os.getpid() != self._process:
            raise UsedBeforeFork(
                f"{self._what} was used before this process was forked, and cannot be used here: "
                "start processes by spawn (multiprocessing.get_context('spawn')), or fork first "
                "and open it in each process"
            )


class Once(Generic[T]):
    """A property that is computed once, also where several threads ask at the same time: like
    `cached_property`, under the guard `_guard` of its object."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        with instance._guard:
            values = instance.__dict__
            if self._name not in values:
                values[self._name] = self._compute(instance)
            return values[self._name]
