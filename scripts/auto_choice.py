"""The section of bench.py on the choice of the engine: `auto` against the best fixed choice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import soundfile
from measuring import Bench, Section, digits, tell
from page import Table
from speed import WAYS, forget, mixed, models, saved

WORK = (10.0, 60.0)  # seconds in torch
LONG = 600.0
BOUND = 0.95  # of the best fixed choice's speed, behind the first batch


@dataclass(frozen=True, slots=True)
class Timed:
    """One run of a fresh embedder with an empty cache. whole: its seconds; rate: seconds of sound
    in a second behind the first batch; words: the engine in the end."""

    whole: float
    rate: float
    words: str


@contextmanager
def stamped() -> Iterator[list[float]]:
    """The moments at which `Embedder.run` gets its rows."""
    from penult.embedding import embedder
    from penult.embedding.runner import Outcome

    before, moments = embedder.collect_results, []  # type: ignore[var-annotated]

    def collected(outcomes: Any, *rest: Any) -> Any:
        def passed() -> Iterator[Any]:
            for outcome in outcomes:
                if isinstance(outcome, Outcome):
                    moments.append(time.perf_counter())
                yield outcome

        return before(passed(), *rest)

    embedder.collect_results = collected
    try:
        yield moments
    finally:
        embedder.collect_results = before


def fresh_run(folder: Path, items: Sequence[Path], engine: str, precision: str) -> Timed:
    """Open the model, and run the items once."""
    from penult.embedding.embedder import Embedder
    from penult.models.specs import load

    forget()
    embedder = Embedder.from_classifier(load(folder), engine=engine, precision=precision)
    with stamped() as moments:
        began = time.perf_counter()
        embedder.run(items)
        ended = time.perf_counter()
    lengths = [soundfile.info(path).duration for path in items]
    rest = [
        length
        for length, moment in zip(lengths, moments, strict=True)
        if moment > moments[0] + 0.005  # rows of one batch come at once
    ]
    rate = sum(rest) / (ended - moments[0]) if rest else sum(lengths) / (ended - began)
    return Timed(ended - began, rate, embedder.runner.mode.words)


def auto(bench: Bench) -> None:
    """Runs of some lengths; the best fixed choice of each is found at the shortest."""
    import transformers

    with models() as work:
        config = transformers.Wav2Vec2Config(num_labels=4)
        extractor = transformers.Wav2Vec2FeatureExtractor()
        saved(work / "model", transformers.Wav2Vec2ForSequenceClassification(config), extractor)
        few = mixed(work, 20.0, bench.options.clips)
        speed = fresh_run(work / "model", few, "torch", "exact").rate
        lengths = [*WORK, *([LONG] if bench.options.long else [])]
        for precision in ("exact", "fast"):
            engines = [engine for engine, one in WAYS if one == precision]
            rows = []
            for length in lengths:
                folder = work / f"{precision}-{length:.0f}"
                folder.mkdir()
                items = mixed(folder, length * bench.options.share * speed, bench.options.clips)
                turns = bench.options.rounds if length == lengths[0] else 1
                found = _in_turns(
                    bench, work / "model", items, precision, [*engines, "auto"], turns
                )
                best = max(engines, key=lambda name: median(one.rate for one in found[name]))
                rows += _rows(length * bench.options.share, found, best)
                engines = [best]
            columns = (f"{precision}, work in torch", "× the best's rate", "× its time")
            bench.show(Table((*columns, "seconds", "sound in a second", "bound"), rows))


def _in_turns(
    bench: Bench, folder: Path, items: list[Path], precision: str, engines: list[str], turns: int
) -> dict[str, list[Timed]]:
    from penult.errors import PenultError

    found: dict[str, list[Timed]] = {}
    for _ in range(turns):
        for engine in list(engines):
            try:
                one = bench.once(lambda engine=engine: fresh_run(folder, items, engine, precision))
            except PenultError as error:
                tell(f"{engine}: {error}")
                engines.remove(engine)
                continue
            found.setdefault(engine, []).append(one)
            tell(f"{precision}, {len(items)} clips, {engine}: {one.whole:.1f} s, {one.words}")
    return found


def _rows(length: float, found: dict[str, list[Timed]], best: str) -> list[list[str]]:
    """A line for each engine, the best fixed one first."""
    rate, whole = (median(getattr(one, name) for one in found[best]) for name in ("rate", "whole"))
    lines = []
    for engine in sorted(found, key=lambda name: (name != best, name == "auto")):
        took = median(one.whole for one in found[engine])
        fast = median(one.rate for one in found[engine])
        name = f"auto: {found[engine][-1].words}" if engine == "auto" else found[engine][-1].words
        lines.append(
            [
                f"{length:.0f} s, {name}",
                f"{fast / rate:.2f}",
                f"{took / whole:.2f}",
                digits(took),
                f"{fast:.1f}",
                f"≥ {BOUND}" if engine == "auto" else "",
            ]
        )
    return lines


SECTIONS = {
    "auto": Section(
        "The choice of the engine",
        "Clips of 1 to 15 s through a model of wav2vec2-base size, so many that torch needs the "
        "seconds in the first column; each run with a fresh embedder and an empty cache. Rate: "
        "seconds of sound in a second behind the first batch, whatever is still tried or opened "
        "then included; time: of the whole run.",
        auto,
        ("clips", "rounds", "long", "share"),
        rounds=1,
    )
}
