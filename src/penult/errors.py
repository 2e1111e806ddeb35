"""What can go wrong, as one tree: each class says who has to act and how the command line ends.

    PenultError
    ├── UsageError               what was asked for cannot be done: exit code 2
    │   ├── ModelError           no such model, not a classifier, unreadable configuration
    │   │   ├── IncompleteWeights    the checkpoint does not fill the model
    │   │   └── UntrustedCode        opening it would run code that came with it
    │   ├── HeadNotFound         no head could be located or proved
    │   ├── TapError             a tap or pooling that the model does not have
    │   ├── EngineError          an engine or a precision that cannot run this model here
    │   ├── SourceError          paths, tables or metadata that cannot be read as items
    │   ├── CollectionError      not a collection, a filter that does not parse
    │   │   └── FingerprintMismatch  the vectors would not be comparable
    │   ├── SpaceError           vectors that a space cannot be fitted to, or applied to
    │   ├── LabelsError          labels or groups that do not fit the vectors or the question
    │   ├── MissingExtra         an optional dependency is not installed
    │   └── UsedBeforeFork       it was opened in the process that this one was forked from
    ├── StoreError               the work failed: full disk, no permission: exit code 1
    │   ├── CollectionLocked     another process is writing, and has to end first
    │   ├── EndlessPass          the model did not end with a batch in its time
    │   └── IndexRefused         an index would find too few of the nearest rows
    └── ItemError                one item failed; the run goes on and names it: exit code 3
        ├── DecodeError          not readable as what it claims to be
        ├── EmptyItem            no samples, nothing but zeros, or values that are not finite
        ├── TooShort             shorter than what the model needs
        ├── TooLong              longer or larger than a limit
        ├── RegionError          a segment or channel that the item does not have
        └── PassingFault         the world failed, not the item: a killed process, a stall, a disk

Every message says what was received, what is wrong, and what would work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class PenultError(Exception):
    """Root of every error that Penult raises on purpose."""


class UsageError(PenultError):
    """What was asked for cannot be done as asked."""


class ModelError(UsageError):
    """The model cannot be opened as a classifier."""


class IncompleteWeights(ModelError):
    """Parameters on the way to the logits are missing, mismatched or freshly initialised."""


class UntrustedCode(ModelError):
    """Opening the model would run code that came with it."""


class HeadNotFound(UsageError):
    """No head could be located, or none could be proved."""


class TapError(UsageError):
    """The model has no such tap, or the pooling does not fit it."""


class EngineError(UsageError):
    """An engine that cannot run this model here, or not at this precision."""


class SourceError(UsageError):
    """The given paths, tables or metadata cannot be read as items."""


class CollectionError(UsageError):
    """Not a collection, or a question that it cannot answer."""


class FingerprintMismatch(CollectionError):
    """The collection holds vectors of another embedder."""


class SpaceError(UsageError):
    """A space cannot be fitted to these vectors, or applied to them."""


class LabelsError(UsageError):
    """Labels or groups do not fit the vectors, or are too few for what was asked."""


class MissingExtra(UsageError):
    """An optional dependency is needed and not installed."""


class UsedBeforeFork(UsageError):
    """An accelerator or a collection was used in the process that this one was forked from."""


class StoreError(PenultError):
    """The collection could not be written or read."""


class CollectionLocked(StoreError):
    """Another process writes to the collection, and the two do not go together."""


class EndlessPass(StoreError):
    """The model did not end with a batch in its time. failures: of the regions in it."""

    def __init__(self, message: str, failures: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.failures)


class IndexRefused(StoreError):
    """An approximate index would find too few of the nearest rows."""


class ItemError(PenultError):
    """One item failed; a run records it in `failures` and goes on."""


class DecodeError(ItemError):
    """The item is not readable as what it claims to be."""


class EmptyItem(ItemError):
    """The item has no samples, nothing but zeros, or values that are not finite."""


class TooShort(ItemError):
    """The item is shorter than what the model needs."""


class TooLong(ItemError):
    """The item is longer or larger than a limit."""


class RegionError(ItemError):
    """The item has no such segment or channel."""


class PassingFault(ItemError):
    """The world failed and not the item: its process was killed, it stalled, or a disk gave way.
    No verdict on the content: the same file may do another time."""


# What a model raises for an input or a batch that it does not take.
REFUSALS: tuple[type[Exception], ...] = (
    PenultError,
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names for a message, with commas between; of many, the first and how many more."""
    found = [str(name) for name in names]
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


_LONGEST = 400  # characters of another library's reason
_LOOKED_AT = 20_000  # at its beginning and at its end

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?", re.DOTALL)
_TRACEBACK = re.compile(
    r"^[^\S\n]*Traceback.*\n(?:.*\n)*?(?:\w+(?:Error|Exception): )?(?=\S.*\s*\Z)", re.MULTILINE
)
# The words before the cause, as PyTorch, ONNX Runtime and Keras write them; and what follows it.
# Patterns begin where a text or a word does, and are bounded: a long text would be walked again and
# again, from each of its characters.
_BEFORE = re.compile(
    r"\A.*(?:WeightsUnpickler error:|Status Message:|\[ONNXRuntimeError\] : \d+ : [A-Z_]+ :|"
    r"LanceError\(\w+\):|Detail: \[errno \d+\]|Exception encountered when calling [^\n]*\n|"
    r"failed in the TorchScript interpreter\.)",
    re.DOTALL,
)
_AFTER = re.compile(
    r"^[^\S\n]*(?:Arguments received by|CUDA kernel errors might|Candidate functions:).*",
    re.DOTALL | re.MULTILINE,
)
# Lines that hold a place in a library's source and no cause, as OpenVINO's.
_PLACE_LINES = re.compile(
    r"^[^\S\n]*"
    r"(?:Exception from \S+:|Check '.*' failed at \S+:|FrontEnd API failed with \w+:)[^\S\n]*$",
    re.MULTILINE,
)
_PLACES = re.compile(
    r"(?:, ?| |(?<![^\s,]))[^\s,]{0,400}/[^\s,]{1,400}\.rs:\d+:\d+"
    r"|(?<!\w)(?:\S{0,400}/)?\w{1,400}\.(?:cc|cpp|cu|cuh|h|hpp):\d+"
    r"(?: [\w:~<>]+::[\w:~<>]+\([^()]*\)(?: const)?)?(?: [^.]* was false\.(?= ))?"
)
_REPRS = (
    (re.compile(r"<(?:class|enum) '(?:[^']*\.)?(\w+)'>"), r"\1"),
    (re.compile(r"<(?:function|bound method) (\S{1,400})[^>]{0,400}>"), r"\1"),
    (re.compile(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>"), r"\1"),
    (re.compile(r"torch\.Size\(\[([^]]{0,400})\]\)"), r"(\1)"),
)
_ADVICE = re.compile(
    r"(?:Please|You (?:can|may|might)|Use `|Run workload|Check (?:the|your)|"
    r"If you (?:are seeing|trust)|This (?:is an internal|can happen|could be|may be))\b"
)
_REQUEST = re.compile(
    r"(?<!\s)(?:\s+Please (?:check|fix)\b[^.]*(?:\.\w+[^.]*)*\.?(?=\s|\Z)|"
    r"\s*\(Could this error .*)"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(\[])")


def cause(error: BaseException, named: bool = False) -> str:
    """The cause that an error of another library gives, in one line: whole, without escape codes,
    traceback, places in the library's source and its advice; no full stop at the end.

    named: behind the name of the error's class.
    """
    name = type(error).__name__
    if named:
        return f"{name}: {cause(error).removeprefix(f'{name}: ')}" if str(error) else name
    if isinstance(error, PenultError):
        return " ".join(str(error).split())
    text = _ESCAPES.sub("", _message(error)).replace("\r\n", "\n")
    if len(text) > 2 * _LOOKED_AT:
        text = f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    for noise in (_TRACEBACK, _BEFORE, _AFTER, _PLACE_LINES, _REQUEST):
        text = noise.sub("", text)
    for pattern, plain in ((_PLACES, ""), *_REPRS):
        text = pattern.sub(plain, text)
    line = "".join(sign if sign.isprintable() else " " for sign in _first_statement(text))
    line = _shortened(" ".join(line.split())).rstrip(" .:,")
    return line or name


def _message(error: BaseException) -> str:
    """The text of an error; one that is a mere key, number or nothing has the error's name."""
    reason, file = getattr(error, "strerror", None), getattr(error, "filename", None)
    if reason and isinstance(reason, str):
        return f"{reason}: {file}" if file else reason
    text, name = str(error), type(error).__name__
    bare = isinstance(error, KeyError) or re.fullmatch(r"[-\d.,()\s]*", text)
    return f"{name}: {text}" if bare and text.strip() else text


def _first_statement(text: str) -> str:
    """The first line, and those that go on with it."""
    found = ""
    for line in text.strip().split("\n"):
        line = line.strip()
        if found and not found.endswith(":") and (not line or found.endswith((".", "!", "?"))):
            break
        found = f"{found} {line}".strip()
    return found


def _shortened(line: str) -> str:
    """The sentences without advice on another library, as far as there is room for them."""
    first, *others = _SENTENCE_END.split(line)
    kept = " ".join([first, *(one for one in others if not _ADVICE.match(one))])
    if len(kept) <= _LONGEST:
        return kept
    whole = kept[:_LONGEST].rpartition(". ")[0]
    if len(whole) > _LONGEST / 2:
        return whole
    return kept[:_LONGEST].rpartition(" ")[0].rstrip(" ,;:.(") + " …"
