"""Progress of long work on stderr: items per second, times real time, time left; quiet if piped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from penult.cli.output import stderr


class Meter:
    """Counts what was done, and shows it if someone is looking."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task
        self._began = time.monotonic()
        self.embedded = 0
        self.seconds = 0.0

    @property
    def shown(self) -> bool:
        """Whether someone is looking."""
        return self._progress is not None

    @property
    def elapsed(self) -> float:
        """Wall clock seconds since the start."""
        return time.monotonic() - self._began

    def expect(self, total: int | None) -> None:
        """Say how many items there are, once it is known."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def tick(self, embedded: bool, seconds: float) -> None:
        """Note one item, whether it was embedded, and its seconds of audio or video."""
        self.embedded += embedded
        self.seconds += seconds
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, rate=self.rate())

    def rate(self) -> str:
        """`12.3 items/s · 45 × real time`."""
        elapsed = max(self.elapsed, 1e-9)
        text = f"{self.embedded / elapsed:.1f} items/s"
        if self.seconds:
            text += f" · {self.seconds / elapsed:.1f} × real time"
        return text


@contextmanager
def metered(title: str, show: bool) -> Iterator[Meter]:
    """A Meter; draws a bar on stderr where `show` and stderr is a terminal."""
    if not (show and stderr.is_terminal):
        yield Meter(None, None)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield Meter(progress, progress.add_task(title, total=None, rate=""))
