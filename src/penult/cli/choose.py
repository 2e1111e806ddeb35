"""Commands about which vectors serve best: choose, evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from penult.cli.collection import Store, Where
from penult.cli.options import (
    NO_OPTIONS,
    Device,
    Json,
    Model,
    ModelOptions,
    Paths,
    items_of,
    with_columns,
    with_limits,
    with_model_options,
)
from penult.cli.output import (
    SOME_FAILED,
    counted,
    json_text,
    metered,
    print_failure,
    print_json,
    print_note,
    print_table,
    printable,
    stdout,
    working,
)
from penult.cli.probe import Task, task_note
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.analysis.bootstrap import Estimate
    from penult.analysis.evaluation import Evaluation
    from penult.analysis.selection import Choice
    from penult.analysis.space import Space
    from penult.analysis.task_evaluation import TaskEvaluation
    from penult.collection.collection import Collection
    from penult.collection.targets import ColumnTargets
    from penult.selection import Selection


CANDIDATES = 10  # that the table shows


@with_columns
@with_limits
@with_model_options
def choose(
    model: Model,
    paths: Paths,
    into: Annotated[Path, typer.Option(help="Folder to save the chosen embedder in.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Class of each item: folder, a column, or a path pattern such as '{}_*'."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Keep these groups (speaker, recording, site) on one side of every split; same "
            "format as --labels."
        ),
    ] = None,
    unlabelled: Annotated[
        list[str] | None, typer.Option(help="Further items without labels, for fitting spaces.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write all figures to report.html, .json or .png.")
    ] = None,
    device: Device = "auto",
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Select the best layers, pooling and space from a few labelled items.

    Each item takes one forward pass. The notebook's recipe (backbone, mean) is kept unless another
    one is better on held-out classes. Without --labels the recipe is kept, and layers are ranked by
    label-free measures.
    """
    from penult.embedding.saving import check_target
    from penult.models import specs
    from penult.selection import Progress
    from penult.selection import choose as chosen
    from penult.viz import report as reports

    check_target(into)
    if labels is None and (groups or unlabelled):
        raise UsageError("--groups and --unlabelled need --labels; give --labels too")
    if report is not None:
        # Without labels there are no scores to draw.
        reports.check_kind(report, reports.KINDS if labels is not None else (".json",))
    source = items_of(model, model_options, paths)
    more = items_of(model, model_options, unlabelled) if unlabelled else None
    with working(f"loading {model}"):
        classifier = specs.load(model, **model_options)
    with metered("reading", show=not json) as meter:
        totals = [one.total for one in (source, more) if one is not None]
        meter.expect(None if None in totals else sum(total or 0 for total in totals))
        found = chosen(
            classifier,
            source,
            labels,
            groups,
            more,
            device=device,
            on_error="skip",
            progress=Progress(meter.tick, lambda line: print_note(f"[dim]{line}[/]")),
        )
    with working("proving the head"):
        saved = found.embedder.save(into)
    if report is not None:
        _write_choice(report, found, model)
    if json:
        print_json(_choice(found, saved, report))
    else:
        _show_choice(found, saved, report)
    if found.failures:
        raise typer.Exit(SOME_FAILED)


def evaluate(
    collection: Store,
    by: Annotated[
        str,
        typer.Option(
            help="Class, labels or value of each row: a column, folder, a path pattern such as "
            "'{}_*', labels (taught) or label (predicted)."
        ),
    ],
    task: Task = None,
    predictions: Annotated[
        bool,
        typer.Option(
            "--predictions",
            help="Measure what the classifier itself predicts, against --by, instead of vectors.",
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(help="Which number of a regression model with several, by its name."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Keep these groups (speaker, recording, site) on one side of every split; same "
            "format as --by."
        ),
    ] = None,
    space: Annotated[
        str,
        typer.Option(
            help="raw; steps joined by + (centre, scale, whiten, shrink, pca:N, l2); the name of a "
            "space of the collection; or the folder of a saved embedder that has a space."
        ),
    ] = "raw",
    ways: Annotated[int, typer.Option(help="Most classes in one episode.")] = 20,
    where: Where = None,
    report: Annotated[
        Path | None, typer.Option(help="Write all figures to report.html or .json.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure the quality of a collection's vectors for named classes.

    Few-shot episodes, nearest neighbours, a linear probe, retrieval, verification, clustering and
    hubness, with 95 % intervals. Of several labels an item, and of numbers, what the nearest
    neighbours say. Repeated runs give equal figures.
    """
    from penult.analysis.evaluation import evaluate as measured
    from penult.analysis.prediction_measures import SINGLE_LABEL
    from penult.collection.collection import Collection
    from penult.collection.targets import read_targets
    from penult.data.files import write_file
    from penult.viz import report as reports

    if report is not None:
        reports.check_kind(report, (".html", ".json"))
    opened = Collection.open(collection, must_exist=True)
    document = {"collection": str(opened.path), "by": by, "grouped_by": groups, "where": where}
    if predictions:
        with working("measuring"):
            measures = _predictions(opened, by, groups, where, task, output)
        _give_task(measures, document, report, json)
        return
    rows = read_targets(opened.reader, by, groups, where, task)
    recipe, fitted = _space(opened, space)
    if fitted is not None:
        print_note(
            "[dim]the space is used as fitted: fair only where it was fitted on other items[/]"
        )
    if rows.task != SINGLE_LABEL:
        if told := task_note(rows):
            print_note(printable(told))
        with working("measuring"):
            measures = _by_neighbours(rows, recipe, fitted)
        _give_task(measures, document | {"space": space}, report, json)
        return
    with working("measuring"):
        found = measured(rows.vectors, rows.names, rows.groups, recipe, ways, fitted)
    document |= {"task": rows.task, **found.to_dict()}
    if report is not None:
        title = f"{opened.path.name} by {by}"
        html = report.suffix.lower() == ".html"
        page = reports.evaluation_page(found, title) if html else json_text(document) + "\n"
        write_file(report, [page.encode()])
    if json:
        print_json(document)
        return
    _show_evaluation(found, report)


def _by_neighbours(rows: ColumnTargets, recipe: str, fitted: Space | None) -> TaskEvaluation:
    """What the nearest neighbours in a space say of labels or values."""
    import numpy as np

    from penult.analysis.evaluation import MOST
    from penult.analysis.prediction_measures import MULTI_LABEL
    from penult.analysis.space import fit
    from penult.analysis.task_evaluation import evaluate_labels, evaluate_values

    targets: list[Any] = rows.labels if rows.task == MULTI_LABEL else rows.values
    vectors, groups = rows.vectors, rows.groups
    if len(vectors) > MOST:
        print_note(f"{MOST:,} of {len(vectors):,} rows are measured, drawn with seed 0")
        drawn = np.sort(np.random.default_rng(0).choice(len(vectors), MOST, replace=False))
        vectors, targets = vectors[drawn], [targets[row] for row in drawn]
        groups = None if groups is None else [groups[row] for row in drawn]
    measured = evaluate_labels if rows.task == MULTI_LABEL else evaluate_values
    return measured((fitted or fit(recipe, vectors))(vectors), targets, groups)


def _predictions(
    opened: Collection,
    by: str,
    groups: str | None,
    where: str | None,
    task: str | None,
    output: str | None,
) -> TaskEvaluation:
    """The classifier's own predictions against the truth that `by` tells."""
    import numpy as np

    from penult.analysis import task_evaluation as tasks
    from penult.analysis.prediction_measures import MULTI_LABEL, REGRESSION
    from penult.collection.targets import read_targets
    from penult.tracing.scores import BINARY, Activation

    manifest = opened.reader.require_manifest()
    kind = str(manifest.model.get("kind") or "")
    kind = MULTI_LABEL if kind == BINARY else kind
    if manifest.logits != "all":
        raise UsageError(
            f"{opened.path} keeps logits {manifest.logits!r}, and predictions are measured from "
            "all of them; embed with --logits all"
        )
    if task is not None and task != kind:
        raise UsageError(f"the classifier is {kind}, and --task says {task}; leave --task out")
    found = read_targets(opened.reader, by, groups, where, kind, logits=True)
    activation = Activation(str(manifest.model.get("scores") or ""))
    scores = activation.scores(str(manifest.model.get("kind")), np.asarray(found.logits))
    labels = list(manifest.labels)
    if kind == REGRESSION:
        place = _output(labels, output or by, output is not None)
        return tasks.evaluate_predicted_values(found.values, scores[:, place], found.groups)
    if kind == MULTI_LABEL:
        return tasks.evaluate_predicted_labels(found.labels, scores, labels, found.groups)
    return tasks.evaluate_predicted_classes(found.names, scores, labels, found.groups)


def _output(labels: Sequence[str], name: str, asked: bool) -> int:
    """The place of a regression model's number: the only one, or that of a name."""

    found = [place for place, label in enumerate(labels) if label.lower() == name.lower()]
    if len(labels) == 1 and not asked:
        return 0
    if len(found) != 1:
        raise UsageError(
            f"the model gives {len(labels)} numbers ({', '.join(labels[:8])}), and none is called "
            f"{name!r}; name one with --output"
        )
    return found[0]


def _give_task(
    found: TaskEvaluation, document: dict[str, Any], report: Path | None, json: bool
) -> None:
    from penult.data.files import write_file

    document |= found.to_dict()
    if report is not None:
        if report.suffix.lower() != ".json":
            raise UsageError(f"a report of the task {found.task} is written as .json")
        write_file(report, [(json_text(document) + "\n").encode()])
    if json:
        print_json(document)
        return
    apart = "" if found.groups is None else f" in {counted(found.groups, 'group')}"
    stdout.print(f"{counted(found.items, 'item')}{apart}, {found.task}, {found.measured}")
    for note in found.notes:
        print_note(f"[yellow]{printable(note)}[/]")
    table = _table("measure", "value (95 % interval)")
    for name, one in found.estimates.items():
        table.add_row(name, _with_interval(one))
    for name, value in found.figures.items():
        table.add_row(name, f"{value:.4g}")
    print_table(table)
    if found.per_class:
        kind = "recall" if found.task == "single-label" else "average precision"
        table = _table("class, the hardest first", kind)
        for name, value in [*found.per_class.items()][:CANDIDATES]:
            table.add_row(printable(name), f"{value:.3f}")
        print_table(table)
    if report is not None:
        stdout.print(f"report in [bold]{printable(str(report))}[/]", soft_wrap=True)


def _with_interval(one: Estimate) -> str:
    """A measure with its interval, as far as it has them."""
    if math.isnan(one.value):
        return "none"
    known = f" ({one.low:.3f} to {one.high:.3f})" if not math.isnan(one.low) else ""
    return f"{one.value:.3f}{known}"


def _space(collection: Collection, name: str) -> tuple[str, Space | None]:
    """(a recipe to fit within each split, or the fitted space of this name: of the collection, or
    of the saved embedder in this folder)."""
    from penult.analysis.space import RAW
    from penult.collection.spaces import is_recipe, space_of
    from penult.embedding import saving
    from penult.errors import SpaceError

    if not saving.is_embedder(name):
        return (name, None) if is_recipe(name) else (RAW, space_of(collection.reader, name))
    space = saving.read(Path(name)).space
    if space is None:
        raise SpaceError(f"the embedder {name} has no space of its own; leave --space out")
    return RAW, space


def _write_choice(report: Path, found: Selection, model: str) -> None:
    from penult.data.files import write_file
    from penult.viz import report as reports

    choice: Any = found.report  # there is one for a page and a picture: refused before the run
    content = {
        ".json": lambda: (json_text(found.to_dict()) + "\n").encode(),
        ".png": lambda: reports.draw_choice(choice),
        ".html": lambda: reports.choice_page(choice, f"Layers of {model}").encode(),
    }
    write_file(report, [content[report.suffix.lower()]()])


def _choice(found: Selection, saved: Path, report: Path | None) -> dict[str, Any]:
    from penult.embedding.embedder import describe_embedder

    return {
        "embedder": str(saved),
        "report": str(report) if report else None,
        **found.to_dict(),
        **describe_embedder(found.embedder),
        "space": found.setting.space,
    }


def _show_choice(found: Selection, saved: Path, report: Path | None) -> None:
    for one in found.failures:
        print_failure(one.id, one.message)
    if found.report is None:
        _show_free(found)
    else:
        choice = found.report
        for note in choice.notes:
            print_note(f"[yellow]{printable(note)}[/]")
        table = _table(f"on {choice.judged_on}", "value", "gain over the notebook's recipe")
        for final in choice.finalists:
            mark = "[bold green]" if final.setting == choice.setting else ""
            table.add_row(mark + final.name, final.value.words(), final.gain.words())
        print_table(table)
        stdout.print(
            f"the choice itself, on {choice.judged_on} than it was decided on: "
            f"[bold]{choice.expected.words()}[/], gain {choice.gain.words()}{_few(choice)}",
            soft_wrap=True,
        )
        stdout.print()
        table = _table("single readings, best first", "space", *choice.scores[0].measured)
        for score in choice.scores[:CANDIDATES]:
            figures = [estimate.words() for estimate in score.measured.values()]
            table.add_row(score.setting.readings[0], score.setting.space, *figures)
        print_table(table)
        stdout.print(
            f"[dim]{len(choice.scores)} candidates on {counted(found.counts['labelled'], 'item')}; "
            f"{choice.ways}-way episodes, few-shot: {choice.shots} examples; in a crowd: the one "
            "example of the item's class is nearer than 19 examples of other classes. Scores "
            "have decided between the finalists, and ranked the single readings: the best of each "
            "table is flattered[/]",
            soft_wrap=True,
        )
    kept = found.report is not None and found.report.kept
    why = ": no candidate is clearly better than the notebook's recipe" if kept else ""
    stdout.print(
        f"chosen [bold]{printable(found.setting.words())}[/]{why}; "
        f"{found.embedder.dim} numbers, saved in [bold]{printable(str(saved))}[/]",
        soft_wrap=True,
    )
    if report is not None:
        stdout.print(f"report in [bold]{printable(str(report))}[/]", soft_wrap=True)


def _show_free(found: Selection) -> None:
    table = _table("reading, ranked without labels", "RankMe", "α-ReQ")
    for one in (found.ranking or [])[:CANDIDATES]:
        table.add_row(one.reading, f"{one.rank_me:.1f}", f"{one.alpha:.2f}")
    print_table(table)
    print_note(
        "[yellow]a ranking without labels is weak evidence (see docs/choosing.md), so the "
        "notebook's recipe is kept; a few labelled items of three or more classes decide better[/]"
    )


def _table(*heads: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _show_evaluation(found: Evaluation, report: Path | None) -> None:
    stdout.print(
        f"{counted(found.items, 'item')} of {found.classes:,} classes in "
        f"{counted(found.groups, 'group')}, space {printable(found.space)}"
    )
    for note in found.notes:
        print_note(f"[yellow]{printable(note)}[/]")
    table = _table("measure", "value (95 % interval)")
    for name, one in found.estimates.items():
        table.add_row(name, one.words())
    for name, value in found.figures.items():
        table.add_row(name, f"{100 * value:.1f} %" if "error rate" in name else f"{value:.3f}")
    print_table(table)
    if report is not None:
        stdout.print(f"report in [bold]{printable(str(report))}[/]", soft_wrap=True)


def _few(choice: Choice) -> str:
    """Why the choice's accuracy has no interval, where it has none."""
    if not math.isnan(choice.expected.low):
        return ""
    return "; of so few classes that it says little of others: label four or more, better ten"
