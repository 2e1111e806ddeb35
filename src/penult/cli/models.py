"""Commands about a model: inspect, classify, convert, embed."""

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
from rich.table import Table
from rich.tree import Tree

from penult.cli.architecture import HEAD, draw, draw_cut, readable
from penult.cli.options import opening
from penult.cli.output import counted, emit, say, short, show, shown, stdout, working
from penult.cli.progress import Meter, metered

if TYPE_CHECKING:
    from penult.adding import Summary
    from penult.embedder import Embedder
    from penult.sources import Source

SOME_FAILED = 3
SHOWN_FAILURES = 5
SEQUENCES = {"audio": "time", "video": "patch", "image": "patch", "text": "token"}

NOTHING: dict[str, Any] = {}

Asked = dict[str, Any]  # what `opening` collects
Model = Annotated[
    str,
    typer.Argument(
        help="Folder, hub id, timm:NAME, torchvision:NAME, package.module:factory or demo."
    ),
]
Paths = Annotated[
    list[str],
    typer.Argument(help="Files, folders, tables (CSV, JSONL, Parquet with a path column), or -."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Allow code and pickles of the checkpoint to run.")
]
Tap = Annotated[
    str | None,
    typer.Option(help="Where to read: backbone, prelogits, weighted, layer:N or a module's path."),
]
Pooling = Annotated[
    str | None, typer.Option(help="Over positions: mean, max, first, last or mean+std.")
]
Channel = Annotated[
    str | None, typer.Option(help="A channel (from 0), or each; else the mean over channels.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]


@opening
def inspect(
    model: Model,
    depth: Annotated[int | None, typer.Option(min=1, help="Levels of the tree to show.")] = None,
    json: Json = False,
    asked: Asked = NOTHING,
) -> None:
    """Show the architecture before and after the cut, the head, and every tap with its shape."""
    from penult.classifiers import load
    from penult.embedder import anatomy_of, certify

    with working(f"loading {model}"):
        classifier = load(model, **asked)
        anatomy = anatomy_of(classifier)
        certificate = certify(classifier)
    facts = classifier.describe()
    if json:
        emit(_inspected(classifier, anatomy, certificate))
        return
    _show_facts(facts, classifier.labels)
    axis = SEQUENCES[classifier.modality]
    before, after = _before_and_after(classifier, anatomy, axis, depth)
    before.label = f"[bold underline]before[/]  {before.label}"
    after.label = f"[bold underline]after[/]   {after.label}"
    stdout.print(before, "", after, "", sep="\n")
    verdict = "[bold green]head[/]" if certificate.ok else "[bold red]head[/]"
    stdout.print(f"{verdict} {escape(str(certificate))}\n")
    if anatomy.refusal:
        stdout.print(f"[bold red]head not found:[/] {escape(anatomy.refusal)}")
    if anatomy.mixes_layers:
        stdout.print(
            "[bold]note[/] this checkpoint mixes all of its layers with learned weights: the head "
            "sees that mix (tap [cyan]weighted[/]), and not the last hidden states alone "
            "(tap [cyan]backbone[/])."
        )
    show(_taps_table(anatomy.taps, axis))


@opening
def classify(
    model: Model,
    paths: Paths,
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 3,
    channel: Channel = None,
    device: Device = "auto",
    json: Json = False,
    asked: Asked = NOTHING,
) -> None:
    """Ask the classifier itself: logits, class id, label and probability of every item."""
    from penult.api import prediction_of
    from penult.classifiers import load
    from penult.runner import Outcome, Runner, device_of

    source = _source(paths, channel, _modality_of(model, asked))
    with working(f"loading {model}"):
        classifier = load(model, **asked)
    runner = Runner(classifier, [], device_of(classifier, device))
    predictions, failures = [], []
    for outcome in runner.stream(source):
        if not isinstance(outcome, Outcome):
            failures.append(outcome)
            say(f"[red]failed[/] {short(outcome.id)}: {shown(outcome.message)}")
            continue
        prediction = prediction_of(classifier, outcome)
        if json:
            predictions.append(_prediction(prediction))
        else:
            _show_prediction(prediction, top)
    if json:
        emit(
            {
                "model": classifier.spec,
                "kind": classifier.kind,
                "labels": classifier.labels,
                "predictions": predictions,
                "failures": [_failure(failure) for failure in failures],
            }
        )
    if failures:
        raise typer.Exit(SOME_FAILED)


@opening
def convert(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Where the embedder is saved.")],
    tap: Tap = None,
    pooling: Pooling = None,
    json: Json = False,
    asked: Asked = NOTHING,
) -> None:
    """Save a classifier as an embedder: one folder that any command takes as its MODEL."""
    from penult.embedder import open_embedder

    with working(f"loading {model}"):
        embedder = open_embedder(model, tap, pooling, **asked)
    _require_proof(embedder)
    saved = embedder.save(folder)
    if json:
        emit({"folder": str(saved), **_embedder_facts(embedder)})
        return
    stdout.print(
        f"saved [bold]{shown(str(saved))}[/]: tap [cyan]{escape(embedder.tap.name)}[/], pooling "
        f"[cyan]{embedder.pooling}[/], {embedder.dim} numbers per "
        f"{'position' if embedder.pooling == 'none' else 'item'}, "
        f"fingerprint {embedder.fingerprint_id}",
        soft_wrap=True,
    )
    stdout.print(_proof_line(embedder), soft_wrap=True)


@opening
def embed(
    model: Model,
    paths: Paths,
    into: Annotated[Path, typer.Option(help="The collection, for example calls.lance.")],
    tap: Tap = None,
    pooling: Pooling = None,
    channel: Channel = None,
    logits: Annotated[str, typer.Option(help="Which logits to keep: all, top:K or none.")] = "all",
    fp16: Annotated[bool, typer.Option("--fp16", help="Keep vectors in half precision.")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(help="Refuse longer recordings, instead of filling memory.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait if another process is writing.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
    asked: Asked = NOTHING,
) -> None:
    """Label and vector of every item, in one forward pass each, into a collection.

    What the collection has already is left alone; a run that was stopped goes on.
    """
    from penult.adding import add
    from penult.collection import Collection
    from penult.embedder import open_embedder
    from penult.ingest import Options

    source = _source(paths, channel, _modality_of(model, asked))
    collection = Collection.open(into)
    with working(f"loading {model}"):
        embedder = open_embedder(model, tap, pooling, device=device, **asked)
    _say_metadata(source)
    _require_proof(embedder)
    options = Options(logits=logits, max_seconds=max_seconds, retry_failed=retry_failed)
    with _interrupted_by_sigterm(), metered("embedding", show=not json) as meter:
        _count_aside(source, meter)
        summary = add(
            collection,
            embedder,
            source,
            options,
            dtype="float16" if fp16 else "float32",
            wait=wait,
            tick=meter.tick,
        )
        elapsed, rate = meter.elapsed, meter.rate()
    if json:
        emit(
            {
                "collection": str(collection.path),
                **summary.counts(),
                "rows": collection.count,
                "seconds_of_media": summary.media_seconds,
                "elapsed": elapsed,
                "run": summary.run_id,
                **_embedder_facts(embedder),
            }
        )
    else:
        took = f"{elapsed:.1f} s" + (f" ({rate})" if meter.embedded else "")
        _show_summary(summary, collection, embedder, took)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


COMMANDS = (inspect, classify, convert, embed)


def _modality_of(model: str, asked: dict[str, Any]) -> str:
    """What kind of items a model takes, so that a wrong path is told before weights are loaded."""
    from penult.classifiers import modality_of

    with working(f"opening {model}"):
        return modality_of(model, **asked)


def _source(paths: list[str], channel: str | None, modality: str) -> Source:
    from penult.errors import UsageError
    from penult.sources import from_paths

    if channel is None or channel == "each":
        return from_paths(paths, modality, channel)  # type: ignore[arg-type]
    if not channel.isdigit():
        raise UsageError(f"--channel {channel!r} is neither a number from 0 nor 'each'")
    return from_paths(paths, modality, int(channel))


def _count_aside(source: Source, meter: Meter) -> None:
    """Count the items while the first ones are embedded, so that time left can be told."""
    if source.total is not None:
        meter.expect(source.total)
    elif meter.shown:
        threading.Thread(target=lambda: meter.expect(source.count()), daemon=True).start()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: commit what is done, say so, stop."""

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


def _inspected(classifier: Any, anatomy: Any, certificate: Any) -> dict[str, Any]:
    """What `inspect --json` says."""
    axis = SEQUENCES[classifier.modality]
    return {
        "model": classifier.spec,
        **classifier.describe(),
        "labels": classifier.labels,
        "head": {
            "last_weight_layers": anatomy.head,
            "modules": sorted(anatomy.behind),
            "refusal": anatomy.refusal or None,
            "certificate": certificate.to_dict(),
        },
        "backbone": classifier.base,
        "mixes_layers": anatomy.mixes_layers,
        "taps": [
            {
                "name": name,
                "module": tap.module,
                "side": tap.side,
                "shape": tap.shape,
                "width": tap.width,
                "axes": tap.describe(axis),
            }
            for name, tap in anatomy.taps.items()
        ],
        "prepared": classifier.identity(),
    }


def _show_facts(facts: dict[str, Any], labels: tuple[str, ...]) -> None:
    shown = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
    rate = f" at {facts['rate']:,} Hz" if facts.get("rate") else ""
    stdout.print(
        f"[bold]{facts['class']}[/]  {facts['modality']}{rate}, {facts['kind']}, "
        f"{facts['classes']} classes ({escape(shown)}), "
        f"{readable(facts['parameters'])} parameters\n"
    )


def _show_prediction(prediction: Any, top: int) -> None:
    where = "" if prediction.region == "whole" else f" [dim]{prediction.region}[/]"
    stdout.print(f"[bold]{short(prediction.id)}[/]{where}", soft_wrap=True)
    for place, best in enumerate(prediction.top(top)):
        style = "bold green" if place == 0 else "dim"
        stdout.print(
            f"  [{style}]{best.score:7.4f}  {shown(best.label)}[/]"
            f"  [dim]class {best.index}, logit {best.logit:.4f}[/]",
            soft_wrap=True,
        )


def _before_and_after(
    classifier: Any, anatomy: Any, axis: str, depth: int | None
) -> tuple[Tree, Tree]:
    """The module tree, or the graph, with its head and without it."""
    pooled = _what_comes_out(anatomy, axis)
    if classifier.engine == "torch":
        before = draw(classifier.module, anatomy.behind, anatomy.head or (), depth)
        return before, draw_cut(classifier.module, anatomy.behind, pooled)
    from penult.cli.graphs import draw_graph, draw_graph_cut

    name = classifier.path.name
    before = draw_graph(classifier.cut, name, anatomy, depth)
    return before, draw_graph_cut(classifier.cut, name, anatomy, pooled)


def _what_comes_out(anatomy: Any, axis: str) -> str:
    tap = anatomy.taps.get("backbone")
    if tap is None:
        return "no hidden states with positions were found"
    return f"hidden states: {tap.describe(axis)}  →  mean  →  a vector of {tap.width} numbers"


def _taps_table(taps: Any, axis: str) -> Table:
    table = Table(title="taps", title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("tap", "read at", "shape of one item", "numbers"):
        table.add_column(column, justify="right" if column == "numbers" else "left")
    layers = [name for name in taps if name.startswith("layer:")]
    for name, tap in taps.items():
        if name in layers and name not in (layers[0], layers[-1]):
            if name == layers[1]:
                table.add_row("…", "", "", "")
            continue
        style = HEAD if name == "prelogits" else ""
        place = f"{tap.side} of {tap.module or 'the model'}"
        table.add_row(
            f"[cyan]{name}[/]", escape(place), tap.describe(axis), str(tap.width), style=style
        )
    return table


def _require_proof(embedder: Embedder) -> None:
    """Only an unproved head stops the prelogits; every other tap is what it says it is."""
    from penult.errors import HeadNotFound

    with working("proving the head"):
        proof = embedder.certificate
    if embedder.tap.name == "prelogits" and not proof.ok:
        raise HeadNotFound(
            f"the head is not proved, so there are no prelogits: {proof.refusal}. "
            "Another tap works: --tap backbone"
        )


def _proof_line(embedder: Embedder) -> str:
    proof = embedder.certificate
    if proof.ok:
        return (
            f"[dim]head proved: {len(proof.checks)} checks, largest error {proof.max_error:.1g}[/]"
        )
    return f"[dim]head not proved: {shown(proof.refusal)}[/]"


def _say_metadata(source: Source) -> None:
    """Which columns of a table are kept, so that a misspelt `start` is seen."""
    old = {new: name for name, new in source.renamed.items()}
    kept = [
        f"{new} ({kind}{f', from {shown(repr(old[new]))}' if new in old else ''})"
        for new, kind in source.columns.items()
    ]
    if kept:
        say(f"[dim]metadata: {', '.join(kept)}[/]")


def _show_summary(summary: Summary, collection: Any, embedder: Embedder, took: str) -> None:
    parts = [f"[bold green]{summary.done:,} embedded[/]"]
    if summary.skipped:
        parts.append(f"{summary.skipped:,} unchanged")
    if summary.replaced:
        parts.append(f"{summary.replaced:,} replaced")
    if summary.failed:
        parts.append(f"[bold red]{summary.failed:,} failed[/]")
    stdout.print(f"{', '.join(parts)} in {took}")
    path = shown(str(collection.path))
    stdout.print(
        f"[bold]{path}[/]: {counted(collection.count, 'row')} of {embedder.dim} numbers, "
        f"tap {escape(embedder.tap.name)}, pooling {embedder.pooling}",
        soft_wrap=True,
    )
    stdout.print(_proof_line(embedder), soft_wrap=True)
    if not summary.failed:
        return
    failed = [row for row in collection.failures().to_pylist() if row["run_id"] == summary.run_id]
    for row in failed[:SHOWN_FAILURES]:
        stdout.print(f"  [red]{short(row['id'])}[/]: {shown(row['message'])}", soft_wrap=True)
    rest = summary.failed - SHOWN_FAILURES
    more = f"  … and {rest:,} more; " if rest > 0 else ""
    command = f"penult failures {shlex.quote(str(collection.path))}"
    stdout.print(f"{more}{shown(command)} names each one and why", soft_wrap=True)


def _embedder_facts(embedder: Embedder) -> dict[str, Any]:
    return {
        "model": embedder.classifier.spec,
        "tap": embedder.tap.name,
        "pooling": embedder.pooling,
        "dim": embedder.dim,
        "fingerprint": embedder.fingerprint,
        "fingerprint_id": embedder.fingerprint_id,
        "certificate": embedder.certificate.to_dict(),
    }


def _prediction(prediction: Any) -> dict[str, Any]:
    return {
        "id": prediction.id,
        "region": prediction.region,
        "label": prediction.label,
        "index": prediction.index,
        "score": prediction.score,
        "scores": prediction.scores,
        "logits": prediction.logits,
    }


def _failure(failure: Any) -> dict[str, Any]:
    return {
        "id": failure.id,
        "region": failure.region,
        "error": failure.error,
        "message": failure.message,
    }
