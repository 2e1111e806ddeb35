"""Open a classifier that transformers saved: a folder, or an id on the hub.

Works through the auto classes' own tables, so every audio, image, video and text classification
class that transformers has is known here without a list of ours.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penult.data.documents import check, of_others
from penult.errors import (
    IncompleteWeights,
    ModelError,
    PenultError,
    UntrustedCode,
    UsageError,
    cause,
)
from penult.extras import require
from penult.models.base import (
    MULTI_LABEL,
    NOT_STORED,
    REGRESSION,
    SINGLE_LABEL,
    Classifier,
    InputSpec,
    Storage,
    complete_labels,
)
from penult.models.checkpoints import Filled, Filling, require_filled
from penult.models.class_names import class_names_of, complete, keyed
from penult.models.hub import closed
from penult.models.module import ModuleParts, TorchStructure, assemble
from penult.models.options import (
    LoadOptions,
    output_key,
    preprocessing_of,
    recipe_of,
    refuse_pointer,
)
from penult.models.processors import open_preparer, quiet, require_files
from penult.models.quantisation import method_of, refused, require_library
from penult.models.weight_files import refused_global

# The auto classes' tables of classification classes, and the modality of each.
TASKS = (
    ("audio", "AutoModelForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION"),
    ("audio", "AutoModelForAudioXVector", "MODEL_FOR_AUDIO_XVECTOR"),
    ("audio", "AutoModelForAudioFrameClassification", "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION"),
    ("image", "AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION"),
    ("video", "AutoModelForVideoClassification", "MODEL_FOR_VIDEO_CLASSIFICATION"),
    ("text", "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION"),
    ("text", "AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION"),
)

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

SIDE_FILES = {".json", ".txt", ".model", ".py"}  # settings, vocabularies, and code if there is any


def open_folder(
    folder: Path, spec: str, options: LoadOptions, facts: Mapping[str, Any] | None = None
) -> Classifier:
    """Open a folder that holds `config.json`, weights and a preprocessor.

    Raises:
        ModelError: not a classifier, or a file is missing or unreadable.
        IncompleteWeights: the weights do not fill the model.
        UntrustedCode: the folder brings code, and `trust` was not given.
    """
    saved = _read(folder, spec, options)
    require_files(folder, saved.modality, saved.config)
    module, info = _load_weights(saved)
    preparer = open_preparer(folder, saved.modality, saved.config, module, options.trust)
    _check_own(options, preparer.input, spec)
    try:
        with quiet():
            tensors = preparer.example(0).tensors
            filled = _require_filled(saved, module, tensors, info)
    except PenultError:
        raise
    except Exception as error:  # a model may raise anything on an input that does not fit it
        raise ModelError(
            f"{spec!r} does not take what its preprocessing gives: {cause(error)}. Their "
            "configurations do not belong together"
        ) from error
    return Classifier(
        spec,
        _kind(saved.config, filled.n_logits),
        _labels(saved, filled.n_logits),
        TorchStructure(module, preparer.example, _base_path(module), output_key(options)),
        preparer,
        {**saved.facts(), **(facts or {}), **filled.facts},
        _storage(folder, options),
    )


def _check_own(options: LoadOptions, own: InputSpec, spec: str) -> None:
    """Refuse options that the folder's own preprocessing contradicts, and would leave unused.

    Raises:
        UsageError: there is one.
    """
    stated = {"modality": own.modality, "sample_rate": own.rate, "seconds": own.seconds}
    for name, value in stated.items():
        given = getattr(options, name)
        if given is not None and given != value:
            says = f"says {value or 'none'}"
            raise UsageError(
                f"--{name.replace('_', '-')} {given}: {spec} has a preprocessing of its own, which "
                f"{says}. Leave the option out, or name your own preprocessing with --preprocess"
            )


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A folder's model before its weights are loaded. settings: config.json as it stands; config:
    as transformers reads it. auto: the auto class that opens it. names: of its classes by number,
    where the settings name them. quantised: the method, or nothing."""

    folder: Path
    spec: str
    options: LoadOptions
    settings: Mapping[str, Any]
    config: Any
    auto: Any
    modality: str
    architecture: str
    names: Mapping[int, str]
    quantised: str

    def facts(self) -> dict[str, Any]:
        """For `Classifier.describe`."""
        found = {"origin": "transformers", "architecture": self.architecture}
        return {**found, "quantised": self.quantised} if self.quantised else found


def _read(folder: Path, spec: str, options: LoadOptions) -> SavedModel:
    """What a folder's settings say.

    Raises:
        ModelError: it is no classifier, or its weights or their library are not there.
    """
    settings = read_settings(folder, spec, options.trust)
    quantised = method_of(settings)
    names = {} if options.class_names is not None else names_of(settings, spec)
    config = _read_config(folder, spec, settings, options.trust)
    auto, modality, architecture = _task(config, spec)
    _require_weights(folder, spec)
    if quantised:
        require_library(spec, quantised)
    return SavedModel(
        folder, spec, options, settings, config, auto, modality, architecture,
        names, quantised,
    )  # fmt: skip


def names_of(settings: Mapping[str, Any], spec: str) -> dict[int, str]:
    """The class names of a config.json by number: of transformers, or of timm."""
    own = settings.get("pretrained_cfg")
    inside = own if isinstance(own, Mapping) else {}
    named = (settings.get("id2label"), settings.get("label_names"), inside.get("label_names"))
    return keyed(next(filter(None, named), {}), f"{spec!r}: config.json")


def _labels(saved: SavedModel, n_logits: int) -> tuple[str, ...]:
    """The caller's class names, else those of the settings."""
    given = class_names_of(saved.options.class_names, n_logits)
    if given or n_logits != saved.config.num_labels:  # an output that is not one of classes
        return given or complete_labels((), n_logits)
    return complete(
        saved.names or saved.config.id2label, n_logits, f"{saved.spec!r}: id2label in config.json"
    )


def _require_filled(
    saved: SavedModel, module: nn.Module, tensors: Mapping[str, Any], info: Mapping[str, Any]
) -> Filled:
    """As `require_filled`; where the names of the classes are too few or too many, with that.

    Raises:
        IncompleteWeights: the weights do not fill the model.
    """
    try:
        return require_filled(module, tensors, _filling(info, module), saved.spec)
    except IncompleteWeights as error:
        stored = {int(shape[0]) for _, shape, _ in info["mismatched_keys"] if len(shape)}
        named = len(saved.names)
        if len(stored) != 1 or not named or named in stored or named != saved.config.num_labels:
            raise
        raise IncompleteWeights(
            f"config.json names {named} classes, and the weights have {stored.pop()}: correct "
            f"that. {error}"
        ) from error


def _storage(folder: Path, options: LoadOptions) -> Storage:
    """The checkpoint's own files: any tool that reads transformers' folders can open the copy. The
    caller's options are kept beside them.

    Not `save_pretrained`: another layout of the file moves the mapped weights in memory, and
    with another alignment matrix products may round differently in the last bit.
    """
    files = {path.name: path for path in checkpoint_files(folder)}
    played = options.playback.to_dict()
    if options.class_names is None and options.output is None and not played:
        return Storage(files=files)
    return Storage({"origin": "transformers", "output": options.output, **played}, files)


def checkpoint_files(folder: Path) -> list[Path]:
    """A checkpoint's own files: one format of weights, settings, vocabularies, code."""
    weights = next(name for name in WEIGHTS if (folder / name).is_file())
    stem = weights.partition(".")[0]
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.suffix in SIDE_FILES or path.name.startswith(stem))
    ]


def open_prepared(folder: Path, spec: str, options: LoadOptions) -> Classifier:
    """Open a folder's model with the caller's own preprocessing instead of the checkpoint's."""
    saved = _read(folder, spec, options)
    module, info = _load_weights(saved)
    preprocessing = preprocessing_of(options)
    if options.modality is None and options.sample_rate is None:
        options = replace(options, modality=saved.modality)
    parts = ModuleParts(
        module,
        preprocessing,
        spec,
        _filling(info, module),
        facts=saved.facts(),
        base=_base_path(module),
        storage=NOT_STORED if callable(options.preprocess) else Storage(
            {"origin": "transformers", **recipe_of(options)},
            {path.name: path for path in checkpoint_files(folder)},
        ),
    )  # fmt: skip
    classifier = assemble(parts, options)
    classifier.labels = _labels(saved, len(classifier.labels))
    classifier.kind = options.kind or _kind(saved.config, len(classifier.labels))
    return classifier


def _filling(info: Mapping[str, Any], module: nn.Module) -> Filling:
    """What loading could not fill, and what was left over."""
    loose = {str(key): "missing" for key in info["missing_keys"]}
    for key, stored, expected in info["mismatched_keys"]:
        loose[str(key)] = f"{tuple(stored)} in the checkpoint, {tuple(expected)} in the model"
    spare = (_placed(str(key), module) for key in info["unexpected_keys"])
    return Filling(loose, dict.fromkeys(sorted(spare)))


def _placed(name: str, module: nn.Module) -> str:
    """A name with the backbone's in front, where it was saved from the backbone alone."""
    prefix, first = str(getattr(module, "base_model_prefix", "")), name.partition(".")[0]
    base = getattr(module, prefix, None) if prefix else None
    if not isinstance(base, nn.Module) or hasattr(module, first) or not hasattr(base, first):
        return name
    return f"{prefix}.{name}"


def read_modality(folder: Path, spec: str, trust: bool = False) -> str:
    """audio, image, video or text, read off the configuration alone."""
    settings = read_settings(folder, spec, trust)
    return _task(_read_config(folder, spec, settings, trust), spec)[1]


@dataclass(frozen=True)
class _Named:
    """Types of settings that are read before transformers checks them."""

    architectures: list[str] | None = None
    id2label: dict[str, Any] | list[Any] | None = None


def read_settings(folder: Path, spec: str, trust: bool) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ModelError: there is none, or it is not readable.
        UntrustedCode: it names code of its own, and `trust` was not given.
    """
    path = folder / "config.json"
    if (folder / "collection.json").is_file():
        raise ModelError(
            f"{spec!r} is a collection, not a model; name the model that its rows are from (penult "
            f"info {spec} shows it)"
        )
    refuse_pointer(path)
    if not path.is_file():
        raise ModelError(
            f"{spec!r} has no config.json, so it was not saved by transformers' save_pretrained"
        )
    try:
        raw = of_others(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable as JSON: {cause(error)}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds {type(raw).__name__}, not an object of settings")
    try:
        check({name: raw[name] for name in ("architectures", "id2label") if name in raw}, _Named)
    except ValueError as error:
        raise ModelError(f"{path} is not valid: {error}") from error
    if raw.get("auto_map") and not trust:
        raise UntrustedCode(
            f"{spec!r} brings its own code ({', '.join(sorted(raw['auto_map']))} in its "
            "config.json), which would run on this machine; read it, then say --trust"
        )
    architecture = raw.get("architecture")  # of timm, which also takes sources: `hf-hub:owner/name`
    if isinstance(architecture, str) and {*architecture} & {*":/\\"}:
        raise ModelError(
            f"{spec!r} names {architecture[:80]!r} as its architecture, which is another model and "
            "not the name of a network of timm: name that model, or mend config.json"
        )
    return raw


def _read_config(folder: Path, spec: str, settings: Mapping[str, Any], trust: bool) -> Any:
    """The configuration as transformers reads it; of timm's folders as well."""
    from transformers import AutoConfig

    of_timm = "model_type" not in settings and "architecture" in settings
    if of_timm:
        require("timm"), require("torchvision")
    try:
        with quiet(), closed(trust):
            if of_timm:
                from transformers import TimmWrapperConfig  # imports all of timm

                return TimmWrapperConfig.from_dict(timm_settings(settings))
            return _with_own_kernels(AutoConfig.from_pretrained(folder, trust_remote_code=trust))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(
            f"{spec!r}: transformers cannot read its config.json "
            f"(model_type {settings.get('model_type')!r}): {cause(error)}"
        ) from error
    except Exception as error:  # strict configurations raise their own validation errors
        raise ModelError(f"{spec!r}: its config.json is not valid: {cause(error)}") from error


_KERNELS = (None, "eager", "sdpa")  # attention as torch itself computes it


def _with_own_kernels(config: Any) -> Any:
    """The configuration with attention as torch computes it. Another kernel is a choice of the
    machine that trained the model and no part of it: it may be missing here, and by some names it
    would be fetched from the hub and run."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    kernels = (getattr(part, "_attn_implementation", None) for part in parts)
    if any(kernel not in _KERNELS for kernel in kernels):
        config._attn_implementation = None  # of all parts: what each usually has
    config._experts_implementation = None
    return config


def timm_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of timm as transformers takes it: class names by number in a list, and what
    older versions of timm wrote at the top in `pretrained_cfg`."""
    found = dict(settings)
    if "pretrained_cfg" not in found:
        top = ("architecture", "num_classes", "num_features", "global_pool", "label_names")
        own = {key: value for key, value in found.items() if key not in top}
        found = {key: found[key] for key in top if key in found} | {"pretrained_cfg": own}
        if "labels" in own:
            found["label_names"] = own.pop("labels")
    names = found.get("label_names") or found["pretrained_cfg"].get("label_names")
    if names:
        known = keyed(names, "label_names")
        count = found.get("num_classes") or max(known, default=-1) + 1
        found["label_names"] = [known.get(number, f"class_{number}") for number in range(count)]
    return found


def _task(config: Any, spec: str) -> tuple[Any, str, str]:
    """(auto class, modality, architecture): by the architecture that the checkpoint names, else
    by what its model type can be.

    A name that transformers does not know (a custom head) falls to the model type's own class;
    whether the weights fill that is checked later, so nothing is guessed in silence.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    named = list(config.architectures or [])
    possible = []
    for modality, auto, table in TASKS:
        classes = getattr(modeling_auto, f"{table}_MAPPING_NAMES").get(config.model_type)
        for name in [classes] if isinstance(classes, str) else list(classes or ()):
            if name in named:
                return getattr(transformers, auto), modality, name
            possible.append((getattr(transformers, auto), modality, name))
    known = [name for name in named if hasattr(transformers, name)]
    if known or not possible:
        what = ", ".join(named) or f"a {config.model_type} without a named architecture"
        options = ", ".join(sorted({name for _, _, name in possible}))
        raise ModelError(
            f"{spec!r} is {what}, which is not a classifier"
            + (f"; for {config.model_type} these are: {options}" if options else "")
        )
    return possible[0]


def _require_weights(folder: Path, spec: str) -> None:
    if not any((folder / name).is_file() for name in WEIGHTS):
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ModelError(
            f"{spec!r} holds no weights: expected {WEIGHTS[0]} or {WEIGHTS[2]}, found {found}"
        )
    for path in checkpoint_files(folder):
        refuse_pointer(path)
        if path.name.endswith(".index.json"):
            _refuse_elsewhere(path, spec)


def _refuse_elsewhere(index: Path, spec: str) -> None:
    """Refuse a list of weights whose files do not lie beside it."""
    try:
        named = {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # transformers says what is wrong with it
    if other := next((name for name in sorted(named) if {*name} & {*"/\\:"}), None):
        raise ModelError(
            f"{spec!r}: {index.name} names the weights {other[:80]!r}, which are not in its "
            "folder; nothing is read there"
        )


def _load_weights(saved: SavedModel) -> tuple[nn.Module, dict[str, Any]]:
    """(the model, what transformers says of the loading), with as many classes as the weights have:
    where names have holes, their number is not that of the classes."""
    config, names = saved.config, saved.names
    module, info = _load(saved)
    last = max(names, default=-1) + 1
    stored = {int(shape[0]) for _, shape, _ in info["mismatched_keys"] if len(shape)}
    if stored == {last} and len(names) != last:
        config.id2label = {number: names.get(number, f"class_{number}") for number in range(last)}
        config.label2id = {name: number for number, name in config.id2label.items()}
        module, info = _load(saved)
    return module.eval(), info


def _load(saved: SavedModel) -> tuple[nn.Module, dict[str, Any]]:
    spec = saved.spec
    try:
        with quiet(), closed(saved.options.trust), _without_adapters():
            module, info = saved.auto.from_pretrained(
                saved.folder,
                config=saved.config,
                dtype=torch.float32,
                trust_remote_code=saved.options.trust,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that each one can be named
                output_loading_info=True,
                weights_only=not saved.options.trust,
            )
    except pickle.UnpicklingError as error:
        asked = refused_global(error)
        raise UntrustedCode(
            f"{spec!r}: its pytorch_model.bin is a pickle that asks for more than tensors"
            + (f" ({asked})" if asked else "")
            + "; nothing was run. Ask for safetensors, or if you trust whoever made it say --trust"
        ) from error
    except Exception as error:  # transformers raises what the libraries under it do
        if saved.quantised:
            raise refused(spec, saved.quantised, error) from error
        if type(error).__module__.partition(".")[0] in {"safetensors", "safetensors_rust"}:
            raise ModelError(f"{spec!r}: its safetensors are damaged: {cause(error)}") from error
        plain = isinstance(error, _PLAIN)
        raise ModelError(f"{spec!r} cannot be opened: {cause(error, named=not plain)}") from error
    return module, info


@contextmanager
def _without_adapters() -> Iterator[None]:
    """A folder whose adapter was merged may have its settings still; where peft is installed,
    transformers looks for the adapter. Folders that hold one are refused before."""
    models: Any = import_module("transformers.modeling_utils")
    factory: Any = import_module("transformers.models.auto.auto_factory")
    was = models.maybe_load_adapters, factory.is_peft_available
    models.maybe_load_adapters = lambda path, _, **options: (None, path, options)
    factory.is_peft_available = lambda: False
    try:
        yield
    finally:
        models.maybe_load_adapters, factory.is_peft_available = was


_PLAIN = (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, ImportError)


def _kind(config: Any, n_logits: int) -> str:
    named = {
        "regression": REGRESSION,
        "single_label_classification": SINGLE_LABEL,
        "multi_label_classification": MULTI_LABEL,
    }.get(config.problem_type)
    return named or (REGRESSION if n_logits == 1 else SINGLE_LABEL)


def _base_path(module: nn.Module) -> str | None:
    """Where transformers itself says the backbone is, else the largest direct child."""
    base = getattr(module, "base_model", module)
    for name, child in module.named_modules():
        if child is base and name:
            return str(name)
    children = dict(module.named_children())
    if not children:
        return None
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in children.items()}
    return max(sizes, key=lambda name: sizes[name])
