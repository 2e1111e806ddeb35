"""`penult demo` and `penult doctor`: a tour on the bundled classifier; the installation."""

from __future__ import annotations

import csv
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from penult.cli import explore as page
from penult.cli import inspect
from penult.cli.options import Json
from penult.cli.output import print_json, print_note, stdout
from penult.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from penult.collection.collection import Collection
    from penult.data.workers import WorkerBounds


OUT = Path("penult-demo")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the collection and the map.")] = OUT,
    explore: Annotated[
        bool, typer.Option("--explore", help="Open the clips in a browser, as penult explore does.")
    ] = False,
    json: Json = False,
) -> None:
    """Take a tour on the bundled classifier: inspect, classify, embed, search, one-shot, map."""
    if explore and json:
        raise UsageError("--explore serves a page until it is ended, and prints no report: leave "
                         "out --json")  # fmt: skip
    began = time.monotonic()
    clips = Path(str(files("penult") / "demo" / "clips")) / "clips.csv"
    with clips.open(newline="") as file:
        rows = {str((clips.parent / row["path"]).resolve()): row for row in csv.DictReader(file)}
    known = {row["word"] for row in rows.values() if row["known"] == "true"}
    new = {row["word"] for row in rows.values()} - known
    show = _Show(not json)

    show.step(1, "inspect", "the layers of the bundled classifier, and where the head begins")
    if not json:
        inspect.inspect(model="demo")
    show.step(2, "classify", f"{len(known)} trained words, in voices outside the training data")
    report: dict[str, Any] = {"classify": _classify(rows, show)}
    show.step(3, "embed", "label and vector of every clip in one pass, stored in a collection")
    collection, report["embed"] = _embed(clips, out / "clips.lance", show)
    words, voices, vectors = _loaded(collection)
    show.step(4, "search", "the nearest clips in other voices")
    report["search"] = _search(collection, words, voices, vectors, new, show)
    show.step(
        5,
        "one-shot",
        f"one example for each of {len(new)} untrained words, in one voice",
    )
    report["one_shot"] = _one_shot(words, voices, vectors, new, show)
    show.step(6, "map", "each vector as a point in two dimensions")
    report["map"] = _map(out, vectors, words, new, show)
    report["seconds"] = round(time.monotonic() - began, 1)
    if json:
        print_json(report)
        return
    stdout.print(f"\ndone in {report['seconds']} s. Now your own: penult inspect MODEL")
    if explore:
        page.explore(collection=out / "clips.lance")


class _Show:
    """Prints the tour's steps, or nothing."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def step(self, number: int, name: str, summary: str) -> None:
        if self.on:
            stdout.rule(f"[bold]{number} · {name}[/]  [dim]{summary}[/]", align="left")

    def line(self, text: str) -> None:
        if self.on:
            stdout.print(text, soft_wrap=True)


def _classify(rows: dict[str, dict[str, str]], show: _Show) -> dict[str, Any]:
    from penult.api import load

    trained = {path: row["word"] for path, row in rows.items() if row["known"] == "true"}
    predictions = load("demo").classify([Path(path) for path in trained])
    right = sum(trained[p.id] == p.label for p in predictions)
    # One clip of each word, each by another voice.
    chosen = predictions[:: len(set(trained.values())) + 1]
    for prediction in chosen:
        word = trained[prediction.id]
        mark = "[green]✓[/]" if word == prediction.label else "[red]✗[/]"
        show.line(
            f"  {mark} {Path(prediction.id).name:<32} predicted [bold]{prediction.label}[/] "
            f"({prediction.score:.2f})"
        )
    show.line(f"  right: {_share(right, len(predictions))}")
    return {"right": right, "of": len(predictions)}


def _embed(clips: Path, into: Path, show: _Show) -> tuple[Collection, dict[str, Any]]:
    from penult.collection.add import add
    from penult.collection.collection import Collection
    from penult.data.sources import from_paths
    from penult.embedding.embedder import open_embedder

    embedder = open_embedder("demo")
    collection = Collection.open(into)
    began = time.monotonic()
    summary = add(collection.reader, embedder, from_paths([clips], "audio"))
    took = time.monotonic() - began
    show.line(
        f"  {summary.done} embedded, {summary.skipped} unchanged in {took:.1f} s → "
        f"[bold]{escape(str(into))}[/]: {collection.count} vectors of {embedder.dim} numbers"
    )
    return collection, {**summary.counts(), "dim": embedder.dim, "collection": str(into)}


def _loaded(
    collection: Collection,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Words (n,), voices (n,) and vectors (n, d), of length one."""
    keys, vectors = collection.vectors(columns=["word", "voice"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.array(keys["word"].to_pylist()), np.array(keys["voice"].to_pylist()), unit


def _search(
    collection: Collection,
    words: npt.NDArray[Any],
    voices: npt.NDArray[Any],
    vectors: npt.NDArray[np.float32],
    new: set[str],
    show: _Show,
) -> dict[str, Any]:
    word = sorted(new)[0]
    query = int(np.flatnonzero(words == word)[0])
    where = f"voice <> '{voices[query]}'"
    hits = collection.search(vectors[query], k=5, where=where)
    show.line(f"  query: [bold]{word}[/] by {voices[query]}, a word outside the training data")
    for hit in hits:
        mark = "[green]✓[/]" if hit.metadata["word"] == word else "[red]✗[/]"
        show.line(
            f"  {mark} {hit.similarity:.3f}  {hit.metadata['word']:<10} by {hit.metadata['voice']}"
        )
    similar = vectors @ vectors.T
    similar[voices[:, None] == voices[None, :]] = -np.inf
    right = int((words[similar.argmax(axis=1)] == words).sum())
    show.line(f"  over all clips, the nearest clip is the same word: {_share(right, len(words))}")
    return {"query": word, "nearest_is_same_word": right, "of": len(words)}


def _one_shot(
    words: npt.NDArray[Any],
    voices: npt.NDArray[Any],
    vectors: npt.NDArray[np.float32],
    new: set[str],
    show: _Show,
) -> dict[str, Any]:
    """One-shot accuracy: each voice in turn gives one example per new word."""
    unknown = np.isin(words, sorted(new))
    right = total = 0
    for voice in sorted(set(voices)):
        examples = np.flatnonzero(unknown & (voices == voice))
        query = np.flatnonzero(unknown & (voices != voice))
        nearest = examples[(vectors[query] @ vectors[examples].T).argmax(axis=1)]
        right += int((words[nearest] == words[query]).sum())
        total += len(query)
    show.line(f"  {', '.join(sorted(new))}")
    show.line(
        f"  right: {_share(right, total)}; chance: {1 / len(new):.0%}. "
        "No training, one vector per word."
    )
    return {"words": sorted(new), "right": right, "of": total, "chance": 1 / len(new)}


def _map(
    out: Path,
    vectors: npt.NDArray[np.float32],
    words: npt.NDArray[Any],
    new: set[str],
    show: _Show,
) -> str | None:
    from penult.analysis.projection import project
    from penult.errors import MissingExtra
    from penult.viz.plots import draw_map

    path = out / "map.png"
    try:
        draw_map(
            path,
            project(vectors),
            words.tolist(),
            new,
            "The bundled classifier's vectors",
            f"{len(words)} clips · circles: trained words · stars: words outside the training data",
        )
    except MissingExtra as error:
        print_note(escape(str(error)))
        return None
    show.line(f"  [bold]{escape(str(path))}[/]")
    return str(path)


def doctor(json: Json = False) -> None:
    """List installed and missing packages, and the device that would be used."""
    import platform

    from penult import __version__
    from penult.engines.pooling import pooled_width
    from penult.engines.registry import DEFAULT, plugin_spec, specs_of
    from penult.extras import ENGINES, EXTRAS, LOADERS, POOLINGS, installed, plugin_states
    from penult.models.specs import check_loader

    needed = ("torch", "transformers", "numpy", "lancedb", "soundfile", "soxr")
    packages = {name: installed(name) for name in needed} | {"pillow": installed("PIL")}
    extras = {name: (installed(name), extra, what) for name, (extra, what) in EXTRAS.items()}
    checks: dict[str, Any] = {
        LOADERS: check_loader,
        POOLINGS: lambda name: pooled_width(name, 8),
        ENGINES: plugin_spec,
    }
    added = plugin_states(checks)
    bounds = _worker_bounds()
    device = specs_of(DEFAULT)[0].select_device("auto")
    if json:
        print_json(
            {
                "penult": __version__,
                "python": platform.python_version(),
                "device": device,
                "packages": packages,
                "extras": {name: {"version": v, "extra": e} for name, (v, e, _) in extras.items()},
                "workers": bounds.to_dict() if bounds else None,
                "plugins": [
                    {
                        "kind": one.kind,
                        "name": one.name,
                        "package": one.package,
                        "error": one.error or None,
                    }
                    for one in added
                ],
            }
        )
        return
    stdout.print(f"penult {__version__} · Python {platform.python_version()} · {device}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, number in packages.items():
        table.add_row(name, number or "[red]missing[/]", "")
    for name, (number, extra, what) in extras.items():
        hint = what if number else f"{what}: pip install 'penult\\[{extra}]'"
        table.add_row(name, number or "[dim]not installed[/]", f"[dim]{hint}[/]")
    stdout.print(table)
    _print_bounds(bounds)
    for one in added:
        state = f"[red]{escape(one.error)}[/]" if one.error else "[dim]works[/]"
        stdout.print(
            f"{one.kind} [bold]{escape(one.name)}[/] of {escape(one.package)}: {state}",
            soft_wrap=True,
        )


def _print_bounds(bounds: WorkerBounds | None) -> None:
    if bounds is None:
        stdout.print("[red]worker processes do not come up[/]: --workers 0 decodes without them")
        return
    for kept, by in bounds.kept_from.items():
        words = f"[dim]kept out by {', '.join(by)}[/]" if by else "[yellow]not kept out here[/]"
        stdout.print(f"workers and {kept}: {words}", soft_wrap=True)


def _worker_bounds() -> WorkerBounds | None:
    """What decode workers are kept from; None where none comes up."""
    from penult.data.workers import measure_bounds
    from penult.errors import StoreError

    try:
        return measure_bounds()
    except (StoreError, OSError):
        return None


def _share(right: int, total: int) -> str:
    return f"[bold]{right} of {total}[/] ({right / total:.0%})"
