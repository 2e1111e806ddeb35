"""Options of `load`, and the kinds of model files. Knows no origin of models; each loader takes
from here what it needs.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from penult.data.files import archive_entries, expansion, pointer, user_path
from penult.errors import ModelError, UsageError
from penult.models.base import BINARY, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from penult.models.patches import PATCHES
from penult.models.trust import imported

TORCHSCRIPT, EXPORT, KERAS = "torchscript", "export", "keras"

# What a suffix promises. `.pt` and `.pth` promise nothing: most of them are checkpoints.
SUFFIXES = {
    ".ts": TORCHSCRIPT,
    ".torchscript": TORCHSCRIPT,
    ".jit": TORCHSCRIPT,
    ".pt2": EXPORT,
    ".keras": KERAS,
    ".h5": KERAS,
    ".hdf5": KERAS,
}
CHECKPOINTS = {".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl"}


def kind_of(spec: str | Path) -> str | None:
    """torchscript, export or keras, if a file of that kind is named; whether it exists or not."""
    path = user_path(spec)
    promised = SUFFIXES.get(path.suffix.lower())
    if promised == KERAS or path.is_dir():
        return None if path.is_dir() else promised
    if promised is None and path.suffix.lower() not in CHECKPOINTS:
        return None
    return _kind_inside(members(path)) or promised


def _kind_inside(names: list[str]) -> str | None:
    """What an archive is, by what torch puts into each kind of it, below one folder."""
    inside = {name.partition("/")[2] for name in names}
    if "archive_format" in inside or any(name.startswith("serialized_exported") for name in names):
        return EXPORT
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return TORCHSCRIPT
    return None


def existing_file(spec: str | Path) -> Path:
    """The absolute path of a file.

    Raises:
        ModelError: there is none, or a pointer of git-lfs or git-annex in its place.
    """
    path = user_path(spec).absolute()
    refuse_pointer(path)
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    return path


def is_network_path(name: str) -> bool:
    """Whether a name is a path of another machine (`//server/share`): opening it asks the network,
    on Windows with the user's password."""
    return name.replace("\\", "/").startswith("//")


def refuse_pointer(path: Path) -> None:
    """Refuse a file whose content git-lfs or git-annex has not fetched.

    Raises:
        ModelError: it is such a file.
    """
    if words := pointer(path):
        raise ModelError(f"{path} {words}")


# Files of other runtimes: suffix → what they are, and what would work.
_FOREIGN = {
    ".tflite": ("a TFLite model", "give it a name that ends in .tflite"),
    ".pb": (
        "a frozen graph of TensorFlow, which only TensorFlow runs",
        "convert it to ONNX (python -m tf2onnx.convert --graphdef FILE --output model.onnx)",
    ),
    ".mlmodel": ("a Core ML model", "export the model that it was made of to ONNX"),
    ".gguf": ("a model of llama.cpp", "give the model that it was made of, as transformers has it"),
}
_TFLITE = b"TFL3"  # behind the first four bytes of every TFLite file


def refuse_foreign(path: Path) -> None:
    """Refuse a model file that another runtime alone runs.

    Raises:
        ModelError: it is one; the message says what would work.
    """
    suffix = path.suffix.lower()
    if path.is_file():
        with path.open("rb") as file:
            suffix = ".tflite" if file.read(8)[4:] == _TFLITE else suffix
    if suffix in _FOREIGN:
        kind, remedy = _FOREIGN[suffix]
        raise ModelError(f"{str(path)!r} is {kind}: {remedy}")


def members(path: Path) -> list[str]:
    """Names in a zip archive; none if it is no such archive, or not there."""
    return [entry.filename for entry in archive_entries(path)]


def refuse_expanding(path: Path) -> None:
    """Refuse an archive that would grow without measure when it is read.

    Raises:
        ModelError: it is one.
    """
    if reason := expansion(path):
        raise ModelError(f"{path} {reason}")


def checkpoint_advice(path: Path) -> str:
    """What would work for a file of weights that was named as a model."""
    return (
        "it holds weights, or a pickled module, and no network that can be run: give what builds "
        f"the network as the model, and this file with --checkpoint {path.name} "
        "(package.module:factory, timm:NAME or torchvision:NAME)"
    )


Prepare = Callable[[Any], Any]

KINDS = (SINGLE_LABEL, MULTI_LABEL, BINARY, REGRESSION)
CLASS_NAMES = "labels"  # the key of the class names in files, and their argument's name of old


PLAYBACK = ("band", "playback_rate")


@dataclass(frozen=True, slots=True)
class PlaybackOptions:
    """How a recording is played to a model. band: `500-8000`, the frequencies in Hz that reach it.
    playback_rate: 0.1 is ten times slower."""

    band: str | None = None
    playback_rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        band_of(self.band)
        if self.playback_rate is not None and not 0.001 <= self.playback_rate <= 1000:
            raise UsageError(
                f"a playback rate of {self.playback_rate:g} cannot be; 0.1 is ten times slower"
            )

    def to_dict(self) -> dict[str, Any]:
        """Those that were given, by name."""
        given = {name: getattr(self, name) for name in PLAYBACK}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The facts of a model that its file does not hold, and how it may be opened.

    checkpoint: a file of weights, `FILE#entry` where it has several copies. preprocess: a function,
    or `package.module:function`, from decoded content (PIL image, samples (n,), frames, text) to
    the tensor or tensors of one item, without a batch axis. class_names: of the outputs, in their
    order or by number, or a file with one a line, or JSON. sample_rate: makes the model one of
    audio. seconds: a fixed length of audio, to which shorter clips are padded with zeros at the end
    and longer ones cut. random: allow weights that nobody trained, to look at an architecture.
    output: name or number of the one that holds the logits, where there are several.
    weights_inside: a factory's model has its trained weights in it. patches: where `preprocess`
    gives several patches of one item, in the first axis of each tensor: `mean` or `max` pool them
    to one row, `rows` keeps a row for each. inputs: of a graph that are part of no item, each a
    number: a mapping, or `NAME=VALUE`, kept as `NAME=VALUE,NAME=VALUE`. playback: of recordings.
    """

    checkpoint: str | os.PathLike[str] | None = None
    preprocess: Prepare | str | None = None
    class_names: Sequence[str] | Mapping[int, str] | str | os.PathLike[str] | None = None
    sample_rate: int | None = None
    seconds: float | None = None
    modality: str | None = None
    kind: str | None = None
    trust: bool = False
    random: bool = False
    output: str | int | None = None
    weights_inside: bool = False
    patches: str | None = None
    inputs: str | Mapping[str, float] | Sequence[str] | None = None
    playback: PlaybackOptions = field(default_factory=PlaybackOptions)

    def __post_init__(self) -> None:
        """Refuse what no model can have, whether it takes the option or not."""
        object.__setattr__(self, "inputs", _inputs_of(self.inputs))
        if self.patches not in (None, *PATCHES):
            raise UsageError(
                f"patches {self.patches!r} is not known; choose mean or max, which pool the "
                "patches of an item to one row, or rows, a row for each"
            )
        if self.kind not in (None, *KINDS):
            raise UsageError(f"kind {self.kind!r} is not known; choose one of {', '.join(KINDS)}")
        if self.sample_rate is not None and not self.sample_rate > 0:
            raise UsageError(f"a sample rate of {self.sample_rate} Hz cannot be; give more than 0")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UsageError(f"a length of {self.seconds:g} s cannot be; give more than 0 seconds")
        if self.weights_inside and self.checkpoint is not None:
            raise UsageError(
                "weights are given twice: --weights-inside and --checkpoint exclude each other"
            )

    def with_defaults(self, **defaults: Any) -> LoadOptions:
        """The same options, with these where the caller gave none."""
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)


def with_options(options: LoadOptions, changes: Mapping[str, Any]) -> LoadOptions:
    """The options with others, under the names that `penult.load` has for them.

    Raises:
        UsageError: a value that cannot be.
    """
    rest = {name: value for name, value in changes.items() if name not in PLAYBACK}
    played = {name: value for name, value in changes.items() if name in PLAYBACK}
    return replace(options, **rest, playback=replace(options.playback, **played))


def load_options(options: Mapping[str, Any]) -> LoadOptions:
    """The options of `penult.load`, from a caller or a file.

    Raises:
        UsageError: a value that cannot be.
    """
    return with_options(LoadOptions(), current(options))


def recipe_of(options: LoadOptions) -> dict[str, Any]:
    """For a saved classifier: the options that open it again."""
    named = options.preprocess if isinstance(options.preprocess, str) else None
    seldom = ("weights_inside", "patches", "inputs")
    return {
        "preprocess": named,
        "sample_rate": options.sample_rate,
        "seconds": options.seconds,
        "modality": options.modality,
        "kind": options.kind,
        "output": options.output,
        **{name: value for name in seldom if (value := getattr(options, name))},
        **options.playback.to_dict(),
    }


def _inputs_of(given: str | Mapping[str, float] | Sequence[str] | None) -> str | None:
    """Inputs in one text, in the order of their names; None where there are none."""
    found: dict[str, float] = {}
    pairs = given.items() if isinstance(given, Mapping) else [
        (one.rpartition("=")[0], one.rpartition("=")[2])
        for one in (given.split(",") if isinstance(given, str) else given or ())
    ]  # fmt: skip
    for name, value in pairs:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not name or "," in name or not number - number == 0:
            raise UsageError(f"--input {name}={value}: give NAME=NUMBER, such as sr=16000")
        if name in found:
            raise UsageError(f"--input {name} is given twice")
        found[name] = number
    return ",".join(f"{name}={found[name]:.17g}" for name in sorted(found)) or None


def input_values(options: LoadOptions) -> dict[str, float]:
    """The number of each input that is part of no item, by its name."""
    assert options.inputs is None or isinstance(options.inputs, str)
    pairs = (one.rpartition("=") for one in (options.inputs or "").split(",") if one)
    return {name: float(value) for name, _, value in pairs}


def band_of(text: str | None) -> tuple[float, float] | None:
    """`500-8000` as two frequencies in Hz.

    Raises:
        UsageError: it is no band.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*-\s*(\d+\.?\d*)\s*", text)
    low, high = map(float, found.groups()) if found else (0.0, 0.0)
    if not 0 < low < high:
        raise UsageError(
            f"band {text!r} is none; give its lower and upper end in Hz, for example 500-8000"
        )
    return low, high


def output_key(options: LoadOptions) -> str | int | None:
    """The output that holds the logits: its number, or its name."""
    key = options.output
    return int(key) if isinstance(key, str) and key.isdigit() else key


def reopening(options: LoadOptions) -> dict[str, Any]:
    """For a collection: every option that has a name, with whole paths."""
    kept = {
        CLASS_NAMES: None if options.class_names is None else _whole(options.class_names),
        "checkpoint": options.checkpoint
        if options.checkpoint is None
        else _whole(options.checkpoint),
        **recipe_of(options),
    }
    return {name: value for name, value in kept.items() if value is not None}


_ASKED: dict[str, tuple[type, ...]] = {
    CLASS_NAMES: (str, list, dict),
    "class_names": (str, list, dict),
    "checkpoint": (str,),
    "preprocess": (str,),
    "sample_rate": (int, float),
    "seconds": (int, float),
    "modality": (str,),
    "kind": (str,),
    "output": (str, int),
    "weights_inside": (bool,),
    "patches": (str,),
    "inputs": (str,),
    "band": (str,),
    "playback_rate": (int, float),
}


def reopened(document: Any, file: str) -> dict[str, Any]:
    """What `reopening` wrote into a file, as options of `load`: known ones alone, for a file gives
    no permission.

    Raises:
        ModelError: it asks for something else, or a value is of another type.
    """
    if not isinstance(document, Mapping):
        raise ModelError(f"{file}: the options of its model are no mapping")
    for name, value in document.items():
        if name not in _ASKED:
            raise ModelError(
                f"{file} asks for the option {name!r}, which is for whoever opens the model to "
                f"give; a file may name {', '.join(_ASKED)}"
            )
        if value is not None and not isinstance(value, _ASKED[name]):
            raise ModelError(f"{file}: the option {name} cannot be {type(value).__name__}")
        if isinstance(value, str) and is_network_path(value):
            raise ModelError(f"{file} names {value!r}, a path of another machine, as {name}")
    return current(document)


class MoreLoadOptions(TypedDict, total=False):
    """The less frequent options of `penult.load`, by name, for type checkers."""

    modality: str | None
    kind: str | None
    output: str | int | None
    random: bool
    weights_inside: bool
    patches: str | None
    inputs: Mapping[str, float] | Sequence[str] | str | None
    band: str | None
    playback_rate: float | None
    labels: Sequence[str] | str | os.PathLike[str] | None  # class_names, as they were called


def current(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under their names of today, from a file or a caller of an older version: `labels`
    are `class_names`.

    Raises:
        UsageError: both are given.
    """
    found = dict(options)
    older = found.pop(CLASS_NAMES, None)
    if older is not None and found.get("class_names") is not None:
        raise UsageError("class_names are given twice, once as labels, their name of old; drop it")
    return found if older is None else found | {"class_names": older}


def _whole(value: Any) -> Any:
    """A path as it is called from anywhere; names stay."""
    if isinstance(value, str | os.PathLike):
        return str(user_path(value).absolute())
    return dict(value) if isinstance(value, Mapping) else [*value]


def existing(spec: str | Path, options: LoadOptions) -> Path:
    """The path of a model file that brings its own weights.

    Raises:
        ModelError: there is no such file.
        UsageError: the options name other weights.
    """
    path = existing_file(spec)
    if options.checkpoint is not None:
        raise UsageError(
            f"{path.name} brings its own weights; --checkpoint goes with a name or a factory that "
            "brings none (timm:NAME, torchvision:NAME, package.module:factory)"
        )
    return path


def with_length(options: LoadOptions, length: int | None, name: str) -> LoadOptions:
    """The options, with the seconds of sound that a model of fixed length takes.

    Raises:
        UsageError: the options name other seconds.
    """
    rate = options.sample_rate
    if length is None or rate is None or options.preprocess is not None:
        return options
    if options.seconds is not None and round(options.seconds * rate) != length:
        raise UsageError(
            f"{name} takes exactly {length} samples, {length / rate:g} s at {rate} Hz, and "
            f"--seconds is {options.seconds:g}"
        )
    return replace(options, seconds=length / rate)


class Preprocessing(NamedTuple):
    """A function from decoded content to the tensor or tensors of one item, without a batch axis,
    and the settings that tell it from another one. raw: the tensor is the samples themselves."""

    function: Prepare
    settings: Mapping[str, Any]
    raw: bool = False


def preprocessing_of(options: LoadOptions) -> Preprocessing:
    """The caller's own preprocessing, told from another one by its source.

    Without one, audio goes in as samples; anything else needs one.
    """
    function = options.preprocess
    if isinstance(function, str):
        function = imported(function, "a preprocessing function", options.trust)
    if function is None:
        if options.sample_rate is None:
            raise UsageError(
                "nothing says how an item is prepared for this model: give "
                "--preprocess package.module:function, or --sample-rate if it takes raw samples"
            )
        from torch import from_numpy

        return Preprocessing(from_numpy, {"samples": options.sample_rate}, raw=True)
    settings = {"rate": options.sample_rate, "source": source_of(function)}
    return Preprocessing(function, settings)


def source_of(function: Callable[..., Any]) -> str:
    """Hash of the file that a function comes from, so that a change of it is a change."""
    target = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(target if hasattr(target, "__code__") else type(target))
        text = Path(path).read_bytes() if path else inspect.getsource(target).encode()
    except (TypeError, OSError):
        text = repr(target).encode()
    return hashlib.sha256(text).hexdigest()[:16]
