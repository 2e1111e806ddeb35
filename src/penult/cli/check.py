"""`penult check`: every promise of an embedder, measured on the user's own files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from penult.cli.options import (
    NO_OPTIONS,
    Device,
    Engine,
    Json,
    Model,
    ModelOptions,
    Paths,
    Pooling,
    PoolOver,
    Precision,
    Tap,
    items_of,
    with_model_options,
)
from penult.cli.output import (
    FAILED,
    SOME_FAILED,
    counted,
    named,
    print_json,
    print_note,
    print_table,
    printable,
    printable_path,
    stdout,
    working,
)

if TYPE_CHECKING:
    from penult.embedding.check import Measure, Report
    from penult.embedding.stations import StationRecord


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
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Measure every promise on your own files: batching, repetition, order, proof of the head.

    A vector has to be equal alone and in a batch, on a second run and in another order. The first
    16 items are used; each runs about six times. Exit code 1 where a promise is broken.
    --dump writes the values of one item at every station, from decoding to the stored vector.
    """
    from penult.embedding.check import check as measured
    from penult.embedding.embedder import open_embedder
    from penult.embedding.inspect import certify_on
    from penult.embedding.source_sample import SourceSample

    source = items_of(model, model_options, paths)
    sample = SourceSample(source)
    with working(f"loading {model}"):
        embedder = open_embedder(
            model, tap, pooling, pool_over=pool_over, device=device, engine=engine,
            precision=precision, **model_options,
        )  # fmt: skip
    with working("measuring engines on the first items"):
        embedder.settle(sample)
    record = None
    if dump is not None:
        from penult.embedding.stations import record_stations

        with working("recording the stations of the first item"):
            record = record_stations(embedder, source)
            record.write(dump)
        if not json:
            _show_stations(record, dump)
    with working("proving the head"):
        certificate, on = certify_on(embedder.runner, sample)
    with working("running the items alone and together"):
        report = measured(embedder, source, certificate, on)
    if json:
        print_json({**report.to_dict(), **({"stations": record.to_dict()} if record else {})})
    else:
        _show(report, on)
    if report.broken:
        raise typer.Exit(FAILED)
    if report.failures:
        raise typer.Exit(SOME_FAILED)


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
    for failure in report.failures:
        print_note(f"[red]failed[/] {printable_path(failure.id)}: {printable(failure.message)}")
    sizes = ", ".join(map(str, report.batches))
    stdout.print(f"[bold]batching[/]  {report.law.words}")
    stdout.print(f"[dim]          {counted(len(report.items), 'item')} in batches of {sizes}[/]\n")
    if report.parity is not None:
        stdout.print(f"[bold]engine[/]  {report.engine}: {report.parity.words}\n", soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("measured", "largest difference", "relative", "cosine", ""):
        table.add_column(column, justify="left" if column in ("measured", "") else "right")
    for words, measure in _measures(report).items():
        table.add_row(words, *_cells(measure, promised=True))
    if report.plain is not None:
        table.add_row(
            "[dim]for comparison: padded with zeros, no mask[/]", *_cells(report.plain, False)
        )
    print_table(table)
    stdout.print(f"\n[bold]head[/]{named(on)}: {escape(str(report.certificate))}")
    if report.broken:
        for words in report.broken:
            stdout.print(f"[bold red]broken[/] {printable(words)}", soft_wrap=True)
        return
    stdout.print("[bold green]every promise holds on these items[/]")


def _measures(report: Report) -> dict[str, Measure]:
    measures = {
        "second run": report.drift,
        "alone and in batches": report.batched,
        "in another order": report.order,
    }
    return {words: measure for words, measure in measures.items() if measure is not None}


def _cells(measure: Measure, promised: bool) -> list[str]:
    style = "[dim]" if not promised else ""
    verdict = ("[green]ok[/]" if measure.ok else "[bold red]BROKEN[/]") if promised else ""
    figures = (f"{measure.max_abs:.1e}", f"{measure.relative:.1e}", f"{measure.cosine:.6f}")
    return [*(style + figure for figure in figures), verdict]
