"""Receptive fields: where in an item the positions of hidden states look, measured.

Strips of a sound or a picture are overwritten with noise, one after the other, and the hidden
states in front of the first block (those of the tap itself, where its positions are others) are
compared. Nothing is taken from a configuration, so that cropping, padding and strides are what they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from penult.data.decode import usual_decoding
from penult.data.items import Item
from penult.data.regions import Region
from penult.embedding.embedder import Embedder
from penult.embedding.inspect import anatomy_of
from penult.embedding.runner import Runner, open_engine
from penult.embedding.scheduling import BatchQueue, PreparedRegion
from penult.embedding.stations import decoded_values, without_failure
from penult.engines.base import Reading
from penult.engines.batching import Planner
from penult.tracing.spots import Tap

Floats = npt.NDArray[np.float64]

_STRIPS = 16  # of a sound, in time and in frequency
_MOST = 32  # of a picture, to either side
_SEES = 0.03  # of the largest response of any position, from which one sees a place of the item
_MOVED = 0.2  # of a position's largest response, from which a strip is seen
_PEAK = 8  # exponent of responses: by hand, against frames whose times are known
_FEW = 48  # positions
_IN_ORDER = 0.75  # Spearman's correlation of time and number, from which positions are frames
_REACH = 0.75  # of the distance between positions, up to which the outermost ones are drawn
_HALF = 700.0  # Hz, of the mel scale (O'Shaughnessy, 1987)


@dataclass(frozen=True, slots=True)
class OpenedItem:
    """One item as it is decoded, and prepared for the model. values: (n,) samples at the model's
    rate, or a picture. start, seconds: of a sound, in its recording. corner: of a box in its
    picture, left and top."""

    ready: PreparedRegion
    values: Any
    start: float = 0.0
    seconds: float = 0.0
    corner: tuple[int, int] = (0, 0)

    @property
    def kept(self) -> float | None:
        """Seconds of the sound that the model takes, from its beginning; None where it takes
        all."""
        return self.ready.inputs.truncated

    def prepared(self, runner: Runner, values: Any) -> PreparedRegion:
        """The same for other values in place of the item's."""
        return replace(self.ready, inputs=runner.classifier.preprocess(values))


@dataclass(frozen=True, slots=True)
class PositionPlaces:
    """Where each of P positions looks in an item. centres: (P, 2) of a sound seconds in the
    recording and Hz (NaN where positions are frames of all frequencies), of a picture pixels from
    the left and from the top; NaN of a position that sees nothing of the item: a class token, or
    padding. extent: (2, 2) the first and last of both. edges: (n + 1,) of the cells of time in
    seconds; empty of a picture.
    """

    centres: Floats
    extent: Floats
    edges: Floats

    @property
    def placed(self) -> npt.NDArray[np.bool_]:
        """(P,) the positions that see a place of the item."""
        return np.isfinite(self.centres[:, 0])

    @property
    def is_sound(self) -> bool:
        """Whether the item is one; else a picture."""
        return len(self.edges) > 0

    @property
    def is_flat(self) -> bool:
        """Whether positions differ in both directions: patches, and no frames."""
        return bool(np.isfinite(self.centres[self.placed, 1]).all() and self.placed.any())

    def by_time(self, parts: Floats) -> Floats:
        """(n,) sums of the parts (P,) of the positions that look at each cell of time."""
        cells = len(self.edges) - 1
        at = np.searchsorted(self.edges, self.centres[self.placed, 0], "right") - 1
        sums = np.zeros(cells)
        np.add.at(sums, at.clip(0, cells - 1), parts[self.placed])
        return sums

    def on_raster(self, parts: Floats, size: tuple[int, int]) -> Floats:
        """(height, width) a value for each point of a raster over the item: of the nearest position
        its part, times the number of positions; NaN beyond what positions see, such as the margins
        that a preparation crops. Of a sound the outermost rows reach to the lowest and to the
        highest frequency."""
        from scipy.spatial import cKDTree

        if not self.placed.any():
            return np.full(size, np.nan)
        first, last = self.extent[:, 0], self.extent[:, 1]
        height, width = size
        across, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        points = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        seen = (self.centres[self.placed] - first) / (last - first)
        if not self.is_flat:
            points, seen = points[:, :1], seen[:, :1]
        tree = cKDTree(seen)
        _, nearest = tree.query(points)
        raster: Floats = (parts[self.placed] * len(parts))[nearest]
        if len(seen) > 1:
            reach = _REACH * float(np.median(tree.query(seen, k=2)[0][:, 1]))
            beyond = (points < seen.min(axis=0) - reach) | (points > seen.max(axis=0) + reach)
            beyond = beyond[:, :1] if self.is_sound else beyond
            raster[beyond.any(axis=1)] = np.nan
        return raster.reshape(height, width)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a list for each position, null where it sees nothing of the item."""
        rows = [
            [None if np.isnan(one) else float(one) for one in row] if seen else None
            for row, seen in zip(self.centres, self.placed, strict=True)
        ]
        return {"places": rows, "extent": self.extent.tolist()}


def open_item(embedder: Embedder, entry: tuple[Item, Region]) -> OpenedItem:
    """Decode an item, and prepare it for the model.

    Raises:
        ItemError: it cannot be opened, or the model does not take it.
    """
    runner, model = embedder.runner, embedder.classifier.input
    with closing(runner.stream([entry], alone=True, logits=False)) as outcomes:
        without_failure(next(outcomes))
    with closing(runner.prepare([entry])) as prepared:
        ready: Any = without_failure(next(prepared))
    values = decoded_values(entry, runner.target(usual_decoding()))
    if model.modality != "audio":
        box = entry[1].box
        return OpenedItem(ready, values, corner=(0, 0) if box is None else (box[0], box[1]))
    seconds = len(values) / float(model.rate or 1) * model.playback_rate
    return OpenedItem(ready, np.asarray(values), entry[1].start or 0.0, seconds)


def places_of(embedder: Embedder, opened: OpenedItem) -> PositionPlaces:
    """Measure where the positions of an embedder's tap look, in 16 to 64 passes up to the first
    block."""
    reader = _StateProbe.of(embedder)
    respond = partial(reader.response, opened)
    if embedder.classifier.modality == "image":
        return _places_in_picture(opened, reader.shape(opened), respond)
    rate = float(embedder.classifier.rate or 1)
    return _places_in_sound(opened, reader.shape(opened), rate, respond)


# Values with one strip overwritten, for each strip → (strips, P) how far each position moves.
_Respond = Callable[[Iterable[Any]], Floats]


@dataclass(frozen=True, slots=True)
class _StateProbe:
    """Hidden states near the input, at the positions of an embedder's tap."""

    runner: Runner
    engine: Any
    tap: Tap

    @classmethod
    def of(cls, embedder: Embedder) -> _StateProbe:
        classifier, tap = embedder.classifier, embedder.runner.readings[0].tap
        entry = anatomy_of(classifier).taps.get("layer:0")
        if entry is not None and _sizes(entry) == _sizes(tap):
            tap = entry
        device = embedder.device.split(",")[0]
        return cls(embedder.runner, open_engine(classifier, [Reading(tap, "mean")], device), tap)

    def _states(self, regions: Sequence[PreparedRegion]) -> Floats:
        """(B, …positions…, C)."""
        hidden, _ = self.engine.hidden_states(self.runner.batch(regions))[0]
        states: Floats = hidden.detach().double().movedim(self.tap.channel, -1).cpu().numpy()
        return states

    def shape(self, opened: OpenedItem) -> tuple[int, ...]:
        """Of the positions."""
        return self._states([opened.ready]).shape[1:-1]

    def response(self, opened: OpenedItem, changed: Iterable[Any]) -> Floats:
        """(strips, P) how far each position moves, in batches as in a run."""
        plain = self._states([opened.ready])
        queue = BatchQueue(Planner(self.runner.budget), lambda: self.runner.policy)
        moved: dict[int, Floats] = {}

        def compute() -> None:
            batch = queue.take()
            far = np.linalg.norm(self._states([*batch.values()]) - plain, axis=-1)
            moved.update(zip(batch, far.reshape(len(batch), -1), strict=True))

        for number, values in enumerate(changed):
            queue.add(number, opened.prepared(self.runner, values))
            if queue.due:
                compute()
        while queue:
            compute()
        return np.array([moved[number] for number in range(len(moved))])


def _sizes(tap: Tap) -> list[int]:
    return [tap.shape[axis] for axis in tap.positions]


def _middles(response: Floats, by_peak: bool) -> Floats:
    """(P,) in strips, from 0 to their number; NaN where a position sees none.

    What a strip does to all positions, and what all strips do to one, is taken off: a norm over the
    whole item says nothing of places. by_peak: where the response is largest, which convolutions
    that reach far to both sides do not shift at the ends; else the middle of all that is seen.
    """
    own = response
    if min(own.shape) > 1:  # one position, or one strip, has nothing to be told apart from
        own = own - np.median(own, axis=1, keepdims=True)
        own = np.maximum(0.0, own - np.median(own, axis=0))
    most = own.max(axis=0, initial=0.0)
    seen = most > _SEES * most.max(initial=0.0)
    own = own / np.where(seen, most, 1.0)
    weights = own**_PEAK if by_peak else own >= _MOVED
    places = np.arange(len(response)) + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(seen, places @ weights / weights.sum(axis=0), np.nan)
    return found


def _noise(shape: Any, level: float) -> Floats:
    noise: Floats = level * np.random.default_rng(0).standard_normal(shape)
    return noise


def _places_in_sound(
    opened: OpenedItem, shape: tuple[int, ...], rate: float, respond: _Respond
) -> PositionPlaces:
    """shape: of the positions."""
    samples = np.asarray(opened.values, np.float64)
    response = respond(_without_stretches(samples))
    # In a short clip what a position sees is a large part, which ends where the clip does.
    times = _middles(response, by_peak=response.shape[1] < _FEW) / _STRIPS
    placed = np.isfinite(times)
    extent = np.array([[opened.start, opened.start + opened.seconds], [0.0, rate / 2]])
    is_map = len(shape) == 2 and min(shape) > 1  # of time and frequency, as of convolutions
    straight = None if is_map else _line(times)
    if straight is None:
        times = _middles(response, by_peak=is_map) / _STRIPS
        bands = _middles(respond(_without_bands(samples, rate)), by_peak=is_map)
        cells = np.linspace(0, 1, _STRIPS + 1)
        if is_map:
            times, bands = _on_lines(times, shape).clip(0, 1), _on_lines(bands, shape)
            cells = _edges(np.unique(times[np.isfinite(times)]))
        hertz = np.interp(bands, np.arange(_STRIPS + 1), _band_edges(rate))
        times = np.where(np.isfinite(hertz), times, np.nan)  # of a place both are known
    else:
        times, hertz = np.where(placed, straight, np.nan), np.full(len(times), np.nan)
        cells = _edges(times[placed])
    seconds = [opened.start + opened.seconds * one for one in (times, cells)]
    return PositionPlaces(np.stack([seconds[0], hertz], axis=1), extent, seconds[1])


def _fitted(values: Floats) -> Floats:
    """(n,) on a straight line by the column of (m, n), of which each has its median."""
    from scipy.stats import theilslopes

    middles = np.full(values.shape[1], np.nan)
    seen = np.isfinite(values).any(axis=0)
    middles[seen] = np.nanmedian(values[:, seen], axis=0)
    at = np.flatnonzero(np.isfinite(middles))
    if len(at) < 2:
        return middles
    slope, first, *_ = theilslopes(middles[at], at)
    line: Floats = first + slope * np.arange(len(middles))
    return line


def _on_lines(values: Floats, shape: tuple[int, ...]) -> Floats:
    """(P,) values of a map of this shape, each row, or each column, with one value: those of rows
    where these differ more."""
    grid = values.reshape(shape)
    across, down = _fitted(grid), _fitted(grid.T)
    by_column = np.nan_to_num(np.ptp(across)) >= np.nan_to_num(np.ptp(down))
    line = across[None] if by_column else down[:, None]
    return np.where(np.isfinite(values), np.broadcast_to(line, shape).ravel(), np.nan)


def _line(times: Floats) -> Floats | None:
    """(P,) times on a straight line by the number of the position (Theil and Sen's, which a quarter
    of them may miss); None where they are not in order, as those of patches in rows."""
    from scipy.stats import spearmanr, theilslopes

    at = np.flatnonzero(np.isfinite(times))
    if len(at) < 2 or np.ptp(times[at]) == 0:
        return times
    if not spearmanr(at, times[at]).statistic >= _IN_ORDER:
        return None
    slope, first, *_ = theilslopes(times[at], at)
    line: Floats = (first + slope * np.arange(len(times))).clip(0.0, 1.0)
    return line


def _edges(times: Floats) -> Floats:
    """(m + 1,) between ascending times (n,), from 0 to 1; equal times share a cell."""
    if len(times) < 2:
        return np.array([0.0, 1.0])
    between = (times[1:] + times[:-1]) / 2
    ends = times[0] - (between[0] - times[0]), times[-1] + (times[-1] - between[-1])
    found = np.unique(np.concatenate([[max(0.0, ends[0])], between, [min(1.0, ends[1])]]))
    return found if len(found) > 1 else np.array([0.0, 1.0])


def _band_edges(rate: float) -> Floats:
    """(17,) Hz, evenly spaced on the mel scale up to half of the rate."""
    top = np.log1p(rate / 2 / _HALF)
    edges: Floats = _HALF * np.expm1(np.linspace(0, top, _STRIPS + 1))
    return edges


def _without_stretches(samples: Floats) -> Iterator[npt.NDArray[np.float32]]:
    """The sound with noise in place of each stretch."""
    level = float(np.sqrt(np.mean(samples**2))) or 1e-3
    for first, last in pairwise(np.linspace(0, len(samples), _STRIPS + 1).astype(int)):
        one = samples.copy()
        one[first:last] = _noise(last - first, level)
        yield one.astype(np.float32)


def _without_bands(samples: Floats, rate: float) -> Iterator[npt.NDArray[np.float32]]:
    """The sound with noise in place of each band."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / rate)
    level = float(np.sqrt(np.mean(np.abs(spectrum) ** 2))) or 1e-3
    noise = _noise(len(spectrum), level) * np.exp(2j * np.pi * _noise(len(spectrum), 1.0))
    for first, last in pairwise(_band_edges(rate)):
        inside = (hertz >= first) & (hertz < last)
        yield np.fft.irfft(np.where(inside, noise, spectrum), len(samples)).astype(np.float32)


def _places_in_picture(
    opened: OpenedItem, shape: tuple[int, ...], respond: _Respond
) -> PositionPlaces:
    """shape: of the positions."""
    corner = np.array(opened.corner, np.float64)
    width, height = opened.values.size
    centres = []
    for axis, size in ((1, width), (0, height)):
        strips = min(size, _MOST)
        bounds = np.linspace(0, size, strips + 1).astype(int)
        response = respond(_without_strips(opened.values, axis, bounds))
        middles = _middles(response, by_peak=len(shape) == 2)
        centres.append(np.interp(middles, np.arange(strips + 1), bounds))
    found = np.stack(centres, axis=1)
    if len(shape) == 2:  # rows and columns of a map
        across, down = found.reshape(*shape, 2)[..., 0], found.reshape(*shape, 2)[..., 1]
        lines = np.stack([*np.broadcast_arrays(_fitted(across), _fitted(down.T)[:, None])], axis=-1)
        found = lines.reshape(-1, 2)
    found[~np.isfinite(found).all(axis=1)] = np.nan
    extent = np.array([[0.0, width], [0.0, height]]) + corner[:, None]
    return PositionPlaces(found + corner, extent, np.zeros(0))


def _without_strips(picture: Any, axis: int, bounds: npt.NDArray[np.int64]) -> Iterator[Any]:
    """The picture with noise in place of each strip: rows (axis 0) or columns between bounds."""
    from PIL import Image

    pixels = np.asarray(picture)
    top = 255 if pixels.dtype == np.uint8 else max(1.0, float(pixels.max()))
    noise = (np.random.default_rng(0).random(pixels.shape) * top).astype(pixels.dtype)
    for first, last in pairwise(bounds):
        one = pixels.copy()
        inside = (slice(None),) * axis + (slice(first, last),)
        one[inside] = noise[inside]
        yield Image.fromarray(one).convert(picture.mode)
