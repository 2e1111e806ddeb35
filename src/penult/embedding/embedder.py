"""The embedder: a classifier and its readings; items in, vectors and logits out, in one pass.

Knows items and how to open them, and no store.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from penult.analysis.space import Space
from penult.data import audio, video
from penult.data.files import user_path
from penult.data.items import Entry
from penult.data.sources import Repeatable, Source, from_objects
from penult.data.windows import Layout
from penult.embedding import behaviour, saving
from penult.embedding.fingerprint import Behaviour, Fingerprint, compare, renamed, unlike
from penult.embedding.inspect import anatomy_of, certify, certify_on, taps_of
from penult.embedding.runner import (
    ItemNumber,
    Result,
    Runner,
    collect_results,
    device_of,
    enable_classify,
    is_too_short,
)
from penult.embedding.saving import SavedEmbedder
from penult.embedding.source_sample import SourceSample
from penult.engines import registry
from penult.engines.autoselect import EngineChoice, EngineTrial, choose
from penult.engines.base import EXACT, Engine, Reading
from penult.engines.batch_policy import find_batch_policy
from penult.engines.batching import Batch, BatchPolicy
from penult.engines.graph_cache import ENGINE, POLICY, PROOF, Graphs, machine, subject, versions
from penult.engines.pooling import (
    check_poolings,
    codes_of,
    find_pooling,
    packages_of,
    pooled_width,
)
from penult.engines.portfolio import EnginePortfolio
from penult.engines.recorded_graph import describe_graph, reopened
from penult.engines.registry import AUTO, DEFAULT
from penult.errors import (
    REFUSALS,
    HeadNotFound,
    ModelError,
    SpaceError,
    TapError,
    UsageError,
)
from penult.extras import package_versions
from penult.locking import Guard, Once
from penult.models import specs
from penult.models.base import Classifier, digest, is_live, own_code, record_of
from penult.models.patches import first_input
from penult.models.record import (
    Record,
    identity_of,
    is_recorded,
    package_hash,
    prepare_plainly,
    recorded,
)
from penult.models.synthetic import content_of
from penult.tracing.certificate import Certificate
from penult.tracing.spots import Tap

if TYPE_CHECKING:
    from penult.tracing.anatomy import Anatomy


def poolings_for(taps: Sequence[Tap], pooling: str) -> tuple[str, ...]:
    """One pooling for each tap: the same for all, or as many as there are taps.

    Raises:
        TapError: unknown, of another number, nothing to pool, or a pooling of another package that
            gives no vectors of one length.
    """
    named = tuple(pooling.split(","))
    if not taps or len(named) not in (1, len(taps)):
        raise TapError(f"{len(named)} poolings ({pooling}) for {len(taps)} taps; give one for each")
    named = named * len(taps) if len(named) == 1 else named
    check_poolings(named)
    for tap, how in zip(taps, named, strict=True):
        found = find_pooling(how)
        if not found.one_vector and len(taps) > 1:
            raise TapError(f"pooling {how} keeps every position, so several taps cannot be joined")
        if not tap.positions and found.needs_positions:
            raise TapError(
                f"tap {tap.name!r} gives one vector per item, so there is nothing to pool: "
                "choose pooling mean, or a tap with positions"
            )
        pooled_width(how, tap.width)  # refused now, and not once for each item
    return named


def entry_for(classifier: Classifier, anatomy: Anatomy, tap: Tap, pool_over: str) -> Tap:
    """The tap in front of the first block, if only the positions are pooled that a clip fills.

    Raises:
        TapError: not `valid`, or it cannot be measured which positions of the tap these are.
    """
    if pool_over != "valid":
        raise TapError(f"pooling over {pool_over!r} is not known; choose all or valid")
    if classifier.input.patches is not None:
        raise TapError(
            "pooling over valid positions is for a clip in one input; this model takes it in "
            "patches, each of which is full"
        )
    if classifier.modality != "audio" or classifier.input.seconds is None:
        raise TapError(
            "pooling over valid positions is for models that take every clip at one length; "
            "this one takes each at its own, and pools its own positions always"
        )
    entry = classifier.structure.entry(anatomy)
    if entry is None or [entry.shape[a] for a in entry.positions] != [
        tap.shape[a] for a in tap.positions
    ]:
        raise TapError(
            f"which positions of tap {tap.name!r} are valid cannot be measured: it has "
            "not the positions that enter the first block; pool over all of them"
        )
    return entry


log = logging.getLogger(__name__)
FloatArray = npt.NDArray[np.float32]

RECIPE = "1"  # changes whenever the same settings would give other vectors
SAMPLED = 8  # regions that engines are measured on


class Embedder:
    """A classifier and one reading (tap and pooling) of it, or several whose vectors are joined.

    space: what `run` and `embed` apply to the joined vectors; a collection keeps them as they are.
    Several threads may share one.
    """

    def __init__(
        self,
        classifier: Classifier,
        tap: Tap | Sequence[Tap],
        pooling: str,
        *,
        pool_over: str = "all",
        device: str = "auto",
        engine: str | None = None,
        precision: str = EXACT,
        space: Space | None = None,
    ) -> None:
        self._guard = Guard()
        self.classifier = enable_classify(classifier)
        taps = (tap,) if isinstance(tap, Tap) else tuple(tap)
        poolings = poolings_for(taps, pooling)
        self.tap = replace(taps[0], name=",".join(one.name for one in taps))
        self.pooling = pooling if len(set(poolings)) > 1 else poolings[0]
        engine = engine or (DEFAULT if precision == EXACT else AUTO)
        registry.check(engine, precision)
        self.engine, self.precision = engine, precision
        self.device = registry.select_device(classifier, engine, precision, device)
        readings = [
            Reading(one, how, None if pool_over == "all" else self._entry(one, pool_over))
            for one, how in zip(taps, poolings, strict=True)
        ]
        self.runner = Runner(classifier, readings, self.device, lambda: self._policy)
        self._native_runner = self.runner
        self.space = space
        if space is not None and space.dim != self.dim:
            raise SpaceError(
                f"a space of {space.dim} numbers does not fit vectors of {self.dim}; fit it to "
                "vectors of this embedder"
            )
        self.proved_on: list[str] = []
        self._saved: SavedEmbedder | None = None
        self._trust = False

    @classmethod
    def from_classifier(
        cls,
        classifier: Classifier,
        tap: str = "backbone",
        pooling: str = "mean",
        space: Space | None = None,
        precision: str = EXACT,
        engine: str | None = None,
        device: str = "auto",
        pool_over: str = "all",
    ) -> Embedder:
        """Read `classifier` at `tap`, pooled by `pooling`; several, joined by commas, are read in
        the same pass and joined: `layer:8,layer:9`, and `first` or `first,mean+std`.

        space: fitted to such vectors; `run` and `embed` then give vectors in it.
        pool_over: of a model that takes every clip at one length, pool `all` positions, as the
        classifier's own head sees them, or only the `valid` ones, which the clip fills. precision:
        `exact` (cosine of at least 0.999999 to torch in fp32) or `fast` (0.9999). engine: `torch`,
        `openvino`, or `auto` for the fastest, measured while items are run; None:
        the model's own in `exact`, else `auto`.

        Raises:
            TapError: the model has no such tap, or the pooling does not fit it.
            EngineError: the engine does not run this model.
        """
        embedder = cls(
            classifier,
            taps_of(classifier, tap.split(",")),
            pooling,
            pool_over=pool_over,
            device=device,
            engine=engine,
            precision=precision,
            space=space,
        )
        _ = embedder._policy  # measured now, so that the first run is not slower than the next
        return embedder

    @property
    def _native(self) -> Engine:
        """The classifier's own engine, in fp32."""
        return self._native_runner.engine

    @property
    def dim(self) -> int:
        """Numbers in a raw vector."""
        return sum(pooled_width(one.pooling, one.tap.width) for one in self.runner.readings)

    @property
    def _pool_over(self) -> str:
        return self.runner.readings[0].pool_over

    def _entry(self, tap: Tap, pool_over: str) -> Tap:
        return entry_for(self.classifier, self._anatomy, tap, pool_over)

    @Once
    def _anatomy(self) -> Anatomy:
        return anatomy_of(self.classifier)

    @Once
    def _identity(self) -> tuple[dict[str, str], Record | None]:
        return identity_of(self.classifier)

    @Once
    def fingerprint(self) -> dict[str, str]:
        """What makes two vectors comparable, field by field."""
        reader = {"audio": audio.RESAMPLER, "video": video.SAMPLING}
        taps = [one.tap for one in self.runner.readings]
        pooling = self.pooling + ("" if self._pool_over == "all" else " over valid positions")
        return {
            **self._identity[0],
            "reader": reader.get(self.classifier.modality, "1"),
            "tap": ", ".join(f"{one.name} ({one.place})" for one in taps),
            "pooling": "; ".join([pooling, *codes_of(self.pooling.split(","))]),
            "precision": self.precision,
            "recipe": RECIPE,
        }

    @Once
    def certificate(self) -> Certificate:
        """The proof of the head, measured once on this machine and then kept in the user's cache.
        What a saved embedder says of itself is a claim."""
        known = self._known_proof()
        if known is None:
            return self._compared_with_claim(self._proved(certify(self.classifier), []))
        self.proved_on = known[1]
        return self._compared_with_claim(known[0])

    def prove_on(self, sample: SourceSample) -> None:
        """Prove the head on the first real items instead of a synthetic one; what was found on
        items here of the same model stays, and costs nothing. `proved_on` names them."""
        on_items = sample if self.classifier.structure.proved_on_items else None
        proved = self._known_proof(on_items)
        if proved is None:
            certificate, on = certify_on(self.runner, sample)
            proved = self._proved(certificate, on, on_items), on
        with self._guard:
            self.certificate, self.proved_on = self._compared_with_claim(proved[0]), proved[1]

    def _known_proof(
        self, sample: SourceSample | None = None
    ) -> tuple[Certificate, list[str]] | None:
        """The proof of the head that an earlier run made here, or why there is none, and its items.
        sample: of items, of which some have to be among them."""
        proved = self._recalled_proof(None)
        if sample is not None and not (proved and proved[1]):
            proved = self._recalled_proof(sample.names)
        return proved

    def _recalled_proof(self, items: Sequence[Any] | None) -> tuple[Certificate, list[str]] | None:
        note = self._graphs.recall(self._proof_key(items), PROOF) if self._is_kept else None
        if note is None:
            return None
        try:
            certificate = Certificate.from_dict(note.answer["certificate"])
            on = [str(id) for id in note.answer["proved_on"]]
        except (KeyError, TypeError, ValueError):
            return None
        return replace(certificate, kept=note.when), on

    def _proved(
        self, certificate: Certificate, on: list[str], sample: SourceSample | None = None
    ) -> Certificate:
        """A proof of this run, kept."""
        if self._is_kept:
            self._keep_proof(certificate, on, sample)
        return certificate

    def _compared_with_claim(self, certificate: Certificate) -> Certificate:
        """Warns where a saved embedder says that its head was proved."""
        claim = self._description.get("certificate")
        if isinstance(claim, dict) and claim.get("ok") and not certificate.ok:
            log.warning(
                "%s says that its head was proved; here it is not: %s",
                self._saved and self._saved.folder,
                certificate.refusal,
            )
        return certificate

    def _keep_proof(
        self, certificate: Certificate, on: list[str], sample: SourceSample | None = None
    ) -> None:
        if not certificate.kept and not certificate.unfinished:
            answer = {"certificate": certificate.to_dict(), "proved_on": on}
            # What other items may settle holds for these.
            items = sample.names if sample is not None and certificate.untested else None
            self._graphs.note(self._proof_key(items), answer, PROOF)

    @Once
    def _is_kept(self) -> bool:
        """Whether what is measured of the classifier holds in later runs: of files and of published
        libraries. A live object, or code of the user's own, may do something else under the same
        weights (a closure, a file that it reads)."""
        if self._saved:  # the hashes of its code are a part of what is asked
            return True
        return not (is_live(self.classifier) or own_code(self.classifier))

    @property
    def _description(self) -> dict[str, Any]:
        """As it was saved; empty if it was not."""
        return self._saved.description if self._saved else {}

    @Once
    def _policy(self) -> BatchPolicy:
        """How items may share a pass of torch in fp32; measured once on this machine."""
        asked = self._policy_key()
        note = self._graphs.recall(asked, POLICY) if self._is_kept else None
        if note is not None:
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                return BatchPolicy.from_dict(note.answer)
        found = find_batch_policy(self.classifier, self._native)
        if self._is_kept:
            self._graphs.note(asked, found.to_dict(), POLICY)
        return found

    def _policy_key(self) -> list[Any]:
        readings = [one.key for one in self.runner.readings]
        return [readings, self.device.partition(":")[0], package_versions()]

    def _proof_key(self, items: Sequence[Any] | None) -> list[Any]:
        """items: for which alone an answer holds."""
        structure = self.classifier.structure
        versions = [package_versions(), package_hash()]
        return [structure.base, structure.output, self.classifier.kind, *versions, items]

    @Once
    def _graphs(self) -> Graphs:
        """Where recorded graphs of this classifier are stored."""
        folder = self._saved.folder if self._saved else None
        identity, record = self._identity

        measure = partial(subject, self.classifier, identity)
        form = (lambda found: {"subject": found}, lambda note: str(note["subject"]))
        return Graphs(recorded(record, "subject", identity, measure, form), folder)

    def settle(
        self, sample: SourceSample, engine: str | None = None, ahead: bool = True
    ) -> EngineChoice | None:
        """Choose the engine for a run over a source; None where there is no choice. An embedder
        settles once.

        engine: another one than the embedder was made with. ahead: on the first items of the
        source, before the run; else `auto` chooses while the run goes on, which begins now.

        Raises:
            EngineError: the engine cannot run this model at this precision.
            MissingExtra: it is not installed.
        """
        with self._guard:
            engine = self._engine_name(engine or self.engine)
            if self.runner.choice is None and not self._is_native(engine):
                kept = self._kept_engine if sample.is_brief else None
                if kept is not None and engine in (AUTO, kept[0].mode.engine):
                    self._engage(*kept)
                elif engine == AUTO and not ahead and self._may_change:
                    self._engage(portfolio=EnginePortfolio(self._trial([]), self.precision))
                else:
                    batches = 2 if engine == AUTO else 1  # one alone is held, and not timed
                    regions = sample.regions(self.runner, SAMPLED, batches)
                    long = [one for one in regions if not is_too_short(self.runner, one.samples)]
                    items = [one.inputs.tensors for one in long]
                    trial = self._trial(items or [self.classifier.example().tensors])
                    self._engage(*choose(trial, engine, self.precision))
            if self.runner.portfolio is not None and not ahead:
                self.runner.portfolio.begin(lambda: sample.total, sample.memory)
            return self.runner.choice

    def _engage(
        self,
        choice: EngineChoice | None = None,
        engine: Engine | None = None,
        portfolio: EnginePortfolio | None = None,
    ) -> None:
        """Later runs are in this engine, or in engines of a portfolio; a run that is under way goes
        on with the runner that it has."""
        if choice is not None:
            log.info("%s", choice.words)
        self.runner = Runner(
            self.classifier,
            self.runner.readings,
            self.device,
            choice.find_policy if choice else lambda: self._policy,
            engine or (None if is_recorded(self.classifier) else self._native),
            choice,
            portfolio,
        )

    @property
    def _may_change(self) -> bool:
        """Whether engines may take turns: on one device."""
        return "," not in self.device

    @Once
    def _kept_engine(self) -> tuple[EngineChoice, Engine] | None:
        """An earlier run's engine on a recorded graph, open without the model."""
        note = self._graphs.recall(self._engine_key(), ENGINE)
        if note is None or not is_recorded(self.classifier):
            return None
        found = reopened(note, self._graphs, self.classifier, lambda: self._native)
        return found if found and prepare_plainly(self.classifier) else None

    def _engine_key(self) -> list[Any]:
        readings = [one.key for one in self.runner.readings]
        return [self.precision, readings, self.device, versions("openvino")]

    def _engine_name(self, engine: str) -> str:
        """The engine by its own name: `auto` is the native one where that is all there is."""
        native = self.classifier.structure.engine
        if engine == AUTO and self.precision == EXACT:
            several = islice(registry.candidates(self.classifier, self.device), 1, None)
            engine = AUTO if any(True for _ in several) else native
        return native if engine == DEFAULT else engine

    def _is_native(self, engine: str) -> bool:
        """Whether an engine is the classifier's own, in fp32: then there is nothing to choose."""
        return engine == self.classifier.structure.engine and self.precision == EXACT

    @property
    def _is_settled(self) -> bool:
        """Whether no item is looked at before the run to know which engine runs them."""
        engine = self._engine_name(self.engine)
        in_turns = engine == AUTO and self._may_change
        return self.runner.choice is not None or in_turns or self._is_native(engine)

    def _trial(self, items: Sequence[Any]) -> EngineTrial:
        """What engines are measured on."""
        return EngineTrial(
            classifier=self.classifier,
            readings=self.runner.readings,
            device=self.device.split(",")[0],
            find_policy=lambda: self._policy,
            native=lambda batch, logits=True: self._native(batch, logits),
            graphs=self._graphs,
            items=items,
        )

    @Once
    def _behaviour(self) -> Behaviour | None:
        """What it gives for made-up items, measured once, of files once on this machine."""
        readings = [one.key for one in self.runner.readings]
        asked = [readings, self.device.partition(":")[0], machine()]
        form = (_behaviour_for_json, Behaviour.from_dict)
        return recorded(self._identity[1], "behaviour", asked, self._measure_behaviour, form)

    def _measure_behaviour(self) -> Behaviour | None:
        return behaviour.measure(self.classifier, self.runner.readings, self.device, self._native)

    @property
    def fingerprint_id(self) -> str:
        """The fingerprint's hash."""
        return digest(self.fingerprint)

    def run(
        self,
        items: Any,
        on_error: Literal["raise", "skip"] = "raise",
        *,
        window: float | None = None,
        hop: float | None = None,
        tile: int | None = None,
        overlap: int = 0,
        pages: Literal["each"] | None = None,
        alone: bool = False,
    ) -> Result:
        """Vectors, logits and labels of items, all in one forward pass of each batch.

        items: paths, folders, tables, arrays (n,) at the model's rate or (array, rate), bytes,
        images, texts; one of them or many. on_error: `raise` stops at the first item that fails,
        `skip` goes on and lists it in `failures`. window, hop: seconds (of texts tokens); one
        row for each window. tile, overlap: pixels; one row for each box of an image. pages: `each`,
        one row for each page or frame of an image. alone: one item in each pass; in a
        batch an item's values differ by less than 1e-5, relative, from those.
        """
        return self._run(items, on_error, Layout(window, hop, tile, overlap, pages), alone)

    def _run(
        self,
        items: Any,
        on_error: Literal["raise", "skip"],
        layout: Layout,
        alone: bool,
        logits: bool = True,
    ) -> Result:
        if not self._is_settled and isinstance(items, Iterator):
            items = Repeatable(items)  # the first of them are looked at twice
        entries = from_objects(items, self.classifier.modality)
        self.settle(SourceSample(entries, layout), ahead=False)
        numbered = numbered_regions(entries, layout, self.classifier)
        with closing(self.runner.stream(numbered, alone=alone, logits=logits)) as outcomes:
            found = collect_results(outcomes, self.classifier.labels, on_error)
        vectors = found.vectors if len(found.ids) else found.vectors.reshape(0, self.dim)
        return replace(found, vectors=vectors if self.space is None else self.space(vectors))

    def embed(
        self,
        items: Any,
        on_error: Literal["raise", "skip"] = "raise",
        *,
        logits: bool = True,
        alone: bool = False,
        **cut: Any,
    ) -> FloatArray:
        """`run(items, …).vectors`, (n, d) float32; in the embedder's space, if it has one.

        logits: False lets a forward pass in torch end behind the tap, which at a middle layer is
        half of the work. cut: window, hop, tile, overlap, pages, as in `run`.
        """
        return self._run(items, on_error, Layout(**cut), alone, logits).vectors

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save the classifier and the reading; `Embedder.load` opens them again.

        Written aside and renamed, so that a folder of that name is whole or absent.

        Raises:
            UsageError: the folder exists and is not an embedder.
            StoreError: it cannot be written.
        """

        def parts(aside: Path) -> None:
            self.classifier.save(aside)
            self._graphs.copy(aside)

        saved = saving.write(folder, self._to_save(), self.space, parts)
        # Who made the proof and the policy need not make them again to open the folder.
        self._keep_proof(self.certificate, self.proved_on)
        self._graphs.note(self._policy_key(), self._policy.to_dict(), POLICY)
        return saved

    def _to_save(self) -> dict[str, Any]:
        with self._guard:
            certificate, proved_on = self.certificate, self.proved_on
        taps = [asdict(one.tap) for one in self.runner.readings]
        return {
            "format": 1,
            "source": self.classifier.spec,
            "tap": taps[0],
            **({"taps": taps} if len(taps) > 1 else {}),
            "pooling": self.pooling,
            "pool_over": self._pool_over,
            "packages": packages_of(self.pooling.split(",")),
            "labels": self.classifier.labels,
            "fingerprint": self.fingerprint,
            **describe_fingerprint(self),
            "certificate": certificate.to_dict(),
            "proved_on": proved_on,
            "batching": self._policy.to_dict(),
            "precision": self.precision,
            "engine": self.engine,
            "choice": self.runner.choice.to_dict() if self.runner.choice else None,
            "classifier": self.classifier.describe(),
        }

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        trust: bool = False,
        engine: str | None = None,
        precision: str | None = None,
    ) -> Embedder:
        """Open a saved embedder: a folder, or one on the hub (`owner/name[@revision]`). engine,
        precision: others than it was saved with.

        Raises:
            ModelError: not an embedder, or its weights are not those that were saved.
        """
        how = {"engine": engine, "precision": precision}
        pushed = specs.saved_on_hub(folder, trust)
        open = specs.load if pushed is None else _by_name(specs.load, folder)
        return cls._load(pushed or user_path(folder), open, trust, device=device, **how)

    @classmethod
    def _load(
        cls,
        path: Path,
        open: Callable[..., Classifier],
        trust: bool,
        *,
        device: str = "auto",
        engine: str | None = None,
        precision: str | None = None,
    ) -> Embedder:
        """open: opens the classifier in the folder."""
        stored = saving.read(path)
        saved = {"engine": DEFAULT, **stored.description}
        check_poolings(saved["pooling"].split(","), saved.get("packages", {}))
        classifier = open(path, trust=trust)
        if engine is None and (reason := registry.unusable(saved["engine"], classifier)):
            log.warning(
                "%s was saved for %s: %s; %s runs it", path, saved["engine"], reason, DEFAULT
            )
            engine = DEFAULT
        embedder = cls(
            classifier,
            stored.taps,
            saved["pooling"],
            pool_over=saved.get("pool_over", "all"),
            device=device,
            engine=engine or saved["engine"],
            precision=precision or saved.get("precision", EXACT),
            space=stored.space,
        )
        embedder._saved, embedder._trust = stored, trust
        embedder._compare_with_saved(path)
        return embedder

    def _compare_with_saved(self, path: Path) -> None:
        """Refuse what would give other vectors than when it was saved."""
        saved = self._description
        if other := renamed(saved.get("labels", ()), self.classifier.labels):
            log.warning("%s: class names were changed since it was saved: %s", path, other)
        chosen = {"precision": self.precision}  # another one than was saved is no change of it
        hashes = {**saved["fingerprint"], **chosen}
        was = Fingerprint(
            hashes, saved.get("code", {}), Behaviour.from_dict(saved.get("behaviour"))
        )
        if not differences(hashes, self.fingerprint):
            return
        found = compare(was, fingerprint_of(self), "", "")
        if found.refused:
            raise ModelError(f"{path} was changed since it was saved: {found.words}")
        for note in found.notes:
            log.warning("%s: %s", path, note)

    def __reduce__(self) -> tuple[Any, ...]:
        """As its folder and how it is run: another process opens it there again."""
        if self._saved is None:
            raise UsageError(
                "an embedder goes to another process as its folder, and this one has none yet: "
                "send Embedder.load(embedder.save(FOLDER))"
            )
        how = {"device": self.device, "engine": self.engine, "precision": self.precision}
        return partial(Embedder.load, self._saved.folder, trust=self._trust, **how), ()

    def __repr__(self) -> str:
        return (
            f"Embedder({self.classifier.spec!r}, tap={self.tap.name!r}, "
            f"pooling={self.pooling!r}, dim={self.dim}"
            + (f", space={self.space.recipe!r})" if self.space else ")")
        )


def numbered_regions(
    entries: Iterable[Entry], layout: Layout, classifier: Classifier
) -> Iterator[Entry | ItemNumber]:
    """The regions of each entry, behind the entry's number."""
    for number, entry in enumerate(entries):
        yield ItemNumber(number)
        yield from layout.of([entry], classifier.input)


def _by_name(
    open: Callable[..., Classifier], spec: str | os.PathLike[str]
) -> Callable[..., Classifier]:
    """Opens a model of the hub by its name, so that it is recorded with its commit."""
    return lambda folder, trust: open(spec, trust=trust)


def open_embedder(
    spec: str | os.PathLike[str],
    tap: str | None = None,
    pooling: str | None = None,
    *,
    pool_over: str | None = None,
    device: str = "auto",
    engine: str | None = None,
    precision: str | None = None,
    **model_options: Any,
) -> Embedder:
    """Open a saved embedder, or make one from a classifier; tap and pooling override its own. How
    items may share a batch is measured once there are two of them.

    model_options: what else `penult.load` takes.
    """
    how: dict[str, Any] = {"device": device, "engine": engine, "precision": precision}
    pushed = specs.saved_on_hub(spec, bool(model_options.get("trust")))
    if pushed is not None or saving.is_embedder(spec):
        if given := [n for n, value in model_options.items() if value and n != "trust"]:
            log.warning("%s opens as it was saved: %s has no effect", spec, ", ".join(given))
        trust = bool(model_options.get("trust"))
        open = specs.open_recorded if pushed is None else _by_name(specs.open_recorded, spec)
        saved = Embedder._load(pushed or user_path(spec), open, trust, **how)
        readings = saved.runner.readings
        over = pool_over or readings[0].pool_over
        if tap in (None, saved.tap.name):
            if pooling in (None, saved.pooling) and over == readings[0].pool_over:
                return saved
            place = [one.tap for one in readings]
        else:
            place = known_taps(saved.classifier, str(tap).split(","))
        pooling = pooling or saved.pooling
        how |= {"engine": saved.engine, "precision": saved.precision}
        return Embedder(saved.classifier, place, pooling, pool_over=over, **how)
    classifier = specs.open_recorded(spec, **model_options)
    place = known_taps(classifier, (tap or "backbone").split(","))
    how |= {"precision": precision or EXACT}
    return Embedder(classifier, place, pooling or "mean", pool_over=pool_over or "all", **how)


def _behaviour_for_json(found: Behaviour | None) -> dict[str, Any]:
    return {} if found is None else found.to_dict()


def _gives_rows(embedder: Embedder) -> bool:
    """Whether the logits of an item are one row: frames of a batch need the model to be told
    apart."""
    with suppress(*REFUSALS):
        example = Batch(embedder.classifier.example().tensors)
        return bool(embedder.runner.engine(example).logits[0].ndim == 1)
    return False


_USUAL = 10.0  # times the length of an example: 10 s of sound, 80 words


def _verify_usual(classifier: Classifier, engine: Engine) -> None:
    """Hold a graph against the native engine at a usual length, whatever this run had: the model
    need not be opened for such items then."""
    one = classifier.input
    with suppress(*REFUSALS):  # not every model takes as much
        item = content_of(one.modality, 0, one.rate, one.frames, _USUAL)
        engine(Batch(first_input(classifier, item).tensors))


def keep_engine(embedder: Embedder) -> None:
    """Note an engine that runs a recorded graph, so that later runs over a few items need no
    model."""
    runner, record = embedder.runner, embedder._identity[1]
    if record is None or runner.choice is None or is_recorded(embedder.classifier):
        return
    engine = runner.engine if runner.portfolio is None else runner.portfolio.engine
    found = describe_graph(engine, runner.choice)
    if identity_of(embedder.classifier)[1] is None:  # its module was changed since
        return
    if found is not None and _gives_rows(embedder):
        _ = runner.shortest if embedder.classifier.modality == "audio" else 0
        _verify_usual(embedder.classifier, engine)
        embedder._graphs.note(embedder._engine_key(), found, ENGINE)


def brief_runner(embedder: Embedder) -> Runner:
    """Runs one item, or a few: on an earlier run's recorded graph where the model need not be
    opened for it, else as the embedder does."""
    kept = embedder._kept_engine if embedder.runner.choice is None else None
    if kept is None:
        return embedder.runner
    readings, (choice, engine) = embedder.runner.readings, kept
    how = embedder.device, choice.find_policy, engine, choice
    return Runner(embedder.classifier, readings, *how)


def label_runner(classifier: Classifier, source: Source, device: str = "auto") -> Runner:
    """Runs items for their labels: a few on the recorded graph of the usual embedder, where an
    earlier run kept one and the model need not be opened, else in the classifier's own engine."""
    record: Record | None = record_of(classifier)
    known = record is not None and record.recall("taps", ["backbone"])
    if known and is_recorded(classifier) and SourceSample(source).is_brief:
        usual = Embedder(classifier, known_taps(classifier, ["backbone"]), "mean", device=device)
        runner = brief_runner(usual)
        if runner.choice is not None:
            return runner
    return Runner(classifier, [], device_of(classifier, device))


def known_taps(classifier: Classifier, names: Sequence[str]) -> list[Tap]:
    """The taps of these names; of files the model is studied once.

    Raises:
        TapError: one is not there.
    """
    form = (
        lambda taps: {"taps": [{**asdict(one), "shape": [*one.shape]} for one in taps]},
        lambda found: [Tap(**{**one, "shape": tuple(one["shape"])}) for one in found["taps"]],
    )
    measure = partial(taps_of, classifier, names)
    return recorded(record_of(classifier), "taps", [*names], measure, form)


def open_at_taps(
    spec: str | os.PathLike[str],
    taps: Sequence[Mapping[str, Any]],
    pooling: str,
    *,
    pool_over: str = "all",
    device: str = "auto",
    precision: str = EXACT,
    **model_options: Any,
) -> Embedder:
    """Open a classifier and read it where another embedder of the same weights read it: the taps
    are known, so no pass is recorded. Whoever calls compares the fingerprints.

    taps: their fields, as a saved embedder and a collection's manifest hold them.
    """
    classifier = specs.open_recorded(spec, **model_options)
    places = [Tap(**{**one, "shape": tuple(one["shape"])}) for one in taps]
    return Embedder(
        classifier, places, pooling, pool_over=pool_over, device=device, precision=precision
    )


def fingerprint_of(embedder: Embedder) -> Fingerprint:
    """What makes its vectors comparable, with what it does to made-up items: one or two passes, the
    first time."""
    return Fingerprint(embedder.fingerprint, own_code(embedder.classifier), embedder._behaviour)


def has_record(embedder: Embedder) -> bool:
    """Whether what was measured of its model is kept, by the content of files and the versions of
    packages alone."""
    return embedder._identity[1] is not None


def native_runner(embedder: Embedder) -> Runner:
    """Runs an embedder's readings in the classifier's own engine, in fp32, whatever a run was
    settled on."""
    readings, device = embedder.runner.readings, embedder.device
    return Runner(embedder.classifier, readings, device, engine=embedder._native)


def behaves_alike(embedder: Embedder) -> bool:
    """Whether a second measurement of its behaviour gives the first one's values."""
    one, two = embedder._behaviour, embedder._measure_behaviour()
    if one is None or two is None:
        return True
    pairs = [(one.answers[name], two.answers[name]) for name in one.answers if name in two.answers]
    return not any(unlike("", first, second, EXACT) for first, second in pairs)


def describe_fingerprint(embedder: Embedder) -> dict[str, Any]:
    """The user's own code and the behaviour, as a manifest and a saved embedder have them."""
    own = fingerprint_of(embedder)
    found = {"code": own.files, "behaviour": own.behaviour and own.behaviour.to_dict()}
    return {name: value for name, value in found.items() if value}


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The fields in which two fingerprints differ, in words."""
    return [
        f"{name}: {one.get(name, 'absent')} against {other.get(name, 'absent')}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def require_proof(embedder: Embedder, sample: SourceSample | None = None) -> None:
    """Prove the head, on the first of these items where there are any.

    Raises:
        HeadNotFound: the tap is `prelogits` and the head is not proved; other taps need no head.
    """
    if sample is not None:
        embedder.prove_on(sample)
    if "prelogits" in embedder.tap.name.split(",") and not embedder.certificate.ok:
        raise HeadNotFound(
            f"the head is not proved, so there are no prelogits: {embedder.certificate.refusal}. "
            "Another tap works: --tap backbone"
        )


def keeps_proof(embedder: Embedder) -> bool:
    """Whether the proof that was made now serves later runs: not of code of the user's own."""
    return embedder._is_kept


def describe_embedder(embedder: Embedder) -> dict[str, Any]:
    """An embedder for JSON: model, reading, fingerprint, proof, batching policy and engine."""
    runner = embedder.runner
    return {
        "model": embedder.classifier.spec,
        "tap": embedder.tap.name,
        "pooling": embedder.pooling,
        "dim": embedder.dim,
        "fingerprint": embedder.fingerprint,
        "fingerprint_id": embedder.fingerprint_id,
        "certificate": embedder.certificate.to_dict(),
        "proved_on": embedder.proved_on,
        "batching": runner.policy.to_dict(),
        "precision": embedder.precision,
        "engine": runner.mode.words,
        "choice": runner.choice.to_dict() if runner.choice else None,
    }
