"""A collection's vectors with what is to be predicted from them: one class of each row, several
labels of each span, or values. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penult.analysis.prediction_measures import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS
from penult.collection import schema
from penult.collection.labels import CLUSTER, MARKED, PREDICTED, names_of, span_groups, standing
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.collection.schema import keys as keys_of
from penult.data.items import named, names_in
from penult.data.regions import span_of
from penult.errors import LabelsError, UsageError

_EVERY = "*"  # a mark of no for every class


@dataclass(frozen=True, slots=True)
class ColumnTargets:
    """Rows in key order and their targets; of several labels a span counts once.

    task: single-label, multi-label or regression. rows: their scalar columns. vectors: (n, d) raw.
    names, labels, values: (n,) of the task, None where a row has none; empty for other tasks.
    groups: (n,) of each row; None where there are none. note: why this task was taken. logits:
    (n, K), where they were asked for.
    """

    task: str
    rows: pa.Table
    vectors: npt.NDArray[np.float32]
    names: list[str | None]
    labels: list[list[str] | None]
    values: list[float | None]
    groups: list[str | None] | None
    note: str
    logits: npt.NDArray[np.float32] | None = None


def read_targets(
    reader: Reader,
    by: str,
    group: str | None = None,
    where: str | None = None,
    task: str | None = None,
    logits: bool = False,
) -> ColumnTargets:
    """The rows that a filter leaves and what `by` (as `penult.collection.labels.labelled` takes it)
    says of each.

    task: None takes regression for a column of floats that are not all whole, multi-label where a
    cell holds several labels (`dog;rain`, `["dog", "rain"]`), annotations of one span differ or a
    row is marked for several classes, else single-label.

    Raises:
        LabelsError: `by` or `group` names nothing here, or values that are no numbers.
        UsageError: there is no such task.
    """
    if task is not None and task not in TASKS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
    scalars = schema.scalar_columns(reader.schema)
    table, vectors = reader.vectors(where, [*scalars, "logits"] if logits else scalars)
    found_logits = schema.matrix(table["logits"]) if logits and len(table) else None
    table = table.select(scalars)
    if not len(table):
        raise LabelsError(f"no row of {reader.path} matches {where!r}" if where else
                          f"{reader.path} has no rows")  # fmt: skip
    keys = keys_of(table)
    groups = span_groups(keys) if group is None else names_of(reader, table, group)
    found, note = (task, "") if task else _task_of(reader, table, by)
    if found == REGRESSION:
        values = _values(reader, table, by)
        return ColumnTargets(found, table, vectors, [], [], values, groups, note, found_logits)
    if found == SINGLE_LABEL:
        names = names_of(reader, table, by)
        return ColumnTargets(found, table, vectors, names, [], [], groups, note, found_logits)
    labels, first = _by_span(keys, _labels(reader, table, by))
    if groups is not None:
        own, _ = _by_span(keys, [None if one is None else [one] for one in groups])
        groups = [one[0] if one else None for one in own] if group is not None else None
    if found_logits is not None:
        found_logits = found_logits[first]
    kept = table.take(pa.array(first))
    return ColumnTargets(found, kept, vectors[first], [], labels, [], groups, note, found_logits)


def _task_of(reader: Reader, table: pa.Table, by: str) -> tuple[str, str]:
    if by in table.column_names and pa.types.is_floating(table.schema.field(by).type):
        numbers = [v for v in table[by].to_pylist() if v is not None and not math.isnan(v)]
        if (some := next((v for v in numbers if v % 1 != 0), None)) is not None:
            return REGRESSION, f"{by} holds numbers such as {some:g}"
        return SINGLE_LABEL, ""
    if by == PREDICTED or (by.partition(":")[0] == CLUSTER and by not in table.column_names):
        return SINGLE_LABEL, ""
    labels = _labels(reader, table, by)
    for own in labels:
        if own is not None and len(own) > 1:
            marked = "a row is marked for" if by == MARKED else "a cell holds"
            return MULTI_LABEL, f"{marked} several labels ({'; '.join(own[:3])})"
    spans, _ = _by_span(keys_of(table), labels)
    for own in spans:
        if own is not None and len(own) > 1:
            return MULTI_LABEL, f"annotations of one span differ ({'; '.join(own[:3])})"
    return SINGLE_LABEL, ""


def _labels(reader: Reader, table: pa.Table, by: str) -> list[list[str] | None]:
    """The labels of each row; None where they are not known. A row that is marked unsure for a
    class, or no for some only, is not known."""
    if by != MARKED:
        cells = names_of(reader, table, by)
        return [None if one is None else names_in(one) or None for one in cells]
    names_of(reader, table, by)  # refuses where there are no marks
    marks, found = standing(reader), list[list[str] | None]()
    for key in keys_of(table):
        own = marks.get(key, {})
        yes = [name for name, mark in own.items() if mark == "yes"]
        known = bool(yes or _EVERY in own) and "unsure" not in own.values()
        found.append(yes if known else None)
    return found


def _by_span(
    keys: Sequence[Key], labels: Sequence[list[str] | None]
) -> tuple[list[list[str] | None], list[int]]:
    """(the labels of all annotations of each span, the place of its first row)."""
    spans: dict[Key, tuple[int, list[str] | None]] = {}
    for place, ((id, region), own) in enumerate(zip(keys, labels, strict=True)):
        first, before = spans.get((id, span_of(region)), (place, None))
        both = before if own is None else list(dict.fromkeys([*(before or []), *own]))
        spans[id, span_of(region)] = (first, both)
    return [own for _, own in spans.values()], [first for first, _ in spans.values()]


def _values(reader: Reader, table: pa.Table, by: str) -> list[float | None]:
    cells: Sequence[object] = (
        table[by].to_pylist() if by in table.column_names else names_of(reader, table, by)
    )
    found = list[float | None]()
    for (id, _), cell in zip(keys_of(table), cells, strict=True):
        try:
            found.append(None if named(cell) is None else float(str(cell)))
        except ValueError as error:
            raise LabelsError(
                f"{by!r} of {id} is {str(cell)!r}, which is no number; regression needs numbers"
            ) from error
    return found
