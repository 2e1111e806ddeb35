"""Anatomy, taps and proof of a classifier, on real items or synthetic ones. Prints nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

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
from penult.models.base import Classifier
from penult.tracing.anatomy import Anatomy, Statement
from penult.tracing.certificate import Certificate
from penult.tracing.taps import Tap

# What a model that does not take the proof's variants of an input may raise.
_REFUSALS = (PenultError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


def anatomy_of(classifier: Classifier) -> Anatomy:
    """A classifier's parts, measured: of its module, or of its graph."""
    return classifier.structure.study().anatomy


def taps_of(classifier: Classifier, names: Sequence[str]) -> list[Tap]:
    """The taps of these names; the model is studied once.

    Raises:
        TapError: one is not there; the message lists those that are.
    """
    study = classifier.structure.study()
    return [study.tap(name) for name in names]


def certify(classifier: Classifier, examples: Sequence[Mapping[str, Tensor]] = ()) -> Certificate:
    """Prove the classifier's head in a few forward passes: on one or two prepared items, or else
    on an example of its own kind."""
    return classifier.structure.study(examples).prove()[0]


def certify_on(runner: Runner, sample: SourceSample) -> tuple[Certificate, list[str]]:
    """Prove the head on the first one or two items that can be opened; with their ids."""
    classifier = runner.classifier
    found = sample.beginnings(runner) if classifier.structure.proved_on_items else []
    examples = [classifier.structure.place(one.inputs.tensors) for one in found]
    return certify(classifier, examples), [one.item.id for one in found]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


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
    """One or two prepared files of the user's, and their names; none for a synthetic example."""

    examples: Sequence[Mapping[str, Tensor]] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def look_into(spec: str, questions: Questions, **asked: Any) -> Inspection:
    """Open a classifier and look into it. asked: what `penult.models.specs.load` takes.

    Raises:
        UsageError: no such model, module, tap or output; a file that cannot be used.
    """
    classifier, note = opened(spec, **asked)
    sample = sample_of(classifier, questions.verify)
    found = _inspected(classifier, questions, sample, bool(note))
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
        return ProofInputs()
    classifier.input.require()  # refused now: without preprocessing no file can be used
    if len(files) > 2:
        raise UsageError(f"--verify takes one or two files, and was given {len(files)}")
    pairs = [_prepared(classifier, opened) for opened in islice(_regions(classifier, files), 2)]
    if not pairs:
        raise UsageError(f"--verify: nothing to read in {', '.join(files)}")
    (name, example), *more = pairs
    if not more:
        return ProofInputs([example], (name,))
    other_name, other = more[0]
    if _shapes(example) == _shapes(other):
        return ProofInputs([example, other], (name, other_name))
    note = (
        f"{other_name} gives an input of another shape than {name}, so it is left aside: the other "
        "input is made from the first"
    )
    return ProofInputs([example], (name,), (note,))


def _regions(classifier: Classifier, files: Sequence[str]) -> Iterable[DecodedRegion | Any]:
    wanted = DecodeTarget(classifier.modality, classifier.rate, classifier.input.frames)
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
    return opened.item.id, classifier.structure.place(tensors)


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


def _inspected(
    classifier: Classifier, questions: Questions, sample: ProofInputs, random: bool
) -> Inspection:
    study = classifier.structure.study(sample.examples, questions.head)
    anatomy = study.anatomy
    named = [study.tap(name) for name in questions.taps]
    missing = [name for name, _ in classifier.module.named_parameters()] if random else ()
    certificate, remark = study.prove(missing)
    if random:
        certificate = replace(certificate, refusal=RANDOM)
    statements = study.statements(_measured(anatomy, named, questions.every))
    return Inspection(classifier, _with_taps(anatomy, named), certificate, statements, remark)
