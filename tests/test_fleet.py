"""Several devices at once: the same rows in the same order, and what fails fails alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import assert_law, clip
from penult.data.sources import from_objects
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome, Stopwatch
from penult.embedding.scheduling import engine_pool
from penult.engines.base import Readout
from penult.engines.batching import Batch
from penult.errors import UsageError
from penult.models.specs import load


def test_rows_are_those_of_one_device(tiny: Path) -> None:
    clips = [clip(0.2 + 0.05 * (seed % 7), seed) for seed in range(40)]
    clips[11] = np.zeros(0, np.float32)  # fails, alone
    one = Embedder.from_classifier(load(tiny), device="cpu").run(clips, on_error="skip")
    two = Embedder.from_classifier(load(tiny), device="cpu,cpu")
    two.runner.budget = 30_000  # several batches
    found = two.run(clips, on_error="skip")
    assert found.ids == one.ids
    assert [failure.id for failure in found.failures] == [failure.id for failure in one.failures]
    assert len(found.ids) == 39
    assert_law(found.vectors, one.vectors)
    assert_law(found.logits, one.logits)
    assert len(two.runner.engines) == 2


def test_engines_run_at_once() -> None:
    together = threading.Barrier(2, timeout=10)  # broken if only one of them runs
    with engine_pool([object(), object()], hold=99) as engines:  # type: ignore[list-item]
        given = list(engines.give(lambda engine: together.wait()))
        given += list(engines.give(lambda engine: together.wait()))
        given += list(engines.rest())
    assert sorted(given) == [0, 1]


def test_the_model_goes_on_while_results_are_written(tiny: Path) -> None:
    """Who takes the results may take his time: the second batch ends after he has the first."""
    embedder = Embedder.from_classifier(load(tiny))
    engine, taken, calls = embedder.runner.engine, threading.Event(), []

    def slow(batch: Batch, logits: bool = True) -> Readout:
        calls.append(batch)
        assert len(calls) != 2 or taken.wait(timeout=30)
        return engine(batch, logits)

    embedder.runner.engine = slow
    clips = [clip(0.2, seed) for seed in range(6)]
    watch = Stopwatch()
    results = embedder.runner.stream(from_objects(clips, "audio"), alone=True, watch=watch)
    found = [next(results)]
    taken.set()
    found += results
    assert [type(one) for one in found] == [Outcome] * 6
    spent = watch.seconds
    assert spent["model"] > 0 and spent["wait"] >= 0


def test_a_region_that_waits_does_not_hold_back_all_that_comes_behind_it(tiny: Path) -> None:
    """One new file among very many that are known: what they are noted with is not piled up."""
    embedder = Embedder.from_classifier(load(tiny))
    asked = 0

    def source() -> Iterator[object]:
        nonlocal asked
        yield from from_objects([clip(0.3)], "audio")
        for asked in range(20_000):
            yield f"note {asked}"

    results = embedder.runner.stream(source())
    assert isinstance(next(results), Outcome) and asked < 10_000
    assert list(results) == [f"note {number}" for number in range(20_000)]


def test_two_embedders_of_one_classifier_at_once(tiny: Path) -> None:
    """Their hooks sit on the same modules: neither may read what the other's pass leaves there."""
    classifier = load(tiny)
    clips = [clip(0.2 + 0.05 * (seed % 3), seed) for seed in range(12)]
    one = Embedder.from_classifier(classifier)
    other = Embedder.from_classifier(classifier, tap="layer:1")
    expected, wanted = one.run(clips, alone=True).vectors, other.run(clips, alone=True).vectors
    stream = one.runner.stream(from_objects(clips, "audio"), alone=True)
    pairs = [
        (outcome.vector, other.embed(clips[-1 - number], alone=True)[0])
        for number, outcome in enumerate(stream)
    ]
    np.testing.assert_array_equal([vector for vector, _ in pairs], expected)
    np.testing.assert_array_equal([vector for _, vector in pairs], wanted[::-1])


def test_what_the_caller_has_set_changes_nothing(tiny: Path) -> None:
    """Also not for the last items of a run, which are run in his thread."""
    embedder = Embedder.from_classifier(load(tiny))
    expected = embedder.embed([clip(0.3)])
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(embedder.embed([clip(0.3)]), expected)


def test_a_large_piece_is_waited_for() -> None:
    gate = threading.Event()
    with engine_pool([object()], hold=10) as engines:  # type: ignore[list-item]
        assert list(engines.give(lambda engine: gate.wait(10), size=5)) == []
        threading.Timer(0.05, gate.set).start()
        assert list(engines.give(lambda engine: "large", size=11)) == [True, "large"]


def test_a_few_items_need_no_thread(tiny: Path) -> None:
    embedder = Embedder.from_classifier(load(tiny))
    engine, threads = embedder.runner.engine, set()

    def noted(batch: Batch, logits: bool = True) -> Readout:
        threads.add(threading.current_thread())
        return engine(batch, logits)

    embedder.runner.engine = noted
    embedder.run([clip(0.2 + 0.1 * (seed % 2), seed) for seed in range(6)])
    assert threads == {threading.current_thread()}


def test_results_come_in_order_and_errors_too() -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        if number == 7:
            raise ValueError("seven")
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="seven"), engine_pool([object()] * 3, hold=99) as engines:  # type: ignore[list-item]
        for number in range(20):
            for result in engines.give(lambda engine, number=number: work(number)):
                found.append(result)
        found += engines.rest()
    assert found == list(range(len(found)))
    assert len(found) <= 7


def test_a_graph_runs_on_one_device(shared: Path) -> None:
    model = load(str(shared / "w_kwt1/kwt1.onnx"), sample_rate=16_000)
    embedder = Embedder.from_classifier(model, device="cpu,cpu")
    with pytest.raises(UsageError, match="--shard 1/2"):
        embedder.run([clip(1.0)])
