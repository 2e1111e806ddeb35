"""A torch module as a classifier: its parts assembled, its batch axis tried, its head proved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.data.files import user_path
from penult.errors import (
    REFUSALS,
    HeadNotFound,
    ModelError,
    PenultError,
    UsageError,
    cause,
    listed,
)
from penult.models.base import (
    NO_RATE,
    NOT_STORED,
    Classifier,
    FloatArray,
    Inputs,
    InputSpec,
    Storage,
    digest,
    kind_of_scores,
    weights_digest,
)
from penult.models.checkpoints import Filling, built, require_filled
from penult.models.class_names import class_names_of, complete
from penult.models.options import (
    LoadOptions,
    Prepare,
    Preprocessing,
    output_key,
    preprocessing_of,
    recipe_of,
    source_of,
)
from penult.models.outputs import require_classes, require_no_map
from penult.models.patches import TIMES, example_patch, patched, patches_refused
from penult.models.preparation import function_words, with_length, with_patches
from penult.models.source_code import code_of, code_of_factory
from penult.models.synthetic import content_of
from penult.models.weight_files import Checkpoint, read
from penult.models.wrappers import layers_of, unwrapped
from penult.tracing.activation import find_activation
from penult.tracing.anatomy import Anatomy, Statement, choose_tap, dissect, state
from penult.tracing.certificate import UNFINISHED, Certificate
from penult.tracing.forward import SplitTarget, still
from penult.tracing.head import floats_of, logits_of
from penult.tracing.inputs import CallInputs
from penult.tracing.module_state import changed_between, held_by, keeps_state
from penult.tracing.randomness import sources, words
from penult.tracing.scores import (
    LOG_SOFTMAX,
    REGRESSION,
    Activation,
)
from penult.tracing.split import split
from penult.tracing.spots import Tap
from penult.tracing.trace import record

Tensors = Mapping[str, Tensor]

WEIGHTS = "model.safetensors"
TORCH = "torch"  # the engine of every module

# What a preprocessing takes of each modality.
_ITEMS = {
    "audio": "samples (n,) of float32",
    "image": "a PIL image",
    "video": "frames (n, height, width, 3) of uint8",
    "text": "a string",
    "array": "an array",
    "bytes": "a penult.data.bytes.FileEnds: first and last bytes of a file",
}

# What modules raise for an input that they do not take.
# What a model that does not take the proof's variants of an input may raise.
_UNPROVED = (PenultError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)

# The axes that prepared tensors lack, put in front: the batch axis, none (it is there), or those
# of batch and channel.
ITEM, BATCHED, CHANNEL = "", "batched", "channel"


class TorchStructure:
    """A torch module; see `penult.models.base.Structure`."""

    engine = TORCH
    proved_on_items = True

    def __init__(
        self,
        module: nn.Module,
        example: Callable[[int], Inputs],
        base: str | None = None,
        output: str | int | None = None,
        weights: Callable[[], str] | None = None,
        factory: Callable[..., Any] | None = None,
        activation: Activation = Activation(),
    ) -> None:
        """example: a synthetic input for a seed. weights: their hash, where the module's state
        lacks some. factory: what built the module. activation: the one that ended the model;
        `module` may lack it."""
        self.module = module
        self.activation = activation
        self.base = base
        self.output = output
        self._example = example
        self._weights = weights
        self._factory = factory

    def modules(self) -> Iterable[nn.Module]:
        """Every module, the whole one first."""
        return self.module.modules()

    def place(self, tensors: Tensors) -> dict[str, Tensor]:
        """Inputs on the device where the module is now."""
        parameter = next(self.module.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
        return {n: torch.as_tensor(value).to(device) for n, value in tensors.items()}

    def entry(self, anatomy: Anatomy) -> Tap | None:
        """The tap in front of the first block."""
        return anatomy.taps.get("layer:0")

    def study(self, examples: Sequence[Tensors] = (), head: str | None = None) -> TorchStudy:
        """The module, studied on one or two inputs, or on a synthetic one.

        Raises:
            UsageError: the model has no module of the name `head`.
        """
        if head is not None and (not head or head not in dict(self.module.named_modules())):
            raise UsageError(
                f"--head {head!r}: the model has no module of that name (penult inspect without "
                "--head shows them)"
            )
        first, *more = examples or [self.place(self._example(0).tensors)]
        # Two of one shape serve as the two inputs of the proof; else the second one is made up.
        other = next((one for one in more if _shapes(one) == _shapes(first)), None)
        return TorchStudy(self, first, other, head)

    def describe(self) -> dict[str, Any]:
        """`class` and the number of `parameters`."""
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        return {"class": type(self.module).__name__, "parameters": parameters}

    def digest(self) -> str:
        """Hash of the weights."""
        return self._weights() if self._weights else weights_digest(self.module)

    def code(self) -> dict[str, str]:
        """Hashes of the user's own code: of the factory and of the classes of the modules."""
        built = {} if self._factory is None else code_of_factory(self._factory)
        return {**built, **code_of(dict.fromkeys(type(one) for one in self.modules()))}

    def save(self, folder: Path) -> None:
        """Write the weights as safetensors."""
        from safetensors.torch import save_file

        state = self.module.state_dict()  # cloned: tied weights have two names and one storage
        save_file({n: v.clone().contiguous() for n, v in state.items()}, folder / WEIGHTS)


@dataclass(frozen=True)
class TorchStudy:
    """A torch module on one input, or two of one shape; see `penult.models.base.Study`."""

    structure: TorchStructure
    example: Tensors
    other: Tensors | None
    head_name: str | None

    @cached_property
    def anatomy(self) -> Anatomy:
        """Head, backbone and named taps."""
        one = self.structure
        return dissect(one.module, self.example, one.base, one.output, self.head_name)

    def tap(self, name: str) -> Tap:
        """The tap of a name, or of a module's path."""
        return choose_tap(self.anatomy, self.structure.module, self.example, name)

    def prove(self, missing: Sequence[str] = ()) -> tuple[Certificate, str]:
        """(certificate of the head, remark on it), in a few forward passes."""
        try:
            cut = split(
                self.structure.module,
                self.example,
                output=self.structure.output,
                head=self.head_name,
                missing=missing,
                other_inputs=self.other,
            )
        except _UNPROVED as error:  # a head that cannot be proved stops no other tap
            return Certificate.refused(f"{UNFINISHED}: {cause(error)}"), ""
        return cut.certificate, cut.remark

    def statements(self, taps: Sequence[Tap]) -> Mapping[str, Statement]:
        """How the logits depend on each tap."""
        module = self.structure.module
        target = SplitTarget(module, self.structure.output, self.head_name)
        other = None if self.other is None else CallInputs.of(self.other)
        with still(module):
            return state(target, CallInputs.of(self.example), taps, other)

    def head(self) -> Callable[[FloatArray], FloatArray]:
        """The proved head: prelogits of one item (1, d) to logits (1, K).

        Raises:
            HeadNotFound: there is no proof.
        """
        one = self.structure
        halves = split(
            one.module, self.example, output=one.output, head=self.head_name,
            other_inputs=self.other,
        )  # fmt: skip
        if not halves.certificate.ok:
            raise HeadNotFound(f"the head is not proved: {halves.certificate.refusal}")

        def run(prelogits: FloatArray) -> FloatArray:
            values = halves.logits(one.place({"z": torch.as_tensor(prelogits)})["z"])
            array: FloatArray = values.detach().cpu().numpy().reshape(1, -1)
            return array

        return run


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


@dataclass(frozen=True, slots=True)
class ModulePreparer:
    """A function from one item to tensors, and the axes that its tensors lack; see
    `penult.models.base.Preparer`. names: of the module's arguments, for tensors without a name."""

    input: InputSpec
    preprocessing: Preprocessing
    names: Sequence[str]
    axes: str = ITEM

    def __call__(self, content: Any) -> Inputs:
        """Decoded content as the module's arguments.

        Raises:
            UsageError: the preprocessing gives several patches of one item, unasked.
        """
        inputs = self.prepared(content)
        if self.input.patches is not None:
            return inputs
        for name, tensor in inputs.tensors.items():
            if tensor.shape[:1] != (1,):
                raise UsageError(patches_refused(name, tuple(tensor.shape)))
        return inputs

    def prepared(self, content: Any) -> Inputs:
        """As `__call__`, with as many patches as the preprocessing gives."""
        content, truncated = fixed_length(content, self.input)
        value = self.preprocessing.function(content)
        values = dict(value) if isinstance(value, Mapping) else self._named(value)
        several = self.input.patches is not None
        times = values.pop(TIMES, None) if several else None
        tensors = {name: self._with_axes(item) for name, item in values.items()}
        return patched(tensors, truncated, times) if several else Inputs(tensors, truncated)

    def _named(self, value: Any) -> dict[str, Any]:
        values = value if isinstance(value, tuple) else (value,)
        return dict(zip(self.names, values, strict=False))

    def _with_axes(self, value: Any) -> Tensor:
        tensor = torch.as_tensor(value)
        return {ITEM: tensor[None], BATCHED: tensor, CHANNEL: tensor[None, None]}[self.axes]

    def example(self, seed: int) -> Inputs:
        """Noise, or a few words, prepared as any other item."""
        one = self.input
        if one.patches is not None:
            return example_patch(self, one, seed)
        return self(content_of(one.modality, seed, one.rate, one.frames))

    def digest(self) -> str:
        """Hash of the settings."""
        return digest(self.preprocessing.settings)

    def code(self) -> dict[str, str]:
        """Hashes of the code of a user's own function."""
        return own_function(self.preprocessing)

    def truncation(self) -> str:
        """`none`, or the seconds that are kept."""
        return truncation_of(self.input)

    def description(self) -> str:
        """By which function, and to which length."""
        return prepared_words(self.preprocessing, self.input)


def prepared_words(preprocessing: Preprocessing, spec: InputSpec) -> str:
    """By which function, to which length, in how many rows."""
    words = function_words(preprocessing.function, preprocessing.settings, spec.rate)
    return with_patches(with_length(words, spec.seconds), spec.patches)


def patches_of(options: LoadOptions, preprocessing: Preprocessing | None) -> str | None:
    """How patches become rows; of a preprocessing that is somebody's function and no setting, for
    others give one input of an item."""
    own = preprocessing is not None and "source" in preprocessing.settings
    return options.patches if own else None


def own_function(preprocessing: Preprocessing) -> dict[str, str]:
    """Hashes of the code of a preprocessing, where a user's own function is what it is."""
    return code_of_factory(preprocessing.function) if "source" in preprocessing.settings else {}


def fixed_length(content: Any, spec: InputSpec) -> tuple[Any, float | None]:
    """(samples padded with zeros or cut to the fixed length, seconds that were kept of a longer
    clip); as they are where there is no fixed length."""
    if spec.seconds is None or spec.rate is None:
        return content, None
    length = round(spec.seconds * spec.rate)
    padded = np.pad(content[:length], (0, max(0, length - len(content))))
    return padded, spec.seconds if len(content) > length else None


def truncation_of(spec: InputSpec) -> str:
    """`none`, or `first 5 s`."""
    return "none" if spec.seconds is None else f"first {spec.seconds:g} s"


@dataclass(frozen=True, slots=True)
class ModuleParts:
    """The parts of a classifier whose model is a torch module, as a loader found them.

    filling: how its weights were loaded. labels, kind: those that the model's origin
    names; the caller's count first. base: dotted path of the backbone. weights: their hash, where
    the module's state lacks some. facts: for `Classifier.describe`. storage: how it is saved.
    factory: the function of the user's that built the module.
    """

    module: nn.Module
    preprocessing: Preprocessing
    spec: str
    filling: Filling = field(default_factory=Filling)
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | Mapping[int, str] = ()
    kind: str | None = None
    base: str | None = None
    weights: Callable[[], str] | None = None
    storage: Storage = NOT_STORED
    factory: Callable[..., Any] | None = None


def assemble(
    parts: ModuleParts, options: LoadOptions, preparer: ModulePreparer | None = None
) -> Classifier:
    """Put the parts together, and refuse weights that do not fill the module.

    Raises:
        ModelError: the module does not take what the preprocessing gives.
        IncompleteWeights: each parameter on the way to the logits that was not loaded is named.
    """
    preparer = preparer or fitted_preparer(parts, options)
    output = output_key(options)
    tensors = preparer.example(0).tensors
    before = held_by(parts.module)
    filled = require_filled(parts.module, tensors, parts.filling, parts.spec, output)
    _refuse_state(parts, tensors, changed_between(before, held_by(parts.module)))
    require_classes(filled.shape, tensors, preparer.input.modality, parts.spec)
    n_logits = filled.n_logits
    names = class_names_of(options.class_names, n_logits) or parts.labels
    where = "id2label" if isinstance(names, Mapping) else "the list of class names"
    kind = options.kind or parts.kind
    parts, activation = _without_activation(parts, preparer, output, kind)
    return Classifier(
        parts.spec,
        kind_of_scores(kind, activation, n_logits, parts.spec),
        complete(names, n_logits, f"{parts.spec}: {where}"),
        TorchStructure(
            parts.module,
            preparer.example,
            parts.base,
            output,
            parts.weights,
            parts.factory,
            activation,
        ),
        preparer,
        {**parts.facts, **filled.facts},
        parts.storage,
    )


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of training


def _refuse_state(parts: ModuleParts, tensors: Tensors, changed: Sequence[str]) -> None:
    """Refuse a module whose answer depends on the items before. changed: by a pass."""
    unseen = getattr(parts.module, "program", None) is not None  # attributes of another runtime
    if changed and all(name.endswith(_STATISTICS) for name in changed):
        return  # of training: told as such where a file was saved so
    if (changed or unseen) and keeps_state(parts.module, tensors):
        which = (
            f"a pass changes {listed(changed, 3)}" if changed else "the same input gives another"
        )
        raise ModelError(
            f"{parts.spec} keeps a state between calls ({which}), so a row would depend on the "
            "items before it: give a module that begins anew in every call"
        )


LOG_WORDS = "log-probabilities, as the model returns them"
EXAMPLES = 3  # synthetic items that show by their values what a model returns


def _without_activation(
    parts: ModuleParts, preparer: ModulePreparer, output: str | int | None, kind: str | None
) -> tuple[ModuleParts, Activation]:
    """(the parts with a module that ends in front of its last softmax or sigmoid, what it was). A
    regression's values are what it returns."""
    if kind == REGRESSION:
        return parts, Activation()
    examples = [preparer.example(seed).tensors for seed in range(EXAMPLES)]
    name, bare = find_activation(parts.module, examples, output)
    if name == LOG_SOFTMAX:  # logits as good as any: their softmax gives the scores
        facts = {**parts.facts, "scores": name, "logits_from": LOG_WORDS}
        return replace(parts, facts=facts), Activation()
    if bare is None:
        return parts, Activation(name, inside=bool(name))
    weights = parts.weights
    if getattr(weights, "__self__", None) is parts.module:
        own: Any = bare
        weights = own.digest  # of the twin, so that the first one goes
    return replace(parts, module=bare, weights=weights), Activation(name)


def fitted_preparer(parts: ModuleParts, options: LoadOptions) -> ModulePreparer:
    """The preprocessing with the axes that the module wants: tried, not guessed.

    Raises:
        ModelError: the module takes its inputs in no way.
    """
    modality = options.modality or ("audio" if options.sample_rate else "image")
    if modality == "array":
        raise UsageError(
            "--modality array goes with ONNX and TFLite files, which say the shape of what they "
            "take; for a module, name the modality that --preprocess turns into its tensor"
        )
    spec = InputSpec(
        modality,
        options.sample_rate,
        seconds=options.seconds,
        refusal=NO_RATE if modality == "audio" and options.sample_rate is None else "",
        beginning=options.seconds is not None,
        patches=patches_of(options, parts.preprocessing),
    )
    preparer = ModulePreparer(spec, parts.preprocessing, arguments(parts.module))
    raw = parts.preprocessing.raw
    errors: list[tuple[Tensors, Exception]] = []
    ways = (ITEM, CHANNEL) if raw else (ITEM, BATCHED)
    for axes in ways if spec.patches is None else (BATCHED,):
        tried = replace(preparer, axes=axes)
        tensors = _example(tried)
        patches = [(name, t.shape) for name, t in tensors.items() if t.shape[:1] != (1,)]
        try:
            with torch.no_grad():
                output = parts.module(**tensors)
        except REFUSALS as error:
            if not patches:
                errors.append((tensors, error))
            continue
        shape = _logits_shape(output, output_key(options))
        require_no_map(shape, tensors, spec.modality, parts.spec)
        rows = 1 if not shape or (len(shape) == 1 and not raw) else shape[0]
        if patches and rows == patches[0][1][0]:  # the module takes them for items
            raise UsageError(patches_refused(*patches[0]))
        if rows == 1 and not patches:
            return tried
        # A convolution takes (1, n) for one channel without a batch.
        errors.append((tensors, ValueError(f"it gives {rows} rows for one item")))
    tensors, first = errors[0]
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    raise ModelError(
        f"{type(parts.module).__name__} does not take what its preprocessing gives ({shapes}"
        f"{', one patch: the first axis of the tensors counts them' if spec.patches else ''}): "
        f"{cause(first)}"
    ) from first


def _example(preparer: ModulePreparer) -> Tensors:
    try:
        one = preparer.input
        if one.patches is not None:
            return preparer.example(0).tensors
        return preparer.prepared(content_of(one.modality, 0, one.rate, one.frames)).tensors
    except PenultError:
        raise
    except Exception as error:  # the caller's own function may raise anything
        modality = preparer.input.modality
        raise UsageError(
            f"the preprocessing does not take {_ITEMS[modality]}: {cause(error, named=True)}. If "
            f"it is not made for {modality} items, say which with --modality"
        ) from error


def _logits_shape(output: Any, key: str | int | None) -> tuple[int, ...]:
    """Of the logits; empty where it is decided later which of several outputs holds them."""
    try:
        return tuple(logits_of(output, key).shape)
    except HeadNotFound:
        return ()


def require_steady(classifier: Classifier, remedy: str) -> None:
    """Refuse a model that was saved as it was in training, with dropout or statistics at work.

    Raises:
        ModelError: the same input gives other scores, or a pass changes the weights.
    """
    tensors = classifier.example().tensors
    before = {
        name: value.clone()
        for name, value in classifier.module.state_dict().items()
        if name.endswith(_STATISTICS)
    }
    trace = record(classifier.module, kwargs=tensors)
    drawn = words(op for read in trace.reads for op in sources(trace, read))
    first = floats_of(trace.output)
    del trace  # every activation of a pass
    with torch.no_grad():
        second = floats_of(classifier.module(**tensors))
    after = classifier.module.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed or drawn or not all(map(_equal, first, second)):
        sign = "the same input gives other scores"
        sign = f"{listed(drawn, 3)} draws random numbers" if drawn else sign
        sign = f"a pass changes {changed[0]}" if changed else sign
        raise ModelError(
            f"{classifier.spec} was saved in training mode ({sign} in every pass): {remedy}"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def arguments(module: nn.Module) -> list[str]:
    """The names of what a module's forward takes."""
    takes: Any = getattr(module, "takes", None)
    if takes is not None:  # a module that stands for another runtime's file names them itself
        return list(takes)
    for layer in layers_of(module):
        parameters = inspect.signature(layer.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if names := [p.name for p in parameters if p.kind in kinds]:
            return names
    return []


def _made(factory: Callable[..., nn.Module], **arguments: int) -> nn.Module:
    """The module that a factory builds."""
    try:
        module = factory(**arguments)
    except (TypeError, PenultError):
        raise
    except Exception as error:  # the factory is somebody else's
        raise ModelError(f"the factory failed: {cause(error, named=True)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"the factory gave {type(module).__name__}, not a torch module")
    return module


def from_factory(
    factory: Callable[..., nn.Module], options: LoadOptions
) -> tuple[nn.Module, Filling, dict[str, Any]]:
    """(module, how it was filled, facts), with the options' checkpoint in it."""
    checkpoint, facts = Checkpoint({}), {}
    path, _, entry = str(options.checkpoint or "").partition("#")
    if path:
        checkpoint = read(user_path(path), entry or None, trust=options.trust)
        facts = {
            "checkpoint": f"{path}#{checkpoint.where}" if checkpoint.where else path,
            "other_copies": list(checkpoint.others),
            **({"beside_weights": list(checkpoint.beside)} if checkpoint.beside else {}),
            **({"trained": dict(checkpoint.training)} if checkpoint.training else {}),
        }
    try:
        module, filling = built(partial(_made, factory), checkpoint.weights or None)
    except TypeError as error:
        raise ModelError(f"the factory cannot be called: {cause(error)}") from error
    trained = checkpoint.training.get("architecture", "")
    return unwrapped(module).eval(), replace(filling, source=path, trained=trained), facts


def storage_of(
    origin: str, name: str, options: LoadOptions, files: Mapping[str, Path] | None = None
) -> Storage:
    """How a classifier is saved that its origin opens again by name, or by a file of that name.

    files: copied as they are; None: the weights are written.
    """
    if callable(options.preprocess):
        return NOT_STORED
    return Storage({"origin": origin, "name": name, **recipe_of(options)}, files)


def make_classifier(
    module: nn.Module,
    preprocess: Prepare,
    options: LoadOptions,
    *,
    loader: str,
    name: str,
    file: Path | None = None,
    labels: Sequence[str] = (),
    kind: str | None = None,
) -> Classifier:
    """A classifier of a torch module, for loaders of other packages.

    preprocess: decoded content (samples (n,), PIL image, frames or text) to the tensor or tensors
    of one item, without a batch axis; one that the options name counts first, as do their class
    names and kind. loader, name: what opens it again. file: copied when the classifier is saved,
    and given to the loader as its name then; without it the weights are saved, and the loader
    gets them as `options.checkpoint`.

    Raises:
        ModelError: the module does not take what the preprocessing gives.
    """
    if options.preprocess is None:
        preprocessing = Preprocessing(preprocess, {"source": source_of(preprocess)})
    else:
        preprocessing = preprocessing_of(options)
    stored = name if file is None else file.name
    files = None if file is None else {file.name: file}
    parts = ModuleParts(
        module.eval(),
        preprocessing,
        f"{loader}:{name}",
        facts={"origin": loader},
        labels=labels,
        kind=kind,
        storage=storage_of(loader, stored, options, files),
    )
    return assemble(parts, options)


@dataclass(frozen=True, slots=True)
class SavedFile:
    """The file that a classifier is read from, and is saved as. weights: their hash, where the
    module's own is not enough."""

    path: Path
    weights: Callable[[], str] | None = None

    def of(self, parts: ModuleParts, origin: str, options: LoadOptions) -> ModuleParts:
        """The parts, with this file among the facts and copied when the classifier is saved."""
        name = self.path.name
        return replace(
            parts,
            facts={**parts.facts, "file": name},
            weights=self.weights or parts.weights,
            storage=storage_of(origin, name, options, {name: self.path}),
        )
