"""Probe files (.skops, .onnx), and a user's feature columns joined to rows by id. Knows no
collection.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penult.data.files import expansion, write_file
from penult.data.formulas import original
from penult.data.items import as_id, local, path_of
from penult.data.roots import Roots
from penult.data.tables import check_case
from penult.errors import SourceError, UsageError, cause
from penult.extras import require

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


SUFFIXES = (".skops", ".onnx")
_OPSET = 17


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Refuse a name that no probe is saved under, before anything is trained.

    Raises:
        UsageError: another suffix. MissingExtra: skops or onnx is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"a probe is saved as {' or '.join(SUFFIXES)}, not as {path.name!r}")
    require("skops" if path.suffix == ".skops" else "onnx")


def save(path: str | os.PathLike[str], pipeline: Pipeline, about: Mapping[str, Any]) -> None:
    """Writes a probe (`penult.analysis.probe.trained`) aside and renames it.

    about: facts of its training, saved with it: `pipeline.penult_` (JSON) or the graph's metadata.

    Raises:
        UsageError: another suffix. MissingExtra: skops or onnx is not installed.
        StoreError: it cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix == ".skops":
        pipeline.penult_ = json.dumps(about, ensure_ascii=False)
        data = require("skops.io").dumps(pipeline)
    else:
        data = graph(pipeline, about).SerializeToString()
    write_file(path, [data])


def load(path: str | os.PathLike[str]) -> Pipeline:
    """Opens a probe that was saved as .skops; nothing but scikit-learn's own types is read.

    Raises:
        UsageError: it is something else.
    """
    skops = require("skops.io")
    try:
        if reason := expansion(Path(path)):
            raise ValueError(f"it {reason}")
        pipeline = skops.load(os.fspath(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # zip, JSON and type errors, each of its own kind
        raise UsageError(f"{path} is not a probe saved as .skops: {cause(error)}") from error
    if not hasattr(pipeline, "penult_"):
        raise UsageError(f"{path} is not a probe: it holds another {type(pipeline).__name__}")
    return pipeline


def graph(pipeline: Pipeline, about: Mapping[str, Any]) -> Any:
    """An ONNX model of `vectors` (n, d) float32: → `probabilities` (n, K) and `label` (n,) strings;
    of several labels an item → `probabilities` and `labels` (n, K), whether each reaches its
    threshold; of values → `values` (n,)."""
    require("onnx")
    scaler, head = (step for _, step in pipeline.steps)
    if hasattr(head, "estimators_"):
        answer = _labels_of(head, about)
    else:
        answer = _class_of(head) if hasattr(head, "classes_") else _value_of(head)
    return _assembled(scaler, answer, about)


@dataclass(frozen=True, slots=True)
class _GraphTail:
    """What follows standardised vectors in a graph: weights (d, K) and bias (K,) of its `logits`,
    nodes, outputs and further constants."""

    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    nodes: list[Any]
    outputs: list[Any]
    constants: list[Any]


def _class_of(head: Any) -> _GraphTail:
    from onnx import TensorProto, helper

    weights, bias = head.coef_, head.intercept_
    if len(head.classes_) == 2:  # one row for two classes: its logit against zero
        weights, bias = np.vstack([0 * weights, weights]), np.concatenate([0 * bias, bias])
    names = np.array([str(name).encode() for name in head.classes_], object)
    return _GraphTail(
        weights.T,
        bias,
        [
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["place"], axis=1, keepdims=0),
            helper.make_node("Gather", ["classes", "place"], ["label"], axis=0),
        ],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", len(names)]),
            helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
        ],
        [helper.make_tensor("classes", TensorProto.STRING, [len(names)], names.tolist())],
    )


def _labels_of(head: Any, about: Mapping[str, Any]) -> _GraphTail:
    from onnx import TensorProto, helper, numpy_helper

    each = head.estimators_
    limits = np.array(about.get("thresholds", [0.5] * len(each)), np.float32)
    return _GraphTail(
        np.concatenate([one.coef_ for one in each]).T,
        np.concatenate([one.intercept_ for one in each]),
        [
            helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
            helper.make_node("GreaterOrEqual", ["probabilities", "thresholds"], ["labels"]),
        ],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", len(each)]),
            helper.make_tensor_value_info("labels", TensorProto.BOOL, ["n", len(each)]),
        ],
        [numpy_helper.from_array(limits, "thresholds")],
    )


def _value_of(head: Any) -> _GraphTail:
    from onnx import TensorProto, helper, numpy_helper

    return _GraphTail(
        head.coef_.reshape(-1, 1),
        np.array([head.intercept_]).reshape(-1),
        [helper.make_node("Squeeze", ["logits", "last"], ["values"])],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array([1], np.int64), "last")],
    )


def _assembled(scaler: Any, answer: _GraphTail, about: Mapping[str, Any]) -> Any:
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = {
        "mean": scaler.mean_.astype(np.float32),
        "scale": scaler.scale_.astype(np.float32),
        "weights": np.ascontiguousarray(answer.weights, np.float32),
        "bias": answer.bias.astype(np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["vectors", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["standardised"]),
        helper.make_node("Gemm", ["standardised", "weights", "bias"], ["logits"]),
        *answer.nodes,
    ]
    made = helper.make_graph(
        nodes,
        "penult-probe",
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", len(scaler.mean_)])],
        answer.outputs,
        [
            *(numpy_helper.from_array(value, name) for name, value in constants.items()),
            *answer.constants,
        ],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(made, opset_imports=[opset], producer_name="penult", ir_version=8)
    helper.set_model_props(model, {"penult": json.dumps(about, ensure_ascii=False)})
    checker.check_model(model)
    return model


_ID = ("id", "path")


@dataclass(frozen=True, slots=True)
class Features:
    """names: the columns. values: (n, f), a row of NaN where an id is not in the table."""

    names: list[str]
    values: npt.NDArray[np.float64]

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """(n,) whether a row has every value."""
        return np.asarray(np.isfinite(self.values).all(axis=1))


def join_features(
    table: str | os.PathLike[str],
    ids: Sequence[str],
    regions: Sequence[str],
    roots: Roots = Roots(),
) -> Features:
    """The numeric columns of a CSV for these rows, found by its column `id` or `path`, and by
    `region` if it has one; names of columns ignore case.

    A path is one from the root or relative to the table's folder, else the end of a row's id, as
    `site-a/7.wav` is of `recs/site-a/7.wav`. roots: what ids begin with.

    Raises:
        SourceError: no such table or column, a column of texts, an id twice, no id in common, or a
            name that is the end of several ids.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    table = Path(table)
    try:
        read = pc.read_csv(table)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{table} cannot be read as a table: {cause(error)}") from error
    check_case(table, read.column_names)
    own_names = [n.casefold() if n.casefold() in (*_ID, "region") else n for n in read.column_names]
    read = read.rename_columns(own_names)
    key = next((name for name in _ID if name in read.column_names), None)
    if key is None:
        raise SourceError(
            f"{table} has no column id or path; it has {', '.join(read.column_names)}"
        )
    names = [name for name in read.column_names if name not in (*_ID, "region")]
    for name in names:
        kind = read.schema.field(name).type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise SourceError(
                f"{table}: the column {name!r} holds {kind}, and features are numbers"
            )
    if not names:
        raise SourceError(f"{table} has no column besides its ids")
    columns = [read[name].cast(pa.float64()) if not pa.types.is_boolean(read[name].type)
               else read[name].cast(pa.int8()).cast(pa.float64()) for name in names]  # fmt: skip
    values = np.stack([c.to_numpy() for c in columns], axis=1)
    region = read["region"].to_pylist() if "region" in read.column_names else None
    given = [original(str(value)) for value in read[key].to_pylist()]
    places = _places(table, given, region, roots)
    found = [_place(places, id, own) for id, own in zip(ids, regions, strict=True)]
    if None in found:
        used = set(found)
        free = [name for at, name in enumerate(given) if at not in used]
        ends = _ends(table, free, {id for id, at in zip(ids, found, strict=True) if at is None})
        found = [at if at is not None else _place(places, ends.get(id, id), own)
                 for at, id, own in zip(found, ids, regions, strict=True)]  # fmt: skip
    if ids and not any(place is not None for place in found):
        raise SourceError(f"{table}: none of its ids is a row's; a row's id is {ids[0]!r}")
    missing = np.full(len(names), np.nan)
    return Features(
        names,
        np.array([missing if p is None else values[p] for p in found]).reshape(-1, len(names)),
    )


Key = tuple[str, str | None]


def _ends(table: Path, names: Sequence[str], ids: Iterable[str]) -> dict[str, str]:
    """Of each id the longest name of the table that is its end, by whole folders.

    Raises:
        SourceError: a name is the end of several ids.
    """
    known, found = set(names), dict[str, str]()
    meant: dict[str, str] = {}
    for id in sorted(ids):
        parts = id.split("/")
        ends = ("/".join(parts[at:]) for at in range(1, len(parts)))
        if (end := next((one for one in ends if one in known), None)) is None:
            continue
        if (other := meant.setdefault(end, id)) != id:
            raise SourceError(f"{table}: {end!r} may be {other!r} or {id!r}; name their folders")
        found[id] = end
    return found


def _places(table: Path, ids: list[str], regions: list[str] | None, roots: Roots) -> dict[Key, int]:
    places: dict[Key, int] = {}
    for row, id in enumerate(ids):
        region = regions[row] if regions else None
        path = _absolute(id, table)
        for name in {id, path, roots.id_of(path_of(path))}:
            if (name, region) in places:
                raise SourceError(f"{table}: {id!r} comes twice")
            places[name, region] = row
    return places


def _absolute(id: str, table: Path) -> str:
    try:
        return as_id(local(id, str(table.absolute().parent)))
    except SourceError:  # of another machine: an id that is no local path
        return id


def _place(places: dict[Key, int], id: str, region: str) -> int | None:
    return places.get((id, region), places.get((id, None)))
