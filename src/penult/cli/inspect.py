"""`penult inspect` and `penult check`: the head, its proof and every tap; every promise of an
embedder, measured on the user's own files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from penult.cli.options import (
    NO_OPTIONS,
    Device,
    Engine,
    Json,
    Model,
    ModelOptions,
    Overwrite,
    Paths,
    Pooling,
    PoolOver,
    Precision,
    Tap,
    check_output,
    items_of,
    source_of,
    with_columns,
    with_limits,
    with_model_options,
)
from penult.cli.output import (
    FAILED,
    SOME_FAILED,
    counted,
    named,
    print_failure,
    print_json,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)
from penult.cli.robustness import print_robustness
from penult.cli.tree import HEAD, draw, draw_cut, draw_graph, draw_graph_cut, readable
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.data.sources import Source
    from penult.embedding.check import Measure, Report, Stored
    from penult.embedding.embedder import Embedder
    from penult.embedding.inspect import Inspection
    from penult.embedding.stations import StationRecord


MEANINGS = {
    "sufficient": "the logits depend on this tap alone",
    "partial": "the logits depend on this tap and on other tensors",
    "unused": "the logits do not depend on this tap",
    "not proved": "the logits of the two test inputs differ too little",
}


@with_model_options
def inspect(
    model: Model,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Levels of the module tree to show.")
    ] = None,
    verify: Annotated[
        list[str] | None,
        typer.Option(help="File to prove the head on; give it twice for two files of one shape."),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Module to use as the head, where the search found none.")
    ] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(help="Further module, or tensor of a graph, to list as a tap; repeatable."),
    ] = None,
    all_taps: Annotated[
        bool, typer.Option("--all-taps", help="Measure every layer, with one forward pass each.")
    ] = False,
    random: Annotated[
        bool,
        typer.Option("--random", help="Use untrained weights, to look at the architecture only."),
    ] = False,
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Show the architecture before and after the cut, the proof of the head, and all taps."""
    from penult.embedding.inspect import InspectionOptions, inspect_model

    options = InspectionOptions(head, tap or (), verify or (), all_taps)
    with working(f"looking into {model}"):
        further = {"random": True} if random else {}
        found = inspect_model(model, options, **model_options, **further)
    if json:
        print_json(found.to_dict())
        return
    _show_facts(found)
    axis = found.axis
    before, after = _before_and_after(found, axis, depth)
    before.label = f"[bold underline]before[/]  {before.label}"
    after.label = f"[bold underline]after[/]   {after.label}"
    for tree in (before, after):
        print_table(tree)
        stdout.print()
    _show_proof(found)
    print_table(_taps_table(found, axis, all_taps))
    _show_meanings(found)


def _show_facts(found: Inspection) -> None:
    facts, labels = found.classifier.describe(), found.classifier.labels
    names = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
    rate = f" at {facts['rate']:,} Hz" if facts.get("rate") else ""
    stdout.print(
        f"[bold]{escape(facts['class'])}[/]  {facts['modality']}{rate}, {facts['kind']}, "
        f"{facts['classes']} classes ({escape(names)}), "
        f"{readable(facts['parameters'])} parameters\n",
        soft_wrap=True,
    )
    if facts.get("scores"):
        stdout.print(f"scores: {facts['scores']}; logits: {facts['logits_from']}", soft_wrap=True)
    for name, value in facts.get("fixed_inputs", {}).items():
        stdout.print(f"input {printable(name)}: {printable(value)}", soft_wrap=True)
    if facts["preparation"]:
        stdout.print(f"[bold]prepared[/] {printable(facts['preparation'])}\n", soft_wrap=True)
    for note in found.notes:
        stdout.print(f"[bold yellow]note[/] {printable(note)}\n", soft_wrap=True)


def _before_and_after(found: Inspection, axis: str, depth: int | None) -> tuple[Tree, Tree]:
    """The module tree, or the graph, with its head and without it."""
    structure = found.classifier.structure
    return _DRAWINGS.get(structure.engine, _draw_graph)(structure, found.anatomy, axis, depth)


def _draw_module(structure: Any, anatomy: Any, axis: str, depth: int | None) -> tuple[Tree, Tree]:
    before = draw(structure.module, anatomy.behind, anatomy.head or (), depth)
    return before, draw_cut(structure.module, anatomy.behind, _output_of_cut(anatomy, axis))


def _draw_graph(structure: Any, anatomy: Any, axis: str, depth: int | None) -> tuple[Tree, Tree]:
    name, cut = structure.describe()["class"], structure.study().cut
    before = draw_graph(cut, name, anatomy, depth)
    return before, draw_graph_cut(cut, name, anatomy, _output_of_cut(anatomy, axis))


_DRAWINGS = {"torch": _draw_module}  # by the engine of the structure


def _output_of_cut(anatomy: Any, axis: str) -> str:
    tap = anatomy.taps.get("backbone")
    if tap is None:
        return "no hidden states found"
    if not tap.positions:
        return f"{tap.describe(axis)}: a vector of {tap.width} numbers"
    return f"hidden states: {tap.describe(axis)}  →  mean  →  a vector of {tap.width} numbers"


def _show_proof(found: Inspection) -> None:
    """Each check with its figure, the input it was measured on, and remarks."""
    proof = found.certificate
    title = "[bold green]head[/]" if proof.ok else "[bold red]head[/]"
    stdout.print(f"{title} {_in_options(str(proof))}", soft_wrap=True)
    files = " and ".join(printable_path(name) for name in found.proved_on)
    where = f"on {files}" if files else "on a synthetic input; --verify FILE uses a file of yours"
    stdout.print(f"[dim]measured {where}[/]\n", soft_wrap=True)
    if found.anatomy.refusal and found.anatomy.refusal not in proof.refusal:
        stdout.print(f"[bold red]head not found:[/] {_in_options(found.anatomy.refusal)}\n")
    if found.remark:
        stdout.print(f"[bold yellow]note[/] {printable(found.remark)}\n", soft_wrap=True)
    if found.anatomy.mixes_layers:
        stdout.print(
            "[bold]note[/] this model averages all layers with learned weights: the input of the "
            "head is that average (tap [cyan]weighted[/]), not the last hidden states "
            "(tap [cyan]backbone[/]).\n"
        )


def _in_options(text: str) -> str:
    """A message with the names of Python arguments replaced by those of options."""
    return escape(text.replace("(head=)", "(--head)").replace("(output=)", "(--output)"))


def _taps_table(found: Inspection, axis: str, every: bool) -> Table:
    taps = found.anatomy.taps
    table = Table(title="taps", title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("tap", "module", "shape of one item", "width", "logits"):
        table.add_column(column, justify="right" if column == "width" else "left")
    layers = [name for name in taps if name.startswith("layer:")]
    folded = [name for name in layers[1:-1] if not every and name not in found.statements]
    for name, tap in taps.items():
        if name in folded:
            if name == folded[0]:
                table.add_row(f"… {len(folded)} more", "", "", "", "[dim]--all-taps[/]")
            continue
        style = HEAD if name == "prelogits" else ""
        table.add_row(
            f"[cyan]{printable(name)}[/]",
            printable(tap.place),
            tap.describe(axis),
            str(tap.width),
            found.statements.get(name, "[dim]not measured[/]"),
            style=style,
        )
    return table


def _show_meanings(found: Inspection) -> None:
    """The meaning of the words that occur in the last column."""
    seen = dict.fromkeys(found.statements.values())
    lines = [f"{word}: {MEANINGS[word]}" for word in MEANINGS if word in seen]
    if lines:
        stdout.print(f"\n[dim]{' · '.join(lines)}[/]", soft_wrap=True)


@with_columns
@with_limits
@with_model_options
def check(
    model: Model,
    paths: Paths,
    tap: Tap = None,
    pooling: Pooling = None,
    pool_over: PoolOver = None,
    device: Device = "auto",
    engine: Engine = "auto",
    precision: Precision = None,
    dump: Annotated[
        Path | None,
        typer.Option(help="Write the first item's values at every station to this .npz file."),
    ] = None,
    robust: Annotated[
        bool,
        typer.Option(
            "--robust",
            help="Measure instead how far each reading moves with level, codec, rate, noise, "
            "reverb, padding; of pictures with brightness, JPEG, size, noise, crop.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --robust: write a picture of all readings (.png, .svg, .pdf)."),
    ] = None,
    overwrite: Overwrite = False,
    now: Annotated[
        str | None,
        typer.Option(
            "--model", help="Where the model is now, if MODEL is a collection and it has moved."
        ),
    ] = None,
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Measure every promise on your own files: batching, repetition, order, proof of the head.

    A vector has to be equal alone and in a batch, on a second run and in another order. The first
    16 items are used; each runs about six times. Exit code 1 where a promise is broken.
    --dump writes the values of one item at every station, from decoding to the stored vector.
    MODEL may be a collection: its own embedder is measured, and against the rows that it has.
    --robust takes 32 items, spread over all of them, each with some nine corruptions.
    """
    from penult.embedding.check import check as measured
    from penult.embedding.inspect import certify_on
    from penult.embedding.source_sample import SourceSample
    from penult.embedding.stations import record_stations

    _check_outputs(dump, robust, plot, overwrite)
    reading = {"tap": tap, "pooling": pooling, "pool_over": pool_over, "precision": precision}
    source, embedder, stored = _measured(model, paths, reading, device, engine, model_options, now)
    if robust:
        print_robustness(embedder, source, plot, json)
        return
    sample = SourceSample(source)
    if embedder.engine != "auto" or embedder.precision != "exact":  # else a run begins as it is
        with working("measuring engines on the first items"):
            embedder.settle(sample)
    record = None
    if dump is not None:
        with working("recording the stations of the first item"):
            record = record_stations(embedder, source)
            record.write(dump)
        if not json:
            _show_stations(record, dump)
    with working("proving the head"):
        certificate, on = certify_on(embedder.runner, sample)
    with working("running the items alone and together"):
        report = measured(embedder, source, certificate, on, stored)
    if json:
        print_json({**report.to_dict(), **({"stations": record.to_dict()} if record else {})})
    else:
        _show(report, on)
    if report.broken:
        raise typer.Exit(FAILED)
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _check_outputs(dump: Path | None, robust: bool, plot: Path | None, overwrite: bool) -> None:
    """Refuse files and options that do not go together, before the model is opened."""
    from penult.embedding.stations import check_npz
    from penult.fewshot.storage import check_free
    from penult.viz.plots import check_picture

    if dump is not None:
        check_npz(dump)
    if plot is not None and not robust:
        raise UsageError("--plot draws what --robust measures; give both, or neither")
    if dump is not None and robust:
        raise UsageError("--dump and --robust measure different things; give one of them")
    if plot is not None:
        check_output(plot)
        check_picture(plot)
        check_free(plot, overwrite)


def _measured(
    model: str,
    paths: list[str],
    reading: dict[str, Any],
    device: str,
    engine: str,
    options: ModelOptions,
    now: str | None,
) -> tuple[Source, Embedder, Stored]:
    """The items, the embedder of a model or a collection, and the vectors that it has.

    Raises:
        UsageError: --model without a collection.
    """
    from penult.embedding.embedder import open_embedder

    if (Path(model) / "collection.json").is_file():
        return _of_collection(model, paths, device, reading, options, now)
    if now is not None:
        raise UsageError(f"--model goes with a collection, and {model} is none: leave it out")
    source = items_of(model, options, paths)
    with working(f"loading {model}"):
        embedder = open_embedder(model, **reading, device=device, engine=engine, **options)
    return source, embedder, _nothing_stored


def _nothing_stored(id: str, region: str) -> None:
    return None


def _of_collection(
    path: str,
    paths: list[str],
    device: str,
    reading: dict[str, Any],
    options: ModelOptions,
    now: str | None,
) -> tuple[Source, Embedder, Stored]:
    """The items, the embedder of a collection, and the vectors that it has.

    Raises:
        UsageError: a reading or a model's option is given, which the collection says.
    """
    from penult.collection.collection import Collection

    trust = bool(options.get("trust"))
    told = {**reading, **options, "trust": None}
    if given := [name for name, value in told.items() if value]:
        name = given[0].replace("_", "-")
        raise UsageError(f"--{name} is what the collection {path} says; leave it out")
    opened = Collection.open(path, must_exist=True)
    with working("loading the collection's model"):
        embedder = opened.embedder(now, device=device, trust=trust)

    def stored(id: str, region: str) -> Any:
        row = opened.get(id, region)
        return None if row is None else row["vector"]

    return source_of(paths, None, embedder.classifier.modality), embedder, stored


def _show_stations(record: StationRecord, file: Path) -> None:
    region = "" if record.region == "whole" else f" {record.region}"
    stdout.print(f"[bold]stations[/] of {printable_path(record.id)}{region}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("station", "made by", "shape", "type", "min", "max", "mean"):
        table.add_column(column, justify="right" if column in ("min", "max", "mean") else "left")
    for station in record.stations:
        facts = station.to_dict()
        figures = [facts[name] for name in ("min", "max", "mean")]
        shape = " × ".join(map(str, facts["shape"])) or "1"
        table.add_row(
            f"[cyan]{printable(station.name)}[/]",
            printable(station.source),
            shape,
            facts["dtype"],
            *("" if figure is None else f"{figure:.4g}" for figure in figures),
        )
    print_table(table)
    stdout.print(f"[dim]all values: {printable(str(file))}[/]\n", soft_wrap=True)


def _show(report: Report, on: list[str]) -> None:
    from penult.embedding.check import PLAIN, shares_batches

    for failure in report.failures:
        print_failure(failure.id, failure.message)
    sizes = ", ".join(map(str, report.batches))
    stdout.print(f"[bold]batching[/]  {report.policy.words}")
    stdout.print(f"[dim]          {counted(len(report.items), 'item')} in batches of {sizes}[/]\n")
    if report.parity is not None:
        stdout.print(f"[bold]engine[/]  {report.engine}: {report.parity.words}\n", soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("measured", "largest difference", "relative", "cosine", ""):
        table.add_column(column, justify="left" if column in ("measured", "") else "right")
    for words, measure in _measures(report).items():
        cells = _cells(measure, promised=True)
        if measure is report.batched and not shares_batches(report):
            cells = ["", "", "", "[dim]not measured: no two of these items share a batch[/]"]
        table.add_row(words, *cells)
    if (plain := report.against.get(PLAIN)) is not None:
        table.add_row("[dim]for comparison: padded with zeros, no mask[/]", *_cells(plain, False))
    print_table(table)
    stdout.print(f"\n[bold]head[/]{named(on)}: {escape(str(report.certificate))}")
    if report.broken:
        for words in report.broken:
            stdout.print(f"[bold red]broken[/] {printable(words)}", soft_wrap=True)
        return
    rest = "" if shares_batches(report) else "; of batches nothing was measured"
    stdout.print(f"[bold green]every promise holds on these items[/]{rest}")


def _measures(report: Report) -> dict[str, Measure]:
    from penult.embedding.check import STORED

    measures = {
        "second run": report.drift,
        "alone and in batches": report.batched,
        "in another order": report.order,
        "as the collection has it": report.against.get(STORED),
    }
    return {words: measure for words, measure in measures.items() if measure is not None}


def _cells(measure: Measure, promised: bool) -> list[str]:
    style = "[dim]" if not promised else ""
    verdict = ("[green]ok[/]" if measure.ok else "[bold red]BROKEN[/]") if promised else ""
    figures = (f"{measure.max_abs:.1e}", f"{measure.relative:.1e}", f"{measure.cosine:.6f}")
    return [*(style + figure for figure in figures), verdict]
