"""Regions through a classifier in batches, and their outcomes as one result; one failure never
stops the rest. Knows no store and no command line.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from penult.data.decode import (
    UNFORESEEN,
    Content,
    DecodedRegion,
    DecodeTarget,
    Decoding,
    usual_decoding,
)
from penult.data.items import PAUSE, Entry, Failure, Item, N, Note, OneByOne, Pause
from penult.data.regions import PATCH, Region
from penult.data.sources import UntilError, from_objects
from penult.data.workers import decode
from penult.embedding.demand import SHORT, PassDemand
from penult.embedding.scheduling import (
    BatchQueue,
    EnginePool,
    OrderedResults,
    PassWatch,
    PreparedRegion,
    ReadAhead,
    engine_pool,
)
from penult.engines.autoselect import EngineChoice, Rows
from penult.engines.base import Engine, EngineRequest, FloatArray, Reading
from penult.engines.batching import ALONE, Batch, BatchPolicy, Planner, Tensors
from penult.engines.portfolio import EnginePortfolio
from penult.engines.registry import EngineMode, native_spec, open_native
from penult.errors import (
    REFUSALS,
    EmptyItem,
    EndlessPass,
    ItemError,
    PenultError,
    RegionError,
    TooLong,
    TooShort,
    UsageError,
    cause,
)
from penult.locking import Guard, Once
from penult.memory import Held, MemoryBound, free_memory
from penult.models.base import Classifier, Prediction, predict, record_of
from penult.models.patches import ROWS, PatchGrid, find_grid, first_input, pooled
from penult.models.record import Record, is_recorded, recorded
from penult.models.synthetic import noise

# The longest padded batch: samples or features of sound (10 s at 16 kHz), tokens, pixels × 3. Of
# more than that a processor's caches hold too little: it gets slower, not faster.
BUDGETS = {"audio": 160_000, "text": 1_024, "image": 16 * 3 * 224**2, "video": 48 * 3 * 224**2,
           "array": 160_000, "bytes": 160_000}  # fmt: skip
ACCELERATED = {"audio": 32, "text": 32, "image": 8, "video": 8, "array": 32, "bytes": 32}  # times

NOTES_SHOWN = 5  # files whose notes are logged as warnings; those of further ones as information
log = logging.getLogger(__name__)
FREE_SHARE = 0.7  # of what is free, for one pass over a long recording, where no bound is given
MARGIN = 1.0  # seconds: the filter of a resampler, and a cut, reach over less than that
READ_AHEAD = 32  # prepared regions that wait for the thread that makes batches of them
_FOR_EACH_NUMBER = 200  # bytes of a pass for each number of its input, about: 50 hidden ones
HELD_BACK = 4096  # results and notes that may wait for the turn of an earlier one

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc",
              "failed to allocate memory")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of one region. vectors: (d,) for each reading. logits: as the model returned
    them, (…, K). start, end: seconds from the item's beginning, where it has a time axis. notes:
    of an item that was read against its own header. more: further patches of the same region
    follow."""

    item: Item
    region: Region
    vectors: tuple[FloatArray, ...]
    logits: FloatArray
    start: float | None = None
    end: float | None = None
    truncated: float | None = None
    notes: tuple[str, ...] = ()
    more: bool = False

    @property
    def vector(self) -> FloatArray:
        """The vectors of all readings, joined."""
        return self.vectors[0] if len(self.vectors) == 1 else np.concatenate(self.vectors)

    @property
    def class_logits(self) -> FloatArray:
        """(K,): where a model gives logits per frame, their mean over the frames."""
        flat: FloatArray = self.logits.reshape(-1, self.logits.shape[-1])
        one: FloatArray = flat[0] if len(flat) == 1 else flat.mean(axis=0)
        return one


class Stopwatch:
    """Seconds of each part of one run, apart from other runs at the same time: `open` (of a model
    that was not opened before), `decode` (of all workers), `prepare`, `model`, `wait` (of an engine
    that had nothing to run), `write`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._guard = Guard()

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part; from several threads at once."""
        with self._guard:
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    @contextmanager
    def waits(self, engines: int) -> Iterator[None]:
        """Adds the time of these engines in which none of them worked."""
        began, before = time.perf_counter(), self.seconds.get("model", 0.0)
        try:
            yield
        finally:
            whole = (time.perf_counter() - began) * engines
            self.add("wait", max(0.0, whole - (self.seconds.get("model", 0.0) - before)))


@dataclass(slots=True)
class _RunState:
    """State of one run, shared with no other. logits: whether the outcomes have them. left: set
    once the caller has stopped taking results. passes: what is in the model. one_by_one: from here
    on each region runs alone."""

    planner: Planner
    logits: bool
    watch: Stopwatch
    left: threading.Event
    passes: PassWatch
    one_by_one: bool = False


def open_engine(classifier: Classifier, readings: Sequence[Reading], device: str) -> Engine:
    """The engine that runs the classifier as it is: torch a module, ONNX Runtime a graph."""
    classifier.input.require()  # refused now, and not once for each item
    return open_native(EngineRequest(classifier, readings, device))


def device_of(classifier: Classifier, device: str = "auto") -> str:
    """The device, `auto` or by name, of those that the classifier's engine has; or several of them,
    with commas between.

    Raises:
        UsageError: this machine has no such device.
    """
    return native_spec(classifier).select_device(device)


class Runner:
    """Runs regions through a classifier, in batches that no region can tell from being alone.

    Several threads may share one: the settings of a run belong to that run, and a run that is under
    way keeps its budget.
    device: where; several of them, with commas between, share the batches. policy: gives how
    regions may share a batch, once there are two; without one, each runs alone. engine, choice:
    another engine than the classifier's own, and why it was taken. portfolio: engines of which each
    batch goes to one.
    """

    def __init__(
        self,
        classifier: Classifier,
        readings: Sequence[Reading],
        device: str = "cpu",
        policy: Callable[[], BatchPolicy] = BatchPolicy,
        engine: Engine | None = None,
        choice: EngineChoice | None = None,
        portfolio: EnginePortfolio | None = None,
    ) -> None:
        self.classifier = classifier
        self.portfolio = portfolio
        self._choice = choice
        self.readings = list(readings)
        self._devices = device.split(",")
        self._policy = policy
        self._guard = Guard()
        classifier.input.require()  # refused now, and not once for each item
        if engine is not None:
            self.engine = engine
        elif not is_recorded(classifier):  # what its engine refuses is refused now
            _ = self.engine
        self._noted: set[str] = set()  # ids of items whose notes were logged
        times = 1 if self._devices[0] == "cpu" else ACCELERATED[classifier.modality]
        self.budget = BUDGETS[classifier.modality] * times

    @Once
    def engine(self) -> Engine:
        """What runs the regions; of a classifier that is known by its record opened for the first
        of them."""
        return open_engine(self.classifier, self.readings, self._devices[0])

    @Once
    def engines(self) -> list[Engine]:
        """The engine, and one more for each further device, with its own copy of the model."""
        if len(self._devices) == 1:
            return [self.engine]
        beside = getattr(self.engine, "beside", None)
        if beside is None:
            raise UsageError(
                f"several devices ({', '.join(self._devices)}) are for models that torch runs; "
                "share the items with --shard 1/2 and --shard 2/2 instead"
            )
        return [self.engine, *(beside(device) for device in self._devices[1:])]

    @property
    def policy(self) -> BatchPolicy:
        """How regions share a forward pass of the engine that runs them."""
        return self._policy() if self.portfolio is None else self.portfolio.policy

    @property
    def choice(self) -> EngineChoice | None:
        """Why the regions run in this engine; None where there was no choice."""
        return self._choice if self.portfolio is None else self.portfolio.choice

    @property
    def mode(self) -> EngineMode:
        """The engine that runs the regions, and its arithmetic."""
        if self.portfolio is not None:
            return self.portfolio.mode
        if self._choice is not None:
            return self._choice.mode
        return EngineMode(self.classifier.structure.engine)

    def stream(
        self,
        pairs: Iterable[Entry | N],
        decoding: Decoding | None = None,
        alone: bool = False,
        logits: bool = True,
        watch: Stopwatch | None = None,
    ) -> Generator[Outcome | Failure | N, None, None]:
        """Run regions; results come in the order of the regions, and a region that fails becomes a
        Failure. Failures and notes among the regions pass through in order.

        Some regions are read ahead, so that there are equal lengths to make batches of. alone: one
        region in each forward pass. logits: False lets an engine stop behind the last reading, and
        the outcomes have none. watch: keeps the seconds of this run.

        Where `decoding` has a patience, regions are prepared in a thread of their own, and none
        waits longer than half of it for others while the engines have nothing to do; a `Pause`
        comes among the results where there is none for a while.
        """
        entries = iter(pairs)
        for entry in entries:
            if isinstance(entry, tuple | OneByOne):  # no model is opened before there is a region
                rest = chain([entry], entries)
                decoding, watch = decoding or usual_decoding(), watch or Stopwatch()
                yield from self._stream(rest, decoding, alone, logits, watch)
                return
            yield entry

    def _stream(
        self,
        pairs: Iterable[Entry | N],
        decoding: Decoding,
        alone: bool,
        logits: bool,
        watch: Stopwatch,
    ) -> Generator[Outcome | Failure | N, None, None]:
        """As `stream`."""
        with watch.timed("open"):  # a model that is known by its record: now
            _ = self.engines
        planner, patience = self._planner(decoding.limits.bound), decoding.patience
        passes, given = PassWatch(decoding.limits.model_seconds), UntilError(pairs)
        run = _RunState(planner, logits, watch, threading.Event(), passes)
        queue = BatchQueue(
            planner,
            lambda: BatchPolicy() if run.one_by_one or alone else self.policy,
            decoding.limits.bound.queue,
        )
        pause: dict[int, Any] | None = None if patience is None else {}
        with (
            closing(self._prepared(given, decoding, watch)) as prepared,
            watch.waits(len(self.engines)),
            engine_pool(self.engines, planner.hold, pause, passes.check) as engines,
        ):
            order = OrderedResults(pauses=patience is not None)
            try:
                yield from self._batched(prepared, decoding, run, queue, engines, order)
            except EndlessPass as error:
                yield from order.take()
                yield from error.failures  # type: ignore[misc]
                raise
            finally:
                run.left.set()
        yield from given.then(())

    def _batched(
        self,
        prepared: Iterable[Any],
        decoding: Decoding,
        run: _RunState,
        queue: BatchQueue,
        engines: EnginePool[Any],
        order: OrderedResults,
    ) -> Iterator[Any]:
        """Prepared regions in batches; outcomes in the order of the regions."""
        patience = decoding.patience

        def compute(meanwhile: bool = True) -> Iterator[Any]:
            batch = queue.take()
            size = sum(ready.weight for ready in batch.values()) // 4
            work = partial(self._run, ready=batch, run=run)
            yield from order.put(engines.give(work, size, meanwhile))

        def late() -> bool:
            return patience is not None and not engines.busy and queue.age > patience / 2

        numbers = count()
        for ready in prepared:
            run.passes.check()
            run.one_by_one = run.one_by_one or isinstance(ready, OneByOne)
            if self._is_long(ready):  # is measured while nothing else runs
                yield from order.put(engines.rest())
                ready = yield from self._measured(ready, decoding, engines, run.passes)
            if isinstance(ready, PreparedRegion):
                number = next(numbers)
                if self.classifier.input.patches is not None and ready.patch == 0:
                    order.join(number, ready.patches, partial(self._joined, ready.asked))
                queue.add(number, replace(ready, item=ready.item.known))
            elif isinstance(ready, Pause):
                yield ready
            else:
                order[next(numbers)] = ready
            # A region that waits for others must not hold back all that comes behind it.
            crowded = order.late > HELD_BACK
            while queue.due or (queue and (crowded or late())):
                yield from compute()
            yield from order.put(engines.rest() if crowded else engines.ended())
            yield from order.take()
        while queue:
            yield from compute(meanwhile=patience is not None)
            yield from order.take()
        yield from order.put(engines.rest())
        yield from order.take()

    def _is_long(self, ready: Any) -> bool:
        """Whether a pass over a region may take any memory: of sound in one piece, on a processor;
        an accelerator says so itself."""
        if not isinstance(ready, PreparedRegion) or not ready.samples:
            return False
        model = self.classifier.input
        if model.patches is not None:  # a pass has one of them, however long the clip is
            return False
        long = ready.samples > SHORT * (model.rate or 1)
        return long and model.seconds is None and self._devices[0] == "cpu"

    def _measured(
        self,
        ready: PreparedRegion,
        decoding: Decoding,
        engines: EnginePool[Any],
        passes: PassWatch,
    ) -> Generator[Any, None, PreparedRegion | Failure]:
        """The region, or why it does not fit; pauses meanwhile, so that rows before it are kept."""
        found: list[PreparedRegion | Failure] = []

        def work(engine: Engine) -> dict[int, Any]:
            with passes.under_way([ready]):
                found.append(self._if_it_fits(ready, decoding))
            return {}

        patient = decoding.patience is not None
        for _ in chain(engines.give(work, meanwhile=patient), engines.rest()):
            if patient:
                yield PAUSE
        return found[0]

    def _if_it_fits(self, ready: PreparedRegion, decoding: Decoding) -> PreparedRegion | Failure:
        bound, given = decoding.limits.bound.batch, decoding.limits.memory
        if given is None:
            bound = max(bound, int(FREE_SHARE * free_memory()))
        try:
            self._demand.check(ready.samples / (self.classifier.rate or 1), bound)
        except TooLong as error:
            return Failure.of(ready.item, ready.region, error)
        return ready

    @Once
    def _demand(self) -> PassDemand:
        return PassDemand(self._run_noise)

    def _run_noise(self, seconds: float) -> None:
        sound = noise(0, seconds, self.classifier.rate or 1)
        with suppress(*REFUSALS):
            self.engine(Batch(self.classifier.preprocess(sound).tensors))

    def _planner(self, bound: MemoryBound) -> Planner:
        """Batches within the memory of a run."""
        planner = Planner(min(self.budget, max(1, bound.batch // _FOR_EACH_NUMBER)))
        planner.hold = min(planner.hold, max(planner.budget, bound.waiting // 4))
        return planner

    def _prepared(self, pairs: Iterable[Entry | N], decoding: Decoding, watch: Stopwatch) -> Any:
        """As `prepare`; in a thread of its own where there is a patience and it may be apart."""
        prepared = self.prepare(pairs, decoding, watch)
        if decoding.patience is None or not decoding.apart:
            return prepared
        held = Held(decoding.limits.bound.waiting // 4)
        return ReadAhead(prepared, READ_AHEAD, held, _bytes_of)

    def prepare(
        self,
        pairs: Iterable[Entry | N],
        decoding: Decoding | None = None,
        watch: Stopwatch | None = None,
    ) -> Generator[PreparedRegion | Failure | N, None, None]:
        """Regions decoded and prepared for the model, each patch by itself where they have some;
        failures and notes pass through in order."""
        decoding, watch = decoding or usual_decoding(), watch or Stopwatch()
        with closing(decode(pairs, self.target(decoding), decoding)) as regions:
            for decoded in regions:
                if not isinstance(decoded, DecodedRegion):
                    yield decoded
                    continue
                watch.add("decode", decoded.seconds)
                if isinstance(decoded.content, Content) and decoded.content.notes:
                    self._log_notes(decoded.item.id, decoded.content.notes)
                with watch.timed("prepare"):
                    ready = self._inputs(decoded.item, decoded.region, decoded.content)
                    patches = self._divided(ready)
                yield from patches

    def target(self, decoding: Decoding) -> DecodeTarget:
        """What items are decoded to for this model."""
        model, rate = self.classifier.input, self.classifier.input.playback_rate
        fixed = model.modality == "audio" and model.beginning and model.seconds is not None
        # The end of what is kept would show in all that a filter gives backward.
        kept = (model.seconds or 0.0) * rate + MARGIN * max(1.0, rate)
        first = decoding.first_seconds
        return DecodeTarget(
            modality=model.modality,
            rate=model.rate,
            frames=model.frames,
            max_seconds=decoding.max_seconds,
            first_seconds=None if first is None else first * rate,
            max_pixels=decoding.limits.pixels,
            max_characters=decoding.limits.characters,
            largest=decoding.limits.bound.largest,
            kept_seconds=kept if fixed and model.band is None else None,
            band=model.band,
            playback_rate=rate,
        )

    def _log_notes(self, id: str, notes: tuple[str, ...]) -> None:
        """Once for each item, of the first ones as warnings."""
        with self._guard:
            if id in self._noted:
                return
            self._noted.add(id)
            level = logging.WARNING if len(self._noted) <= NOTES_SHOWN else logging.INFO
        log.log(level, "%s: %s", id, "; ".join(notes))

    def _inputs(
        self, item: Item, region: Region, content: Content | ItemError
    ) -> PreparedRegion | Failure:
        if isinstance(content, ItemError):
            return Failure.of(item, region, content)
        samples = len(content.values) if self.classifier.modality == "audio" else 0
        try:
            if content.left and not self.classifier.input.beginning:
                raise _too_many_characters(content)
            inputs = self.classifier.preprocess(content.values)
            if content.left and not inputs.truncated:
                raise _too_many_characters(content)
        except ItemError as error:
            return Failure.of(item, region, error)
        except PenultError:
            raise
        except Exception as error:  # the preprocessing may be anyone's
            reason = _too_long(error) if out_of_memory(error) else self._refusal(samples, error)
            return Failure.of(item, region, reason)
        if (self.choice or self.portfolio) and is_too_short(self, samples):
            return Failure.of(item, region, self._too_short(samples))
        return PreparedRegion(item, region, replace(content, values=None), inputs, samples)

    def _divided(self, ready: PreparedRegion | Failure) -> Sequence[PreparedRegion | Failure]:
        """The patches of a region, or the one that is asked for; where none is known, itself."""
        patches = self.classifier.input.patches
        if isinstance(ready, Failure):
            return [ready]
        wanted, region = ready.region.patch, ready.region
        if wanted is not None and patches != ROWS:
            reason: ItemError = RegionError(f"this model has no rows of patches, as {region.key!r}")
            return [Failure.of(ready.item, region, reason)]
        if patches is None:
            return [ready]
        parts = ready.inputs.divided()
        if not parts:
            reason = self._too_short(ready.samples) if ready.samples else TooShort(_NO_PATCH)
            return [Failure.of(ready.item, region, reason)]
        if wanted is not None and wanted >= len(parts):
            reason = RegionError(f"it has {len(parts)} patches, counted from 0")
            return [Failure.of(ready.item, region, reason)]
        chosen = range(len(parts)) if wanted is None else [wanted]
        return [
            replace(
                ready,
                region=replace(region, kind=PATCH, patch=at) if patches == ROWS else region,
                inputs=parts[at],
                patch=place,
                patches=len(chosen),
                asked=region.key,
            )
            for place, at in enumerate(chosen)
        ]

    def _joined(
        self, asked: str, found: Sequence[Outcome | Failure]
    ) -> Sequence[Outcome | Failure]:
        """The patches of a region as its rows; where one has failed, the region has. asked: its
        key."""
        for at, one in enumerate(found):
            if isinstance(one, Failure):
                where = f"patch {at} of {len(found)}: " if len(found) > 1 else ""
                return [replace(one, region=asked, message=where + one.message)]
        rows = [one for one in found if isinstance(one, Outcome)]
        patches = self.classifier.input.patches
        if patches == ROWS:
            return [*(replace(one, more=True) for one in rows[:-1]), rows[-1]]
        logits = [one.class_logits for one in rows if one.logits.size]
        vectors = zip(*(one.vectors for one in rows), strict=True)
        return [
            replace(
                rows[0],
                vectors=tuple(pooled(str(patches), vector) for vector in vectors),
                logits=pooled(str(patches), logits) if logits else rows[0].logits,
            )
        ]

    def _truncated(self, used: float | None) -> float | None:
        """What the model used of an item; of sound in seconds of the recording."""
        sound = used is not None and self.classifier.modality == "audio"
        return used * self.classifier.input.playback_rate if sound and used is not None else used

    def _times(self, ready: PreparedRegion) -> tuple[float | None, float | None]:
        """When a region begins and ends; of a patch where its preprocessing tells, or shows by the
        patches of noise."""
        content, patch = ready.content, ready.region.patch
        if patch is None or content.start is None:
            return content.start, content.end
        if ready.inputs.patch_times is not None:
            ((start, end),) = ready.inputs.patch_times
        elif self._patch_grid is None:
            return None, None
        else:
            start, end = self._patch_grid.times(patch, ready.samples / self._patch_grid.rate)
        rate = self.classifier.input.playback_rate  # a patch has the model's seconds
        return round(content.start + start * rate, 6), round(content.start + end * rate, 6)

    @Once
    def _patch_grid(self) -> PatchGrid | None:
        rate = self.classifier.rate
        return None if rate is None else find_grid(self.classifier.preprocess, rate)

    def _run(
        self, engine: Engine, ready: dict[int, PreparedRegion], run: _RunState
    ) -> dict[int, Outcome | Failure]:
        """One forward pass; where it fails, the batch is divided until the region at fault fails
        alone."""
        if run.left.is_set():
            return {}
        ids, items = list(ready), list(ready.values())
        try:
            rows = self._rows(engine, items, run)
        except PenultError:
            raise
        except Exception as error:  # a model may raise anything on an input that does not fit it
            memory = out_of_memory(error)
            if memory and self._devices[0].startswith("cuda"):
                sys.modules["torch"].cuda.empty_cache()
            if len(items) == 1:
                reason = _too_long(error) if memory else self._refusal(items[0].samples, error)
                return {ids[0]: Failure.of(items[0].item, items[0].region, reason)}
            if memory:
                run.planner.shrink(len(items) * max(one.size for one in items))
                with self._guard:  # for later runs; whatever others find out, it never grows
                    self.budget = min(self.budget, run.planner.budget)
            parts = [ids[: len(ids) // 2], ids[len(ids) // 2 :]] if memory else [[i] for i in ids]
            found: dict[int, Outcome | Failure] = {}
            for part in parts:
                found |= self._run(engine, {id: ready[id] for id in part}, run)
            return found
        return {id: self._outcome(one, row)
                for row, (id, one) in zip(rows, ready.items(), strict=True)}  # fmt: skip

    def _rows(self, engine: Engine, items: Sequence[PreparedRegion], run: _RunState) -> Rows:
        """Each region's logits, where they are wanted, and its vector of each reading."""
        classes = len(self.classifier.labels) if run.logits else None

        def passes(engine: Engine, policy: Callable[[], BatchPolicy], at: Sequence[int]) -> Rows:
            rows: dict[int, list[FloatArray]] = {}
            for group in _groups([items[i].inputs.tensors for i in at], at, policy):
                part = [items[i] for i in group]
                with run.watch.timed("model"), run.passes.under_way(part):
                    readout = engine(self.batch(part, policy), run.logits)
                readout.require_rows(len(part), classes)
                rows |= {i: readout.row(row) for row, i in enumerate(group)}
            found = [rows[i] for i in at]
            return found if run.logits else [[_NOTHING, *row[1:]] for row in found]

        if self.portfolio is None:
            return passes(engine, self._policy, range(len(items)))
        return self.portfolio.rows(passes, [one.size for one in items])

    def _outcome(self, ready: PreparedRegion, values: Sequence[FloatArray]) -> Outcome | Failure:
        """values: the region's logits as the engine gave them, and its vector of each reading."""
        if not all(np.isfinite(value).all() for value in values):
            source = _source(values, self.readings)
            reason = EmptyItem(f"{source} gave values that are not finite")
            return Failure.of(ready.item, ready.region, reason)
        returned, *vectors = values
        content = ready.content
        start, end = self._times(ready)
        return Outcome(
            item=ready.item,
            region=ready.region,
            vectors=tuple(vectors),
            logits=self.classifier.structure.activation.logits(returned),
            start=start,
            end=end,
            truncated=self._truncated(ready.inputs.truncated) or content.pages,
            notes=content.notes,
        )

    def batch(
        self, items: Sequence[PreparedRegion], policy: Callable[[], BatchPolicy] | None = None
    ) -> Batch:
        """The inputs of regions that may share a forward pass, as one batch. policy: that of
        another engine than the one in use."""
        tensors = [one.inputs.tensors for one in items]
        if len(tensors) == 1:
            batch = Batch(tensors[0])
        else:
            batch = (self.policy if policy is None else policy()).batch(tensors)
        seconds = self.classifier.input.seconds
        if seconds is None or self.classifier.modality != "audio":
            return batch
        most = seconds * (self.classifier.rate or 1)
        return replace(batch, filled=[min(1.0, one.samples / most) for one in items])

    def _refusal(self, samples: int, error: Exception) -> ItemError:
        if self.classifier.modality == "audio" and samples < self.shortest:
            return self._too_short(samples)
        return ItemError(f"the model cannot take it: {cause(error)}")

    def _too_short(self, samples: int) -> TooShort:
        seconds, needed = (n / (self.classifier.rate or 1) for n in (samples, self.shortest))
        if self.classifier.input.patches is not None:
            least = f", which needs {needed:.3f} s" if needed > seconds else ""
            return TooShort(
                f"{seconds:.3f} s is too short for one patch of the preprocessing{least}"
            )
        return TooShort(f"{seconds:.3f} s is shorter than what the model needs ({needed:.3f} s)")

    @Once
    def shortest(self) -> int:
        """The fewest samples that the model itself takes, measured, of files once; 0 if a second is
        not enough."""
        form = (lambda found: {"samples": found}, lambda note: int(note["samples"]))
        record: Record | None = record_of(self.classifier)
        found: int = recorded(record, "shortest", None, self._measure_shortest, form)
        return found

    def _measure_shortest(self) -> int:
        device = self._devices[0]
        other = self._choice is not None and self.portfolio is None
        engine = open_engine(self.classifier, self.readings, device) if other else self.engine
        rate = self.classifier.rate or 0
        clip, most = noise(0, 1.0, rate), rate
        # Of a clip that is no longer than a second only a preprocessing may need more.
        while not self._takes(engine, clip):
            most *= 2
            if self.classifier.input.patches is None or most > _LONGEST * rate:
                return 0
            clip = noise(0, most / rate, rate)
        low, high = 0, len(clip)
        while high - low > 1:
            middle = (low + high) // 2
            if self._takes(engine, clip[:middle]):
                high = middle
            else:
                low = middle
        return high

    def _takes(self, engine: Engine, clip: FloatArray) -> bool:
        try:
            readout = engine(Batch(first_input(self.classifier, clip).tensors))
        except (TooShort, *UNFORESEEN):
            return False
        return all(np.isfinite(values).all() for values in readout.row(0))


class RunnerPasses:
    """Forward passes of a runner over batches that somebody else takes from the `queue`, for
    regions of many callers; each of its engines is for one thread. decoding: its limits hold."""

    def __init__(self, runner: Runner, decoding: Decoding) -> None:
        self._runner, self._decoding = runner, decoding
        self.planner = runner._planner(decoding.limits.bound)
        self._run = _RunState(
            self.planner,
            True,
            Stopwatch(),
            threading.Event(),
            PassWatch(decoding.limits.model_seconds),
        )

    def queue(self) -> BatchQueue:
        """A queue of the regions that wait."""
        return BatchQueue(
            self.planner, lambda: self._runner.policy, self._decoding.limits.bound.queue
        )

    def outcomes(
        self, engine: Engine, batch: Mapping[int, PreparedRegion]
    ) -> dict[int, Outcome | Failure]:
        """The outcomes of a batch, by its numbers."""
        found: dict[int, Outcome | Failure] = {}
        fitting: dict[int, PreparedRegion] = {}
        for number, ready in batch.items():
            checked: PreparedRegion | Failure = ready
            if self._runner._is_long(ready):
                checked = self._runner._if_it_fits(ready, self._decoding)
            if isinstance(checked, Failure):
                found[number] = checked
            else:
                fitting[number] = checked
        return found | (self._runner._run(engine, fitting, self._run) if fitting else {})

    def joined(self, asked: str, found: Sequence[Outcome | Failure]) -> Sequence[Outcome | Failure]:
        """The rows of a region from the outcomes of its patches. asked: its key."""
        if self._runner.classifier.input.patches is None:
            return found
        return self._runner._joined(asked, found)


_LONGEST = 32  # seconds of noise, one patch of which is looked for
_NO_PATCH = "it is too small for one patch of the preprocessing"
_NOTHING = np.empty(0, np.float32)  # in place of logits


def _groups(
    tensors: Sequence[Tensors], at: Sequence[int], find_policy: Callable[[], BatchPolicy]
) -> list[list[int]]:
    """The places of items that share a pass: a batch that was made for one engine may be several in
    another one."""
    if len(at) == 1:
        return [list(at)]
    policy = find_policy()
    if policy.name == ALONE:
        return [[i] for i in at]
    groups: dict[Any, list[int]] = {}
    for i, one in zip(at, tensors, strict=True):
        groups.setdefault(policy.kind(one), []).append(i)
    return list(groups.values())


def is_too_short(runner: Runner, samples: int) -> bool:
    """Whether the model refuses a clip of this length: a recorded graph may give values for it, as
    other engines do where a convolution has nothing left."""
    model = runner.classifier.input
    if model.patches is not None:  # the preprocessing decides, and gives none
        return False
    if model.modality != "audio" or model.seconds is not None or samples >= (model.rate or 0):
        return False
    return samples < runner.shortest


def _bytes_of(ready: Any) -> int:
    return ready.weight if isinstance(ready, PreparedRegion) else 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a batch did not fit; each engine has another text for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of torch
        return True
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


def _too_many_characters(content: Content) -> TooLong:
    read, rest = len(content.values), content.left
    return TooLong(
        f"has {read + rest:,} characters, and a model that needs more than the first {read:,} of "
        "them to know its tokens takes no longer text; cut it (--window), or raise the limit "
        "(--max-characters)"
    )


def _too_long(error: BaseException) -> TooLong:
    return TooLong(
        f"does not fit into memory ({cause(error)}); cut it into parts (--window, --tile)"
    )


def _source(values: Sequence[FloatArray], readings: Sequence[Reading]) -> str:
    """Where the first values that are not finite come from."""
    logits, *vectors = values
    if not np.isfinite(logits).all():
        return "the model"
    bad = next(at for at, vector in enumerate(vectors) if not np.isfinite(vector).all())
    return f"tap {readings[bad].tap.name}, pooled by {readings[bad].pooling},"


@dataclass(frozen=True, slots=True)
class Result:
    """The results of a run, in the order of the items.

    vectors: (n, d) float32. logits: (n, K). labels: the n predicted labels. item_index: for each
    row, the item's place in the input. failures: the items that gave no row.
    """

    vectors: FloatArray
    logits: FloatArray
    labels: list[str]
    ids: list[str]
    regions: list[Region]
    item_index: npt.NDArray[np.int64]
    failures: list[Failure]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one entry for each row, and one for each failure."""
        rows = []
        for at, (id, region) in enumerate(zip(self.ids, self.regions, strict=True)):
            row = {"id": id, "region": region.key, "vector": self.vectors[at].tolist()}
            if len(self.logits):
                row |= {"label": self.labels[at], "logits": self.logits[at].tolist()}
            rows.append(row)
        return {"rows": rows, "failures": [failure.to_dict() for failure in self.failures]}


@dataclass(frozen=True, slots=True)
class ItemNumber(Note):
    """The number of the item whose regions follow, from 0."""

    number: int


def collect_results(
    outcomes: Iterable[Outcome | Failure | ItemNumber],
    labels: Sequence[str],
    on_error: Literal["raise", "skip"],
) -> Result:
    """All outcomes as one result. An `ItemNumber` numbers the outcomes that follow.

    Raises:
        ItemError: an item failed, and `on_error` is `raise`.
    """
    rows: list[Outcome] = []
    failures: list[Failure] = []
    index: list[int] = []
    number = -1
    for outcome in outcomes:
        if isinstance(outcome, Outcome):
            rows.append(outcome)
            index.append(number)
        elif isinstance(outcome, Failure):
            if on_error == "raise":
                raise ItemError(outcome.words())
            failures.append(outcome)
        else:
            number = outcome.number
    logits_of_rows = [row.class_logits for row in rows if row.logits.size]
    logits = np.array(logits_of_rows, np.float32).reshape(-1, len(labels))
    return Result(
        vectors=np.array([row.vector for row in rows], np.float32),
        logits=logits,
        labels=[labels[i] for i in logits.argmax(axis=1)],
        ids=[row.item.id for row in rows],
        regions=[row.region for row in rows],
        item_index=np.array(index, np.int64),
        failures=failures,
    )


def prediction_of(classifier: Classifier, outcome: Outcome) -> Prediction:
    """A region's logits as a Prediction."""
    return predict(
        classifier.kind,
        classifier.labels,
        outcome.logits,
        outcome.item.id,
        outcome.region.key,
        classifier.structure.activation,
    )


def predictions_of(
    classifier: Classifier, items: Any, on_error: str, device: str
) -> list[Prediction]:
    """See `Classifier.classify`."""
    runner = Runner(classifier, [], device_of(classifier, device))
    predictions = []
    for outcome in runner.stream(from_objects(items, classifier.modality)):
        if isinstance(outcome, Outcome):
            predictions.append(prediction_of(classifier, outcome))
        elif on_error == "raise":
            raise ItemError(outcome.words())
    return predictions


def enable_classify(classifier: Classifier) -> Classifier:
    """The classifier, so that its `classify` runs it."""
    classifier._answer = predictions_of
    return classifier
