"""Look at a classifier: its parts, the proof of its head, and what the logits need of every tap.

Gives figures and words; it prints nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from penult import classifiers
from penult.classifiers.base import Classifier
from penult.classifiers.from_onnx import OnnxClassifier
from penult.embedding.opening import Opened, Wanted, open_regions
from penult.embedding.proving import example_of
from penult.errors import (
    IncompleteWeights,
    ItemError,
    ModelError,
    PenultError,
    UntrustedCode,
    UsageError,
    first_line,
)
from penult.sources import Failure, from_paths
from penult.splitting.anatomy import Anatomy, choose_tap, dissect
from penult.splitting.certificate import Certificate
from penult.splitting.cut import split
from penult.splitting.graph import as_feeds
from penult.splitting.graph_statements import state_graph
from penult.splitting.onnx import GraphCut, dissect_graph, tap_of_graph
from penult.splitting.running import Question, still
from penult.splitting.statements import Statement, state
from penult.splitting.taps import Tap
from penult.splitting.variants import Inputs, other_values

PUBLISHED = ("timm:", "torchvision:")
RANDOM = "random weights, nothing here is trained"

# What a model that does not take the proof's variants of an input may raise.
_REFUSALS = (PenultError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


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
class Sample:
    """What the model is run on. names: of the user's files; empty for a synthetic example."""

    example: dict[str, Tensor]
    other: dict[str, Tensor] | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def look_into(spec: str, questions: Questions, **asked: Any) -> Inspection:
    """Open a classifier and look into it. asked: what `penult.classifiers.load` takes.

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
        return classifiers.load(spec, **asked), RANDOM
    try:
        with redirect_stdout(sys.stderr):  # where torch says what it downloads
            return classifiers.load(spec, **asked), ""
    except (IncompleteWeights, UntrustedCode):
        raise
    except ModelError as error:
        if not spec.startswith(PUBLISHED) or asked.get("checkpoint"):
            raise
        try:
            classifier = classifiers.load(spec, **asked, random=True)
        except ModelError:
            raise error from None
        return classifier, f"published weights cannot be fetched: {RANDOM}"


def sample_of(classifier: Classifier, files: Sequence[str]) -> Sample:
    """The user's files as the model takes them, or a synthetic example.

    Raises:
        UsageError: more than two files; one cannot be read, or the model does not take it.
    """
    if not files:
        return Sample(classifier_example(classifier))
    if isinstance(classifier, OnnxClassifier):
        classifier.preparation()  # refused now: without it nothing can be said of a file
    if len(files) > 2:
        raise UsageError(f"--verify takes one or two files, and was given {len(files)}")
    pairs = [_prepared(classifier, opened) for opened in islice(_regions(classifier, files), 2)]
    if not pairs:
        raise UsageError(f"--verify: nothing to read in {', '.join(files)}")
    (name, example), *more = pairs
    if not more:
        return Sample(example, None, (name,))
    other_name, other = more[0]
    if _shapes(example) == _shapes(other):
        return Sample(example, other, (name, other_name))
    note = (
        f"{other_name} gives an input of another shape than {name}, so it is left aside: the other "
        "input is made from the first"
    )
    return Sample(example, None, (name,), (note,))


def classifier_example(classifier: Classifier) -> dict[str, Tensor]:
    """A synthetic input, on the device where the model is."""
    if isinstance(classifier, OnnxClassifier):
        return dict(classifier.example().tensors)
    return example_of(classifier)


def _regions(classifier: Classifier, files: Sequence[str]) -> Iterable[Opened | Any]:
    wanted = Wanted(classifier.modality, classifier.rate, classifier.frames)
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


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


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
    classifier: Classifier, questions: Questions, sample: Sample, random: bool
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
    question = Question(module, classifier.output, questions.head)
    other = None if sample.other is None else Inputs.of(sample.other)
    with still(module):
        statements = state(
            question, Inputs.of(example), _measured(anatomy, named, questions.every), other
        )
    return Inspection(classifier, _with_taps(anatomy, named), certificate, statements, remark)


def _known(module: torch.nn.Module, head: str | None) -> None:
    if head is not None and (not head or head not in dict(module.named_modules())):
        raise UsageError(
            f"--head {head!r}: the model has no module of that name (penult inspect without "
            "--head shows them)"
        )


def _of_graph(classifier: OnnxClassifier, questions: Questions, sample: Sample) -> Inspection:
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


def _cut_on(classifier: OnnxClassifier, sample: Sample) -> GraphCut:
    """The graph, dissected on the user's files: the first, the second or one made from the first,
    and one more."""
    first = Inputs.of(sample.example)
    inputs = [sample.example, *([sample.other] if sample.other else [])]
    while len(inputs) < 3:
        inputs.append(dict(other_values(first, seed=len(inputs)).kwargs))
    feeds = [
        as_feeds(classifier.graph, {name: tensor.numpy() for name, tensor in tensors.items()})
        for tensors in inputs
    ]
    return GraphCut(classifier.graph, classifier.logits, classifier.output, feeds)
