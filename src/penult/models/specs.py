"""From a model's spec to an open classifier: the table of loaders, and saved folders."""

from __future__ import annotations

import functools
import logging
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from penult.data.documents import of_others
from penult.data.files import user_path
from penult.data.hashes import LIST, damage
from penult.errors import ModelError, PenultError, UsageError, cause
from penult.extras import LOADERS, load_plugin, package_of, plugins
from penult.models.base import (
    FILE,
    Classifier,
    keep_bundle,
    note_facts,
    remember_options,
    set_playback,
)
from penult.models.code_bundle import FOLDER as CODE
from penult.models.code_bundle import CodeBundle
from penult.models.hub import HUB_ID, fetch, refuse_path
from penult.models.options import (
    CHECKPOINTS,
    CLASS_NAMES,
    EXPORT,
    KERAS,
    PLAYBACK,
    TORCHSCRIPT,
    LoadOptions,
    band_of,
    checkpoint_advice,
    existing_file,
    is_network_path,
    kind_of,
    load_options,
    recipe_of,
    refuse_foreign,
    refuse_pointer,
    reopening,
    with_options,
)
from penult.models.record import (
    Record,
    note_classifier,
    record_for,
    recorded_classifier,
    recorded_modality,
    watched,
)
from penult.models.trust import named_by, typed

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[\w.-]+")
ONNX = re.compile(r".+\.onnx(#.+)?", re.IGNORECASE)
TFLITE = re.compile(r".+\.tflite(#.+)?", re.IGNORECASE)
DEMO = "demo"
FACTORIES = "torch"  # the loader of factories
EMBEDDER, GRAPHS = "penult.json", "engines"  # of a saved embedder
WEIGHTS = "model.safetensors"  # of a saved folder, where its model has no file of its own


@dataclass(frozen=True, slots=True)
class LoaderSpec:
    """A kind of model that can be opened.

    name: as saved folders record it. form: how such a model is named, for messages: `FILE.onnx`.
    open: (name, options) to a classifier. claims: a spec to the name that `open` takes, or None
    where the spec is another loader's; without it, specs that begin with `name:` are this one's.
    modality: what a model takes, found without its weights.
    """

    name: str
    form: str
    open: Callable[[str, LoadOptions], Classifier]
    claims: Callable[[str], str | None] | None = None
    modality: Callable[[str, LoadOptions], str] = lambda name, options: "image"

    def claim(self, spec: str) -> str | None:
        """The name that `open` takes, or None."""
        if self.claims is not None:
            return self.claims(spec)
        prefix = f"{self.name}:"
        return spec.removeprefix(prefix) if spec.startswith(prefix) else None


def _open_onnx(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.onnx import open_onnx

    return open_onnx(*_with_output(name, options))


def _open_tflite(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.tflite import open_tflite

    return open_tflite(*_with_output(name, options))


def _with_output(name: str, options: LoadOptions) -> tuple[str, LoadOptions]:
    """`FILE#OUTPUT` for a file whose output the options name, and the other options."""
    if options.output is None:
        return name, options
    file, _, output = name.partition("#")
    if output not in ("", options.output):
        raise UsageError(f"output {options.output!r}: {name} names an output already")
    return f"{file}#{options.output}", replace(options, output=None)


def _open_torchscript(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.torchscript import open_torchscript

    return open_torchscript(name, options)


def _open_export(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.torch_export import open_export

    return open_export(name, options)


def _open_keras(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.keras import open_keras

    return open_keras(name, options)


def _open_timm(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.timm import open_timm

    return open_timm(name, options)


def _open_torchvision(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.timm import open_torchvision

    return open_torchvision(name, options)


def _open_factory(name: str, options: LoadOptions) -> Classifier:
    from penult.models.loaders.torch import open_factory

    return open_factory(name, options)


def _open_transformers(name: str, options: LoadOptions) -> Classifier:
    """A folder that transformers saved, or its id on the hub."""
    from penult.models.loaders.transformers import open_folder, open_prepared

    folder, shown, revision = locate(name, options.trust)
    if _is_pushed(folder, shown, revision):
        return _open_pushed(folder, shown, revision, options)
    if revision is not None and (folder / FILE).is_file():
        return _open_saved(folder, options)
    if (folder / "saved_model.pb").is_file():
        raise ModelError(
            f"{shown!r} is a SavedModel of TensorFlow, which only TensorFlow runs: convert it "
            "where TensorFlow is (tf.lite.TFLiteConverter.from_saved_model(FOLDER).convert(), "
            "written to model.tflite), or save it from there as model.keras"
        )
    _refuse_adapter(folder, shown)
    if options.checkpoint is not None:
        raise UsageError(
            f"{shown!r} brings its own weights; --checkpoint goes with a name or a factory that "
            "brings none (timm:NAME, torchvision:NAME, package.module:factory)"
        )
    if options.preprocess is not None:
        return open_prepared(folder, shown, options)
    return open_folder(folder, shown, options, {"revision": revision})


def _refuse_adapter(folder: Path, shown: str) -> None:
    """Refuse a folder of PEFT: its matrices alone are no model, and beside a model they would be
    left out.

    Raises:
        ModelError: it is such a folder; the message names the model that it was trained on.
    """
    file = folder / "adapter_config.json"
    whole = (folder / "config.json").is_file() and not any(folder.glob("adapter_model.*"))
    if whole or not file.is_file():
        return
    try:
        settings = of_others(file.read_text("utf-8"))
        base, kind = settings["base_model_name_or_path"], settings.get("peft_type", "PEFT")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        base, kind = "a model that it does not name", "PEFT"
    raise ModelError(
        f"{shown!r} holds an adapter ({kind}) for {base}, and no whole model: merge the two in "
        "Python with peft (PeftModel.from_pretrained(base, folder).merge_and_unload()"
        ".save_pretrained(out), and the base's preprocessor or tokenizer beside it), or name a "
        "factory that gives the model with its adapter and say --weights-inside"
    )


def _onnx_modality(name: str, options: LoadOptions) -> str:
    from penult.models.loaders.onnx import modality_of_file

    return modality_of_file(name)


def _tflite_modality(name: str, options: LoadOptions) -> str:
    from penult.models.loaders.tflite import modality_of_file

    if options.preprocess is None and options.sample_rate is None:
        return "array"
    return modality_of_file(name)


def _file_modality(name: str, options: LoadOptions) -> str:
    existing_file(name)
    return "image"


def _transformers_modality(name: str, options: LoadOptions) -> str:
    from penult.models.loaders.transformers import read_modality

    folder, shown, revision = locate(name, options.trust)
    _refuse_adapter(folder, shown)
    if _is_pushed(folder, shown, revision) or (revision and (folder / FILE).is_file()):
        return modality_of(folder, trust=options.trust)
    return read_modality(folder, shown, options.trust)


def _claims_onnx(spec: str) -> str | None:
    return spec if is_onnx(spec) else None


def _claims_tflite(spec: str) -> str | None:
    return spec if TFLITE.fullmatch(spec) else None


def _claims_kind(kind: str) -> Callable[[str], str | None]:
    return lambda spec: spec if kind_of(spec) == kind else None


def _claims_factory(spec: str) -> str | None:
    return spec if FACTORY.fullmatch(spec) and not Path(spec).exists() else None


# The first that claims a spec opens it; loaders of other packages stand between the two tables.
FILE_LOADERS = (
    LoaderSpec("onnx", "FILE.onnx", _open_onnx, _claims_onnx, _onnx_modality),
    LoaderSpec("tflite", "FILE.tflite", _open_tflite, _claims_tflite, _tflite_modality),
    LoaderSpec(
        TORCHSCRIPT,
        "a TorchScript file (.pt, .ts)",
        _open_torchscript,
        _claims_kind(TORCHSCRIPT),
        _file_modality,
    ),
    LoaderSpec(
        EXPORT, "a torch.export file (.pt2)", _open_export, _claims_kind(EXPORT), _file_modality
    ),
    LoaderSpec(
        KERAS, "a Keras file (.keras, .h5)", _open_keras, _claims_kind(KERAS), _file_modality
    ),
    LoaderSpec("timm", "timm:NAME", _open_timm),
    LoaderSpec("torchvision", "torchvision:NAME", _open_torchvision),
)
NAME_LOADERS = (
    LoaderSpec(FACTORIES, "package.module:factory", _open_factory, _claims_factory),
    LoaderSpec(
        "transformers",
        "a folder saved by transformers (with config.json) or by penult convert, an id on the "
        "Hugging Face hub (owner/name or owner/name@revision), 'demo'",
        _open_transformers,
        lambda spec: spec,
        _transformers_modality,
    ),
)


def loaders(spec: str) -> Iterator[LoaderSpec]:
    """The loaders in the order in which they are offered a spec: those of other packages behind
    those of files, first the one whose name begins the spec. Others that cannot be imported are
    left out, with a warning.

    Raises:
        UsageError: the loader whose name begins the spec cannot be imported.
    """
    yield from FILE_LOADERS
    installed = plugins(LOADERS)
    prefix, colon, _ = spec.partition(":")
    if colon and prefix in installed:
        yield plugin_loader(prefix)
        del installed[prefix]
    for name in installed:
        try:
            yield plugin_loader(name)
        except UsageError as error:
            log.warning("%s", error)
    yield from NAME_LOADERS


def plugin_loader(name: str) -> LoaderSpec:
    """The loader that another package registered under a name. Whatever its functions raise that
    is no PenultError comes as a ModelError that names it.

    Raises:
        UsageError: it cannot be imported, or is no LoaderSpec.
    """
    entry = plugins(LOADERS)[name]
    found = load_plugin(entry)
    if not isinstance(found, LoaderSpec):
        raise UsageError(
            f"loader {name!r} of {package_of(entry)}: {entry.value} is a {type(found).__name__}, "
            "not a penult.models.specs.LoaderSpec"
        )
    package = f"loader {name!r} of {package_of(entry)}"
    return LoaderSpec(
        name,
        found.form,
        _named_errors(found.open, package),
        _named_errors(found.claim, package),
        _named_errors(found.modality, package),
    )


def check_loader(name: str) -> None:
    """Refuse a loader of another package that cannot serve.

    Raises:
        UsageError: it is registered under another name than its own, or its `claims` fails.
    """
    entry = plugins(LOADERS)[name]
    package, found = f"loader {name!r} of {package_of(entry)}", plugin_loader(name)
    own = load_plugin(entry).name
    if own != name:
        raise UsageError(f"{package} calls itself {own!r}; give it one name in both places")
    try:
        found.claim(f"{name}:x")
    except ModelError as error:
        raise UsageError(str(error)) from error


def _named_errors(function: Callable[P, T], package: str) -> Callable[P, T]:
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except PenultError:
            raise
        except Exception as error:  # a package of somebody else may raise anything
            raise ModelError(f"{package} failed: {cause(error, named=True)}") from error

    return wrapped


def loader_for(spec: str) -> tuple[LoaderSpec, str]:
    """The loader that claims a spec, and the name that it opens."""
    if spec == DEMO:
        return NAME_LOADERS[-1], spec
    for loader in loaders(spec):
        try:
            name = loader.claim(spec)
        except ModelError as error:  # the others are offered the spec all the same
            log.warning("%s", error)
            continue
        if name is not None:
            return loader, name
    raise AssertionError("the last loader claims every spec")


def loader_named(name: str, spec: str) -> LoaderSpec:
    """The loader that a saved folder records.

    Raises:
        ModelError: it is not installed.
    """
    own = {loader.name: loader for loader in (*FILE_LOADERS, *NAME_LOADERS)}
    if name in own:
        return own[name]
    installed = plugins(LOADERS)
    if name not in installed:
        raise ModelError(
            f"{spec} was saved with the loader {name!r}, which is not installed; there are "
            f"{', '.join([*own, *installed])}"
        )
    return plugin_loader(name)


def forms() -> str:
    """How a model may be named, with the loaders of other packages; none of them is imported."""
    own = [loader.form for loader in (*NAME_LOADERS[::-1], *FILE_LOADERS)]
    *others, last = [*own, *(f"{name}:NAME" for name in plugins(LOADERS))]
    return f"a model is {', '.join(others)} or {last}"


def open_recorded(spec: str | os.PathLike[str], **options: Any) -> Classifier:
    """As `load`, for a classifier that nobody changes: of files that an earlier run opened it is
    given by its record, and the model itself is opened where it is needed."""
    spec = os.fspath(spec) if isinstance(spec, os.PathLike) else spec
    known = load_options(options)
    record = _record_of(spec, known)
    if record is None:
        return load(spec, **options)
    typed(spec, None)
    name = spec if isinstance(spec, str) else ""

    def open_now() -> Classifier:
        found = _open(spec, known)
        again = _record_of(spec, known)
        if again is None or again.key != record.key:
            raise ModelError(f"{spec} was changed while it was in use; open it again")
        return found

    classifier = recorded_classifier(record, name, open_now)
    if classifier is None:
        with watched() as told:
            classifier = load(spec, **options)
        again = _record_of(spec, known)
        if not told() and again is not None and again.key == record.key:
            note_classifier(record, classifier, name)
    remember_options(classifier, reopening(known))
    return classifier


def _record_of(spec: Any, options: LoadOptions) -> Record | None:
    if spec == DEMO:
        return record_for(demo_folder(), options)
    listed = isinstance(spec, str) and all(
        (user_path(spec) / name).is_file() for name in (LIST, EMBEDDER)
    )
    if listed:
        require_as_saved(user_path(spec))  # the list stands for the files
    return record_for(spec, options, listed)


def load(spec: str | os.PathLike[str] | Any, **options: Any) -> Classifier:
    """Open a classifier by its spec, or a module that is at hand.

    spec: a folder, a hub id, `timm:NAME`, `torchvision:NAME`, a file (`FILE.onnx`,
    `FILE.onnx#OUTPUT`, `FILE.tflite`, `FILE.pt` of TorchScript, `FILE.pt2`, `FILE.keras`), `demo`,
    `package.module:factory`, or an nn.Module, an ExportedProgram, a Keras model. options: the
    fields of `penult.models.options.LoadOptions`.

    Raises:
        ModelError: there is no such model, or it is not a classifier.
        IncompleteWeights: its weights do not fill it.
        UntrustedCode: it brings code, and `trust` was not given.
    """
    if CLASS_NAMES in options:
        warnings.warn(
            "labels= is called class_names=; it goes in the next version",
            DeprecationWarning,
            stacklevel=3,
        )
    spec = os.fspath(spec) if isinstance(spec, os.PathLike) else spec
    paths = {n: Path(value) for n, value in options.items() if isinstance(value, os.PathLike)}
    known = load_options({**options, **paths})
    typed(spec, known.preprocess)
    classifier = _open(spec, known)
    if known.patches is not None and classifier.input.patches is None:
        raise UsageError(
            f"--patches {known.patches}: nothing gives {spec!r} several patches of an item. It "
            "goes with a preprocessing of your own (--preprocess package.module:function) whose "
            "tensors have the patches of an item in their first axis; leave it out"
        )
    if known.inputs and "fixed_inputs" not in classifier.describe():
        raise UsageError(
            f"--input {known.inputs}: {spec!r} has no inputs that are part of no item; it goes "
            "with ONNX, TFLite and TorchScript files"
        )
    remember_options(classifier, reopening(known))
    return classifier


def require_as_saved(folder: Path, only: Collection[str] | None = None) -> None:
    """Refuse a saved embedder whose files are not as its list of hashes says. only: files that are
    looked at; recorded graphs are checked when they are opened.

    Raises:
        ModelError: a file is another one, missing, or was added.
    """
    if (folder / EMBEDDER).is_file() and (found := damage(folder, only, later=GRAPHS)):
        raise ModelError(
            f"{folder} is not as it was saved: {found} (see {LIST} in it). Restore it from a copy, "
            f"or save it again; if the change is yours and meant, remove {LIST}"
        )


def _open(spec: str | Any, options: LoadOptions) -> Classifier:
    if not isinstance(spec, str):
        from penult.models.loaders.torch import open_module

        return _played(open_module(spec, options), options)
    folder = user_path(spec)
    require_as_saved(folder)
    if (folder / FILE).is_file():
        return _open_saved(folder, options)
    loader, name = loader_for(spec)
    if options.weights_inside and loader.name != FACTORIES:
        raise UsageError(
            f"--weights-inside goes with a factory, package.module:function, and {spec!r} is none: "
            "leave it out"
        )
    return _played(loader.open(name, options), options)


def _played(classifier: Classifier, options: LoadOptions) -> Classifier:
    """The classifier, whose sound is read as the options have it."""
    set_playback(classifier, band_of(options.playback.band), options.playback.playback_rate)
    return classifier


@dataclass(frozen=True, slots=True)
class SavedClassifier:
    """What `Classifier.save` wrote. name: the file inside the folder, or the name that the loader
    takes. options: those that it was opened with. weights: a checkpoint, where there is no file."""

    loader: LoaderSpec
    name: str
    options: Mapping[str, Any]
    weights: Path | None = None


# The keys of a saved classifier's recipe. What permits something (`trust`, `random`) or names other
# weights (`checkpoint`) is for whoever opens it.
_RECIPE = {"origin", "name", CLASS_NAMES, *recipe_of(LoadOptions()), "weights_inside", "patches",
           "inputs", *PLAYBACK}  # fmt: skip


def _check_recipe(path: Path, origin: Any, name: Any, recipe: Mapping[str, Any]) -> None:
    """Refuse values of a recipe that no saved model has.

    Raises:
        ModelError: it names a file outside of its folder, or is of another type.
    """
    texts = {"origin": origin, "name": name, "preprocess": recipe.get("preprocess")}
    for key, value in texts.items():
        if not isinstance(value, str | None):
            raise ModelError(f"{path}: {key} is {type(value).__name__}, and has to be a text")
    if not isinstance(recipe.get(CLASS_NAMES), list):
        raise ModelError(f"{path}: {CLASS_NAMES} has to be a list of names")
    inside = recipe.get("weights_inside", False)
    if inside is not False and (inside is not True or origin != FACTORIES):
        raise ModelError(f"{path}: weights_inside goes with a factory, and its origin is {origin}")
    file = str(name).partition("#")[0].removeprefix("graph/")  # see the loader of ONNX
    files_alone = origin in {loader.name for loader in (*FILE_LOADERS[:5], NAME_LOADERS[-1])}
    if is_network_path(file) or (name is not None and files_alone and Path(file).name != file):
        raise ModelError(f"{path} names {file!r}, which is no file in its folder")


def read_saved(folder: Path) -> SavedClassifier:
    """The recipe in a folder that `Classifier.save` wrote.

    Raises:
        ModelError: it cannot be read, or its loader is not installed.
    """
    path = folder / FILE
    try:
        recipe = dict(of_others(path.read_text("utf-8")))
        if unknown := sorted(set(recipe) - _RECIPE):
            raise ModelError(
                f"{path} asks for {', '.join(map(repr, unknown[:5]))}, which no saved model can: "
                f"it has {', '.join(sorted(_RECIPE))}. Whoever opens a model says what else holds"
            )
        origin, name = recipe.pop("origin"), recipe.pop("name", None)
        _check_recipe(path, origin, name, recipe)
        # By number: the model's own names may stand twice.
        options = {"class_names": dict(enumerate(recipe.pop(CLASS_NAMES))), **recipe}
        load_options(options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {cause(error)}") from error
    loader = loader_named(origin, str(folder))
    if name is None:  # a folder of transformers
        return SavedClassifier(loader, str(folder), options)
    if (folder / str(name).partition("#")[0]).is_file():
        return SavedClassifier(loader, str(folder / name), options)
    weights = None if options.get("weights_inside") else folder / WEIGHTS
    return SavedClassifier(loader, name, options, weights)


# What whoever opens a saved model may call otherwise than it does.
_INTERPRETED = ("class_names", "kind")


def _agreed(folder: Path, saved: Mapping[str, Any], given: LoadOptions) -> dict[str, Any]:
    """Options of a recipe, without those that it leaves open: they are for whoever opens it.

    Raises:
        UsageError: other values are given for what the numbers depend on.
    """
    own = {name: value for name, value in saved.items() if value is not None}
    for name in _INTERPRETED:
        if getattr(given, name) is not None:
            own[name] = getattr(given, name)
    for name, value in own.items():
        other = getattr(given.playback if name in PLAYBACK else given, name)
        if isinstance(value, str) and callable(other):
            other = f"{other.__module__}:{getattr(other, '__qualname__', type(other).__name__)}"
        if name not in ("weights_inside", *_INTERPRETED) and other not in (None, value):
            option = name.replace("_", "-")
            raise UsageError(
                f"{folder} was saved with --{option} {value}, and --{option} {other} is given: "
                "leave it out, or open the model that it was saved from"
            )
    return own


def _open_saved(folder: Path, options: LoadOptions) -> Classifier:
    """A folder that `Classifier.save` wrote, opened by its recipe."""
    saved = read_saved(folder)
    own = _agreed(folder, saved.options, options)
    if saved.weights is not None:
        own["checkpoint"] = saved.weights
    bundle = CodeBundle.read(folder)
    with named_by(folder / FILE, bundle=bundle):
        full = with_options(options, own)
        classifier = _played(saved.loader.open(saved.name, full), full)
    keep_bundle(classifier, bundle)
    classifier.spec = str(folder.resolve())
    return classifier


def _is_pushed(folder: Path, shown: str, revision: str | None) -> bool:
    """Whether a folder is a saved embedder out of the hub's cache.

    Raises:
        ModelError: it carries code, which is run out of a folder of the user's alone.
    """
    if revision is None or not (folder / EMBEDDER).is_file():
        return False
    if (folder / CODE).is_dir():
        repo, _, named = shown.partition("@")
        option = f" --revision {named}" if named else ""
        raise ModelError(
            f"{shown} on the hub is an embedder with Python code of its own, which is not run from "
            f"there: hf download {repo}{option} --local-dir FOLDER, read FOLDER/{CODE}, and name "
            "FOLDER with --trust"
        )
    return True


def _open_pushed(
    folder: Path, shown: str, revision: str | None, options: LoadOptions
) -> Classifier:
    """The classifier of a saved embedder on the hub: named as it was asked for, with the commit."""
    from penult.models.loaders.transformers import open_folder

    require_as_saved(folder)
    if (folder / FILE).is_file():
        found = _open_saved(folder, options)
        found.spec = shown
        note_facts(found, {"revision": revision})
        return found
    return open_folder(folder, shown, options, {"revision": revision})


def is_onnx(spec: str | Path) -> bool:
    """Whether an ONNX file is named: FILE.onnx, or FILE.onnx#OUTPUT."""
    return ONNX.fullmatch(str(spec)) is not None and not Path(spec).is_dir()


def modality_of(spec: str | os.PathLike[str], **options: Any) -> str:
    """What a model takes (audio, image, video or text), without loading its weights."""
    spec = os.fspath(spec)
    known = load_options(options)
    typed(spec, known.preprocess)
    record = _record_of(spec, known)
    if record is not None and (found := recorded_modality(record)):
        return found
    folder = user_path(spec)
    require_as_saved(folder, [path.name for path in folder.glob("*.json")])
    saved = read_saved(folder) if (folder / FILE).is_file() else None
    if saved is not None:
        known = with_options(known, {n: v for n, v in saved.options.items() if v is not None})
    if known.modality or known.sample_rate:
        return known.modality or "audio"
    if saved is not None:
        with named_by(folder / FILE):
            return saved.loader.modality(saved.name, known)
    loader, name = loader_for(spec)
    return loader.modality(name, known)


def locate(spec: str | Path, trust: bool = False) -> tuple[Path, str, str | None]:
    """(folder, the name to remember, revision) of a model, fetched if it is on the hub and the user
    named it. trust: what a file names may be fetched too.

    Raises:
        ModelError: there is no such model.
    """
    name = str(spec)
    if name == DEMO:
        return demo_folder(), name, "bundled"
    path = user_path(name)
    if path.is_dir():
        return path, str(path.resolve()), None
    refuse_pointer(path)
    if path.exists():
        refuse_foreign(path)
        if path.suffix.lower() in CHECKPOINTS:
            raise ModelError(f"{name!r} is no model by itself: {checkpoint_advice(path)}")
        raise ModelError(f"{name!r} is a file; {forms()}")
    if path.suffix.lower() in CHECKPOINTS:
        existing_file(path)
    refuse_path(name, forms())
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"no model {name!r}: there is no such folder; {forms()}")
    folder, revision = fetch(name, trust, forms())
    return folder, name, revision


def saved_on_hub(spec: str | os.PathLike[str], trust: bool = False) -> Path | None:
    """The folder of a hub id (`owner/name[@revision]`) where a saved embedder was pushed to it, in
    the local cache; None for all else that a model may be named by.

    Raises:
        ModelError: there is no such repository, or it cannot or may not be asked.
    """
    name = os.fspath(spec)
    if not isinstance(name, str) or "/" not in name or user_path(name).exists():
        return None
    loader, _ = loader_for(name)
    if loader.name != NAME_LOADERS[-1].name:
        return None
    typed(name)
    folder, _, revision = locate(name, trust)
    return folder if _is_pushed(folder, name, revision) else None


def demo_folder() -> Path:
    """Where the bundled classifier lies."""
    return Path(str(files("penult") / "demo" / "classifier"))
