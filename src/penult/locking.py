"""Locks for objects that several threads share: one call never disturbs another.

Order in which locks are taken: an object's own guard, then that of what it is made of, and a
module's lock last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload
from weakref import WeakKeyDictionary

T = TypeVar("T")

_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


def lock_of(module: Any) -> threading.RLock:
    """Held by whoever sets hooks on a torch module or changes its modes, and runs it: two passes
    at once would see each other's hooks."""
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(module, threading.RLock())


class Guard:
    """A lock of one object, for `with`; the thread that holds it may enter again. A copy of the
    object, also in another process, has a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Guard, ()


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
