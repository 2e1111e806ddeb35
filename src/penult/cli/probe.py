"""`penult probe`: how well a linear model reads classes off a collection's vectors."""

from __future__ import annotations

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

    from penult.analysis.bootstrap import Estimate
    from penult.analysis.probe import ProbeResult
    from penult.collection.collection import Collection


def probe(
    collection: Store,
    by: Annotated[
        str,
        typer.Option(
            help="Class of each row: a column, folder, labels (taught), label (predicted), "
            "cluster, or a path pattern such as '{}_*.wav'."
        ),
    ],
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
        float,
        typer.Option(
            help="Inverse of the regularisation (C of scikit-learn): smaller penalises more."
        ),
    ] = 1.0,
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
    """Cross-validate a linear classifier on the vectors, with groups kept on one side.

    Vectors are standardised, then logistic regression is fitted. The 95 % intervals resample
    groups, or rows where there are no groups.
    """
    from penult.analysis.probe import probe as measured
    from penult.analysis.probe import trained
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
    data = _read_data(opened, by, group, where, features)
    with working("training and testing"):
        runs = {
            name: measured(matrix, data.names, data.groups, folds, seed, strength)
            for name, matrix in data.matrices.items()
        }
    probed, matrix = next(reversed(runs.values())), next(reversed(data.matrices.values()))
    if picture is not None:
        draw_confusion(picture, probed.confusion, probed.classes, _title(probed))
    about = {"classes": probed.classes, "features": data.columns, "by": by, "group": group,
             "rows": len(probed.rows), "fingerprint": _fingerprint(opened)}  # fmt: skip
    if save is not None:
        write(save, trained(matrix, probed, strength), about)
    for note in [*data.notes, *probed.notes]:
        print_note(printable(note))
    if json:
        print_json(
            {"collection": str(opened.path), "by": by, "group": group, **_with_all_measures(runs)}
        )
        return
    _show(runs, group)
    for path, kind in ((picture, "confusion matrix"), (save, "probe")):
        if path is not None:
            stdout.print(f"{kind} in [bold]{printable(str(path))}[/]", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _ProbeData:
    """Matrices (N, D) to probe by name, the last one with all columns; each row's class."""

    matrices: dict[str, npt.NDArray[np.float64]]
    names: list[str | None]
    groups: list[str | None] | None
    columns: list[str]
    notes: list[str]


def _read_data(
    opened: Collection, by: str, group: str | None, where: str | None, features: Path | None
) -> _ProbeData:
    import numpy as np

    from penult.analysis.probe_io import join_features
    from penult.collection.labels import labelled, span_groups
    from penult.errors import LabelsError

    found = labelled(opened.reader, list(dict.fromkeys([by, *([group] if group else [])])), where)
    if not len(found.keys):
        raise LabelsError(f"no row of {opened.path} matches {where!r}" if where else
                          f"{opened.path} has no rows")  # fmt: skip
    vectors = found.vectors.astype(np.float64)
    names, groups = found.names[by], found.names[group] if group else span_groups(found.row_keys)
    columns = [f"v{place}" for place in range(vectors.shape[1])]
    if features is None:
        return _ProbeData({"vectors": vectors}, names, groups, columns, [])
    own = join_features(features, *(found.keys[name].to_pylist() for name in ("id", "region")))
    complete = own.complete
    notes = [f"{int((~complete).sum()):,} rows lack some of the features and were left out"]
    matrices = {"vectors": vectors[complete], "features": own.values[complete]}
    matrices["both"] = np.concatenate([vectors, own.values], axis=1)[complete]
    return _ProbeData(
        matrices,
        [name for name, keep in zip(names, complete, strict=True) if keep],
        None if groups is None else [g for g, keep in zip(groups, complete, strict=True) if keep],
        [*columns, *own.names],
        [] if complete.all() else notes,
    )


def _show(runs: dict[str, ProbeResult], group: str | None) -> None:
    from penult.analysis.probe import confused

    probed = next(reversed(runs.values()))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class", overflow="fold")
    for name in ("rows", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for one in probed.per_class:
        figures = (f"{value:.3f}" for value in (one.precision, one.recall, one.f1))
        table.add_row(printable(one.name), f"{one.rows:,}", *figures)
    print_table(table)
    for true, predicted, count in confused(probed, 3):
        stdout.print(
            f"[dim]{printable(true)} was predicted as {printable(predicted)} "
            f"{counted(count, 'time')}[/]"
        )
    apart = f", {probed.groups} groups ({printable(group)})" if group else ""
    stdout.print(
        f"\n{counted(len(probed.rows), 'row')}, {len(probed.classes)} classes, {probed.folds} folds"
        f"{apart}; baseline (most frequent class): {probed.chance:.1%}",
        soft_wrap=True,
    )
    for name, run in runs.items():
        label = "" if len(runs) == 1 else f"{name}: "
        stdout.print(f"{label}{_title(run)}", soft_wrap=True)


def _title(probed: ProbeResult) -> str:
    def figure(name: str, value: Estimate) -> str:
        return f"{name} {value.value:.1%} ({value.low:.1%} to {value.high:.1%})"

    return " · ".join(
        (
            figure("accuracy", probed.accuracy),
            figure("balanced", probed.balanced_accuracy),
            figure("macro F1", probed.macro_f1),
        )
    )


def _with_all_measures(runs: dict[str, ProbeResult]) -> dict[str, Any]:
    """The JSON of the last run, with the measures of all runs."""
    documents = [one.to_dict(name) for name, one in runs.items()]
    measures = {name: one for each in documents for name, one in each["measures"].items()}
    return documents[-1] | {"measures": measures}


def _fingerprint(opened: Collection) -> dict[str, str]:
    manifest = opened.manifest
    return dict(manifest.fingerprint) if manifest else {}
