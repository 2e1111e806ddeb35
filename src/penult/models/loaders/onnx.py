"""Open an ONNX file as a classifier: its graph, what it takes, and which output is the logits.

What a graph cannot say, the caller says: sample rate, seconds, class names, preprocessing.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from penult.data.documents import of_others
from penult.errors import HeadNotFound, ModelError, UsageError, cause
from penult.models.base import (
    NO_RATE,
    REGRESSION,
    Activation,
    Classifier,
    FloatArray,
    Inputs,
    InputSpec,
    Storage,
    digest,
    kind_of_scores,
)
from penult.models.class_names import class_names_of, complete, keyed
from penult.models.leftovers import notes_of
from penult.models.module import (
    LOG_WORDS,
    fixed_length,
    own_function,
    patches_of,
    prepared_words,
    truncation_of,
)
from penult.models.options import (
    LoadOptions,
    Preprocessing,
    existing_file,
    preprocessing_of,
    recipe_of,
)
from penult.models.outputs import require_classes
from penult.models.patches import TIMES, example_patch, patched, patches_refused
from penult.models.synthetic import content_of
from penult.tracing.anatomy import Anatomy, Statement
from penult.tracing.certificate import Certificate
from penult.tracing.inputs import CallInputs, other_values
from penult.tracing.onnx_anatomy import (
    GraphCut,
    before_scores,
    dissect_graph,
    find_activation,
    find_logits,
    tap_of_graph,
)
from penult.tracing.onnx_files import beside, copy, read_model
from penult.tracing.onnx_graph import OnnxGraph, Port, Session, as_feeds
from penult.tracing.onnx_head import drawn_in
from penult.tracing.onnx_proof import state_graph
from penult.tracing.scores import LOG_SOFTMAX, class_count
from penult.tracing.spots import Tap

Tensors = Mapping[str, Tensor]
Example = Callable[[int], Inputs]

log = logging.getLogger(__name__)

ORIGIN = "onnx"
ONNXRUNTIME = "onnxruntime"  # the engine of every graph
SUFFIX = ".onnx"
MODEL = "model.onnx"
EXAMPLES = 3  # inputs that a cut is proved on
# How long an axis is made that a graph leaves free.
_LENGTHS = {"audio": 16_000, "image": 224, "video": 16, "text": 8}
Names = list[str] | dict[int, str]
_NAMES = ("labels", "label_names", "class_names", "classes", "names", "id2label")


class LogitsTensor(NamedTuple):
    """A graph and the name of its tensor of logits."""

    graph: OnnxGraph
    name: str


class GraphStructure:
    """An ONNX graph; see `penult.models.base.Structure`.

    logits: the graph, and its tensor with one number per class. output: the output of the file
    that is read for it. example: synthetic inputs for a seed. activation: what lies between both.
    """

    engine = ONNXRUNTIME
    base = None

    def __init__(
        self,
        path: Path,
        graph: OnnxGraph,
        logits: str,
        output: str,
        example: Example,
        activation: Activation = Activation(),
    ) -> None:
        self.activation = activation
        self.logits = LogitsTensor(graph, logits)
        self.output = output
        self._path = path
        self._example = example

    @property
    def module(self) -> NoReturn:
        """An ONNX file has none."""
        raise UsageError(f"{self._path} is an ONNX file: it has a graph, and no torch module")

    def modules(self) -> Iterable[nn.Module]:
        """None."""
        return ()

    @property
    def proved_on_items(self) -> bool:
        """A graph is the same for every input; but noise may change its logits too little."""
        return self._studied.cut.certificate.untested

    def place(self, tensors: Tensors) -> dict[str, Tensor]:
        """Inputs as they are: the runtime moves them."""
        return dict(tensors)

    def entry(self, anatomy: Anatomy) -> None:
        """None: positions of a graph are not followed."""

    def study(self, examples: Sequence[Tensors] = (), head: str | None = None) -> GraphStudy:
        """The graph, studied on three inputs: on one or two of the caller's and further ones made
        from the first, or on synthetic ones.

        Raises:
            UsageError: a module was named as the head.
        """
        if head is not None:
            raise UsageError(
                f"--head {head!r}: an ONNX file has tensors and no modules; name the tensor to "
                "read with --tap, or the output that holds the logits as FILE.onnx#OUTPUT"
            )
        if not examples:
            return self._studied
        first, *more = examples
        inputs = [first, *(one for one in more[:1] if _shapes(one) == _shapes(first))]
        call = CallInputs.of(first)
        while len(inputs) < EXAMPLES:
            inputs.append(dict(other_values(call, seed=len(inputs)).kwargs))
        return self._study(inputs)

    @cached_property
    def _studied(self) -> GraphStudy:
        return self._study([self._example(seed).tensors for seed in range(EXAMPLES)])

    def _study(self, inputs: Sequence[Tensors]) -> GraphStudy:
        graph, logits = self.logits
        feeds = [feeds_of(graph, tensors) for tensors in inputs]
        return GraphStudy(GraphCut(graph, logits, self.output, feeds))

    def describe(self) -> dict[str, Any]:
        """`class` (the file's name) and the number of `parameters`."""
        return {"class": self._path.name, "parameters": self.logits.graph.parameters}

    def digest(self) -> str:
        """Hash of the file and of the weights beside it, and the tensor of logits."""
        total = hashlib.sha256()
        for path in [self._path, *beside(self._path).values()]:
            total.update(path.read_bytes())
        # The name as it was when only a literal Softmax or Sigmoid was left off.
        return f"{total.hexdigest()[:16]}/{before_scores(self.logits.graph, self.output)[0]}"

    def save(self, folder: Path) -> None:
        """Copy the file as it is, and the weights that lie beside it."""
        target = folder / _saved_name(self._path)
        target.parent.mkdir(exist_ok=True)
        copy(self._path, target)


@dataclass(frozen=True, slots=True)
class GraphStudy:
    """A graph, dissected on a few inputs; see `penult.models.base.Study`."""

    cut: GraphCut

    @property
    def anatomy(self) -> Anatomy:
        """Head, backbone and named taps."""
        return dissect_graph(self.cut)

    def tap(self, name: str) -> Tap:
        """The tap of a name, or of any tensor of the graph."""
        return tap_of_graph(self.cut, name)

    def prove(self, missing: Sequence[str] = ()) -> tuple[Certificate, str]:
        """(certificate of the head, no remark)."""
        return self.cut.certificate, ""

    def statements(self, taps: Sequence[Tap]) -> Mapping[str, Statement]:
        """How the logits depend on each tap."""
        return state_graph(self.cut, taps)

    def head(self) -> Callable[[FloatArray], FloatArray]:
        """The proved head: prelogits of one item (1, d) to logits (1, K).

        Raises:
            HeadNotFound: there is no proof.
        """
        cut = self.cut
        if not cut.certificate.ok:
            raise HeadNotFound(f"the head is not proved: {cut.certificate.refusal}")
        session, place = cut.graph.parts.open_session(cut.head_model()), cut.cut.places[0]
        return lambda prelogits: session({place: prelogits})[0].reshape(1, -1)


def feeds_of(graph: OnnxGraph, tensors: Tensors) -> Any:
    """Tensors as a session of the graph takes them."""
    return as_feeds(graph, {name: tensor.numpy() for name, tensor in tensors.items()})


def _shapes(tensors: Tensors) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors.values()]


class GraphPreparer:
    """An item as the inputs of a graph; see `penult.models.base.Preparer`. Where no preprocessing
    is known, examples are noise of the graph's own shapes, and items are refused."""

    def __init__(
        self,
        graph: OnnxGraph,
        input: InputSpec,
        preprocessing: Preprocessing | None,
        raw: bool,
    ) -> None:
        """raw: samples go in as they are."""
        self.input = input
        self._graph = graph
        self._preprocessing = preprocessing
        self._raw = raw

    def __call__(self, content: Any) -> Inputs:
        """Decoded content as the graph's inputs.

        Raises:
            UsageError: no preprocessing is known, or it does not give the graph's inputs.
        """
        self.input.require()
        assert self._preprocessing is not None
        content, truncated = fixed_length(content, self.input)
        value = self._preprocessing.function(content)
        values = value if isinstance(value, tuple) else (value,)
        named = dict(value) if isinstance(value, Mapping) else dict(
            zip((port.name for port in self._graph.inputs), values, strict=False)
        )  # fmt: skip
        if self.input.patches is None:
            return Inputs(self._tensors(named), truncated)
        times = named.pop(TIMES, None)
        return patched(self._tensors(named), truncated, times)

    def _tensors(self, named: Mapping[str, Any]) -> dict[str, Tensor]:
        ports = self._graph.inputs
        tensors = {}
        for port in ports:
            if port.name not in named:
                raise UsageError(
                    f"the preprocessing gives {', '.join(named) or 'nothing'}, and the graph "
                    f"takes {', '.join(p.name for p in ports)}"
                )
            tensors[port.name] = self._with_axes(port, torch.as_tensor(named[port.name]))
        return tensors

    def _with_axes(self, port: Port, tensor: Tensor) -> Tensor:
        """The tensor with a batch axis in front, and raw sound in the rank that the graph takes."""
        bare = self._graph.bare
        several = self.input.patches is not None
        free = tensor.ndim + (not several)
        rank = free if port.shape is None else len(port.shape) + bare
        if self._raw and tensor.ndim == 1 and rank == 3:
            tensor = tensor[:, None] if port.shape and port.shape[-1] == 1 else tensor[None]
        if tensor.ndim == rank - 1 and not several:
            tensor = tensor[None]
        if tensor.ndim == rank and len(tensor) != 1 and not several:
            raise UsageError(patches_refused(port.name, tuple(tensor.shape)))
        if tensor.ndim != rank:
            raise UsageError(
                f"the graph takes {port}, and was given one of shape {tuple(tensor.shape)}"
                + (": with --patches its first axis counts the patches" if several else "")
            )
        return tensor

    def code(self) -> dict[str, str]:
        """Hashes of the code of a user's own function."""
        return {} if self._preprocessing is None else own_function(self._preprocessing)

    def example(self, seed: int) -> Inputs:
        """Noise, prepared as any other item; of the graph's shapes where nothing is known."""
        one = self.input
        if one.patches is not None:
            return example_patch(self, one, seed)
        if self._preprocessing is not None:
            return self(content_of(one.modality, seed, one.rate, one.frames))
        random = np.random.default_rng(seed)
        ports = {port.name: self._noise(port, random) for port in self._graph.inputs}
        return Inputs({name: torch.from_numpy(value) for name, value in ports.items()})

    def _noise(self, port: Port, random: np.random.Generator) -> Any:
        sizes = [None] if port.shape is None else list(port.shape)
        shape = [1, *sizes] if self._graph.bare else [1, *sizes[1:]]
        shape = [_LENGTHS[self.input.modality] if size is None else size for size in shape]
        if port.dtype.kind == "f":
            return (0.1 * random.standard_normal(shape)).astype(port.dtype)
        if "mask" in port.name:
            return np.ones(shape, port.dtype)
        return random.integers(0, 2 if port.dtype.kind == "b" else 8, shape).astype(port.dtype)

    def digest(self) -> str:
        """Hash of the settings."""
        return digest({} if self._preprocessing is None else self._preprocessing.settings)

    def truncation(self) -> str:
        """`none`, or the seconds that are kept."""
        return truncation_of(self.input)

    def description(self) -> str:
        """By which function, and to which length; empty where nothing is known."""
        own = self._preprocessing
        return "" if own is None else prepared_words(own, self.input)


def parted(spec: str | Path) -> tuple[Path, str | None]:
    """(the file, the output that is named after `#`)."""
    name, mark, output = str(spec).partition(f"{SUFFIX}#")
    return existing_file(name + SUFFIX if mark else name), output or None


def open_onnx(spec: str | Path, options: LoadOptions) -> Classifier:
    """`FILE.onnx` or `FILE.onnx#OUTPUT` as a classifier.

    Raises:
        ModelError: no ONNX file, or none of its outputs can be the logits.
        UsageError: the options do not fit the graph.
    """
    if options.checkpoint is not None:
        raise UsageError(f"{spec} brings its own weights; --checkpoint goes with a factory")
    path, named = parted(spec)
    graph = OnnxGraph.read(path, options.sample_rate)
    own = {} if options.class_names is not None else names_in(graph.facts.metadata)
    carried = graph.facts.class_labels
    output = find_logits(graph, named, _count(options.class_names or own or carried))
    preparer = _preparer(path, graph, options)
    structure, shown = _structure(path, graph, output, preparer, options.kind)
    n_logits = _count_logits(path, structure, preparer)
    own = own or (carried if len(carried) == n_logits else [])
    spec = f"{path}#{named}" if named else str(path)
    return Classifier(
        spec,
        kind_of_scores(options.kind, structure.activation, n_logits, spec),
        class_names_of(options.class_names, n_logits) or _own_names(own, n_logits, path, named),
        structure,
        preparer,
        {
            "origin": ORIGIN,
            "inputs": [str(port) for port in graph.inputs],
            "output": output,
            "logits": structure.logits.name,
            **({"fixed_inputs": graph.facts.values} if graph.facts.values else {}),
            **_random_scores(graph, structure.logits.name, spec),
            **({"scores": shown, "logits_from": LOG_WORDS} if shown == LOG_SOFTMAX else {}),
        },
        _storage(path, output, options),
    )


def _random_scores(graph: OnnxGraph, logits: str, spec: str) -> dict[str, list[str]]:
    """What draws random numbers on the way to the logits, also logged as a warning; else empty."""
    found = {"random_scores": [*drawn_in(graph).get(logits, ())]}
    if not found["random_scores"]:
        return {}
    log.warning("%s: %s", spec, notes_of(found)[0])
    return found


def _structure(
    path: Path, graph: OnnxGraph, output: str, preparer: GraphPreparer, kind: str | None
) -> tuple[GraphStructure, str]:
    """(the graph up to its logits, the activation that its output shows). A regression's values
    are what it returns."""
    if kind == REGRESSION:
        return GraphStructure(path, graph, output, output, preparer.example), ""
    try:
        feeds = [feeds_of(graph, preparer.example(seed).tensors) for seed in range(EXAMPLES)]
        logits, activation, shown = find_activation(graph, output, feeds)
    except ValueError as error:
        raise _does_not_run(path, graph, error) from error
    return GraphStructure(path, graph, logits, output, preparer.example, activation), shown


def _does_not_run(path: Path, graph: OnnxGraph, error: Exception) -> ModelError:
    return ModelError(
        f"{path.name} takes {', '.join(map(str, graph.inputs))}, and does not run on an "
        f"example of that: {cause(error)}"
    )


def _own_names(own: Names, n_logits: int, path: Path, named: str | None) -> tuple[str, ...]:
    """The class names of the metadata; those of the classes are no names of another output."""
    if named is not None and len(own) != n_logits:
        return complete((), n_logits, "")
    return complete(own, n_logits, f"the metadata of {path.name}")


def _count(names: Sequence[str] | Mapping[int, str] | str | os.PathLike[str]) -> int | None:
    """The number of class names; None where they lie in a file, or there are none."""
    return None if isinstance(names, str | os.PathLike) else len(names) or None


def _preparer(path: Path, graph: OnnxGraph, options: LoadOptions) -> GraphPreparer:
    """The preprocessing of the options.

    Raises:
        UsageError: the graph takes no raw sound, or not of so many seconds.
    """
    rate, seconds = options.sample_rate, options.seconds
    known = options.preprocess is not None or rate is not None
    raw = options.preprocess is None
    takes = ", ".join(map(str, graph.inputs))
    port = graph.inputs[0]
    if raw and rate and (len(graph.inputs) > 1 or port.dtype.kind != "f" or (
        port.shape is not None and len(port.shape) > 3)):  # fmt: skip
        raise UsageError(
            f"{path.name} takes {takes}, which is no raw sound: give --preprocess "
            "package.module:function, which makes that of samples"
        )
    if raw and rate and port.shape:
        length = max((size for size in port.shape[not graph.bare :] if size), default=None)
        if length and seconds is not None and round(seconds * rate) != length:
            raise UsageError(
                f"{path.name} takes exactly {length} samples, {length / rate:g} s at {rate} Hz, "
                f"and --seconds is {seconds:g}"
            )
        seconds = seconds if seconds is not None or not length else length / rate
    refusal = "" if known else (
        f"nothing says how an item is prepared for {path.name}, which takes {takes}: give "
        "--sample-rate if that is raw sound, or --preprocess package.module:function"
    )  # fmt: skip
    modality = options.modality or ("audio" if rate else guessed(graph))
    if known and rate is None and modality == "audio":
        refusal = NO_RATE
    preprocessing = preprocessing_of(options) if known else None
    beginning = seconds is not None
    patches = patches_of(options, preprocessing)
    spec = InputSpec(
        modality, rate, seconds=seconds, refusal=refusal, beginning=beginning, patches=patches
    )
    return GraphPreparer(graph, spec, preprocessing, raw)


def _count_logits(path: Path, structure: GraphStructure, preparer: GraphPreparer) -> int:
    """K, from a run on one input."""
    graph, logits = structure.logits
    try:
        session = Session(graph.parts.encoder([logits]), bare=graph.bare)
        tensors = preparer.example(0).tensors
        shape = session(feeds_of(graph, tensors))[0].shape
    except ValueError as error:
        raise _does_not_run(path, graph, error) from error
    require_classes(shape, tensors, preparer.input.modality, path.name)
    if len(shape) > 1 and shape[0] != 1:
        raise ModelError(
            f"{path.name} gives {shape[0]} rows of logits, of shape {tuple(shape)}, for one item, "
            "and one item has one row: its first axis has to be that of the items"
        )
    return class_count(shape)


# Names that files of weights keep beside a saved graph: none of a file that Penult writes there.
_PLAIN = re.compile(r"\w(?![^/]*\.(json|npz|onnx|safetensors|py)$)[^/]*", re.IGNORECASE)


def _saved_name(path: Path) -> str:
    """The file in a saved folder; in a folder of its own where files beside it have names that
    could be those of others."""
    return MODEL if all(map(_PLAIN.fullmatch, beside(path))) else f"graph/{MODEL}"


def _storage(path: Path, output: str, options: LoadOptions) -> Storage:
    """How the file is opened again from its folder."""
    if callable(options.preprocess):
        return Storage(
            refusal="a preprocessing function that was given as an object cannot be found again "
            "from a folder; name it as package.module:function"
        )
    return Storage(
        {**recipe_of(options), "origin": ORIGIN, "name": f"{_saved_name(path)}#{output}"}
    )


def guessed(graph: OnnxGraph) -> str:
    """What a graph takes, by the rank of its first input; the caller can say better."""
    port = graph.inputs[0]
    if port.dtype.kind in "iu" and port.shape is not None and len(port.shape) == 2:
        return "text"
    return {4: "image", 5: "video"}.get(len(port.shape or ()), "audio")


def modality_of_file(spec: str | Path) -> str:
    """What an ONNX file takes, without its weights."""
    path, _ = parted(spec)
    return guessed(OnnxGraph(read_model(path, weights=False), sample_rate=1))


def names_in(metadata: Mapping[str, str]) -> list[str] | dict[int, str]:
    """The class names that a file's metadata carries, a mapping by key: JSON, a Python literal, or
    one a line."""
    text = next((metadata[key] for key in _NAMES if metadata.get(key)), "")
    for read in (of_others, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # or too deep for a parser
            continue
        if isinstance(value, Mapping):
            found = keyed(value, "the metadata")
            ordered = [found[key] for key in sorted(found)]
            return ordered if sorted(found) == list(range(len(found))) else found
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [*keyed(value, "").values()]
    lines = text.splitlines() if "\n" in text else text.split(",")
    names = [name.strip() for name in lines if name.strip()]
    return names if len(names) > 1 else []  # a number, or a sentence
