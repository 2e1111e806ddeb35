"""Where the command line writes: results to stdout, progress and messages to stderr; or one JSON
document.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO
from unicodedata import category

import numpy as np
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from penult.cli.events import EventLog

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder

DONE, FAILED, WRONG_USAGE, SOME_FAILED, STOPPED = 0, 1, 2, 3, 130  # how a command ends

_UNLIMITED = 1 << 16
_STDERR = 2  # its file descriptor
# Characters that JSON may hold as they are and that steer a terminal: C1, separators, directions.
_STEERING = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class OutputLost(Exception):
    """What goes to stdout cannot be written."""


class Delivered:
    """Stdout, whose failing writes are told from other errors of the system.

    A reader that has closed it raises BrokenPipeError as before. None: it is closed from the start.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._open = stream is not None
        self._stream = stream or Path(os.devnull).open("w")  # noqa: SIM115  as long as the process

    def write(self, text: str) -> int:
        """As of the stream."""
        if text and not self._open:
            raise OutputLost("stdout is closed")
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        """As of the stream."""
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(error.strerror or str(error)) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Unfailing:
    """Stderr: messages beside the work, which goes on where nobody can receive them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Messages(Console):
    """A console whose failing writes disturb nobody."""

    @property
    def file(self) -> Any:
        return _Unfailing(super().file)

    @file.setter
    def file(self, stream: Any) -> None:
        self._file = stream


class _Escaped(NamedTuple):
    """What is printed, its control characters as escapes: a name must not steer the terminal."""

    inner: Any

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            fine = segment.control or segment.text.isprintable()
            yield segment if fine else segment._replace(text=_escaped(segment.text))


class _Escaping(RenderHook):
    """Escapes control characters in everything that a console prints."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(one) for one in renderables]


def _console(width: int | None = None, to_stderr: bool = False) -> Console:
    kind = _Messages if to_stderr else Console
    console = kind(stderr=to_stderr, highlight=False, emoji=False, width=width)
    console.push_render_hook(_Escaping())
    return console


stdout, stderr = _console(), _console(to_stderr=True)


def print_json(document: Any) -> None:
    """Write one JSON document to stdout. Values that are not finite (NaN) become null."""
    print(_text(document), flush=True)


def print_json_stream(
    before: dict[str, Any], name: str, items: Iterable[Any], after: dict[str, Any]
) -> None:
    """As `print_json`, for a document with one long list: it is read item by item."""
    print(_text(before).removesuffix("\n}"), end=f",\n  {_text(name)}: [")
    between = ""
    for item in items:
        print(between, _text(item).replace("\n", "\n    "), sep="\n    ", end="")
        between = ","
    print("\n  ]" if between else "]", _text(after).removeprefix("{\n"), sep=",\n", flush=True)


def json_text(document: Any) -> str:
    """A document as JSON text; numbers that are not finite become null."""
    return json.dumps(_plain(document), ensure_ascii=False, indent=2)


def _text(value: Any) -> str:
    """As `json_text`, without a control character, and in ASCII where stdout takes nothing else."""
    text = _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text(value))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # no UTF-8 terminal, or a name that is not UTF-8
        text = json.dumps(_plain(value), indent=2)
    return text


def print_table(table: Table | Tree) -> None:
    """Print a table or tree to stdout: to a file or pipe in full width, so that no value is cut."""
    console = stdout if stdout.is_terminal else _console(_UNLIMITED)
    console.print(table)


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on stderr while something takes seconds, on a terminal only; an event."""
    if log := event_log():
        log.emit("stage", message=text)
    if log or not stderr.is_terminal:
        yield
        return
    with stderr.status(f"{text} …"):
        yield


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """A text from outside, for `print`, on one line: markup and control characters are escaped. Of
    a very long one, both ends."""
    return escape(_escaped(_cut(text, _LONGEST), kept=""))


_LONGEST = 4_000  # characters of a message
_LONGEST_REASON = 480
_LONGEST_PATH = 240  # characters of a path, where others stand below it


def _cut(text: str, most: int) -> str:
    """Both ends of a text that is longer."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def _escaped(text: str, kept: str = "\n\t") -> str:
    """The text with escapes for its control characters, except those that are kept."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in kept or category(c) == "Zs" else repr(c)[1:-1] for c in text
    )


def printable_path(path: str) -> str:
    """A path relative to the current folder, for `print`; of a very long one, both ends."""
    with suppress(ValueError):
        path = str(Path(path).relative_to(Path.cwd()))
    return printable(_cut(path, _LONGEST_PATH))


def reason_words(message: str) -> str:
    """Why an item failed, for a printed table or line; of a very long one, both ends."""
    return printable(_cut(message, _LONGEST_REASON))


def print_failure(id: str, message: str) -> None:
    """Print an item that failed, and why, to stderr."""
    print_note(f"[red]failed[/] {printable_path(id)}: {reason_words(message)}")


_PLACE = re.compile(r"(?:channel \d+, )?from [\d.e+-]+ s to (?:the end|[\d.e+-]+ s): ")


def by_item(failures: Iterable[Mapping[str, Any]]) -> list[tuple[list[Mapping[str, Any]], str]]:
    """Failures with one reason for several parts of an item as one, in the order of their first
    parts: those parts, and the reason without the place where there are several."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in failures:
        found.setdefault((one["id"], _PLACE.sub("", one["message"], count=1)), []).append(one)
    return [
        (parts, reason if len(parts) > 1 else parts[0]["message"])
        for (_, reason), parts in found.items()
    ]


def print_failures(failures: Iterable[Mapping[str, Any]]) -> None:
    """Print items that failed, and why, to stderr: a line for each item and reason."""
    for parts, reason in by_item(failures):
        number = f" ({len(parts):,} parts)" if len(parts) > 1 else ""
        print_failure(parts[0]["id"], reason + number)


LONGEST_CELL = 80  # characters of a text in a printed table


def cell(value: object) -> str:
    """A value for a printed table, as text without line breaks; a long one is cut."""
    text = (
        ""
        if value is None
        else " ".join(str(value).split())
        if isinstance(value, str)
        else str(value)
    )
    return printable(text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…")


def place_words(region: str, start: float | None = None, end: float | None = None) -> str:
    """The part of an item for a printed table: seconds, `box 0,0,64,64`, `page 2`; empty for the
    whole of one without seconds."""
    span, _, annotation = region.partition("#")
    words = "" if start is None or end is None else f"{start:.2f}-{end:.2f}"
    if words and (channel := re.match(r"ch\d+:", span)):
        words = f"{channel[0][:-1]} {words}"
    if span.startswith(("box:", "page:", "chars:")):
        words = re.sub(r"(box|page|chars):", r"\1 ", span).replace(":", " ")
    elif not words and span != "whole":
        words = span.removesuffix(":whole")
    return printable(f"{words} #{annotation}".strip() if annotation else words)


def place_header(regions: Iterable[str]) -> str:
    """What `place_words` of these regions are."""
    odd = any(region.startswith(("box:", "page:", "chars:")) for region in regions)
    return "part" if odd else "seconds"


def discard_stdout() -> None:
    """Discard further output: nobody can receive it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def discard_stderr() -> None:
    """Discard what stderr could not take, so that the end of the process does not stumble on it."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def occupy_standard_descriptors() -> None:
    """Give the descriptors 0, 1 and 2 a file where they are closed: what is opened next would get
    their number, and what a library prints would go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def print_error(message: str, kind: str, as_json: bool) -> None:
    """Print an error in one sentence."""
    message = _cut(message, _LONGEST)
    if log := event_log():
        log.emit("error", type=kind, message=message)
    else:
        stderr.print("[bold red]penult:[/]", end=" ")
        stderr.print(message, markup=False, soft_wrap=True)
    if as_json:
        print_json({"error": {"type": kind, "message": message}})


def print_note(message: str) -> None:
    """Print a line to stderr, with its markup; a very long one is cut."""
    if len(message) > _LONGEST:
        message = printable(Text.from_markup(message).plain)
    if log := event_log():
        log.emit("note", message=Text.from_markup(message).plain)
        return
    stderr.print(message, soft_wrap=True)


_logs: list[EventLog] = []


def event_log() -> EventLog | None:
    """The events of this command, where they were asked for: then stderr has nothing else."""
    return _logs[-1] if _logs else None


@contextmanager
def events_ended() -> Iterator[Callable[[int], None]]:
    """A command, whose events end with the exit code that is given to the function."""
    before = len(_logs)

    def end(code: int) -> None:
        for log in _logs[before:]:
            log.end(code)

    try:
        yield end
    finally:
        del _logs[before:]


def start_events() -> None:
    """Write events to stderr, in place of messages and progress, while this command runs."""

    def write(line: str) -> None:
        stream = stderr.file
        stream.write(line)
        stream.flush()

    log = EventLog(write)
    _logs.append(log)
    log.start()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the block only what this package prints reaches stderr: no warning, log or progress
    of another library, in whatever language it is written."""
    own = sys.stderr
    if own is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with suppress(OSError):
        own.flush()
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        stderr.file = own
        stack.callback(setattr, stderr, "file", None)
        if (saved := _duplicate_of_stderr()) is not None:
            stack.callback(os.close, saved)
            if _is_stderr(own):
                beside = open(saved, "w", 1, own.encoding, own.errors, closefd=False)  # noqa: SIM115
                stack.callback(_closed, beside)
                stderr.file = beside
            os.dup2(nowhere.fileno(), _STDERR)
            stack.callback(os.dup2, saved, _STDERR)
        sys.stderr = nowhere
        stack.callback(setattr, sys, "stderr", own)
        yield


def _closed(stream: TextIO) -> None:
    with suppress(OSError):  # it is full, and what it could not take is lost
        stream.close()


def _duplicate_of_stderr() -> int | None:
    """A further descriptor of the process's stderr; None where that is closed."""
    try:
        return os.dup(_STDERR)
    except OSError:
        return None


def _is_stderr(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STDERR
    except (OSError, ValueError):  # a stream in memory
        return False


class LogLevel(StrEnum):
    """Least level of the log messages on stderr; or all of stderr as events in JSON."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    JSON = "json"

    @property
    def level(self) -> str:
        """The level of `logging`; events as JSON have warnings and what is above."""
        return (LogLevel.WARNING if self is LogLevel.JSON else self).value.upper()


class _ToStderr(logging.Handler):
    """Each record as one line on stderr, control characters escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        if log := event_log():
            log.emit("note", message=record.getMessage(), level=record.levelname.lower())
            return
        source = "note" if record.levelno >= logging.WARNING else record.name
        stderr.print(f"[bold yellow]{source}[/] {printable(record.getMessage())}", soft_wrap=True)


@contextmanager
def logged() -> Iterator[None]:
    """Print log messages of `penult` to stderr while a command runs, from warnings on."""
    logger, handler = logging.getLogger("penult"), _ToStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class CommandClock:
    """Wall clock seconds of a command, and of its stages, one after the other."""

    def __init__(self, age: float = 0.0) -> None:
        self._latest = self._began = time.monotonic() - age
        self.stages: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the command was given."""
        return time.monotonic() - self._began

    def end(self, stage: str) -> None:
        """A stage ends: that which lasts since the one before."""
        now = time.monotonic()
        self.stages[stage], self._latest = now - self._latest, now

    def move(self, seconds: float, stage: str, other: str) -> None:
        """Count seconds of a stage as those of another one."""
        self.stages[stage] -= seconds
        self.stages[other] += seconds

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"elapsed_in_all": self.elapsed, "stages": self.stages}


_clock: ContextVar[CommandClock | None] = ContextVar("command_clock", default=None)


def command_clock() -> CommandClock:
    """The clock of the command that is under way."""
    return _clock.get() or CommandClock()


@contextmanager
def timed(age: float) -> Iterator[None]:
    """Around a command. age: seconds since it was given."""
    token = _clock.set(CommandClock(age))
    try:
        yield
    finally:
        _clock.reset(token)


def process_age() -> float:
    """Seconds since this process began; where the system does not tell, since Python came here."""
    known = time.monotonic() - _IMPORTED
    with suppress(OSError, ValueError, IndexError, AttributeError):
        status = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(status[19]) / os.sysconf("SC_CLK_TCK")
        return max(known, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    return known


_IMPORTED = time.monotonic()


class Meter:
    """Counts of items and seconds; drawn as a progress bar on a terminal, told now and then
    elsewhere."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task
        self._began = time.monotonic()
        self.total: int | None = None
        self.seen = 0
        self.embedded = 0
        self.seconds = 0.0

    @property
    def elapsed(self) -> float:
        """Wall clock seconds since the start."""
        return time.monotonic() - self._began

    def leave_out(self, seconds: float) -> None:
        """Seconds since the start in which no item could be counted."""
        self._began += seconds

    def expect(self, total: int | None) -> None:
        """Set the number of items, once it is known."""
        self.total = total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def tick(self, embedded: bool, seconds: float) -> None:
        """Count one item. embedded: it succeeded. seconds: of audio or video in it."""
        self.seen += 1
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

    def facts(self) -> dict[str, Any]:
        """For an event: items seen, embedded, in all; rate in items per second; seconds left."""
        elapsed = max(self.elapsed, 1e-9)
        known = self.total is not None and self.seen > 0
        left = (max(0, (self.total or 0) - self.seen) * elapsed / self.seen) if known else None
        return {
            "seen": self.seen,
            "embedded": self.embedded,
            "total": self.total,
            "seconds_of_media": round(self.seconds, 3),
            "elapsed": round(elapsed, 3),
            "rate": round(self.embedded / elapsed, 3),
            "eta": None if left is None else round(left, 1),
        }

    def line(self) -> str:
        """`1,200 of 8,000 items, 12.3 items/s, 9 min left`."""
        facts = self.facts()
        of_all = f" of {self.total:,}" if self.total is not None else ""
        left = "" if facts["eta"] is None else f", {_duration(facts['eta'])} left"
        return f"{self.seen:,}{of_all} items, {self.rate()}{left}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


LINES_EVERY = 30.0  # seconds between two lines of progress where stderr is no terminal


@contextmanager
def metered(title: str, show: bool, every: float | None = None) -> Iterator[Meter]:
    """A Meter; draws a bar on stderr where `show` and stderr is a terminal. Elsewhere it prints a
    line now and then, or is told by events. every: seconds between two of them."""
    if log := event_log():
        meter = Meter(None, None)
        log.follow(meter.facts, every)
        try:
            yield meter
        finally:
            log.follow(None)
        return
    if not stderr.is_terminal:
        meter, ended = Meter(None, None), threading.Event()

        def tell() -> None:
            while not ended.wait(every or LINES_EVERY):
                print_note(f"{title}: {meter.line()}")

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield meter
        finally:
            ended.set()
        return
    if not show:
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


def proof_line(embedder: Embedder) -> str:
    """The proof of the head in one line, with the items that it was measured on."""
    proof = embedder.certificate
    when = f" here on {printable(proof.kept)} (kept)" if proof.kept else ""
    items = named(embedder.proved_on)
    if when and items:
        items = f", with{items.removeprefix(' on')}"
    if proof.ok:
        return (
            f"[dim]head proved{when}{items}: {len(proof.checks)} checks, "
            f"largest error {proof.max_error:.1g}[/]"
        )
    return f"[dim]head not proved{when}: {printable(proof.refusal)}[/]"


def row_name(id: str, region: str) -> str:
    """A row in one line, marked up for the terminal."""
    return printable_path(id) + ("" if region == "whole" else f" {printable(region)}")


def print_stored(advice: str, files: Mapping[str, Path | None]) -> None:
    """What a derived column is good for, empty where none could be kept; and the files by what is
    in them, None where none was asked for."""
    parts = [f"stored; {advice}"] if advice else []
    parts += [f"{what} in [bold]{printable(str(path))}[/]" for what, path in files.items() if path]
    if parts:
        stdout.print("; ".join(parts), soft_wrap=True)


def named(ids: list[str]) -> str:
    """` on a.wav and b.wav`, or nothing."""
    return (
        f" on {printable(' and '.join(dict.fromkeys(Path(id).name for id in ids)))}" if ids else ""
    )


def tables_in_words(written: Sequence[Path], out: str, title: str = "") -> str:
    """The tables that were written, marked up for the terminal. title: of one in a folder."""
    first = f"[bold]{printable(str(out))}[/]"
    if Path(out) not in written:
        return f"{counted(len(written), title)} in {first}"
    return first + "".join(f", files in [bold]{printable(str(p))}[/]" for p in written[1:])
