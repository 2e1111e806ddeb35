"""`penult probe`: how well a linear model reads classes, labels or values off vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.collection import Store, Where
from penult.cli.options import Json, Seed, check_output
from penult.cli.output import (
    counted,
    print_json,
    print_note,
    print_table,
    printable,
    stdout,
    working,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from sklearn.pipeline import Pipeline

    from penult.analysis.bootstrap import Estimate
    from penult.analysis.probe import ProbeResult
    from penult.analysis.probe_tasks import MultiLabelProbe, RegressionProbe
    from penult.collection.collection import Collection
    from penult.collection.targets import ColumnTargets

    Probed = ProbeResult | MultiLabelProbe | RegressionProbe


Task = Annotated[
    str | None,
    typer.Option(
        help="single-label (a class), multi-label (several in a cell as dog;rain, in annotations "
        "of one span, or in marks) or regression (numbers). Without it the values decide: floats "
        "that are not all whole are regression."
    ),
]


def probe(
    collection: Store,
    by: Annotated[
        str,
        typer.Option(
            help="Class, labels or value of each row: a column, folder, labels (taught), label "
            "(predicted), cluster, or a path pattern such as '{}_*.wav'."
        ),
    ],
    task: Task = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            "--groups",
            help="Keep these groups (speaker, site) on one side of every cross-validation split; "
            "same format as --by.",
        ),
    ] = None,
    folds: Annotated[int, typer.Option(help="Number of cross-validation folds.")] = 5,
    where: Where = None,
    features: Annotated[
        Path | None,
        typer.Option(help="CSV of further numeric features, joined by the column id or path."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Inverse of the regularisation (C of scikit-learn): smaller penalises more. "
            "Without it 1, and for regression chosen on the training side of each fold."
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix to confusion.png, .svg or .pdf.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Save the probe, trained on all rows, to probe.skops or probe.onnx."),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Cross-validate a linear model on the vectors, with groups kept on one side.

    Vectors are standardised; then logistic regression is fitted, for several labels one for each
    class, and for values ridge regression. The 95 % intervals resample groups, or rows where there
    are no groups.
    """
    from penult.analysis.probe_io import check_suffix
    from penult.analysis.probe_io import save as write
    from penult.collection.collection import Collection
    from penult.viz.plots import check_picture, draw_confusion

    if save is not None:
        check_suffix(save)
        check_output(save)
    if picture is not None:
        check_picture(picture)
        check_output(picture, create=True)
    opened = Collection.open(collection, must_exist=True)
    data = _read_data(opened, by, group, where, task, features)
    _check_picture_of(picture, data.task)
    with working("training and testing"):
        runs = {name: _probed(data, matrix, folds, seed, strength)
                for name, matrix in data.matrices.items()}  # fmt: skip
    probed = next(reversed(runs.values()))
    if picture is not None:
        confused: Any = probed
        draw_confusion(picture, confused.confusion, confused.classes, _title(probed))
    if save is not None:
        about = {"task": data.task, "features": data.columns, "by": by, "group": group,
                 "rows": len(probed.rows), "fingerprint": _fingerprint(opened)}  # fmt: skip
        write(save, *_fitted(data, probed, seed, strength, about))
    for note in [*data.notes, *probed.notes]:
        print_note(printable(note))
    if json:
        document = {"collection": str(opened.path), "by": by, "group": group, "task": data.task}
        print_json(document | _with_all_measures(runs))
        return
    _show(runs, group)
    for path, kind in ((picture, "confusion matrix"), (save, "probe")):
        if path is not None:
            stdout.print(f"{kind} in [bold]{printable(str(path))}[/]", soft_wrap=True)


def _check_picture_of(picture: Path | None, task: str) -> None:
    from penult.analysis.prediction_measures import SINGLE_LABEL
    from penult.errors import UsageError

    if picture is not None and task != SINGLE_LABEL:
        raise UsageError(
            f"--picture draws a confusion matrix, of one class a row; the task is {task}. Leave it "
            f"out, or say --task {SINGLE_LABEL}"
        )


@dataclass(frozen=True, slots=True)
class _ProbeData:
    """Matrices (N, D) to probe by name, the last one with all columns; each row's target: its
    class, its labels or its value."""

    task: str
    matrices: dict[str, npt.NDArray[np.float64]]
    targets: list[Any]
    groups: list[str | None] | None
    columns: list[str]
    notes: list[str]


def _read_data(
    opened: Collection,
    by: str,
    group: str | None,
    where: str | None,
    task: str | None,
    features: Path | None,
) -> _ProbeData:
    import numpy as np

    from penult.analysis.probe_io import join_features
    from penult.collection.targets import read_targets

    found = read_targets(opened.reader, by, group, where, task)
    vectors = found.vectors.astype(np.float64)
    columns = [f"v{place}" for place in range(vectors.shape[1])]
    notes = [told] if (told := task_note(found)) else []
    targets: list[Any] = [*found.names, *found.labels, *found.values]
    if features is None:
        matrices = {"vectors": vectors}
        return _ProbeData(found.task, matrices, targets, found.groups, columns, notes)
    ids, regions = (found.rows[name].to_pylist() for name in ("id", "region"))
    own = join_features(features, ids, regions, opened.reader.roots)
    complete = own.complete
    if not complete.all():
        notes.append(f"{int((~complete).sum()):,} rows lack some of the features and were left out")
    matrices = {"vectors": vectors[complete], "features": own.values[complete]}
    matrices["both"] = np.concatenate([vectors, own.values], axis=1)[complete]
    groups = found.groups
    return _ProbeData(
        found.task,
        matrices,
        [one for one, keep in zip(targets, complete, strict=True) if keep],
        None if groups is None else [g for g, keep in zip(groups, complete, strict=True) if keep],
        [*columns, *own.names],
        notes,
    )


def task_note(found: ColumnTargets) -> str:
    """Which task was taken, and why, where nobody named it."""
    return f"task {found.task}: {found.note}; --task takes another" if found.note else ""


def _probed(
    data: _ProbeData,
    matrix: npt.NDArray[np.float64],
    folds: int,
    seed: int,
    strength: float | None,
) -> Probed:
    from penult.analysis.prediction_measures import MULTI_LABEL, REGRESSION
    from penult.analysis.probe import probe
    from penult.analysis.probe_tasks import probe_labels, probe_values

    if data.task == REGRESSION:
        return probe_values(matrix, data.targets, data.groups, folds, seed, strength)
    measured = probe_labels if data.task == MULTI_LABEL else probe
    penalised = 1.0 if strength is None else strength
    return measured(matrix, data.targets, data.groups, folds, seed, penalised)


def _fitted(
    data: _ProbeData, probed: Any, seed: int, strength: float | None, about: dict[str, Any]
) -> tuple[Pipeline, dict[str, Any]]:
    """The probe that is saved, fitted to all rows, and what is said of it."""
    from penult.analysis.prediction_measures import MULTI_LABEL, REGRESSION
    from penult.analysis.probe import trained
    from penult.analysis.probe_tasks import trained_labels, trained_values

    matrix = next(reversed(data.matrices.values()))
    if data.task == REGRESSION:
        return trained_values(matrix, probed, data.groups, seed, strength), about
    penalised = 1.0 if strength is None else strength
    about |= {"classes": probed.classes}
    if data.task == MULTI_LABEL:
        about |= {"thresholds": [one.threshold for one in probed.per_class]}
        return trained_labels(matrix, probed, penalised), about
    return trained(matrix, probed, penalised), about


def _show(runs: dict[str, Probed], group: str | None) -> None:
    from penult.analysis.probe import ProbeResult
    from penult.analysis.probe_tasks import MultiLabelProbe

    probed = next(reversed(runs.values()))
    if isinstance(probed, ProbeResult):
        baseline = _show_classes(probed)
    elif isinstance(probed, MultiLabelProbe):
        baseline = _show_labels(probed)
    else:
        low, high = probed.truth.min(), probed.truth.max()
        stdout.print(f"values from {low:.4g} to {high:.4g}, penalty {_span(probed.penalties)}")
        baseline = f"baseline (the median): MAE {probed.chance['mae']:.4g}"
    apart = f", {probed.groups} groups ({printable(group)})" if group else ""
    classes = (
        "" if (named := getattr(probed, "classes", None)) is None else f"{len(named)} classes, "
    )
    stdout.print(
        f"\n{counted(len(probed.rows), 'row')}, {classes}{probed.folds} folds{apart}; {baseline}",
        soft_wrap=True,
    )
    for name, run in runs.items():
        label = "" if len(runs) == 1 else f"{name}: "
        stdout.print(f"{label}{_title(run)}", soft_wrap=True)


def _show_classes(probed: ProbeResult) -> str:
    """A table of classes and the most frequent confusions; gives the baseline, in words."""
    from penult.analysis.probe import confused

    _print_per_class(
        ("precision", "recall", "F1"),
        ((one.name, one.rows, one.precision, one.recall, one.f1) for one in probed.per_class),
    )
    for true, predicted, count in confused(probed, 3):
        stdout.print(
            f"[dim]{printable(true)} was predicted as {printable(predicted)} "
            f"{counted(count, 'time')}[/]"
        )
    return f"baseline (most frequent class): {probed.chance:.1%}"


def _show_labels(probed: MultiLabelProbe) -> str:
    """A table of classes; gives the baseline, in words."""
    from penult.analysis.prediction_measures import LWLRAP, MAP

    _print_per_class(
        ("average precision", "F1", "threshold"),
        (
            (one.name, one.rows, one.average_precision, one.f1, one.threshold)
            for one in probed.per_class
        ),
    )
    chance = probed.chance
    return f"baseline (frequencies): mAP {chance[MAP]:.3f}, lwlrap {chance[LWLRAP]:.3f}"


def _print_per_class(
    figures: Sequence[str], lines: Iterable[tuple[str, int, float, float, float]]
) -> None:
    """A table of classes: name, rows, and three figures."""
    table = _table_of("class", "rows", *figures)
    for name, rows, *values in lines:
        table.add_row(printable(name), f"{rows:,}", *(f"{value:.3f}" for value in values))
    print_table(table)


def _table_of(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _span(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _title(probed: Probed) -> str:
    from penult.analysis.probe import ProbeResult

    if not isinstance(probed, ProbeResult):
        return measures_in_words(probed.measures)

    def figure(name: str, value: Estimate) -> str:
        return f"{name} {value.value:.1%} ({value.low:.1%} to {value.high:.1%})"

    return " · ".join(
        (
            figure("accuracy", probed.accuracy),
            figure("balanced", probed.balanced_accuracy),
            figure("macro F1", probed.macro_f1),
        )
    )


def measures_in_words(measures: Mapping[str, Estimate]) -> str:
    """`mAP 0.612 (0.583 to 0.640) · lwlrap …`."""
    from penult.analysis.prediction_measures import WORDS

    return " · ".join(
        f"{WORDS[name]} {one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
        for name, one in measures.items()
    )


def _with_all_measures(runs: Mapping[str, Probed]) -> dict[str, Any]:
    """The JSON of the last run, with the measures of all runs."""
    documents = [one.to_dict(name) for name, one in runs.items()]
    measures = {name: one for each in documents for name, one in each["measures"].items()}
    return documents[-1] | {"measures": measures}


def _fingerprint(opened: Collection) -> dict[str, str]:
    manifest = opened.manifest
    return dict(manifest.fingerprint) if manifest else {}
