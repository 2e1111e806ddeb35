"""Commands about which vectors serve best: choose, evaluate."""

from __future__ import annotations

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
    with_model_options,
)
from penult.cli.output import (
    SOME_FAILED,
    counted,
    embedder_facts,
    metered,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.analysis.evaluation import Evaluation
    from penult.analysis.space import Space
    from penult.collection.collection import Collection
    from penult.selection import Selection


CANDIDATES = 10  # that the table shows


@with_model_options
def choose(
    model: Model,
    paths: Paths,
    into: Annotated[Path, typer.Option(help="Folder for the chosen embedder.")],
    labels: Annotated[
        str | None,
        typer.Option(help="The class: folder, a column, or a pattern of the path ('{}_*')."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Speaker, recording or site, never on both sides: as --labels."),
    ] = None,
    unlabelled: Annotated[
        list[str] | None, typer.Option(help="More items, that spaces are fitted on too.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="All figures: report.html, .json or .png.")
    ] = None,
    device: Device = "auto",
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Find the layers, pooling and space that serve best, from a few labelled items.

    Everything is read in one pass per item. The notebook's recipe (backbone, mean) is kept unless
    another beats it on classes that were not looked at. Without --labels it is kept, and layers
    are ranked by a measure that needs none.
    """
    from penult.embedding.saving import check_target
    from penult.models import specs
    from penult.selection import Progress
    from penult.selection import choose as chosen
    from penult.viz import report as reports

    check_target(into)
    if labels is None and (groups or unlabelled):
        raise UsageError("--groups and --unlabelled serve only beside --labels; give --labels too")
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
        typer.Option(help="The class: a column, folder, a pattern of the path, labels or label."),
    ],
    groups: Annotated[
        str | None, typer.Option(help="Speaker, recording or site, never on both sides: as --by.")
    ] = None,
    space: Annotated[
        str,
        typer.Option(
            help="raw, or steps joined by + (centre, scale, whiten, pca:N, l2), or a saved "
            "embedder, whose space it is, or the name of a space that the collection keeps."
        ),
    ] = "raw",
    ways: Annotated[int, typer.Option(help="Classes in an episode, at most.")] = 20,
    where: Where = None,
    report: Annotated[Path | None, typer.Option(help="report.html or .json.")] = None,
    json: Json = False,
) -> None:
    """Measure what a collection's vectors are good for: few-shot episodes, neighbours, a probe,
    retrieval, pairs, clusters, hubs; with 95 % intervals. The same figures each time."""
    from penult.analysis.evaluation import evaluate as measured
    from penult.collection.collection import Collection
    from penult.collection.labels import labelled
    from penult.data.files import write_file
    from penult.viz import report as reports

    if report is not None:
        reports.check_kind(report, (".html", ".json"))
    opened = Collection.open(collection, must_exist=True)
    rows = labelled(opened, [by] if groups in (None, by) else [by, str(groups)], where)
    mates = None if groups is None else rows.names[groups]
    recipe, fitted = _space(opened, space)
    if fitted is not None:
        print_note("[dim]a fitted space is taken as it is: choose it on other items than these[/]")
    with working("measuring"):
        found = measured(rows.vectors, rows.names[by], mates, recipe, ways, fitted)
    document = {"collection": str(opened.path), "by": by, "grouped_by": groups, "where": where}
    document |= found.to_dict()
    if report is not None:
        title = f"{opened.path.name} by {by}"
        html = report.suffix.lower() == ".html"
        page = reports.evaluation_page(found, title) if html else reports.as_json(document)
        write_file(report, [page.encode()])
    if json:
        print_json(document)
        return
    _show_evaluation(found, report)


COMMANDS = (choose, evaluate)


def _space(collection: Collection, name: str) -> tuple[str, Space | None]:
    """(a recipe, to be fitted on parts, or the fitted space of the collection or saved embedder of
    this name)."""
    from penult.analysis.space import RAW, Space
    from penult.collection.spaces import is_recipe, space_of
    from penult.embedding.saving import SPACE, is_embedder
    from penult.errors import SpaceError

    if not is_embedder(name):
        return (name, None) if is_recipe(name) else (RAW, space_of(collection, name))
    saved = Path(name) / SPACE
    if not saved.is_file():
        raise SpaceError(f"the embedder {name} has no space of its own; leave --space out")
    return RAW, Space.from_bytes(saved.read_bytes())


def _write_choice(report: Path, found: Selection, model: str) -> None:
    from penult.data.files import write_file
    from penult.viz import report as reports

    kind = report.suffix.lower()
    if kind == ".json":
        write_file(report, [reports.as_json(found.to_dict()).encode()])
        return
    assert found.report is not None  # refused before the run
    if kind == ".png":
        write_file(report, [reports.choice_picture(found.report)])
    else:
        page = reports.choice_page(found.report, f"Which layer of {model}")
        write_file(report, [page.encode()])


def _choice(found: Selection, saved: Path, report: Path | None) -> dict[str, Any]:
    return {
        "embedder": str(saved),
        "report": str(report) if report else None,
        **found.to_dict(),
        **embedder_facts(found.embedder),
        "space": found.setting.space,
    }


def _show_choice(found: Selection, saved: Path, report: Path | None) -> None:
    for one in found.failures:
        print_note(f"[red]failed[/] {printable_path(one.id)}: {printable(one.message)}")
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
        stdout.print()
        table = _table("single readings, best first", "space", *choice.scores[0].measured)
        for score in choice.scores[:CANDIDATES]:
            figures = [estimate.words() for estimate in score.measured.values()]
            table.add_row(score.setting.readings[0], score.setting.space, *figures)
        print_table(table)
        stdout.print(
            f"[dim]{len(choice.scores)} candidates on {counted(found.counts['labelled'], 'item')}; "
            f"{choice.ways}-way episodes, few-shot: {choice.shots} examples; in a crowd: one "
            "example of its class nearer than 19 of others[/]",
            soft_wrap=True,
        )
    kept = found.report is not None and found.report.kept
    why = ": nothing beats the notebook's recipe clearly" if kept else ""
    stdout.print(
        f"chosen [bold]{printable(found.setting.words())}[/]{why}; "
        f"{found.embedder.dim} numbers, saved in [bold]{printable(str(saved))}[/]",
        soft_wrap=True,
    )
    if report is not None:
        stdout.print(f"report in [bold]{printable(str(report))}[/]", soft_wrap=True)


def _show_free(found: Selection) -> None:
    table = _table("without labels", "RankMe", "α-ReQ")
    for one in (found.ranking or [])[:CANDIDATES]:
        table.add_row(one.reading, f"{one.rank_me:.1f}", f"{one.alpha:.2f}")
    print_table(table)
    print_note(
        "[yellow]a ranking without labels is a weak hint (docs/choosing.md has how weak), so the "
        "notebook's recipe is kept; a few labelled items of three classes or more decide better[/]"
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
