"""Behaviour of an embedder: what it gives for made-up items, and for regions that are there
already, one at a time in its native engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from penult.data.items import Entry, Failure, Item
from penult.data.regions import WHOLE
from penult.embedding.fingerprint import RESAMPLED, Answer, Behaviour
from penult.embedding.runner import Outcome, Runner
from penult.engines.base import Engine, Reading
from penult.engines.batching import Batch
from penult.errors import REFUSALS
from penult.extras import package_versions
from penult.models.base import Classifier
from penult.models.synthetic import noise

SEED = 0
NAMES = {"audio": "noise", "image": "noise picture", "video": "noise frames", "text": "eight words",
         "array": "noise array", "bytes": "noise bytes"}  # fmt: skip
RATES = (44_100, 32_000)  # of the sound that is resampled: the first that is not the model's


def measure(
    classifier: Classifier, readings: Sequence[Reading], device: str, engine: Engine
) -> Behaviour | None:
    """What an engine gives for a short synthetic item of the model's kind, and for sound of another
    rate; None where the model takes no such item."""
    if classifier.input.refusal:
        return None
    runner = Runner(classifier, readings, device, engine=engine)
    found: dict[str, Answer] = {}
    if (answer := _example(classifier, engine)) is not None:
        found[NAMES[classifier.modality]] = answer
    if classifier.modality == "audio" and classifier.rate:
        band = classifier.input.band or (0.0, 0.0)
        others = (rate for rate in RATES if rate != classifier.rate and band[1] < rate / 2)
        rate = next(others, 500_000)
        item = Item("made-up", noise(SEED, 1.0, rate), rate=rate)
        for _, answer in answers(runner, [(item, WHOLE)]):
            found[RESAMPLED] = answer
    if not found:
        return None
    about = (
        classifier.modality,
        classifier.rate,
        classifier.input.seconds,
        classifier.input.frames,
    )
    return Behaviour(found, about, device.partition(":")[0], package_versions())


def _example(classifier: Classifier, engine: Engine) -> Answer | None:
    try:
        values = engine(Batch(classifier.example(SEED).tensors)).row(0)
    except REFUSALS:  # not every model takes noise
        return None
    logits, *vectors = values
    if not vectors or not all(np.isfinite(one).all() for one in values):
        return None
    mean = logits.reshape(-1, logits.shape[-1]).mean(axis=0)  # of logits per frame
    return Answer(np.concatenate([one.ravel() for one in vectors]), mean)


def answers(
    runner: Runner, pairs: Iterable[Entry], failed: dict[str, str] | None = None
) -> Iterator[tuple[Outcome, Answer]]:
    """Regions and what a runner gives for each, alone; those that fail are left out. failed: gets
    the reason of each of these by its id."""
    with closing(runner.stream(pairs, alone=True)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Outcome):
                yield outcome, Answer(outcome.vector, outcome.class_logits)
            elif isinstance(outcome, Failure) and failed is not None:
                failed[outcome.id] = outcome.message
