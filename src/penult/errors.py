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
    │   └── MissingExtra         an optional dependency is not installed
    ├── StoreError               the work failed: full disk, no permission: exit code 1
    │   ├── CollectionLocked     another process is writing
    │   └── IndexRefused         an index would find too few of the nearest rows
    └── ItemError                one item failed; the run goes on and names it: exit code 3
        ├── DecodeError          not readable as what it claims to be
        ├── EmptyItem            no samples, nothing but zeros, or values that are not finite
        ├── TooShort             shorter than what the model needs
        ├── TooLong              longer than the limit that the caller set
        └── RegionError          a segment or channel that the item does not have

Every message says what was received, what is wrong, and what would work.
"""

from __future__ import annotations


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


class StoreError(PenultError):
    """The collection could not be written or read."""


class CollectionLocked(StoreError):
    """Another process is writing to the collection."""


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
    """The item is longer than the limit that the caller set."""


class RegionError(ItemError):
    """The item has no such segment or channel."""


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


def first_line(error: BaseException) -> str:
    """The first line of an error that is worth showing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
