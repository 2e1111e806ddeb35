"""Run a classifier that is a graph in the runtime of its file, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from penult.engines.base import Engine, EngineRequest, Reading, Readout, one_row_each
from penult.engines.batching import Batch
from penult.engines.pooling import pool
from penult.errors import TapError
from penult.models.base import Classifier
from penult.models.graph import GraphStructure
from penult.tracing.graph import Array, as_feeds


class RuntimeEngine:
    """Runs the graph as far as its readings need; holds no state between batches.

    device: cpu, cuda or cuda:N. threads: of one operation; as many as torch would take.
    """

    def __init__(
        self,
        classifier: Classifier,
        readings: Sequence[Reading],
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.readings = list(readings)
        self.device = device
        structure = cast(GraphStructure, classifier.structure)  # what names such an engine
        self._graph = structure.logits.graph
        taps = [reading.tap.module for reading in self.readings]
        for name in taps:
            if name not in self._graph.depends:
                raise TapError(f"the graph has no tensor {name!r} that depends on its input")
        self._classes = len(classifier.labels)
        # A short file is the same padding over and over, and norms make much of the rounding there,
        # which is another one in a batch: by hand 5 % between magika alone and sixteen together.
        self._together = self._graph.any_batch and classifier.modality != "bytes"
        self._names = list(dict.fromkeys([structure.logits.name, *taps]))
        threads = threads or torch.get_num_threads()
        self._session = self._graph.parts.session(self._names, threads, device)

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the graph's inputs."""
        scores, states = self._read(batch)
        vectors = [
            pool(hidden.float(), reading.pooling, reading.tap.channel).numpy()
            for reading, (hidden, _) in zip(self.readings, states, strict=True)
        ]
        rows = one_row_each(scores, len(batch), self._classes)
        return Readout(list(rows), vectors)

    def hidden_states(self, batch: Batch) -> list[tuple[torch.Tensor, None]]:
        """What each reading pools: (B, …) as the tap gives it, over all positions."""
        return self._read(batch)[1]

    def _read(self, batch: Batch) -> tuple[Array, list[tuple[torch.Tensor, None]]]:
        tensors = {name: np.asarray(value) for name, value in batch.tensors.items()}
        found = dict(zip(self._names, self._run(as_feeds(self._graph, tensors)), strict=True))
        states = [(torch.from_numpy(found[one.tap.module]), None) for one in self.readings]
        return found[self._names[0]].astype(np.float32), states

    def _run(self, feeds: dict[str, Array]) -> list[Array]:
        """The whole batch at once, or item by item where the graph takes one only."""
        size = len(next(iter(feeds.values())))
        if size == 1 or self._together:
            return self._session(feeds)
        rows = [self._session({n: v[i : i + 1] for n, v in feeds.items()}) for i in range(size)]
        return [np.concatenate(values) for values in zip(*rows, strict=True)]


def open_graph(request: EngineRequest) -> Engine:
    """A classifier that is a graph, for a request."""
    return RuntimeEngine(request.classifier, request.readings, request.device)
