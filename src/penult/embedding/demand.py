"""Memory of one pass over a long recording, measured at shorter lengths before it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt

from penult.errors import TooLong
from penult.memory import in_words, peak

SHORT = 60.0  # seconds that are run without a question
_FIRST = 10.0  # seconds of the first measurement
_LEAST_STEP = 1.25


@dataclass(slots=True)
class PassDemand:
    """Bytes of a pass by seconds of sound. run: a pass over so many seconds.

    A pass takes at least in proportion to its length, as the last two measurements show it, and at
    most with its square, as attention does. Lengths are doubled until one of both decides.
    """

    run: Callable[[float], None]
    _measured: dict[float, int] = field(default_factory=dict)

    def check(self, seconds: float, bound: int) -> None:
        """Refuse a length whose pass would take more than these bytes.

        Raises:
            TooLong: it would, or no shorter one can be run safely that shows that it would not.
        """
        length = max((one for one in self._measured if one <= seconds), default=_FIRST)
        while True:
            found = self._measure(length)
            if found is None or found * (seconds / length) ** 2 <= bound:
                return
            if (least := self._least(seconds, length)) > bound:
                raise _too_large(seconds, length, least, bound)
            step = min(2.0, sqrt(bound / found))
            if step < _LEAST_STEP or length * step >= seconds:
                raise _too_large(seconds, length, found * (seconds / length), bound)
            length *= step

    def _measure(self, length: float) -> int | None:
        if length not in self._measured:
            with peak() as found:
                self.run(length)
            if not found:  # the system does not tell
                return None
            self._measured[length] = max(1, found[0])
        return self._measured[length]

    def _least(self, seconds: float, length: float) -> float:
        """By the slope between this length and the one before."""
        before = max((one for one in self._measured if one < length), default=None)
        if before is None:
            return 0.0
        slope = (self._measured[length] - self._measured[before]) / (length - before)
        return self._measured[length] + max(0.0, slope) * (seconds - length)


def _too_large(seconds: float, length: float, needed: float, bound: int) -> TooLong:
    return TooLong(
        f"lasts {seconds:.6g} s, over which one pass of the model takes about {in_words(needed)} "
        f"or more (measured up to {length:.3g} s), and it may take {in_words(bound)}; cut it with "
        "--window, or give the run more (--memory)"
    )
