"""Every station's values of one item, from the decoded file to the stored row: what to look at
where a vector is wrong. Prints nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.data.decode import DecodeTarget, usual_decoding
from penult.data.files import write_file
from penult.data.items import Failure, Item
from penult.data.regions import Region
from penult.data.workers import decode
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Outcome, Runner, open_engine
from penult.embedding.scheduling import PreparedRegion
from penult.engines.pooling import pool
from penult.errors import EmptyItem, ItemError, UsageError
from penult.models.base import playback_words

Values = npt.NDArray[Any]


def check_npz(path: Path) -> None:
    """Refuse a file of another kind before any work.

    Raises:
        UsageError: its suffix is not .npz.
    """
    if path.suffix.lower() != ".npz":
        raise UsageError(f"{path} is to hold arrays, as an .npz file; name it so")


@dataclass(frozen=True, slots=True)
class Station:
    """Values of one item at one place on its way. name: as in the .npz. source: the module, or the
    place in the model, that made them."""

    name: str
    source: str
    values: Values

    def to_dict(self) -> dict[str, Any]:
        """Name, source, shape, dtype; minimum, maximum and mean where the values are numbers."""
        values = self.values
        is_number = values.dtype.kind in "biuf" and values.size > 0
        numbers = values.astype(np.float64) if is_number else None
        return {
            "station": self.name,
            "source": self.source,
            "shape": list(values.shape),
            "dtype": "text" if values.dtype.kind == "U" else str(values.dtype),
            "min": None if numbers is None else float(numbers.min()),
            "max": None if numbers is None else float(numbers.max()),
            "mean": None if numbers is None else float(numbers.mean()),
        }


@dataclass(frozen=True, slots=True)
class StationRecord:
    """The stations of one item, in their order."""

    id: str
    region: str
    stations: tuple[Station, ...]

    def __getitem__(self, name: str) -> Values:
        return next(one.values for one in self.stations if one.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; the values themselves are in the .npz only."""
        stations = [one.to_dict() for one in self.stations]
        return {"id": self.id, "region": self.region, "stations": stations}

    def write(self, path: Path) -> None:
        """One .npz without pickles: an array for each station, and `about`, `to_dict` as JSON text.

        Raises:
            UsageError: another suffix than .npz. StoreError: the file cannot be written.
        """
        check_npz(path)
        arrays: dict[str, Any] = {one.name: one.values for one in self.stations}
        whole = io.BytesIO()
        np.savez(whole, about=np.array(json.dumps(self.to_dict())), **arrays)
        write_file(path, [whole.getvalue()])


def record_stations(embedder: Embedder, pairs: Iterable[Any]) -> StationRecord:
    """Run the first item alone, as any run does, and keep what every station gave.

    Raises:
        ItemError: it cannot be opened, or the model does not take it.
        EmptyItem: there is none.
    """
    first = next(iter(pairs), None)
    if first is None:
        raise EmptyItem("there is no item to run")
    runner = embedder.runner
    values = np.asarray(decoded_values(first, runner.target(usual_decoding())))
    with closing(runner.prepare([first])) as prepared:
        ready: Any = without_failure(next(prepared))
    with closing(runner.stream([first], alone=True)) as outcomes:
        outcome: Any = without_failure(next(outcomes))
    stations = (
        *_content(ready, values, runner),
        *_inputs(ready, runner),
        *_hidden(ready, embedder),
        *_results(outcome, embedder),
    )
    return StationRecord(ready.item.id, ready.region.key, stations)


def decoded_values(pair: tuple[Item, Region], target: DecodeTarget) -> Any:
    """The values of a region, or part of its item's header.

    Raises:
        ItemError: it cannot be opened.
    """
    with closing(decode([pair], target, usual_decoding())) as regions:
        found: Any = without_failure(next(regions))
    if isinstance(found.content, ItemError):
        raise found.content
    return found.content.values


def without_failure(result: Any) -> Any:
    """A result of a run; a failure is raised.

    Raises:
        ItemError: it is one.
    """
    if isinstance(result, Failure):
        raise ItemError(result.words())
    return result


def _content(ready: PreparedRegion, values: Any, runner: Runner) -> Iterator[Station]:
    """`decoded`; of sound (n,) of one channel at its own rate, and `resampled` to the model's."""
    classifier, item = runner.classifier, ready.item
    made_by = f"penult.data.{classifier.modality}"
    if classifier.modality != "audio":
        yield Station("decoded", made_by, values)
        return
    pair = replace(item, rate=item.rate or classifier.rate), ready.region
    own = decoded_values(pair, DecodeTarget("audio", header="sound")).rate
    own = round(own * classifier.input.playback_rate)
    samples = decoded_values(
        pair, replace(runner.target(usual_decoding()), rate=own, kept_seconds=None)
    )
    words = playback_words(classifier.input)
    yield Station("decoded", f"{made_by} at {own} Hz{words and f', {words}'}", samples)
    yield Station("resampled", f"{made_by} at {classifier.rate} Hz", values)


def _inputs(ready: PreparedRegion, runner: Runner) -> Iterator[Station]:
    """`prepared.NAME`: (1, …) each, the arguments of the model's forward."""
    made_by = type(runner.classifier._preparer).__module__
    for name, tensor in ready.inputs.tensors.items():
        yield Station(f"prepared.{name}", made_by, np.asarray(tensor))


def _hidden(ready: PreparedRegion, embedder: Embedder) -> Iterator[Station]:
    """`hidden` (…, C), `mask` (…) of the positions that are pooled, and `pooled` (D,), of each
    reading: in the classifier's own engine, in fp32. The taps' names follow where there are
    several."""
    runner = embedder.runner
    device = embedder.device.split(",")[0]
    engine: Any = open_engine(runner.classifier, runner.readings, device)
    batch = runner.batch([ready])
    for reading, (hidden, mask) in zip(runner.readings, engine.hidden_states(batch), strict=True):
        suffix = "" if len(runner.readings) == 1 else f".{reading.tap.name} {reading.pooling}"
        states = hidden.float().movedim(reading.tap.channel, -1)[0].cpu().numpy()
        yield Station(f"hidden{suffix}", reading.tap.place, states)
        if states.ndim > 1:
            valid = np.ones(states.shape[:-1], bool) if mask is None else mask[0].cpu().numpy()
            yield Station(f"mask{suffix}", "penult.engines.positions", valid)
        vector = pool(hidden.float(), reading.pooling, reading.tap.channel, mask)[0]
        yield Station(f"pooled{suffix}", "penult.engines.pooling", vector.cpu().numpy())


def _results(outcome: Outcome, embedder: Embedder) -> Iterator[Station]:
    """`vector` (d,) and `logits`, as the run's engine gave them; `space`; `stored` as a collection
    keeps the vector, in float32 or with --fp16."""
    made_by = f"engine {embedder.runner.mode.words}"
    yield Station("vector", made_by, outcome.vector)
    if embedder.space is not None:
        moved = embedder.space(outcome.vector[None])[0]
        yield Station("space", f"penult.analysis.space {embedder.space.recipe}", moved)
    for name, dtype in STORED.items():
        yield Station(name, "penult.collection.ingest", outcome.vector.astype(dtype))
    yield Station("logits", made_by, outcome.logits)


STORED: Mapping[str, type] = {"stored": np.float32, "stored.float16": np.float16}
