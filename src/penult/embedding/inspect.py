"""Anatomy, taps and proof of a classifier, on real items or synthetic ones. Prints nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from penult.data.decode import DecodedRegion, DecodeTarget, open_regions
from penult.data.items import Failure
from penult.data.sources import from_paths
from penult.embedding.runner import Runner
from penult.embedding.source_sample import SourceSample
from penult.errors import (
    IncompleteWeights,
    ItemError,
    ModelError,
    PenultError,
    UntrustedCode,
    UsageError,
    first_line,
)
from penult.models import specs
from penult.models.base import Classifier, Inputs
from penult.models.loaders.onnx import OnnxClassifier
from penult.tracing.anatomy import Anatomy, Statement, choose_tap, dissect, state
from penult.tracing.certificate import Certificate
from penult.tracing.forward import SplitTarget, still
from penult.tracing.inputs import CallInputs, other_values
from penult.tracing.onnx_anatomy import GraphCut, dissect_graph, tap_of_graph
from penult.tracing.onnx_graph import as_feeds
from penult.tracing.onnx_proof import state_graph
from penult.tracing.split import split
from penult.tracing.taps import Tap

# What a model that does not take the proof's variants of an input may raise.
_REFUSALS = (PenultError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


def anatomy_of(classifier: Classifier) -> Anatomy:
    """A classifier's parts, measured: of its module, or of its graph."""
    if isinstance(classifier, OnnxClassifier):
        return dissect_graph(classifier.cut)
    return dissect(classifier.module, example_of(classifier), classifier.base, classifier.output)


def tap_of(classifier: Classifier, name: str) -> Tap:
    """The tap of that name.

    Raises:
        TapError: there is none; the message lists those that there are.
    """
    return taps_of(classifier, [name])[0]


def taps_of(classifier: Classifier, names: Sequence[str]) -> list[Tap]:
    """The taps of these names; the model is looked at once.

    Raises:
        TapError: one is not there; the message lists those that are.
    """
    if isinstance(classifier, OnnxClassifier):
        return [tap_of_graph(classifier.cut, name) for name in names]
    anatomy, example = anatomy_of(classifier), example_of(classifier)
    return [choose_tap(anatomy, classifier.module, example, name) for name in names]


def certify(classifier: Classifier, examples: Sequence[Mapping[str, Tensor]] = ()) -> Certificate:
    """Prove the classifier's head in a few forward passes: on one or two prepared items, or else
    on an example of its own kind."""
    if classifier.engine != "torch":
        proved = dissect_graph(classifier.cut).certificate  # type: ignore[attr-defined]
        return proved or Certificate.refused("the graph's head was not located")
    from penult.tracing.split import split

    first = examples[0] if examples else example_of(classifier)
    # Two of one shape serve as the two inputs of the proof; else the second one is made up.
    other = next((item for item in examples[1:] if _shapes(item) == _shapes(first)), None)
    try:
        cut = split(classifier.module, first, output=classifier.output, other_inputs=other)
        return cut.certificate
    except _REFUSALS as error:  # a head that cannot be proved stops no other tap
        return Certificate.refused(f"the proof could not be run: {first_line(error)}")


def certify_on(runner: Runner, sample: SourceSample) -> tuple[Certificate, list[str]]:
    """Prove the head on the first one or two items that can be opened; with their ids."""
    classifier = runner.classifier
    found = sample.beginnings(runner) if classifier.engine == "torch" else []
    examples = [_placed(classifier, one.inputs) for one in found]
    return certify(classifier, examples), [one.item.id for one in found]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def example_of(classifier: Classifier) -> dict[str, Tensor]:
    """The classifier's example, on the device where its module is now."""
    return _placed(classifier, classifier.example())


def _placed(classifier: Classifier, inputs: Inputs) -> dict[str, Tensor]:
    parameter = next(classifier.module.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    return {name: tensor.to(device) for name, tensor in inputs.tensors.items()}


PUBLISHED = ("timm:", "torchvision:")
RANDOM = "random weights, nothing here is trained"


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked besides the model. head: what the user calls so. taps: further
    modules, or tensors of a graph. verify: files of the user's to prove the head on. every: measure
    every layer, not only the first and the last."""

    head: str | None = None
    taps: Sequence[str] = ()
    verify: Sequence[str] = ()
    every: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found. statements: of the taps that were measured. remark: where the library's own
    word on its head differs. proved_on: the user's files, or none. notes: what else is to be
    said."""

    classifier: Classifier
    anatomy: Anatomy
    certificate: Certificate
    statements: Mapping[str, Statement]
    remark: str = ""
    proved_on: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProofInputs:
    """What the model is run on. names: of the user's files; empty for a synthetic example."""

    example: dict[str, Tensor]
    other: dict[str, Tensor] | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def look_into(spec: str, questions: Questions, **asked: Any) -> Inspection:
    """Open a classifier and look into it. asked: what `penult.models.specs.load` takes.

    Raises:
        UsageError: no such model, module, tap or output; a file that cannot be used.
    """
    classifier, note = opened(spec, **asked)
    sample = sample_of(classifier, questions.verify)
    if isinstance(classifier, OnnxClassifier):
        found = _of_graph(classifier, questions, sample)
    else:
        found = _of_module(classifier, questions, sample, bool(note))
    notes = (*((note,) if note else ()), *sample.notes)
    return replace(found, proved_on=sample.names, notes=notes)


def opened(spec: str, **asked: Any) -> tuple[Classifier, str]:
    """(the classifier, what is to be said of its weights).

    A name of timm or torchvision whose weights cannot be fetched is opened with random ones: its
    architecture can be looked at all the same.
    """
    if asked.get("random"):
        return specs.load(spec, **asked), RANDOM
    try:
        with redirect_stdout(sys.stderr):  # where torch says what it downloads
            return specs.load(spec, **asked), ""
    except (IncompleteWeights, UntrustedCode):
        raise
    except ModelError as error:
        if not spec.startswith(PUBLISHED) or asked.get("checkpoint"):
            raise
        try:
            classifier = specs.load(spec, **asked, random=True)
        except ModelError:
            raise error from None
        return classifier, f"published weights cannot be fetched: {RANDOM}"


def sample_of(classifier: Classifier, files: Sequence[str]) -> ProofInputs:
    """The user's files as the model takes them, or a synthetic example.

    Raises:
        UsageError: more than two files; one cannot be read, or the model does not take it.
    """
    if not files:
        return ProofInputs(classifier_example(classifier))
    if isinstance(classifier, OnnxClassifier):
        classifier.preparation()  # refused now: without it nothing can be said of a file
    if len(files) > 2:
        raise UsageError(f"--verify takes one or two files, and was given {len(files)}")
    pairs = [_prepared(classifier, opened) for opened in islice(_regions(classifier, files), 2)]
    if not pairs:
        raise UsageError(f"--verify: nothing to read in {', '.join(files)}")
    (name, example), *more = pairs
    if not more:
        return ProofInputs(example, None, (name,))
    other_name, other = more[0]
    if _shapes(example) == _shapes(other):
        return ProofInputs(example, other, (name, other_name))
    note = (
        f"{other_name} gives an input of another shape than {name}, so it is left aside: the other "
        "input is made from the first"
    )
    return ProofInputs(example, None, (name,), (note,))


def classifier_example(classifier: Classifier) -> dict[str, Tensor]:
    """A synthetic input, on the device where the model is."""
    if isinstance(classifier, OnnxClassifier):
        return dict(classifier.example().tensors)
    return example_of(classifier)


def _regions(classifier: Classifier, files: Sequence[str]) -> Iterable[DecodedRegion | Any]:
    wanted = DecodeTarget(classifier.modality, classifier.rate, classifier.frames)
    return open_regions(from_paths([*files], classifier.modality), wanted)


def _prepared(classifier: Classifier, opened: Any) -> tuple[str, dict[str, Tensor]]:
    """(name, tensors) of a region that was opened."""
    if isinstance(opened, Failure):
        raise UsageError(f"--verify {opened.id}: {opened.message}")
    if isinstance(opened.content, ItemError):
        raise UsageError(f"--verify {opened.item.id}: {opened.content}") from opened.content
    try:
        tensors = classifier.preprocess(opened.content.values).tensors
    except _REFUSALS as error:
        said = f"the model cannot take it: {first_line(error)}"
        raise UsageError(f"--verify {opened.item.id}: {said}") from error
    if isinstance(classifier, OnnxClassifier):
        return opened.item.id, dict(tensors)
    device = next((p.device for p in classifier.module.parameters()), torch.device("cpu"))
    return opened.item.id, {name: tensor.to(device) for name, tensor in tensors.items()}


def _measured(anatomy: Anatomy, named: Sequence[Tap], every: bool) -> list[Tap]:
    """The taps that get a statement: of many layers the first and the last, unless all are asked
    for."""
    layers = [name for name in anatomy.taps if name.startswith("layer:")]
    left = set() if every else set(layers[1:-1])
    taps = [tap for name, tap in anatomy.taps.items() if name not in left]
    names = {tap.name for tap in taps}
    return [*taps, *(tap for tap in named if tap.name not in names)]


def _with_taps(anatomy: Anatomy, named: Sequence[Tap]) -> Anatomy:
    return replace(anatomy, taps={**anatomy.taps, **{tap.name: tap for tap in named}})


def _of_module(
    classifier: Classifier, questions: Questions, sample: ProofInputs, random: bool
) -> Inspection:
    module, example = classifier.module, sample.example
    _known(module, questions.head)
    anatomy = dissect(module, example, classifier.base, classifier.output, questions.head)
    named = [choose_tap(anatomy, module, example, name) for name in questions.taps]
    missing = [name for name, _ in module.named_parameters()] if random else ()
    try:
        cut = split(
            module,
            example,
            output=classifier.output,
            head=questions.head,
            missing=missing,
            other_inputs=sample.other,
        )
        certificate, remark = cut.certificate, cut.remark
        if random:
            certificate = replace(certificate, refusal=RANDOM)
    except _REFUSALS as error:  # a head that cannot be proved stops no other tap
        certificate = Certificate.refused(f"the proof could not be run: {first_line(error)}")
        remark = ""
    question = SplitTarget(module, classifier.output, questions.head)
    other = None if sample.other is None else CallInputs.of(sample.other)
    with still(module):
        statements = state(
            question, CallInputs.of(example), _measured(anatomy, named, questions.every), other
        )
    return Inspection(classifier, _with_taps(anatomy, named), certificate, statements, remark)


def _known(module: torch.nn.Module, head: str | None) -> None:
    if head is not None and (not head or head not in dict(module.named_modules())):
        raise UsageError(
            f"--head {head!r}: the model has no module of that name (penult inspect without "
            "--head shows them)"
        )


def _of_graph(classifier: OnnxClassifier, questions: Questions, sample: ProofInputs) -> Inspection:
    if questions.head is not None:
        raise UsageError(
            f"--head {questions.head!r}: an ONNX file has tensors and no modules; name the tensor "
            "that you mean with --tap, or the output that holds the logits as FILE.onnx#OUTPUT"
        )
    cut = classifier.cut if not sample.names else _cut_on(classifier, sample)
    anatomy = dissect_graph(cut)
    named = [tap_of_graph(cut, name) for name in questions.taps]
    certificate = anatomy.certificate or Certificate.refused("the graph's head was not located")
    statements = state_graph(cut, _measured(anatomy, named, questions.every))
    return Inspection(classifier, _with_taps(anatomy, named), certificate, statements)


def _cut_on(classifier: OnnxClassifier, sample: ProofInputs) -> GraphCut:
    """The graph, dissected on the user's files: the first, the second or one made from the first,
    and one more."""
    first = CallInputs.of(sample.example)
    inputs = [sample.example, *([sample.other] if sample.other else [])]
    while len(inputs) < 3:
        inputs.append(dict(other_values(first, seed=len(inputs)).kwargs))
    feeds = [
        as_feeds(classifier.graph, {name: tensor.numpy() for name, tensor in tensors.items()})
        for tensors in inputs
    ]
    return GraphCut(classifier.graph, classifier.logits, classifier.output, feeds)
