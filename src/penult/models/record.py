"""A record of a classifier: what is known of it from an earlier run over the same files, so that
the model is opened only where something is asked that the record does not hold.

Importing torch and transformers, reading weights and tracing a pass take seconds. What most runs
ask first (labels, kind of input, hashes, taps) follows from the files, the options and the versions
of packages alone. Code of the user's own has no record: it may do something else each time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from penult.data.files import user_path
from penult.data.hashes import LIST, digest, hash_of, list_hash
from penult.data.notes import Notes, own_places
from penult.extras import package_versions
from penult.locking import Guard, Once
from penult.models.base import (
    FILE,
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
from penult.models.options import CHECKPOINTS, SUFFIXES, LoadOptions, recipe_of
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
        self.key = key
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
        return f"{kind}-{digest([self.key, asked])}.json"


def record_for(spec: Any, options: LoadOptions, listed: bool = False) -> Record | None:
    """The record for a spec; None where its files do not say everything: objects, names of models,
    code, options that name further files.

    listed: the folder's list of hashes was checked, and stands for its files.
    """
    further = (options.checkpoint, options.preprocess, options.class_names)
    if not isinstance(spec, str | Path) or options.trust or options.random or any(further):
        return None
    try:
        path = user_path(spec).resolve()
        hashes = {LIST: list_hash(path) or ""} if listed else _hashes(path)
    except (OSError, ValueError, RuntimeError):  # no path, or one that cannot be read
        return None
    if hashes is None:
        return None
    settings = {name: value for name, value in recipe_of(options).items() if value is not None}
    packages = [package_versions(), _installed()]
    return Record(digest([str(path), Path(spec).name, hashes, settings, packages, package_hash()]))


@cache
def package_hash() -> str:
    """Hash of this package: of two states of one version each has records of its own."""
    return digest([[one.name, hash_of(one)] for one in sorted(_PACKAGE.rglob("*.py"))])


@cache
def _installed() -> str:
    """Hash of the names and versions of all packages: a library may prepare items by another one,
    where that is there."""
    found: set[str] = set()
    for place in sys.path:
        with suppress(OSError):
            found |= {one.name for one in os.scandir(place or ".") if one.name.endswith(_METADATA)}
    return digest(sorted(found))


_METADATA = (".dist-info", ".egg-info")  # folders NAME-VERSION of installed packages
_KNOWN: dict[tuple[Any, ...], str] = {}  # hashes of files, by path, size and times
# With it a folder's weights are changes of others, which are elsewhere.
_ADAPTER = "adapter_config.json"


def _hashes(path: Path) -> dict[str, str] | None:
    """The hash of each file of a model; None where these do not say everything, or it is none: what
    was named by mistake may be large, and is not read."""
    if not path.is_dir():
        promised = path.suffix.lower() in {*SUFFIXES, *CHECKPOINTS}
        return {path.name: _hash(path)} if promised and path.is_file() else None
    if not any((path / name).is_file() for name in ("config.json", FILE)):
        return None
    files = sorted(_files(path))
    if any(one.suffix == ".py" or one.name == _ADAPTER or not one.is_file() for one in files):
        return None
    if sum(one.stat().st_size for one in files) > LARGEST:
        return None
    return {str(one.relative_to(path)): _hash(one) for one in files}


def _files(folder: Path) -> Iterable[Path]:
    """What a loader may read: of a folder of transformers no folder in it (other checkpoints of a
    training, other formats), of one that was saved here all."""
    within = (folder / FILE).is_file()
    for place, folders, names in os.walk(folder, followlinks=False):
        inner = [Path(place) / name for name in folders if within and not name.startswith(".")]
        yield from (one for one in inner if one.is_symlink())  # no file: nothing is said of it
        folders[:] = [one.name for one in inner]
        yield from (Path(place) / name for name in names)  # an index may name hidden ones


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


@contextmanager
def watched() -> Iterator[Callable[[], bool]]:
    """Gives whether something was told of the model in this block, which has to be told again."""
    told: list[logging.LogRecord] = []
    handler, log = logging.Handler(logging.WARNING), logging.getLogger("penult")
    handler.emit = told.append  # type: ignore[method-assign, assignment]
    log.addHandler(handler)
    try:
        yield lambda: bool(told)
    finally:
        log.removeHandler(handler)


def _is_ours(*parts: object) -> bool:
    """Whether these are of this package: of others it is not known what they depend on."""
    return all(type(one).__module__.partition(".")[0] == "penult" for one in parts)


def note_classifier(record: Record, classifier: Classifier, spec: str) -> None:
    """Note what a classifier is, if it can be said without its code. spec: as it was named."""
    about = classifier.structure
    storage, preparer = classifier._storage, classifier._preparer
    told = any(name in classifier._facts for name in _TOLD)
    if about.engine != ENGINE or told or not _is_ours(classifier, about, preparer):
        return
    if is_live(classifier) or own_code(classifier):
        return
    record.note(IDENTITY, classifier.identity())
    record.note(
        CLASSIFIER,
        {
            # Named from another folder, the same files have another name.
            "spec": None if classifier.spec == spec else classifier.spec,
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
            "input": _input_of(classifier.input),
            "preparer": [preparer.digest(), preparer.truncation(), preparer.description()],
            "storage": [
                storage.recipe and dict(storage.recipe),
                storage.files
                and {name: str(path.absolute()) for name, path in storage.files.items()},
            ],
        },
    )
    keep_record(classifier, record)
    folder = user_path(classifier.spec).absolute()
    form = plain_form(classifier, folder) if folder.is_dir() else None
    if form is not None:
        record.note(PREPARATION, form)


def _input_of(spec: InputSpec) -> dict[str, Any]:
    plain = ("modality", "rate", "frames", "seconds", "refusal", "beginning", "patches",
             "band", "playback_rate")  # fmt: skip
    found = {name: getattr(spec, name) for name in plain}
    return found | {"band": spec.band and [*spec.band], "divides": spec.divide is not None}


def recorded_classifier(
    record: Record, spec: str, open: Callable[[], Classifier]
) -> Classifier | None:
    """The classifier that an earlier run noted; None if none did. spec: as it is named now. open:
    opens it, where more is asked than the record holds."""
    found = record.recall(CLASSIFIER)
    try:
        return None if found is None else _restored(found, spec, record, open)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def recorded_modality(record: Record) -> str | None:
    """What the model takes, if an earlier run noted it."""
    found = record.recall(CLASSIFIER)
    return None if found is None else str(found["input"]["modality"])


def _restored(
    found: Mapping[str, Any], spec: str, record: Record, open: Callable[[], Classifier]
) -> Classifier:
    recipe, files = found["storage"]
    opening = Opening(open, len(found["labels"]))
    classifier = Classifier(
        found["spec"] or spec,
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
        band = plain["band"]
        self.input = InputSpec(**plain | {"band": band and tuple(band)})
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
            with suppress(Exception):  # what this one cannot take, the checkpoint's own may
                if (found := self.plain(content)) is not None:
                    return found
        inputs: Inputs = self._real(content)
        return inputs

    @Once
    def plain(self) -> Preparation | None:
        """The preparation without a library of models, where there is one."""
        form = self._record.recall(PREPARATION)
        with suppress(Exception):  # a library that reads rules may raise anything
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
