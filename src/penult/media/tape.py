"""A stream that is read forward for one stretch after the other, as a tape is. Knows no regions.

What is kept begins where the last stretch began, so memory is bounded by the longest of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from penult.errors import DecodeError, ItemError, first_line
from penult.media.streams import BLOCK, Stream, opened

UNFORESEEN = (OSError, ValueError, RuntimeError, IndexError, TypeError)  # what decoders raise


class Tape:
    """`read` gives what the stream's own gives, and may be called again and again.

    A stretch that begins before what is kept is decoded from the beginning, or sought for where
    the format seeks exactly; so is a stretch far ahead. Where decoding fails, `damaged` is set,
    and everyone who comes that far gets the same error.
    """

    def __init__(self, content: object, array_rate: int) -> None:
        self._content, self._array_rate = content, array_rate
        self._resources = ExitStack()
        self._stream: Stream | None = None
        self._unreadable: ItemError | None = None
        self._start(iter(()), 0)

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything; the next use opens the stream again."""
        self._stream = None
        self._start(iter(()), 0)
        self._resources.close()

    @property
    def stream(self) -> Stream:
        """The stream, opened if it is not open.

        Raises:
            ItemError: it cannot be opened.
        """
        if self._unreadable is not None:
            raise _again(self._unreadable)
        if self._stream is None:
            try:
                self._stream = self._resources.enter_context(
                    opened(self._content, self._array_rate)
                )
            except ItemError as error:
                self._unreadable = _again(error)
                raise
            self._start(self._stream.read(0, None), 0)
        return self._stream

    def read(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """Blocks (n, channels) float32 from frame `first` on, at least to `last` or to the end."""
        self._wind(first)
        for begin, block in tuple(self._kept):
            yield block[max(0, first - begin) :]
        while last is None or self._end < last:
            begin, found = self._end, self._next()
            if found is None:
                return
            self._forget(first)
            if self._end > first:
                yield found[max(0, first - begin) :]

    def _start(self, blocks: Iterator[np.ndarray], first: int) -> None:
        self._blocks = blocks
        self._kept: deque[tuple[int, np.ndarray]] = deque()
        self._begin = self._end = first
        self.damaged: ItemError | None = None

    def _wind(self, first: int) -> None:
        back = first < self._begin
        if self.stream.seeks and (back or first - self._end > BLOCK // self.stream.channels):
            self._start(self.stream.read(first, None), first)
        elif back:
            self.close()
            _ = self.stream
        self._forget(first)

    def _forget(self, first: int) -> None:
        while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= first:
            begin, block = self._kept.popleft()
            self._begin = begin + len(block)

    def _next(self) -> np.ndarray | None:
        if self.damaged is not None:
            raise _again(self.damaged)
        try:
            block = next(self._blocks, None)
        except ItemError as error:
            self.damaged = _again(error)
            raise
        except UNFORESEEN as error:
            self.damaged = DecodeError(f"cannot be read: {first_line(error)}")
            raise _again(self.damaged) from error
        except BaseException:
            self.close()  # the decoder stopped half way, and would go on as if nothing were missing
            raise
        if block is not None:
            self._kept.append((self._end, block))
            self._end += len(block)
        return block


def _again(error: ItemError) -> ItemError:
    """The same error anew: one that is raised often would carry every place where it was."""
    return type(error)(str(error))
