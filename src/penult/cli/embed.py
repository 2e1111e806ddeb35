"""`penult embed`: items into a collection, with progress, a summary and a way to stop."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from penult.cli.options import (
    NO_OPTIONS,
    Channel,
    Devices,
    Engine,
    Hop,
    Json,
    Model,
    ModelOptions,
    Overlap,
    Pages,
    Pooling,
    PoolOver,
    Precision,
    Tap,
    Tile,
    Window,
    check_parent,
    layout_of,
    modality_for,
    source_of,
    with_columns,
    with_model_options,
)
from penult.cli.output import (
    SOME_FAILED,
    Meter,
    counted,
    metered,
    print_json,
    print_note,
    printable,
    printable_path,
    proof_line,
    reason_words,
    stdout,
    working,
)
from penult.errors import UsageError, listed

if TYPE_CHECKING:
    from penult.collection.add import Summary
    from penult.collection.collection import Collection
    from penult.collection.ingest import Options
    from penult.data.decode import Limits
    from penult.data.sources import Source
    from penult.embedding.embedder import Embedder


SHOWN = 5
STEPS = ("decode", "prepare", "wait", "model", "write")  # of a run; they overlap in time


@with_columns
@with_model_options
def embed(
    model: Model,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, tables (CSV, JSONL, Parquet with a path column), or - for paths "
            "or one file on stdin."
        ),
    ] = None,
    *,
    into: Annotated[Path, typer.Option(help="Collection to write to, for example calls.lance.")],
    tap: Tap = None,
    pooling: Pooling = None,
    pool_over: PoolOver = None,
    channel: Channel = None,
    window: Window = None,
    hop: Hop = None,
    tile: Tile = None,
    overlap: Overlap = 0,
    pages: Pages = None,
    summary: Annotated[
        str | None,
        typer.Option(help="Add one row per cut file: the mean or max of the file's parts."),
    ] = None,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone", help="Run each item in a forward pass of its own, without batches."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Number of decoding processes; 0 decodes in the main process."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Longest decoding time of a file in seconds; beyond it the item fails."),
    ] = None,
    logits: Annotated[str, typer.Option(help="Logits to store: all, top:K or none.")] = "all",
    fp16: Annotated[bool, typer.Option("--fp16", help="Store vectors in half precision.")] = False,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="Longest recording, uncut, in seconds; longer ones fail. Default: 3600; inf for "
            "none."
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Largest picture, uncut, in pixels; larger ones fail. Default: 134217728."
        ),
    ] = None,
    max_characters: Annotated[
        int | None,
        typer.Option(
            help="Characters of a text that are read; of a longer one the model takes the "
            "beginning, or it fails. Default: 1000000."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for decoded items, inputs and batches in all processes, for example 2GB "
            "or 60% of what is free. Default: half of that, 4GB at most."
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry items that failed in an earlier run.")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Instead of PATHS: embed the items of this collection and copy its labels."
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove rows whose files or annotations are gone from these paths."
        ),
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="Embed only one part of the items, for example 1/4 … 4/4.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait while another process is writing.")
    ] = False,
    device: Devices = "auto",
    engine: Engine = "auto",
    precision: Precision = None,
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Store the label and vector of every item in a collection, with one forward pass per item.

    Items that the collection holds already are skipped; a stopped run continues where it ended.
    """
    from penult.collection.add import RunSettings, add, describe_run
    from penult.collection.collection import Collection
    from penult.collection.ingest import MAX_SECONDS, Options
    from penult.collection.transfer import source_from_collection
    from penult.data.decode import TIME_LIMIT, default_workers
    from penult.data.sources import Shard
    from penult.embedding.embedder import describe_embedder, open_embedder

    part = Shard.parse(shard) if shard else None
    dtype, about = "float16" if fp16 else "float32", {"shard": shard} if shard else {}
    settings = RunSettings(dtype, wait, prune, about)
    check_parent(into, create=True)
    collection = Collection.open(into)
    old = Collection.open(like, must_exist=True) if like else None
    given = None if old else _paths(paths)
    modality = modality_for(model, model_options)
    options = Options(
        logits=logits,
        max_seconds=MAX_SECONDS if max_seconds is None else max_seconds,
        limits=_limits(pixels=max_pixels, characters=max_characters, memory=memory),
        retry_failed=retry_failed,
        layout=layout_of(modality, window, hop, tile, overlap, pages),
        summary=summary,  # type: ignore[arg-type]
        alone=alone,
        workers=default_workers() if workers is None else workers,
        time_limit=TIME_LIMIT if time_limit is None else time_limit,
    )
    if old is None:
        source = source_of(given or [], channel, modality)
    else:
        source, options = source_from_collection(
            old.reader, collection.reader, modality, options, bool(paths) or channel
        )
    if part is not None:
        source = part.of(source)
    with working(f"loading {model}"):
        embedder = open_embedder(
            model, tap, pooling, pool_over=pool_over, device=device, engine=engine,
            precision=precision or _precision_of(collection), **model_options,
        )  # fmt: skip
    _prepare(collection, embedder, source, options)
    with _run_into(collection), metered("embedding", show=not json) as meter:
        if options.layout == Options().layout:
            _count_aside(source, meter)
        summary_of_run = add(
            collection.reader, embedder, source, options, settings, tick=meter.tick,
            like=old.reader if old else None,
        )  # fmt: skip
        elapsed, rate = meter.elapsed, meter.rate() if meter.embedded else ""
    if json:
        facts = {"elapsed": elapsed, **describe_embedder(embedder)}
        print_json({**describe_run(summary_of_run, collection.reader), **facts})
    else:
        _show_summary(summary_of_run, collection, embedder, elapsed, rate)
    if summary_of_run.failed:
        raise typer.Exit(SOME_FAILED)


def _limits(**given: Any) -> Limits:
    """The usual limits, but for those that were given."""
    from penult.data.decode import Limits

    return Limits(**{name: value for name, value in given.items() if value is not None})


def _paths(paths: list[str] | None) -> list[str]:
    if not paths:
        raise UsageError(
            "Missing argument 'paths': give files, folders, tables, - or --like OLD.lance; "
            "see penult embed --help"
        )
    return paths


def _precision_of(collection: Collection) -> str | None:
    """The precision of a collection's rows, where it has any: later runs keep to it."""
    manifest = collection.manifest
    return None if manifest is None else manifest.precision or None


def _prepare(collection: Collection, embedder: Embedder, source: Source, options: Options) -> None:
    """Prove the head and choose the engine on the first items; print the choice."""
    from penult.collection.add import settle
    from penult.embedding.embedder import require_proof
    from penult.embedding.source_sample import SourceSample

    _print_metadata(source)
    by_default = embedder.engine == "auto" and embedder.precision == "exact"
    sample = SourceSample(source, options.layout, options.decoding)
    with working("proving the head"):
        require_proof(embedder, sample)
    with working("measuring engines on the first items"):
        choice = settle(collection.reader, embedder, sample)
    native = embedder.classifier.structure.engine
    if choice and (embedder.runner.mode.engine != native or not by_default):
        print_note(f"[dim]{printable(choice)}[/]")


def _count_aside(source: Source, meter: Meter) -> None:
    """Count the items while the first ones are embedded, for the estimate of the time left."""
    if source.total is not None:
        meter.expect(source.total)
    elif meter.shown:
        threading.Thread(target=lambda: meter.expect(source.count()), daemon=True).start()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: commit finished rows, print a note, stop."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_metadata(source: Source) -> None:
    """Print the columns of a table that are stored, so that a misspelt `start` is seen."""
    old = {new: name for name, new in source.renamed.items()}
    kept = [
        f"{new} ({_type_words(kind)}{f', from {printable(repr(old[new]))}' if new in old else ''})"
        for new, kind in source.columns.items()
    ]
    if kept:
        print_note(f"[dim]metadata: {listed(kept)}[/]")


@contextmanager
def _run_into(collection: Collection) -> Iterator[None]:
    """A run that SIGTERM interrupts; print which metadata columns have another type after it."""
    before = collection.reader.schema if collection.manifest is not None else None
    with _interrupted_by_sigterm():
        yield
    for field in before or ():
        if (new := collection.reader.schema.field(field.name).type) != field.type:
            name = printable(field.name)
            print_note(f"[dim]metadata {name}: {field.type} in earlier rows, now {new} in all[/]")


def _type_words(kind: object) -> str:
    return "no value yet" if str(kind) == "null" else str(kind)


def _show_notes(summary: Summary) -> None:
    if noted := len(summary.found.notes):
        stdout.print(
            f"[yellow]{counted(noted, 'file')} with a wrong header, but read: "
            "see the notes, or --json[/]",
            soft_wrap=True,
        )


def _show_taken_and_gone(summary: Summary) -> None:
    if summary.labels:
        stdout.print(f"{counted(summary.labels, 'label')} copied")
    if gone := summary.found.gone:
        names = ", ".join(printable_path(id) for id in gone[:SHOWN]) + (
            ", …" if len(gone) > SHOWN else ""
        )
        were = "was" if len(gone) == 1 else "were"
        done = (
            f"{counted(summary.pruned, 'row')} removed"
            if summary.pruned
            else "their rows are kept; --prune removes them"
        )
        stdout.print(
            f"[yellow]{counted(len(gone), 'file')} {were} deleted: {names}; {done}[/]",
            soft_wrap=True,
        )
    _show_former(summary)


def _show_former(summary: Summary) -> None:
    former = summary.found.former_words
    if not former:
        return
    names = ", ".join(printable_path(one) for one in former[:SHOWN])
    rest = ", …" if len(former) > SHOWN else ""
    what = counted(len(former), "annotation")
    are = "is" if len(former) == 1 else "are"
    done = "removed" if summary.found.former_removed else "kept; --prune removes them"
    stdout.print(
        f"[yellow]{what} {are} no longer in the tables: {names}{rest}; their rows are {done}[/]",
        soft_wrap=True,
    )


_LONGER = "longer than the model's input: the column truncated holds the"
_TRUNCATED = {
    "audio": f"{_LONGER} seconds that were used; --window embeds whole recordings",
    "video": f"{_LONGER} seconds that were used",
    "text": f"{_LONGER} tokens that were used; --window embeds whole texts",
    "image": "with more pages or frames than the first, which was used: the column truncated holds "
    "the number that was; --pages each embeds all",
}


def _counts(summary: Summary) -> list[str]:
    """`3 embedded`, `2 unchanged` and so on, of a run."""
    parts = [f"[bold green]{summary.done:,} embedded[/]"]
    if unchanged := summary.skipped - summary.updated:
        parts.append(f"{unchanged:,} unchanged")
    if summary.updated:
        parts.append(f"{summary.updated:,} updated")
    if summary.replaced:
        parts.append(f"{summary.replaced:,} replaced")
    if summary.failed:
        parts.append(f"[bold red]{summary.failed:,} failed[/]")
    return parts


def _show_summary(
    summary: Summary, collection: Any, embedder: Embedder, elapsed: float, rate: str
) -> None:
    parts = _counts(summary)
    duration = f"{elapsed:.1f} s" + (f" ({rate})" if rate else "")
    stdout.print(f"{', '.join(parts)} in {duration}")
    path = printable(str(collection.path))
    stdout.print(
        f"[bold]{path}[/]: {counted(collection.count, 'row')} of {embedder.dim} numbers, "
        f"tap {escape(embedder.tap.name)}, pooling {embedder.pooling}",
        soft_wrap=True,
    )
    stdout.print(proof_line(embedder), soft_wrap=True)
    if embedder.space is not None:
        recipe = escape(embedder.space.recipe)
        stdout.print(
            f"the embedder's space {recipe} is stored: search with --space embedder", soft_wrap=True
        )
    if summary.done + summary.replaced:
        spent = " · ".join(f"{step} {summary.seconds.get(step, 0.0):.1f} s" for step in STEPS)
        stdout.print(f"[dim]time by step (overlapping): {spent}[/]", soft_wrap=True)
    if summary.truncated:
        words = _TRUNCATED[embedder.classifier.modality]
        stdout.print(f"[yellow]{counted(summary.truncated, 'item')} {words}[/]", soft_wrap=True)
    _show_notes(summary)
    _show_taken_and_gone(summary)
    if others := summary.found.left_out:
        from penult.data.folders import in_words

        count = counted(sum(others.values()), "file")
        stdout.print(
            f"[dim]other file types left out: {count} ({printable(in_words(others))})[/]",
            soft_wrap=True,
        )
    if not summary.failed:
        return
    failed = [row for row in collection.failures().to_pylist() if row["run_id"] == summary.run_id]
    for row in failed[:SHOWN]:
        stdout.print(
            f"  [red]{printable_path(row['id'])}[/]: {reason_words(row['message'])}", soft_wrap=True
        )
    rest = summary.failed - SHOWN
    more = f"  … and {rest:,} more; " if rest > 0 else ""
    command = f"penult failures {shlex.quote(str(collection.path))}"
    stdout.print(f"{more}{printable(command)} lists all with reasons", soft_wrap=True)
