"""Several devices at once: the same rows in the same order, and what fails fails alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import assert_law, clip
from penult.batches.padding import Batch
from penult.classifiers import load
from penult.embedding.embedder import Embedder
from penult.embedding.fleet import fleet
from penult.embedding.runner import Outcome
from penult.engines.base import Readout
from penult.errors import UsageError
from penult.sources import from_objects


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
    with fleet([object(), object()]) as engines:  # type: ignore[list-item]
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
    results = embedder.runner.stream(from_objects(clips, "audio"), alone=True)
    found = [next(results)]
    taken.set()
    found += results
    assert [type(one) for one in found] == [Outcome] * 6
    spent = embedder.runner.seconds
    assert spent["model"] > 0 and spent["wait"] >= 0


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
    with pytest.raises(ValueError, match="seven"), fleet([object()] * 3) as engines:  # type: ignore[list-item]
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
