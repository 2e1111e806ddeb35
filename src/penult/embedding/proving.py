"""A classifier measured, on real items or made-up ones: parts, taps, and the proof of its head.

Knows how to prepare an item; nothing of vectors or collections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from penult.classifiers.base import Classifier, Inputs
from penult.classifiers.from_onnx import OnnxClassifier
from penult.embedding.runner import Runner
from penult.embedding.waiting import Ready
from penult.embedding.workers import Decoding
from penult.errors import PenultError, first_line
from penult.regions import Region
from penult.sources import Failure, Item
from penult.splitting.anatomy import Anatomy, choose_tap, dissect
from penult.splitting.certificate import Certificate
from penult.splitting.onnx import dissect_graph, tap_of_graph
from penult.splitting.taps import Tap

PROOF_SECONDS = 2.0  # of a recording, on which the head is proved
TRIED = 16  # items, to find two that can be opened

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
    from penult.splitting.cut import split

    first = examples[0] if examples else example_of(classifier)
    # Two of one shape serve as the two inputs of the proof; else the second one is made up.
    other = next((item for item in examples[1:] if _shapes(item) == _shapes(first)), None)
    try:
        cut = split(classifier.module, first, output=classifier.output, other_inputs=other)
        return cut.certificate
    except _REFUSALS as error:  # a head that cannot be proved stops no other tap
        return Certificate.refused(f"the proof could not be run: {first_line(error)}")


def certify_on(
    runner: Runner, pairs: Iterable[Any], decoding: Decoding = Decoding()
) -> tuple[Certificate, list[str]]:
    """Prove the head on the first one or two items that can be opened; with their ids."""
    classifier = runner.classifier
    found: list[Ready] = []
    with runner.preparing(decoding.briefly) as prepare:
        for pair in islice(pairs, TRIED):
            if isinstance(pair, Failure):
                continue
            choices = (one for part in _beginnings(classifier, *pair) for one in prepare([part]))
            found += islice((one for one in choices if isinstance(one, Ready)), 1)
            if len(found) == 2:
                break
    if not found or classifier.engine != "torch":
        return certify(classifier), []
    examples = [_placed(classifier, one.inputs) for one in found]
    return certify(classifier, examples), [one.item.id for one in found]


def _beginnings(
    classifier: Classifier, item: Item, region: Region
) -> Iterator[tuple[Item, Region]]:
    """A recording's first seconds, if it has as many, and the region: a proof keeps all of a pass
    in memory, and holds for every length."""
    if classifier.modality == "audio":
        start = region.start or 0.0
        yield item, Region("segment", start, start + PROOF_SECONDS, region.channel)
    yield item, region


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def example_of(classifier: Classifier) -> dict[str, Tensor]:
    """The classifier's example, on the device where its module is now."""
    return _placed(classifier, classifier.example())


def _placed(classifier: Classifier, inputs: Inputs) -> dict[str, Tensor]:
    parameter = next(classifier.module.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    return {name: tensor.to(device) for name, tensor in inputs.tensors.items()}
