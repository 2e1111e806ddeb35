"""Run a classifier's graph in ONNX Runtime: one pass gives the logits and every reading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from penult.batches.padding import Batch
from penult.batches.pooling import pool
from penult.classifiers.from_onnx import OnnxClassifier
from penult.engines.base import Reading, Readout
from penult.errors import TapError
from penult.splitting.graph import as_feeds
from penult.splitting.session import Array, Session, has_cuda


class OnnxEngine:
    """Runs the graph as far as its readings need; holds no state between batches.

    device: cpu, cuda or cuda:N. threads: of one operation; as many as torch would take.
    """

    def __init__(
        self,
        classifier: OnnxClassifier,
        readings: Sequence[Reading],
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.readings = list(readings)
        self.device = device
        self._graph = classifier.graph
        taps = [reading.tap.module for reading in self.readings]
        for name in taps:
            if name not in self._graph.depends:
                raise TapError(f"the graph has no tensor {name!r} that depends on its input")
        self._names = list(dict.fromkeys([classifier.logits, *taps]))
        model = self._graph.encoder(self._names)
        self._session = Session(model, threads or torch.get_num_threads(), device, self._graph.bare)

    def __call__(self, batch: Batch, logits: bool = True) -> Readout:
        """Run one batch of the graph's inputs."""
        tensors = {name: value.numpy() for name, value in batch.tensors.items()}
        feeds = as_feeds(self._graph, tensors)
        found = dict(zip(self._names, self._run(feeds), strict=True))
        vectors = []
        for reading in self.readings:
            hidden = torch.from_numpy(found[reading.tap.module]).float()
            vectors.append(pool(hidden, reading.pooling, reading.tap.channel).numpy())
        given = found[self._names[0]].astype(np.float32)
        return Readout(list(given if given.ndim > 1 else given[:, None]), vectors)

    def _run(self, feeds: dict[str, Array]) -> list[Array]:
        """The whole batch at once, or item by item where the graph takes one only."""
        size = len(next(iter(feeds.values())))
        if size == 1 or self._graph.any_batch:
            return self._session(feeds)
        rows = [self._session({n: v[i : i + 1] for n, v in feeds.items()}) for i in range(size)]
        return [np.concatenate(values) for values in zip(*rows, strict=True)]


def pick_onnx_device(wanted: str = "auto") -> str:
    """The device that is meant: `auto` takes cuda if the installed runtime has it, else cpu."""
    if wanted == "auto":
        return "cuda" if has_cuda() else "cpu"
    return wanted
