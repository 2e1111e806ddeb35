"""Frames: the hidden states of a sound in the order of time, one vector each.

Which positions belong to one moment is measured (`receptive_fields`), not read off a configuration:
frames of a sequence, columns of a map, patches in rows. Knows no benchmark.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.data.items import Failure
from penult.data.sources import from_objects
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder
from penult.embedding.receptive_fields import open_item, places_of
from penult.embedding.runner import Outcome
from penult.errors import ItemError, TapError, UsageError
from penult.models.synthetic import noise

FloatArray = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_LONG = 2.0  # seconds of the made-up sound that frames are counted on
_FRAMES = 16  # over which their distance is measured
_TOKENS = 4  # class tokens and the like in front of positions, at most
_IN_ORDER = 0.9  # correlation of time and place in a row, from which positions are in rows


class FrameReader:
    """The frames of an embedder of sound, at its tap; of positions that see one moment at several
    frequencies the mean.

    hop: seconds from one frame to the next. first: seconds to the middle of the first one. dim:
    numbers in a frame.

    Raises:
        UsageError: no embedder of sound, or one of several readings.
        TapError: the tap has no positions in time.
    """

    def __init__(self, embedder: Embedder) -> None:
        classifier, readings = embedder.classifier, embedder.runner.readings
        if classifier.modality != "audio" or classifier.input.patches is not None:
            raise UsageError(f"{classifier.spec} gives no frames: frames are of sound in one piece")
        if len(readings) > 1 or embedder.space is not None:
            raise UsageError("frames are read at one tap, and in no space")
        tap = readings[0].tap
        if not tap.positions:
            raise TapError(f"tap {tap.name!r} has one vector for each item, and no frames")
        self._embedder = Embedder(classifier, tap, "none", device=embedder.device)
        self.rate, self.dim = int(classifier.rate or 1), tap.width
        self._kept = classifier.input.seconds
        self._measure()

    def __call__(self, clips: Sequence[FloatArray]) -> list[FloatArray]:
        """Clips (n,) at the model's rate → (frames, d) of each.

        Raises:
            ItemError: a clip that the model does not take.
        """
        found = []
        for clip, states in zip(clips, self._states(clips), strict=True):
            frames = self._in_time(states)
            found.append(frames[: self.count(len(clip), len(frames))])
        return found

    def times(self, count: int) -> Floats:
        """(count,) seconds from the beginning of a clip to the middle of each frame."""
        times: Floats = self.first + self.hop * np.arange(count, dtype=np.float64)
        return times

    def count(self, samples: int, frames: int) -> int:
        """How many of so many frames a clip has: of a model of one length, those that it fills."""
        if self._kept is None:
            return frames
        filled = int(np.ceil((samples / self.rate - self.first) / self.hop - 1e-6))
        return min(frames, max(1, filled))

    def _states(self, clips: Sequence[FloatArray]) -> Iterator[FloatArray]:
        """(…positions…, d) of each clip."""
        runner = self._embedder.runner
        entries = from_objects([np.asarray(one, np.float32) for one in clips], "audio")
        pairs = Layout().of(entries, self._embedder.classifier.input)
        with closing(runner.stream(pairs, logits=False)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    raise ItemError(outcome.words())
                if isinstance(outcome, Outcome):
                    yield outcome.vector

    def _measure(self) -> None:
        """Which positions are of one moment, and how far frames are apart."""
        clip = noise(0, self._kept or _LONG, self.rate)
        states = next(self._states([clip]))
        self._order = self._order_of(clip, states.shape[:-1])
        count = len(self._in_time(states))
        if self._kept:
            self.hop = self._kept / count
        else:
            back = min(_FRAMES, count // 2)
            longer, shorter = (self._least(clip, one) for one in (count, count - back))
            self.hop = (longer - shorter) / max(1, back) / self.rate
            clip = clip[:longer]
        # As much is cut off at the end of a clip as at its beginning.
        self.first = max(0.0, (len(clip) / self.rate - self.hop * (count - 1)) / 2)

    def _least(self, clip: FloatArray, count: int) -> int:
        """The fewest samples of a clip that have so many frames."""

        def enough(samples: int) -> bool:
            try:
                return len(self._in_time(next(self._states([clip[:samples]])))) >= count
            except (ItemError, StopIteration):  # too short for the model
                return False

        return bisect_left(range(len(clip)), True, key=enough)

    def _order_of(self, clip: FloatArray, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(tokens in front of the positions, the axis of time of a map, positions in a row of
        patches or 0): as `_in_time` takes them."""
        entry: Any = next(iter(Layout().of(from_objects([clip], "audio"), self._input)))
        places = places_of(self._embedder, open_item(self._embedder, entry))
        times, bands = places.centres[:, 0], places.centres[:, 1]
        if len(shape) > 2:
            raise TapError(f"positions {shape} of a tap are no frames")
        if len(shape) == 2:
            grid = times.reshape(shape)
            down = np.nanmax(np.ptp(grid, axis=0), initial=0.0)
            across = np.nanmax(np.ptp(grid, axis=1), initial=0.0)
            return 0, (0 if down > across else 1), 0
        if not np.isfinite(bands).any():
            return 0, 0, 0
        front, period = _rows(times)
        if not period:
            raise TapError(
                f"which positions of tap {self._embedder.tap.name!r} are of one moment cannot be "
                "measured: they are in no order of time"
            )
        return front, 0, period

    @property
    def _input(self) -> Any:
        return self._embedder.classifier.input

    def _in_time(self, states: FloatArray) -> FloatArray:
        """(…positions…, d) → (frames, d)."""
        front, axis, period = self._order
        if states.ndim == 3:
            mean: FloatArray = states.mean(axis=1 - axis)
            return mean
        states = states[front:]
        if period:
            rows = len(states) // period
            states = states[: rows * period].reshape(rows, period, -1).mean(axis=0)
        return states


def _rows(times: Floats) -> tuple[int, int]:
    """Where rows of positions follow each other, each from the beginning of the sound to its end:
    (tokens in front of them, positions in a row); a row of 0 where there are none."""
    seen = np.isfinite(times)
    best, found = _IN_ORDER, (0, 0)
    for front in range(min(_TOKENS, int(np.argmax(seen))) + 1):
        count = len(times) - front
        for period in range(2, count // 2 + 1):
            if count % period:
                continue
            place = ((np.arange(len(times)) - front) % period)[seen]
            together = float(np.corrcoef(times[seen], place)[0, 1])
            if together > best:
                best, found = together, (front, period)
    return found
