"""`penult embed`: items into a collection, with progress, a summary and a way to stop."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from penult.cli.options import (
    NO_OPTIONS,
    AudioFolders,
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
    Ray,
    RayPatience,
    RayWorkerCount,
    Tap,
    Tile,
    TimeZone,
    Window,
    check_parent,
    engine_of,
    layout_of,
    machines_of,
    modality_for,
    source_of,
    times_asked,
    with_columns,
    with_limits,
    with_model_options,
)
from penult.cli.output import (
    FAILED,
    SOME_FAILED,
    CommandClock,
    Meter,
    by_item,
    command_clock,
    counted,
    event_log,
    metered,
    print_error,
    print_json,
    print_note,
    printable,
    printable_path,
    proof_line,
    reason_words,
    stdout,
    working,
)
from penult.cli.signals import stopped_in_order
from penult.errors import StoreError, UsageError, listed

if TYPE_CHECKING:
    from penult.collection.add import RunSettings, Summary
    from penult.collection.collection import Collection
    from penult.collection.ingest import CommitBatch, Options
    from penult.collection.run_plan import RunPlan
    from penult.data.roots import RootOptions
    from penult.data.sources import Source
    from penult.embedding.embedder import Embedder


SHOWN = 5
STEPS = ("decode", "prepare", "wait", "model", "write")  # of a run; they overlap in time


class FailOn(StrEnum):
    """Failures that the exit code tells."""

    ANY = "any"
    NEW = "new"
    NONE = "none"

    def counted(self, summary: Summary) -> int:
        """How many of a run's failures are of this sort."""
        return {"any": summary.failed, "new": summary.found.failures.new, "none": 0}[self.value]


@with_columns
@with_limits
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
    audio: AudioFolders = None,
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
    max_model_seconds: Annotated[
        float | None,
        typer.Option(
            help="Longest time of one pass of the model in seconds; beyond it the run ends, and "
            "the next one leaves the item out."
        ),
    ] = None,
    logits: Annotated[str, typer.Option(help="Logits to store: all, top:K or none.")] = "all",
    fp16: Annotated[bool, typer.Option("--fp16", help="Store vectors in half precision.")] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Retry all items that failed in an earlier run, not only after a fault outside of "
            "them.",
        ),
    ] = False,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="Failures that end the run with exit code 3: any, only new ones, or none."
        ),
    ] = FailOn.ANY,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Instead of PATHS: embed the items of this collection and copy its labels."
        ),
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            help="Refit the space of a chosen embedder to the rows, without labels: mean (their "
            "mean in place of that of the items that it was chosen on) or coral (their scale and "
            "correlations too)."
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove rows and failures whose files or annotations are gone from these paths, "
            "unless they are more than a tenth.",
        ),
    ] = False,
    prune_all: Annotated[
        bool,
        typer.Option(
            "--prune-all", help="As --prune, however many they are and wherever their disk is."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Change nothing: print what would be embedded, and what --prune would remove.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Write no row: print items, hours, rows, disk and time of the run, by the "
            "headers, the proof and a few regions that are measured, and which items will fail.",
        ),
    ] = False,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder that ids begin with, as DIR or NAME=DIR, in place of the folders of "
            "PATHS; it can be given several times."
        ),
    ] = None,
    absolute_ids: Annotated[
        bool,
        typer.Option(
            "--absolute-ids", help="Ids are whole paths: files that are moved are other items."
        ),
    ] = False,
    times: Annotated[
        bool | None,
        typer.Option(
            "--times/--no-times",
            help="Keep when each item was recorded, by its header or name, as a column "
            "recorded_at. Default: as the collection's last run.",
        ),
    ] = None,
    time_zone: TimeZone = None,
    shard: Annotated[
        str | None, typer.Option(help="Embed only one part of the items, for example 1/4 … 4/4.")
    ] = None,
    heartbeat: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds between lines of progress where stderr is no terminal: 30, and 10 with "
            "--log json.",
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Wait while work such as `penult index` has the collection alone, and with "
            "--prune while others are writing.",
        ),
    ] = False,
    device: Devices = "auto",
    engine: Engine = "auto",
    precision: Precision = None,
    ray: Ray = None,
    ray_workers: RayWorkerCount = None,
    ray_patience: RayPatience = None,
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Store the label and vector of every item in a collection, with one forward pass per item.

    Items that the collection holds already are skipped; a stopped run continues where it ended.
    """
    from penult.collection.add import add, in_roots
    from penult.collection.collection import Collection
    from penult.collection.ingest import Options
    from penult.collection.transfer import source_from_collection
    from penult.data.decode import usual_decoding
    from penult.data.roots import RootOptions
    from penult.data.sources import Shard, recordings_in
    from penult.embedding.embedder import open_embedder

    roots, given = RootOptions.of(root, absolute_ids), [] if like else _paths(paths)
    settings, clock = _settings(fp16, wait, prune, prune_all, shard, adapt, roots), command_clock()
    check_parent(into, create=True)
    collection = Collection.open(into)
    old = Collection.open(like, must_exist=True) if like else None
    modality = modality_for(model, model_options)
    how = {"tap": tap, "pooling": pooling, "pool_over": pool_over, **model_options}
    how |= {"device": device, "engine": engine_of(engine, ray)}
    how |= {"precision": precision or _precision_of(collection)}
    options = Options(
        logits=logits,
        retry_failed=retry_failed,
        layout=layout_of(modality, window, hop, tile, overlap, pages),
        summary=summary,  # type: ignore[arg-type]
        alone=alone,
        limits=replace(usual_decoding().limits, model_seconds=max_model_seconds),
        times=times_asked(times, time_zone) or (None if times is None else False),
        machines=machines_of(model, how, ray, ray_workers, ray_patience),
    )
    if old is None:
        with recordings_in(audio or [], collection.reader.roots):
            source = source_of(given, channel, modality)
    else:
        source, options = source_from_collection(
            old.reader, collection.reader, modality, options, bool(paths) or channel
        )
    source = Shard.parse(shard).of(in_roots(collection.reader, source, roots)) if shard else source
    clock.end("start")
    with working(f"loading {model}"):
        embedder = open_embedder(model, **how)
    clock.end("model")
    if show := partial(_show_plan, clock) if plan else _show_survey if dry_run else None:
        show(collection, embedder, source, options, settings, json)
        return
    _prepare(collection, embedder, source, options, clock)
    with _run_into(collection), metered("embedding", not json, heartbeat) as meter:
        if options.layout == Options().layout:
            _count_aside(source, meter)
        summary_of_run = add(collection.reader, embedder, source, options, settings,
                             tick=meter.tick, like=old.reader if old else None)  # fmt: skip
        meter.leave_out(opening := summary_of_run.seconds.get("open", 0.0))
        told = meter.elapsed, meter.rate() if meter.embedded else "", json
    clock.end("embedding")
    clock.move(opening, "embedding", "model")
    _note_empty_summary(collection, summary)
    _tell_run(summary_of_run, collection, embedder, clock, told)
    _exit_as(summary_of_run, fail_on)


def _note_empty_summary(collection: Collection, summary: str | None) -> None:
    """Say that there was nothing to sum."""
    if summary is not None and not collection.reader.count_rows("kind = 'summary'"):
        print_note(
            "[yellow]--summary made no row: it sums the parts of a file, and no file has any; "
            "--window, --tile or --pages each makes them[/]"
        )


def _tell_run(
    summary: Summary,
    collection: Collection,
    embedder: Embedder,
    clock: CommandClock,
    told: tuple[float, str, bool],
) -> None:
    """told: the seconds, the rate in words, and whether as JSON."""
    from penult.collection.add import describe_run
    from penult.embedding.embedder import describe_embedder

    elapsed, rate, json = told
    if json:
        facts = {"elapsed": elapsed, **clock.to_dict(), **describe_embedder(embedder)}
        print_json({**describe_run(summary, collection.reader), **facts})
    else:
        _show_summary(summary, collection, embedder, clock, rate)


def _exit_as(summary: Summary, fail_on: FailOn) -> None:
    """End with another exit code than 0 where rows were kept back, or items failed."""
    if kept_back := summary.found.kept_back:
        print_error(kept_back, StoreError.__name__, as_json=False)
        raise typer.Exit(FAILED)
    if fail_on.counted(summary):
        raise typer.Exit(SOME_FAILED)


def _settings(
    fp16: bool,
    wait: bool,
    prune: bool,
    prune_all: bool,
    shard: str | None,
    adapt: str | None,
    roots: RootOptions,
) -> Any:
    """How the run writes."""
    from penult.collection.add import RunSettings

    return RunSettings(
        "float16" if fp16 else "float32",
        wait,
        "all" if prune_all else prune,
        {"shard": shard} if shard else {},
        _tell_commit,
        adapt,
        roots,
    )


def _tell_commit(step: CommitBatch, summary: Summary) -> None:
    """Events of one commit, and of the failures that it has."""
    if (log := event_log()) is None:
        return
    log.run = summary.run_id
    for failure in step.failures:
        log.emit("failure", **failure.to_dict(), passing=failure.passing)
    log.totals = {**summary.counts(), "failures": asdict(summary.found.failures)}
    if step.row_count or step.failures or step.known or step.revised or step.skipped:
        log.emit("commit", rows=step.row_count, failures_tried=len(step.failures), **log.totals)


def _show_plan(
    clock: CommandClock,
    collection: Collection,
    embedder: Embedder,
    source: Source,
    options: Options,
    settings: RunSettings,
    as_json: bool,
) -> None:
    """Print what a run would do and take. Exit code 3 where items will fail."""
    from penult.collection.run_plan import plan_run
    from penult.embedding.embedder import keeps_proof

    _prepare(collection, embedder, source, options, clock)
    with working("reading headers and measuring a few items"):
        found = plan_run(
            collection.reader, embedder, source, options, settings.roots, settings.dtype
        )
    before, kept = {**clock.stages, "opening": found.opening}, keeps_proof(embedder)
    if as_json:
        stages = {"seconds_before": before, "proof_kept": kept}
        print_json({"collection": str(collection.path), "plan": True, **found.to_dict(), **stages})
    else:
        hours = f", {found.seconds / 3600:,.3g} h" if found.seconds else ""
        there = f", {found.unchanged:,} there already" if found.unchanged else ""
        stdout.print(
            f"[bold]{counted(found.items, 'item')}[/]{hours}: {counted(found.rows, 'row')} to "
            f"embed{there}; nothing is changed (--plan)",
            soft_wrap=True,
        )
        room = "" if found.free is None else f", {_bytes(found.free)} are free"
        stdout.print(f"disk: about {_bytes(found.disk)}{room}")
        if found.time is not None:
            _show_times(found, before, kept)
        if found.free is not None and found.disk > found.free:
            stdout.print("[bold red]the disk is too small[/]")
        for one in found.failures[:SHOWN]:
            stdout.print(
                f"  [red]will fail[/] {printable_path(one.id)}: {printable(one.message)}",
                soft_wrap=True,
            )
        if (rest := len(found.failures) - SHOWN) > 0:
            stdout.print(f"  … and {rest:,} more; --json has all")
    if found.failures:
        raise typer.Exit(SOME_FAILED)


def _show_times(found: RunPlan, before: Mapping[str, float], kept: bool) -> None:
    """before: seconds of each stage in front of the first row. kept: the proof, for the run."""
    assert found.time is not None
    stages = " · ".join(f"{name} {seconds:,.1f} s" for name, seconds in before.items())
    stdout.print(
        f"time: about {_duration(found.time + sum(before.values()))}: {_duration(found.time)} for "
        f"the rows, by {counted(found.measured, 'row')} measured here ({printable(found.engine)}), "
        f"and before them what it took here: {stages}"
        + ("; the proof is kept, and the run does not make it again" if kept else ""),
        soft_wrap=True,
    )


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _show_survey(
    collection: Collection,
    embedder: Embedder,
    source: Source,
    options: Options,
    settings: RunSettings,
    as_json: bool,
) -> None:
    """Print what a run would do."""
    from penult.collection.add import describe_survey, survey

    with working("looking at the files"):
        found, lost = survey(collection.reader, embedder, source, options, settings.roots)
        facts = describe_survey(found, lost, collection.reader)
    if as_json:
        print_json(facts)
        return
    parts = [f"{facts['new']:,} new"] + [
        f"{facts[name]:,} {words}"
        for name, words in (
            ("touched", "of another size or time"),
            ("unchanged", "unchanged"),
            ("known_failures", "failed before"),
        )
        if facts[name]
    ]
    stdout.print(f"dry run, nothing is changed: {', '.join(parts)}", soft_wrap=True)
    gone, former = facts["gone"], facts["former_annotations"]
    files = f"{counted(gone['count'], 'deleted file')} with {counted(gone['rows'], 'row')}"
    braked = bool(lost.refusal(former["count"]))
    prune_all = settings.prune == "all"  # the number of deleted files is no obstacle
    option = "--prune-all" if prune_all or braked else "--prune"
    _show_list(f"{option} would remove: {files}", gone["ids"])
    if gone["failures_only"]:
        _show_list(f"  {counted(len(gone['failures_only']), 'failure')}", gone["failures_only"])
    if former["count"]:
        _show_list(f"  {counted(former['count'], 'annotation')}", former["ids"])
    if facts["refused"] and not (prune_all and braked):
        stdout.print(f"[yellow]{printable(facts['refused'])}[/]", soft_wrap=True)


def _show_list(words: str, ids: list[str]) -> None:
    names = ", ".join(printable_path(id) for id in ids[:SHOWN])
    rest = ", …" if len(ids) > SHOWN else ""
    stdout.print(f"{words}{': ' if names else ''}{names}{rest}", soft_wrap=True)


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


def _prepare(
    collection: Collection,
    embedder: Embedder,
    source: Source,
    options: Options,
    clock: CommandClock,
) -> None:
    """Prove the head and choose the engine; print the choice where it is made before the run."""
    from penult.collection.add import engine_words, settle
    from penult.collection.ingest import decoding_of
    from penult.embedding.embedder import require_proof
    from penult.embedding.source_sample import SourceSample

    _print_metadata(source)
    sample = SourceSample(source, options.layout, decoding_of(options))
    with working("proving the head"):
        require_proof(embedder, sample)
    clock.end("proof")
    with working("choosing the engine"):
        settle(collection.reader, embedder, sample)
    clock.end("engine")
    if embedder.runner.choice and embedder.runner.portfolio is None:
        print_note(f"[dim]{printable(engine_words(collection.reader, embedder))}[/]")


def _count_aside(source: Source, meter: Meter) -> None:
    """Count the items while the first ones are embedded, for the estimate of the time left."""
    if source.total is not None:
        meter.expect(source.total)
    else:
        threading.Thread(target=lambda: meter.expect(source.count()), daemon=True).start()


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
    """A run that signals stop in order; print which metadata columns have another type after it."""
    before = collection.reader.schema if collection.manifest is not None else None
    with stopped_in_order():
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


def _show_moved(summary: Summary) -> None:
    if moved := summary.found.moved:
        pairs = [f"{old} → {new}" for old, new in list(moved.items())[:SHOWN]]
        _show_list(f"{len(moved):,} moved, recognised by content", [*pairs, *list(moved)[SHOWN:]])


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
            if summary.pruned or summary.found.failures_removed
            else _kept(summary)
        )
        stdout.print(
            f"[yellow]{counted(len(gone), 'file')} {were} deleted: {names}; {done}[/]",
            soft_wrap=True,
        )
    _show_former(summary)
    if removed := summary.found.failures_removed:
        stdout.print(f"{counted(removed, 'failure')} of deleted files removed")
    if not summary.found.kept_back and (doubt := summary.found.losses.doubt):
        stdout.print(f"[yellow]{printable(doubt)}[/]", soft_wrap=True)


def _kept(summary: Summary) -> str:
    """That rows stay, and the option that removes them; where a removal was refused, its reason
    follows."""
    found = summary.found
    if found.kept_back:
        return "their rows are kept"
    braked = found.losses.refusal(len(found.former))
    return f"their rows are kept; {'--prune-all' if braked else '--prune'} removes them"


def _show_former(summary: Summary) -> None:
    former = summary.found.former_words
    if not former:
        return
    names = ", ".join(printable_path(one) for one in former[:SHOWN])
    rest = ", …" if len(former) > SHOWN else ""
    what = counted(len(former), "annotation")
    are = "is" if len(former) == 1 else "are"
    done = "their rows are removed" if summary.found.former_removed else _kept(summary)
    stdout.print(
        f"[yellow]{what} {are} no longer in the tables: {names}{rest}; {done}[/]",
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
    elsewhere = summary.found.elsewhere
    if unchanged := summary.skipped - summary.updated - elsewhere:
        parts.append(f"{unchanged:,} unchanged")
    if elsewhere:
        parts.append(f"{elsewhere:,} added by another process meanwhile")
    if summary.updated:
        parts.append(f"{summary.updated:,} updated")
    if summary.replaced:
        parts.append(f"{summary.replaced:,} replaced")
    if summary.failed:
        new = summary.found.failures.new
        known = f" ({new:,} new)" if new < summary.failed else ""
        parts.append(f"[bold red]{summary.failed:,} failed[/]{known}")
    return parts


def _show_failures(summary: Summary, collection: Collection) -> None:
    """Print the first failures of a run, new ones before known ones."""
    if healed := summary.found.failures.healed:
        stdout.print(f"{counted(healed, 'earlier failure')} mended")
    if not summary.failed:
        return
    failed = [row for row in collection.failures().to_pylist() if row["run_id"] == summary.run_id]
    failed.sort(key=lambda row: row["first_run"] != summary.run_id)
    items = by_item(failed)
    for parts, reason in items[:SHOWN]:
        number = f" ({len(parts):,} parts)" if len(parts) > 1 else ""
        stdout.print(
            f"  [red]{printable_path(parts[0]['id'])}[/]: {reason_words(reason)}{number}",
            soft_wrap=True,
        )
    rest = sum(len(parts) for parts, _ in items[SHOWN:]) + summary.failed - len(failed)
    more = f"  … and {rest:,} more; " if rest > 0 else ""
    if passing := summary.found.failures.passing:
        more += f"{passing:,} to be tried again by the next run; "
    command = f"penult failures {shlex.quote(str(collection.path))}"
    stdout.print(f"{more}{printable(command)} lists all with reasons", soft_wrap=True)


def _show_summary(
    summary: Summary, collection: Any, embedder: Embedder, clock: CommandClock, rate: str
) -> None:
    from penult.collection.spaces import OWN, stored
    from penult.data.folders import HIDDEN

    for words in summary.found.roots:
        stdout.print(printable(words), soft_wrap=True)
    parts = _counts(summary)
    duration = f"{clock.elapsed:.1f} s" + (f" ({rate})" if rate else "")
    stdout.print(f"{', '.join(parts)} in {duration}")
    path = printable(str(collection.path))
    stdout.print(
        f"[bold]{path}[/]: {counted(collection.count, 'row')} of {embedder.dim} numbers, "
        f"tap {escape(embedder.tap.name)}, pooling {embedder.pooling}",
        soft_wrap=True,
    )
    stdout.print(proof_line(embedder), soft_wrap=True)
    if (choice := embedder.runner.choice) and embedder.runner.portfolio is not None:
        engines = {choice.mode.words, *choice.rows}
        if engines != {choice.native.words} or embedder.precision != "exact":
            print_note(f"[dim]{printable(summary.engine)}[/]")
    if embedder.space is not None:
        own = stored(collection.reader, OWN) or embedder.space
        adapted = f", adapted by {own.adapted}," if own.adapted else ""
        stdout.print(
            f"the embedder's space {escape(own.recipe)}{adapted} is stored: search with "
            "--space embedder",
            soft_wrap=True,
        )
    stages = " · ".join(f"{stage} {seconds:.1f} s" for stage, seconds in clock.stages.items())
    stdout.print(f"[dim]time by stage: {stages}[/]", soft_wrap=True)
    if summary.done + summary.replaced:
        spent = " · ".join(f"{step} {summary.seconds.get(step, 0.0):.1f} s" for step in STEPS)
        stdout.print(f"[dim]time by step (overlapping): {spent}[/]", soft_wrap=True)
    if summary.truncated:
        words = _TRUNCATED[embedder.classifier.modality]
        stdout.print(f"[yellow]{counted(summary.truncated, 'item')} {words}[/]", soft_wrap=True)
    _show_notes(summary)
    _show_moved(summary)
    for words in summary.found.times.words() if summary.found.times else ():
        stdout.print(printable(words), soft_wrap=True)
    _show_taken_and_gone(summary)
    others = dict(summary.found.left_out)
    if hidden := others.pop(HIDDEN, 0):
        stdout.print(f"[dim]hidden files left out: {hidden:,}[/]")
    if others:
        from penult.data.folders import in_words

        count = counted(sum(others.values()), "file")
        stdout.print(
            f"[dim]other file types left out: {count} ({printable(in_words(others))})[/]",
            soft_wrap=True,
        )
    _show_failures(summary, collection)
