"""A record of a classifier: what is known of it from an earlier run over the same files, so that
the model is opened only where something is asked that the record does not hold.

Importing torch and transformers, reading weights and tracing a pass take seconds. What most runs
ask first (labels, kind of input, hashes, taps) follows from the files, the options and the versions
of packages alone. Code of the user's own has no record: it may do something else each time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from penult.data.hashes import LIST, digest, hash_of, list_hash
from penult.data.notes import Notes, own_places
from penult.extras import package_versions
from penult.locking import Guard, Once
from penult.models.base import (
    Activation,
    Classifier,
    Inputs,
    InputSpec,
    Storage,
    Study,
    is_live,
    keep_record,
    own_code,
    record_of,
)
from penult.models.options import LoadOptions
from penult.models.plain_preparation import Preparation, plain_form, preparation

if TYPE_CHECKING:
    import torch
    from torch import nn

    from penult.tracing.anatomy import Anatomy
    from penult.tracing.spots import Tap

_PACKAGE = Path(__file__).parents[1]
FOLDER = "records"  # in the user's cache
LARGEST = 20 * 2**30  # bytes of files that are hashed for a record
ENGINE = "torch"  # others open their file to know anything of it
# Facts of which the user is told whenever the model is opened.
_TOLD = ("uncertain_weights", "random_scores")
T = TypeVar("T")


class Record:
    """Notes on one model's files, opened with certain options, under the installed versions.

    key: a hash of all of that.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._notes = Notes(own_places(FOLDER, key[:2]))

    def recall(self, kind: str, asked: Any = None) -> dict[str, Any] | None:
        """What was noted for a question."""
        found = self._notes.recall(self._name(kind, asked))
        return None if found is None else found.answer

    def note(self, kind: str, answer: Mapping[str, Any], asked: Any = None) -> None:
        """Keep an answer, if JSON gives it back as it is."""
        try:
            same = json.loads(json.dumps(answer)) == answer
        except (TypeError, ValueError):
            return
        if same:
            self._notes.note(self._name(kind, asked), dict(answer))

    def _name(self, kind: str, asked: Any) -> str:
        return f"{kind}-{digest([self._key, asked])}.json"


def record_for(spec: Any, options: LoadOptions) -> Record | None:
    """The record for a spec; None where its files do not say everything: objects, names of models,
    code, options that name further files."""
    further = (options.checkpoint, options.preprocess, options.class_names)
    if not isinstance(spec, str | Path) or options.trust or options.random or any(further):
        return None
    path = Path(spec).expanduser()
    try:
        hashes = _hashes(path)
    except OSError:
        return None
    if hashes is None:
        return None
    settings = {name: value for name, value in options.recipe().items() if value is not None}
    key = [str(path.resolve()), hashes, settings, package_versions(), _own_code()]
    return Record(digest(key))


@cache
def _own_code() -> str:
    """Hash of this package: of two states of one version each has records of its own."""
    return digest([[one.name, hash_of(one)] for one in sorted(_PACKAGE.rglob("*.py"))])


_KNOWN: dict[tuple[Any, ...], str] = {}  # hashes of files, by path, size and times


def _hashes(path: Path) -> dict[str, str] | None:
    """The hash of each file of a model; of a saved folder, that of its list, which was checked."""
    if path.is_dir() and (path / LIST).is_file():
        return {LIST: list_hash(path) or ""}
    files = sorted(_files(path))
    if not files or any(one.suffix == ".py" for one in files):
        return None
    if sum(one.stat().st_size for one in files) > LARGEST:
        return None
    return {str(one.relative_to(path)) if path.is_dir() else one.name: _hash(one) for one in files}


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return [
        Path(place) / name
        for place, folders, names in os.walk(path)
        if not (folders.sort() or (Path(place).name.startswith(".") and Path(place) != path))
        for name in names
        if not name.startswith(".")
    ]


def _hash(file: Path) -> str:
    about = file.stat()
    key = (file, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
    if key not in _KNOWN:
        _KNOWN[key] = hash_of(file)
    return _KNOWN[key]


def recorded(
    record: Record | None,
    kind: str,
    asked: Any,
    measure: Callable[[], T],
    form: tuple[Callable[[T], Mapping[str, Any]], Callable[[Mapping[str, Any]], T]],
) -> T:
    """What was measured in an earlier run, else measured now and noted.

    form: a measurement for JSON, and back.
    """
    encode, decode = form
    known = None if record is None else record.recall(kind, asked)
    if known is not None:
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # else of another version
            return decode(known)
    found = measure()
    if record is not None:
        record.note(kind, encode(found), asked)
    return found


CLASSIFIER, IDENTITY, PREPARATION = "classifier", "identity", "preparation"


def note_classifier(record: Record, classifier: Classifier) -> None:
    """Note what a classifier is, if it can be said without its code."""
    about = classifier.structure
    told = any(name in classifier._facts for name in _TOLD)
    if about.engine != ENGINE or told or is_live(classifier) or own_code(classifier):
        return
    storage, preparer = classifier._storage, classifier._preparer
    record.note(IDENTITY, classifier.identity())
    record.note(
        CLASSIFIER,
        {
            "spec": classifier.spec,
            "kind": classifier.kind,
            "labels": [*classifier.labels],
            "facts": classifier._facts,
            "structure": {
                "base": about.base,
                "output": about.output,
                "activation": [about.activation.name, about.activation.inside],
                "proved_on_items": about.proved_on_items,
                "describe": about.describe(),
            },
            "input": _input_of(preparer.input),
            "preparer": [preparer.digest(), preparer.truncation(), preparer.description()],
            "storage": [
                storage.recipe and dict(storage.recipe),
                storage.files and {name: str(path) for name, path in storage.files.items()},
            ],
        },
    )
    keep_record(classifier, record)
    folder = Path(classifier.spec)
    form = plain_form(classifier, folder) if folder.is_dir() else None
    if form is not None:
        record.note(PREPARATION, form)


def _input_of(spec: InputSpec) -> dict[str, Any]:
    plain = ("modality", "rate", "frames", "seconds", "refusal", "beginning")
    return {name: getattr(spec, name) for name in plain} | {"divides": spec.divide is not None}


def recorded_classifier(record: Record, open: Callable[[], Classifier]) -> Classifier | None:
    """The classifier that an earlier run noted; None if none did. open: opens it, where more is
    asked than the record holds."""
    found = record.recall(CLASSIFIER)
    try:
        return None if found is None else _restored(found, record, open)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def recorded_modality(record: Record) -> str | None:
    """What the model takes, if an earlier run noted it."""
    found = record.recall(CLASSIFIER)
    return None if found is None else str(found["input"]["modality"])


def _restored(
    found: Mapping[str, Any], record: Record, open: Callable[[], Classifier]
) -> Classifier:
    recipe, files = found["storage"]
    opening = Opening(open, len(found["labels"]))
    classifier = Classifier(
        found["spec"],
        found["kind"],
        found["labels"],
        RecordedStructure(found["structure"], opening),
        RecordedPreparer(found["input"], found["preparer"], opening, record),
        found["facts"],
        Storage(recipe, files and {name: Path(path) for name, path in files.items()}),
    )
    keep_record(classifier, record)
    classifier._code = {}
    return classifier


def is_recorded(classifier: Classifier) -> bool:
    """Whether it is known by its record, and its model was not opened yet."""
    structure = classifier.structure
    return isinstance(structure, RecordedStructure) and not structure._opening.done


def identity_of(classifier: Classifier) -> tuple[dict[str, str], Record | None]:
    """The classifier's fields of the fingerprint; and its record, unless what is in memory is not
    what is in the files any more."""
    record: Record | None = record_of(classifier)
    known = None if record is None else record.recall(IDENTITY)
    found = known if known is not None and is_recorded(classifier) else classifier.identity()
    return found, record if found == known else None


def prepare_plainly(classifier: Classifier) -> bool:
    """Prepare items without opening its model from now on; False where that cannot be."""
    preparer = classifier._preparer
    if not isinstance(preparer, RecordedPreparer) or preparer.plain is None:
        return False
    preparer.suffices = True
    return True


class Opening:
    """The real classifier, opened once, where it is needed."""

    def __init__(self, open: Callable[[], Classifier], classes: int) -> None:
        self._guard, self._open, self._classes = Guard(), open, classes

    @Once
    def classifier(self) -> Classifier:
        """The classifier with its model."""
        from penult.models.checkpoints import found_whole

        with found_whole(self._classes):
            return self._open()

    @property
    def done(self) -> bool:
        """Whether it was needed."""
        return "classifier" in self.__dict__


class RecordedStructure:
    """The structure of a classifier as it was noted; see `penult.models.base.Structure`."""

    engine = ENGINE

    def __init__(self, about: Mapping[str, Any], opening: Opening) -> None:
        self._opening = opening
        self.base: str | None = about["base"]
        self.output: str | int | None = about["output"]
        self.activation = Activation(*about["activation"])
        self.proved_on_items = bool(about["proved_on_items"])
        self._about = dict(about["describe"])

    @property
    def _real(self) -> Any:
        return self._opening.classifier.structure

    @property
    def module(self) -> nn.Module:
        """The torch module, opened now."""
        module: nn.Module = self._real.module
        return module

    def modules(self) -> Iterable[nn.Module]:
        """Every torch module, the whole one first."""
        modules: Iterable[nn.Module] = self._real.modules()
        return modules

    def place(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs on the device where the model is now."""
        placed: dict[str, torch.Tensor] = self._real.place(tensors)
        return placed

    def entry(self, anatomy: Anatomy) -> Tap | None:
        """The tap in front of the first block."""
        entry: Tap | None = self._real.entry(anatomy)
        return entry

    def study(
        self, examples: Sequence[Mapping[str, torch.Tensor]] = (), head: str | None = None
    ) -> Study:
        """The model, studied on one or two inputs."""
        study: Study = self._real.study(examples, head)
        return study

    def describe(self) -> dict[str, Any]:
        """`class` and the number of `parameters`."""
        return dict(self._about)

    def digest(self) -> str:
        """Hash of the weights."""
        return str(self._real.digest())

    def code(self) -> dict[str, str]:
        """None of it is the user's own."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the weights."""
        self._real.save(folder)


class RecordedPreparer:
    """The preparation of a classifier as it was noted; see `penult.models.base.Preparer`."""

    def __init__(
        self, spec: Mapping[str, Any], words: Sequence[str], opening: Opening, record: Record
    ) -> None:
        plain = {name: value for name, value in spec.items() if name != "divides"}
        self.input = InputSpec(**plain)
        if spec["divides"]:
            self.input = replace(self.input, divide=self._windows)
        self._guard, self._record, self._opening = Guard(), record, opening
        self.suffices = False  # whether `plain` is to be used
        self._digest, self._truncation, self._description = words

    @property
    def _real(self) -> Any:
        return self._opening.classifier._preparer

    def _windows(self, content: str, window: int, hop: int | None) -> Any:
        return self._real.input.divide(content, window, hop)

    def __call__(self, content: Any) -> Inputs:
        """Decoded content as the model's inputs: by its own preprocessing, unless it suffices to
        prepare plainly."""
        if self.suffices and self.plain is not None and not self._opening.done:
            found = self.plain(content)
            if found is not None:
                return found
        inputs: Inputs = self._real(content)
        return inputs

    @Once
    def plain(self) -> Preparation | None:
        """The preparation without a library of models, where there is one."""
        form = self._record.recall(PREPARATION)
        with suppress(KeyError, TypeError, ValueError, OSError, ImportError):
            return None if form is None else preparation(form)
        return None

    def example(self, seed: int) -> Inputs:
        """A short synthetic item, prepared as any other."""
        example: Inputs = self._real.example(seed)
        return example

    def digest(self) -> str:
        """Hash of every setting."""
        return self._digest

    def truncation(self) -> str:
        """The limit of an item's length, in words."""
        return self._truncation

    def description(self) -> str:
        """How an item is prepared, in words."""
        return self._description
