"""Open a TFLite file as a classifier."""

from __future__ import annotations

from pathlib import Path

from penult.models.base import Classifier
from penult.models.graph import GraphFile, open_graph, parted
from penult.models.graph_preparer import guessed
from penult.models.options import LoadOptions, input_values
from penult.tracing.tflite_graph import TfliteGraph

ORIGIN = "tflite"


def open_tflite(spec: str | Path, options: LoadOptions) -> Classifier:
    """`FILE.tflite` or `FILE.tflite#OUTPUT` as a classifier.

    Raises:
        ModelError: no TFLite file, or none of its outputs can be the logits.
        UsageError: the options do not fit the graph.
    """
    path, output = parted(spec, TfliteGraph.suffix)
    graph = TfliteGraph.read(path, input_values(options))
    return open_graph(GraphFile(path, graph, ORIGIN, output, []), options)


def modality_of_file(spec: str | Path) -> str:
    """What a TFLite file takes."""
    path, _ = parted(spec, TfliteGraph.suffix)
    return guessed(TfliteGraph.read(path))
