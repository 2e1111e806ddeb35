"""The section of bench.py on the choice of the engine: `auto` against the best fixed choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import Bench, Section, digits, tell
from page import Table
from speed import WAYS, forget, mixed, models, saved

WORK = (10.0, 60.0)  # seconds in torch
LONG = 600.0
BOUND = 0.95  # of the best fixed choice's speed
AUTO = "auto"
FIRST, SECOND = "first run", "second run"


@dataclass(frozen=True, slots=True)
class Timed:
    """One run of a fresh embedder. whole: its seconds; words: the engine in the end."""

    whole: float
    words: str


def fresh_run(
    folder: Path, items: Sequence[Path], engine: str, precision: str, empty: bool = True
) -> Timed:
    """Open the model, and run the items once. empty: the cache."""
    from penult.embedding.embedder import Embedder
    from penult.models.specs import load

    if empty:
        forget()
    embedder = Embedder.from_classifier(load(folder), engine=engine, precision=precision)
    began = time.perf_counter()
    embedder.run(items)
    return Timed(time.perf_counter() - began, embedder.runner.mode.words)


def auto(bench: Bench) -> None:
    """Runs of some lengths, of each engine with an empty cache and with what that run kept."""
    import transformers

    with models() as work:
        config = transformers.Wav2Vec2Config(num_labels=4)
        extractor = transformers.Wav2Vec2FeatureExtractor()
        saved(work / "model", transformers.Wav2Vec2ForSequenceClassification(config), extractor)
        few = mixed(work, 20.0, bench.options.clips)
        rate = 20.0 / fresh_run(work / "model", few, "torch", "exact").whole
        lengths = [*WORK, *([LONG] if bench.options.long else [])]
        for precision in ("exact", "fast"):
            rows = []
            for length in lengths:
                folder = work / f"{precision}-{length:.0f}"
                folder.mkdir()
                items = mixed(folder, length * bench.options.share * rate, bench.options.clips)
                found = _in_turns(bench, work / "model", items, precision)
                rows += _rows(length * bench.options.share, found)
            columns = (f"{precision}, work in torch", "engine in the end")
            more = (
                f"{one}, {what}" for one in (FIRST, SECOND) for what in ("s", "× the best's speed")
            )
            bench.show(Table((*columns, *more, "bound"), rows))


def _in_turns(
    bench: Bench, folder: Path, items: list[Path], precision: str
) -> dict[str, dict[str, Timed]]:
    """Of each engine, its runs."""
    from penult.errors import PenultError

    found: dict[str, dict[str, Timed]] = {}
    for engine in [*(engine for engine, one in WAYS if one == precision), AUTO]:
        for run in (FIRST, SECOND):
            asked = (folder, items, engine, precision, run == FIRST)
            try:
                one = bench.once(lambda asked=asked: fresh_run(*asked))
            except PenultError as error:
                tell(f"{engine}: {error}")
                break
            found.setdefault(engine, {})[run] = one
            tell(
                f"{precision}, {len(items)} clips, {engine}, {run}: {one.whole:.1f} s, {one.words}"
            )
    return found


def _rows(length: float, found: dict[str, dict[str, Timed]]) -> list[list[str]]:
    """A line for each engine."""
    lines = []
    for engine, runs in found.items():
        name = f"auto: {runs[SECOND].words}" if engine == AUTO else runs[SECOND].words
        cells = [f"{length:.0f} s", name]
        for run in (FIRST, SECOND):
            best = min(of[run].whole for other, of in found.items() if other != AUTO)
            cells += [digits(runs[run].whole), f"{best / runs[run].whole:.2f}"]
        lines.append([*cells, f"≥ {BOUND}" if engine == AUTO else ""])
    return lines


SECTIONS = {
    "auto": Section(
        "The choice of the engine",
        "Clips of 1 to 15 s through a model of wav2vec2-base size, so many that torch needs the "
        "seconds in the first column. Of each engine two runs with fresh embedders: with an empty "
        "cache, and with what the first one kept. Seconds of the whole run, whatever is tried, "
        "recorded or opened in it included; the best is the faster one of the fixed choices in "
        "that column.",
        auto,
        ("clips", "long", "share"),
    )
}
