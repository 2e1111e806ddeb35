"""A graph as a classifier: which of its tensors is the logits, studied, proved, digested, saved.

What a graph cannot say, the caller says: sample rate, seconds, class names, preprocessing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import Tensor, nn

from penult.errors import HeadNotFound, ModelError, UsageError, cause
from penult.models.base import (
    REGRESSION,
    Activation,
    Classifier,
    FloatArray,
    Inputs,
    Storage,
    kind_of_scores,
)
from penult.models.byte_preparation import CONFIG, BytePreparation, preparation_beside
from penult.models.class_names import class_names_of, complete
from penult.models.graph_preparer import GraphPreparer, preparer_of
from penult.models.leftovers import notes_of
from penult.models.module import LOG_WORDS
from penult.models.options import LoadOptions, existing_file, recipe_of
from penult.models.outputs import require_classes
from penult.tracing.anatomy import Anatomy, Statement
from penult.tracing.certificate import Certificate
from penult.tracing.graph import Graph, as_feeds
from penult.tracing.graph_anatomy import (
    GraphCut,
    before_scores,
    dissect_graph,
    find_activation,
    find_logits,
    tap_of_graph,
)
from penult.tracing.graph_head import drawn_in
from penult.tracing.graph_proof import state_graph
from penult.tracing.inputs import CallInputs, other_values
from penult.tracing.scores import LOG_SOFTMAX, class_count
from penult.tracing.spots import Tap

Tensors = Mapping[str, Tensor]
Example = Callable[[int], Inputs]
Names = list[str] | dict[int, str]

log = logging.getLogger(__name__)

EXAMPLES = 3  # inputs that a cut is proved on


class GraphFile:
    """A file that holds one graph, and nothing beside it.

    origin: name of its loader. output: the one that the caller names as the logits. names: the
    class names that it holds, where they are names of all its classes.
    """

    def __init__(
        self, path: Path, graph: Graph, origin: str, output: str | None, names: Names
    ) -> None:
        self.path = path
        self.graph = graph
        self.origin = origin
        self.output = output
        self.names = names
        self.inputs = ""  # those that are part of no item, as the caller gave them
        self.bytes: BytePreparation | None = None  # as the configuration beside the file says

    @property
    def spec(self) -> str:
        """`FILE`, or `FILE#OUTPUT`."""
        return f"{self.path}#{self.output}" if self.output else str(self.path)

    @property
    def saved_name(self) -> str:
        """The file in a saved folder."""
        return f"model{self.graph.suffix}"

    def digest(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Copy the file as it is."""
        shutil.copyfile(self.path, folder / self.saved_name)

    def storage(self, output: str, options: LoadOptions) -> Storage:
        """How the file is opened again from its folder."""
        if callable(options.preprocess):
            return Storage(
                refusal="a preprocessing function that was given as an object cannot be found "
                "again from a folder; name it as package.module:function"
            )
        name = f"{self.saved_name}#{output}"
        return Storage({**recipe_of(options), "origin": self.origin, "name": name})


class LogitsTensor(NamedTuple):
    """A graph and the name of its tensor of logits."""

    graph: Graph
    name: str


class GraphStructure:
    """A graph; see `penult.models.base.Structure`.

    logits: the graph, and its tensor with one number per class. output: the output of the file
    that is read for it. example: synthetic inputs for a seed. activation: what lies between both.
    """

    base = None

    def __init__(
        self,
        file: GraphFile,
        logits: str,
        output: str,
        example: Example,
        activation: Activation = Activation(),
    ) -> None:
        self.activation = activation
        self.logits = LogitsTensor(file.graph, logits)
        self.output = output
        self.engine = file.graph.runtime
        self._file = file
        self._example = example

    @property
    def module(self) -> NoReturn:
        """A graph has none."""
        file = self._file
        raise UsageError(
            f"{file.path} is {_a(file.graph.format)} file: it has a graph, and no torch module"
        )

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
            graph = self.logits.graph
            raise UsageError(
                f"--head {head!r}: {_a(graph.format)} file has tensors and no modules; name the "
                "tensor to read with --tap, or the output that holds the logits as "
                f"FILE{graph.suffix}#OUTPUT"
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
        return {"class": self._file.path.name, "parameters": self.logits.graph.parameters}

    def digest(self) -> str:
        """Hash of the file, and the tensor of logits."""
        # The name as it was when only a literal Softmax or Sigmoid was left off.
        name = before_scores(self.logits.graph, self.output)[0]
        fixed = f"/{self._file.inputs}" if self._file.inputs else ""
        return f"{self._file.digest()}/{name}{fixed}"

    def save(self, folder: Path) -> None:
        """Copy the file as it is."""
        self._file.save(folder)
        if self._file.bytes is not None:
            place = (folder / self._file.saved_name).with_name(CONFIG)
            shutil.copyfile(self._file.path.with_name(CONFIG), place)


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
        session, place = cut.open_head(), cut.cut.places[0]
        return lambda prelogits: session({place: prelogits})[0].reshape(1, -1)


def parted(spec: str | Path, suffix: str) -> tuple[Path, str | None]:
    """(the file, the output that is named after `#`)."""
    name, mark, output = str(spec).partition(f"{suffix}#")
    return existing_file(name + suffix if mark else name), output or None


def feeds_of(graph: Graph, tensors: Tensors) -> Any:
    """Tensors as a session of the graph takes them."""
    return as_feeds(graph, {name: tensor.numpy() for name, tensor in tensors.items()})


def _shapes(tensors: Tensors) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors.values()]


def _a(name: str) -> str:
    """`an ONNX`."""
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def open_graph(file: GraphFile, options: LoadOptions) -> Classifier:
    """A file with a graph as a classifier.

    Raises:
        ModelError: none of its outputs can be the logits.
        UsageError: the options do not fit the graph.
    """
    graph, path = file.graph, file.path
    if options.checkpoint is not None:
        raise UsageError(f"{file.spec} brings its own weights; --checkpoint goes with a factory")
    file.inputs = str(options.inputs or "")
    if options.modality == "bytes" and options.preprocess is None:
        file.bytes = preparation_beside(path)
        file.names = file.names or list(file.bytes.labels if file.bytes else ())
    own = {} if options.class_names is not None else file.names
    carried = graph.facts.class_labels
    output = find_logits(graph, file.output, _count(options.class_names or own or carried))
    preparer = preparer_of(path, graph, options)
    structure, shown = _structure(file, output, preparer, options.kind)
    n_logits = _count_logits(path, structure, preparer)
    own = own or (carried if len(carried) == n_logits else [])
    if not own and not options.class_names and options.kind is None:
        _refuse_autoencoder(file, structure, preparer, n_logits)
    spec = file.spec
    return Classifier(
        spec,
        kind_of_scores(options.kind, structure.activation, n_logits, spec),
        class_names_of(options.class_names, n_logits) or _own_names(own, n_logits, file),
        structure,
        preparer,
        {
            "origin": file.origin,
            "inputs": [str(port) for port in graph.inputs],
            "output": output,
            "logits": structure.logits.name,
            **({"fixed_inputs": graph.facts.values} if graph.facts.values else {}),
            **_random_scores(graph, structure.logits.name, spec),
            **({"scores": shown, "logits_from": LOG_WORDS} if shown == LOG_SOFTMAX else {}),
        },
        file.storage(output, options),
    )


def _random_scores(graph: Graph, logits: str, spec: str) -> dict[str, list[str]]:
    """What draws random numbers on the way to the logits, also logged as a warning; else empty."""
    found = {"random_scores": [*drawn_in(graph).get(logits, ())]}
    if not found["random_scores"]:
        return {}
    log.warning("%s: %s", spec, notes_of(found)[0])
    return found


def _structure(
    file: GraphFile, output: str, preparer: GraphPreparer, kind: str | None
) -> tuple[GraphStructure, str]:
    """(the graph up to its logits, the activation that its output shows). A regression's values
    are what it returns."""
    if kind == REGRESSION:
        return GraphStructure(file, output, output, preparer.example), ""
    graph = file.graph
    try:
        feeds = [feeds_of(graph, preparer.example(seed).tensors) for seed in range(EXAMPLES)]
        logits, activation, shown = find_activation(graph, output, feeds)
    except ValueError as error:
        raise _does_not_run(file.path, graph, error) from error
    return GraphStructure(file, logits, output, preparer.example, activation), shown


_LEAST = 16  # numbers from which a model that gives as many as it takes is no classifier


def _refuse_autoencoder(
    file: GraphFile, structure: GraphStructure, preparer: GraphPreparer, n_logits: int
) -> None:
    """Refuse a graph of floats that gives as many numbers as it takes, and calls none of them a
    class.

    Raises:
        ModelError: it is one.
    """
    (name, first), *more = preparer.example(0).tensors.items()
    if more or first.numel() != n_logits or n_logits < _LEAST or not first.is_floating_point():
        return
    if structure.activation.name:
        return
    raise ModelError(
        f"{file.path.name} takes {n_logits} numbers ({name}) and gives {n_logits}, as an "
        "autoencoder does: it has no classes, and no head in front of them. If these are classes, "
        "name them with --class-names"
    )


def _does_not_run(path: Path, graph: Graph, error: Exception) -> ModelError:
    return ModelError(
        f"{path.name} takes {', '.join(map(str, graph.inputs))}, and does not run on an "
        f"example of that: {cause(error)}"
    )


def _own_names(own: Names, n_logits: int, file: GraphFile) -> tuple[str, ...]:
    """The class names of the metadata; those of the classes are no names of another output."""
    if file.output is not None and len(own) != n_logits:
        return complete((), n_logits, "")
    return complete(own, n_logits, f"the metadata of {file.path.name}")


def _count(names: Sequence[str] | Mapping[int, str] | str | os.PathLike[str]) -> int | None:
    """The number of class names; None where they lie in a file, or there are none."""
    return None if isinstance(names, str | os.PathLike) else len(names) or None


def _count_logits(path: Path, structure: GraphStructure, preparer: GraphPreparer) -> int:
    """K, from a run on one input."""
    graph, logits = structure.logits
    try:
        session = graph.parts.session([logits])
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
