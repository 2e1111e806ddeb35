"""Anatomy, taps and proof of a classifier, on real items or synthetic ones. Prints nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stdout, suppress
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penult.data.decode import DecodedRegion, DecodeTarget, usual_decoding
from penult.data.items import Failure
from penult.data.sources import from_paths
from penult.data.workers import decode
from penult.embedding.runner import Runner
from penult.embedding.scheduling import PreparedRegion
from penult.embedding.source_sample import SourceSample
from penult.errors import (
    REFUSALS,
    HeadNotFound,
    IncompleteWeights,
    ItemError,
    ModelError,
    UntrustedCode,
    UsageError,
    cause,
)
from penult.models import specs
from penult.models.base import Classifier, Structure
from penult.models.patches import first_input
from penult.tracing.certificate import Certificate
from penult.tracing.spots import Tap

if TYPE_CHECKING:
    from torch import Tensor

    from penult.tracing.anatomy import Anatomy, Statement

# What a model that does not take the proof's variants of an input may raise.


Head = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


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


def certify(classifier: Classifier) -> Certificate:
    """Prove the classifier's head in a few forward passes on an example of its own kind."""
    return classifier.structure.study().prove()[0]


def certify_on(runner: Runner, sample: SourceSample) -> tuple[Certificate, list[str]]:
    """Prove the head on the first one or two items that can be opened; with their ids. Where the
    model hardly tells them apart, on others of the first items."""
    structure = runner.classifier.structure
    if not structure.proved_on_items:
        return certify(runner.classifier), []
    found = sample.beginnings(runner)
    certificate, _ = structure.study(_placed(structure, found)).prove()
    used = found
    if certificate.untested:
        for pair in _pairs(sample.beginnings(runner, FURTHER)):
            examples = _cut_alike(_placed(structure, pair))
            other = structure.study(examples).prove()[0] if examples else certificate
            if not other.untested:
                certificate, used = other, pair
                break
    return certificate, list(dict.fromkeys(one.item.id for one in used))


def proved_head(runner: Runner, sample: SourceSample | None = None) -> Head:
    """The proved head as a function, (1, d) → (1, K). sample: items that are asked where the model
    hardly tells made-up inputs apart.

    Raises:
        HeadNotFound: there is no proof.
    """
    structure = runner.classifier.structure
    study = structure.study()
    if sample is not None and study.prove()[0].untested:
        for pair in _pairs(sample.beginnings(runner, FURTHER)):
            if examples := _cut_alike(_placed(structure, pair)):
                with suppress(HeadNotFound):
                    return structure.study(examples).head()
    return study.head()


FURTHER = 8  # items, of which pairs are tried
PAIRS = 6


def _pairs(found: Sequence[PreparedRegion]) -> list[list[PreparedRegion]]:
    """Pairs of items, those of one shape first."""
    pairs = sorted(
        combinations(found, 2),
        key=lambda pair: _shapes(pair[0].inputs.tensors) != _shapes(pair[1].inputs.tensors),
    )
    return [[*pair] for pair in pairs[:PAIRS]]


def _placed(structure: Structure, found: Sequence[PreparedRegion]) -> list[dict[str, Tensor]]:
    return [structure.place(one.inputs.tensors) for one in found]


def _cut_alike(examples: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Inputs cut to the shapes that they share; none where they have not the same axes."""
    names = list(examples[0])
    ranks = [[(name, one[name].ndim) for name in one] for one in examples]
    if any(rank != ranks[0] for rank in ranks):
        return []
    sizes = {
        name: [min(axis) for axis in zip(*(one[name].shape for one in examples), strict=True)]
        for name in names
    }
    return [{name: one[name][tuple(map(slice, sizes[name]))] for name in names} for one in examples]


PUBLISHED = ("timm:", "torchvision:")
RANDOM = "random weights, nothing here is trained"
SEQUENCES = {"audio": "time", "video": "patch", "image": "patch", "text": "token",
             "array": "position", "bytes": "position"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class InspectionOptions:
    """head: the module that is the head, by the user. taps: further modules, or tensors of a graph.
    verify: one or two files to prove the head on. every: measure every layer, not only the first
    and the last."""

    head: str | None = None
    taps: Sequence[str] = ()
    verify: Sequence[str] = ()
    every: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """A classifier's parts and their proof. statements: of the taps that were measured. remark:
    where the library names another head. proved_on: the user's files, or none. notes: on its
    weights and on files that were left aside."""

    classifier: Classifier
    anatomy: Anatomy
    certificate: Certificate
    statements: Mapping[str, Statement]
    remark: str = ""
    proved_on: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def axis(self) -> str:
        """What a sequence of positions counts: time, patches or tokens."""
        return SEQUENCES[self.classifier.modality]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        classifier, anatomy = self.classifier, self.anatomy
        return {
            "model": classifier.spec,
            **classifier.describe(),
            "labels": classifier.labels,
            "head": {
                "last_weight_layers": anatomy.head,
                "modules": sorted(anatomy.behind),
                "refusal": anatomy.refusal or None,
                "remark": self.remark or None,
                "proved_on": self.proved_on or None,
                "certificate": self.certificate.to_dict(),
            },
            "backbone": classifier.structure.base,
            "mixes_layers": anatomy.mixes_layers,
            "taps": [self._tap_facts(name, tap) for name, tap in anatomy.taps.items()],
            "notes": self.notes,
            "prepared": classifier.identity(),
        }

    def _tap_facts(self, name: str, tap: Tap) -> dict[str, Any]:
        return {
            "name": name,
            "module": tap.module,
            "side": tap.side,
            "place": tap.place,
            "shape": tap.shape,
            "width": tap.width,
            "axes": tap.describe(self.axis),
            "statement": self.statements.get(name),
        }


def inspect_model(spec: str, options: InspectionOptions, **model_options: Any) -> Inspection:
    """Open a classifier and take it apart. model_options: as `penult.load` takes them.

    Raises:
        UsageError: no such model, module, tap or output; a file that cannot be used.
    """
    from penult.models.leftovers import notes_of

    classifier, weights_note = open_even_untrained(spec, **model_options)
    sample = prepare_files(classifier, options.verify)
    study = classifier.structure.study(sample.examples, options.head)
    taps = [study.tap(name) for name in options.taps]
    untrained = [name for name, _ in classifier.module.named_parameters()] if weights_note else ()
    certificate, remark = study.prove(untrained)
    if weights_note:
        certificate = replace(certificate, refusal=RANDOM)
    anatomy = study.anatomy
    return Inspection(
        classifier,
        replace(anatomy, taps={**anatomy.taps, **{tap.name: tap for tap in taps}}),
        certificate,
        study.statements(_taps_to_measure(anatomy, taps, options.every)),
        remark,
        sample.names,
        (*filter(None, [weights_note]), *notes_of(classifier.describe()), *sample.notes),
    )


def open_even_untrained(spec: str, **model_options: Any) -> tuple[Classifier, str]:
    """(the classifier, a note on its weights, empty where they are trained).

    A name of timm or torchvision whose weights cannot be fetched is opened with random ones: its
    architecture can be looked at all the same.
    """
    if model_options.get("random"):
        return specs.load(spec, **model_options), RANDOM
    try:
        with redirect_stdout(sys.stderr):  # where torch prints what it downloads
            return specs.load(spec, **model_options), ""
    except (IncompleteWeights, UntrustedCode):
        raise
    except ModelError as error:
        if not spec.startswith(PUBLISHED) or model_options.get("checkpoint"):
            raise
        try:
            classifier = specs.load(spec, **model_options, random=True)
        except ModelError:
            raise error from None
        return classifier, f"published weights cannot be fetched: {RANDOM}"


@dataclass(frozen=True, slots=True)
class ProofInputs:
    """One or two prepared files of the user's, and their names; none for a synthetic example."""

    examples: Sequence[Mapping[str, Tensor]] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def prepare_files(classifier: Classifier, files: Sequence[str]) -> ProofInputs:
    """The user's files as the model takes them.

    Raises:
        UsageError: more than two files; one cannot be read, or the model does not take it.
    """
    if not files:
        return ProofInputs()
    classifier.input.require()  # refused now: without preprocessing no file can be used
    if len(files) > 2:
        raise UsageError(f"--verify takes one or two files, and was given {len(files)}")
    model, decoding = classifier.input, usual_decoding()
    target = DecodeTarget(
        model.modality,
        model.rate,
        model.frames,
        max_pixels=decoding.limits.pixels,
        max_characters=decoding.limits.characters,
        largest=decoding.limits.bound.largest,
        band=model.band,
        playback_rate=model.playback_rate,
    )
    with closing(decode(from_paths([*files], model.modality), target, decoding)) as regions:
        pairs = [_prepare(classifier, region) for region in islice(regions, 2)]
    if not pairs:
        raise UsageError(f"--verify: nothing to read in {', '.join(files)}")
    names, examples = zip(*pairs, strict=True)
    if len(pairs) == 1 or _shapes(examples[0]) == _shapes(examples[1]):
        return ProofInputs(examples, names)
    note = (
        f"{names[1]} gives an input of another shape than {names[0]}, so it is left aside: the "
        "other input is made from the first"
    )
    return ProofInputs(examples[:1], names[:1], (note,))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _prepare(classifier: Classifier, region: DecodedRegion | Any) -> tuple[str, dict[str, Tensor]]:
    """(name, tensors) of a region that was decoded."""
    if isinstance(region, Failure):
        raise UsageError(f"--verify {region.id}: {region.message}")
    if isinstance(region.content, ItemError):
        raise UsageError(f"--verify {region.item.id}: {region.content}") from region.content
    try:
        tensors = first_input(classifier, region.content.values).tensors
    except REFUSALS as error:
        reason = f"the model cannot take it: {cause(error)}"
        raise UsageError(f"--verify {region.item.id}: {reason}") from error
    return region.item.id, classifier.structure.place(tensors)


def _taps_to_measure(anatomy: Anatomy, further: Sequence[Tap], every: bool) -> list[Tap]:
    """Of many layers the first and the last, unless `every`; then the further ones."""
    layers = [name for name in anatomy.taps if name.startswith("layer:")]
    left_out = set() if every else set(layers[1:-1])
    taps = [tap for name, tap in anatomy.taps.items() if name not in left_out]
    names = {tap.name for tap in taps}
    return [*taps, *(tap for tap in further if tap.name not in names)]
