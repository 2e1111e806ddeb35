"""Open an ONNX file as a classifier, with the files of weights beside it."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from penult.data.documents import of_others
from penult.models.base import Classifier
from penult.models.class_names import keyed
from penult.models.graph import GraphFile, Names, open_graph, parted
from penult.models.graph_preparer import guessed
from penult.models.options import LoadOptions, input_values
from penult.tracing.onnx_files import beside, copy, read_model
from penult.tracing.onnx_graph import OnnxGraph

ORIGIN = "onnx"
_NAMES = ("labels", "label_names", "class_names", "classes", "names", "id2label")
# Names that files of weights keep beside a saved graph: none of a file that Penult writes there.
_PLAIN = re.compile(r"\w(?![^/]*\.(json|npz|onnx|safetensors|py)$)[^/]*", re.IGNORECASE)


class OnnxFile(GraphFile):
    """An ONNX file, with the files of weights that lie beside it."""

    @property
    def saved_name(self) -> str:
        """The file in a saved folder; in a folder of its own where files beside it have names that
        could be those of others."""
        name = super().saved_name
        return name if all(map(_PLAIN.fullmatch, beside(self.path))) else f"graph/{name}"

    def digest(self) -> str:
        """Hash of the file and of the weights beside it."""
        total = hashlib.sha256()
        for path in [self.path, *beside(self.path).values()]:
            total.update(path.read_bytes())
        return total.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Copy the file as it is, and the weights that lie beside it."""
        target = folder / self.saved_name
        target.parent.mkdir(exist_ok=True)
        copy(self.path, target)


def open_onnx(spec: str | Path, options: LoadOptions) -> Classifier:
    """`FILE.onnx` or `FILE.onnx#OUTPUT` as a classifier.

    Raises:
        ModelError: no ONNX file, or none of its outputs can be the logits.
        UsageError: the options do not fit the graph.
    """
    path, output = parted(spec, OnnxGraph.suffix)
    graph = OnnxGraph.read(path, options.sample_rate, input_values(options))
    names = {} if options.class_names is not None else names_in(graph.facts.metadata)
    return open_graph(OnnxFile(path, graph, ORIGIN, output, names), options)


def modality_of_file(spec: str | Path) -> str:
    """What an ONNX file takes, without its weights."""
    path, _ = parted(spec, OnnxGraph.suffix)
    return guessed(OnnxGraph(read_model(path, weights=False), sample_rate=1))


def names_in(metadata: Mapping[str, str]) -> Names:
    """The class names that a file's metadata carries, a mapping by key: JSON, a Python literal, or
    one a line."""
    text = next((metadata[key] for key in _NAMES if metadata.get(key)), "")
    for read in (of_others, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # or too deep for a parser
            continue
        if isinstance(value, Mapping):
            found = keyed(value, "the metadata")
            ordered = [found[key] for key in sorted(found)]
            return ordered if sorted(found) == list(range(len(found))) else found
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [*keyed(value, "").values()]
    lines = text.splitlines() if "\n" in text else text.split(",")
    names = [name.strip() for name in lines if name.strip()]
    return names if len(names) > 1 else []  # a number, or a sentence
