"""A run spread over machines: the table is that of one machine, whatever dies meanwhile."""

from __future__ import annotations

import csv
import os
import pickle
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import penult
from conftest import clip
from penult.cli import run
from penult.collection import chunks, ray_workers
from penult.collection.add import RunSettings, Summary, add
from penult.collection.chunks import Chunk, ChunkResult, ChunkWorker, MachineProof, WorkerModel
from penult.collection.collection import Collection
from penult.collection.ingest import CommitBatch, Options, Planned, Seen, Tick, UnreadItem
from penult.collection.ray_workers import ChunkFeed, Crew, RayOptions
from penult.data.items import PAUSE, Item
from penult.data.regions import WHOLE
from penult.data.sources import from_paths
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder
from penult.embedding.runner import Stopwatch
from penult.errors import StoreError
from ray_cluster import assert_same

# The plan, the chunks and what workers do with them, in this process.


@dataclass
class Here:
    """Machines that are this process: each chunk and each result is pickled on its way."""

    model: WorkerModel
    regions: int = 5
    chunks: int = 0
    parts: int = 0  # that more followed
    rows: pa.Schema | None = None
    embedder: Embedder | None = None

    def begin(self, embedder: Embedder, rows: pa.Schema) -> None:
        self.embedder, self.rows = embedder, rows

    def batches(
        self, planned: Iterable[Planned], options: Options, tick: Tick, watch: Stopwatch | None
    ) -> Iterator[CommitBatch]:
        assert self.embedder is not None
        feed = ChunkFeed(planned, self.embedder, options, tick)
        worker = ChunkWorker(self.model, self.rows, replace(options, machines=None, times=None))
        while not feed.ended:
            chunk = feed.take(self.regions)
            yield feed.notes()
            if chunk is not None:
                self.chunks += 1
                result: ChunkResult = _sent(worker.run(_sent(chunk)))
                while result.more:
                    self.parts += 1
                    yield result.batch
                    result = _sent(worker.go_on(chunk.number))
                assert result.error is None
                yield result.batch
        yield feed.notes(last=True)


def _sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of several lengths in a table with metadata, spans of one, a file that is none, and one
    that is not there."""
    folder = tmp_path_factory.mktemp("archive")
    with (folder / "clips.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "start", "end", "site", "depth"])
        for number in range(24):
            name = f"{number:02}.wav"
            soundfile.write(folder / name, clip(0.3 + number % 5 / 10, number, 16_000), 16_000)
            lines.writerow([name, "", "", f"s{number % 5}", number / 4])
        lines.writerows([["03.wav", 0.1, 0.3, "a", 1], ["03.wav", 0.1, 0.3, "b", 2]])
        lines.writerows([["bad.wav", "", "", "s0", 1], ["none.wav", "", "", "s0", 2]])
    (folder / "bad.wav").write_bytes(b"no")
    return folder


def embedded(
    path: Path, model: Path, source: Path, options: Options = Options(), regions: int = 0
) -> tuple[Summary, Here]:
    """A run into a collection, of chunks of so many regions where there are any; the summary and
    what did it."""
    embedder = penult.Embedder.load(model)
    machines = Here(WorkerModel(str(model)), regions)
    done = add(
        Collection.open(path).reader,
        embedder,
        from_paths([source], "audio"),
        replace(options, machines=machines if regions else None),
        RunSettings(),
    )
    return done, machines


CUTS = [
    Options(),
    Options(layout=Layout(window=0.1, hop=0.05), summary="mean"),
    Options(alone=True, logits="none"),
]


@pytest.mark.parametrize("options", CUTS, ids=["whole", "windows", "alone"])
def test_chunks_make_the_table_of_one_machine(
    options: Options, light: Path, archive: Path, tmp_path: Path
) -> None:
    source = archive if options.layout.window else archive / "clips.csv"
    one, _ = embedded(tmp_path / "one", light, source, options)
    two, machines = embedded(tmp_path / "two", light, source, options, regions=5)
    assert_same(tmp_path / "two", tmp_path / "one")
    assert two.counts() == one.counts() and machines.chunks > 4
    assert two.media_seconds == pytest.approx(one.media_seconds)


def test_a_chunk_with_many_rows_comes_in_parts(
    light: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long recording is one item, and fits into no message."""
    monkeypatch.setattr(chunks, "PART_ROWS", 3)
    options = Options(layout=Layout(window=0.1), summary="max")
    embedded(tmp_path / "one", light, archive, options)
    done, machines = embedded(tmp_path / "two", light, archive, options, regions=40)
    assert_same(tmp_path / "two", tmp_path / "one")
    assert done.found.failures.new == 1 and machines.parts > 20 > machines.chunks


def test_a_second_run_gives_workers_only_what_has_to_be_read(
    light: Path, archive: Path, tmp_path: Path
) -> None:
    """Unchanged, touched, changed, moved and new files, once on one machine and once in chunks."""
    counts, asked = [], []
    for name, regions in (("one", 0), ("two", 5)):
        folder = shutil.copytree(archive, tmp_path / "files")
        (folder / "clips.csv").unlink()
        embedded(tmp_path / name, light, folder, regions=regions)
        again, machines = embedded(tmp_path / name, light, folder, regions=regions)
        assert (again.done, again.skipped, machines.chunks) == (0, 24, 0)
        os.utime(folder / "00.wav", ns=(1, 1))
        soundfile.write(folder / "01.wav", clip(0.4, 99, 16_000), 16_000)
        os.utime(folder / "01.wav", ns=(2, 2))
        (folder / "02.wav").rename(folder / "moved.wav")
        soundfile.write(folder / "new.wav", clip(0.4, 98, 16_000), 16_000)
        os.utime(folder / "new.wav", ns=(3, 3))
        last, machines = embedded(tmp_path / name, light, folder, regions=regions)
        assert len(last.found.moved) == 1
        counts.append(last.counts())
        asked.append(machines.chunks)
        shutil.move(tmp_path / "files", tmp_path / f"files of {name}")
    assert counts[0] == counts[1] == {"done": 1, "skipped": 23, "replaced": 1, "failed": 1}
    assert asked == [0, 1]
    assert_same(tmp_path / "two", tmp_path / "one")


def test_what_is_in_memory_is_not_sent_again(light: Path, archive: Path, tmp_path: Path) -> None:
    """Bytes and texts have no time on a disk, and are told by their hash here."""
    embedder, machines = penult.Embedder.load(light), Here(WorkerModel(str(light)))
    clips = [(archive / f"{number:02}.wav").read_bytes() for number in range(8)]
    collection = Collection.open(tmp_path / "c")
    assert collection.add(embedder, clips, machines=machines).done == 8
    assert machines.chunks == 2
    again = collection.add(embedder, [*clips, b"no"], machines=machines)
    assert (again.done, again.skipped, again.failed, machines.chunks) == (0, 8, 1, 3)
    alone = Collection.open(tmp_path / "alone")
    alone.add(embedder, [*clips, b"no"])
    assert_same(collection.path, alone.path)


def test_a_plan_for_workers_reads_no_file(
    light: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the driver would read of each file limits the whole cluster."""
    from penult.collection import ingest

    read: list[str] = []
    real = ingest._content_hash
    monkeypatch.setattr(ingest, "_content_hash", lambda item: read.append(item.id) or real(item))
    planned: list[Planned] = []

    def batches(given: Iterable[Planned], *options: Any) -> Iterator[CommitBatch]:
        planned.extend(given)
        yield CommitBatch()

    machines: Any = SimpleNamespace(begin=lambda *given: None, batches=batches)
    add(
        Collection.open(tmp_path / "c").reader,
        penult.Embedder.load(light),
        from_paths([archive], "audio"),
        Options(machines=machines),
    )
    assert read == [] and sum(isinstance(one, UnreadItem) for one in planned) == 25


def test_other_vectors_are_refused(light: Path) -> None:
    proof = MachineProof.of(penult.Embedder.load(light))
    assert proof.refusal(_sent(proof)) == ""
    assert len(proof.vectors) >= 3
    near = replace(proof, vectors=proof.vectors * np.float32(1 + 5e-6))
    assert proof.refusal(near) == ""
    far = replace(proof, vectors=proof.vectors * np.float32(1 + 5e-5), versions={"torch": "1.0"})
    assert "its vectors differ by 5.0e-05" in proof.refusal(far)
    assert "torch 1.0 there" in proof.refusal(far)
    one = proof.vectors.copy()
    one[1] += 1
    assert "differ" in proof.refusal(replace(proof, vectors=one))
    assert "differ" in proof.refusal(replace(proof, vectors=proof.vectors * np.float32("nan")))
    other = replace(proof, fingerprint={**proof.fingerprint, "pooling": "max"})
    assert "pooling" in proof.refusal(other)


# Who gets which chunk, with a cluster that does as it is told.


class Died(Exception):
    """As Ray says it of an actor."""


@dataclass
class Cluster:
    """In place of Ray: actors that answer at once, die or hang, as `fate` says of their chunks."""

    fate: Callable[[Chunk], str]
    cpus: float = 3
    made: int = 0
    given: list[Chunk] = field(default_factory=list)
    results: dict[object, Any] = field(default_factory=dict)
    proof: Any = None
    samples: list[Path | None] = field(default_factory=list)
    exceptions: Any = field(
        default_factory=lambda: SimpleNamespace(RayActorError=Died, ActorDiedError=Died)
    )

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[Any]:
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}]

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **given: SimpleNamespace(remote=self._make))

    def _make(self, *given: Any) -> Any:
        self.made += 1
        actor = SimpleNamespace(alive=True)
        actor.prove = SimpleNamespace(remote=self._prove)
        actor.run = SimpleNamespace(remote=lambda chunk: self._run(actor, chunk))
        return actor

    def _prove(self, sample: Path | None) -> object:
        self.samples.append(sample)
        return self._answer(("somewhere", self.proof))

    def _answer(self, value: Any) -> object:
        reference = object()
        self.results[reference] = value
        return reference

    def _run(self, actor: Any, chunk: Chunk) -> object:
        self.given.append(chunk)
        fate = self.fate(chunk)
        if fate == "hangs":
            return object()
        actor.alive = actor.alive and fate != "dies"
        if not actor.alive:
            return self._answer(Died("the worker died"))
        done = [{"id": one.item.id} for one in chunk.items]
        return self._answer(ChunkResult(CommitBatch(rows=done), False, {}, 0.01))

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> Any:
        return [one for one in references if one in self.results], []

    def get(self, reference: object) -> Any:
        found = self.results[reference]
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, actor: Any) -> None:
        actor.alive = False


def unread(number: int, folder: Path = Path()) -> UnreadItem:
    item = Item(f"{number}", folder / f"{number}.wav")
    return UnreadItem(((item, WHOLE),), Seen())


def spread(
    cluster: Cluster, count: int, light: Path, patience: float = 60.0, folder: Path = Path()
) -> tuple[list[str], list[Any]]:
    """The ids that a crew has embedded, each as often as it came, and its failures."""
    embedder = penult.Embedder.load(light)
    cluster.proof = cluster.proof or MachineProof.of(embedder)
    crew = Crew(
        cluster, RayOptions(patience=patience),
        (WorkerModel(str(light)), pa.schema([]), Options()), MachineProof.of(embedder),
    )  # fmt: skip
    items = (unread(number, folder) for number in range(count))
    feed = ChunkFeed(items, embedder, Options(), lambda embedded, seconds: None)
    feed.look()
    found = CommitBatch()
    try:
        while not (feed.ended and crew.idle):
            crew.feed(feed)
            batch = crew.batch(lambda embedded, seconds: None, None)
            found.rows += batch.rows
            found.failures += batch.failures
    finally:
        crew.end()
    return [row["id"] for row in found.rows], found.failures


@pytest.fixture(autouse=True)
def no_waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that answers at once is looked at without a pause."""
    if "light" in request.fixturenames:
        monkeypatch.setattr(ray_workers, "_POLL", 0.0)


def test_an_item_that_kills_its_worker_is_found(light: Path) -> None:
    """Its chunk is halved until it is alone; all others are embedded once."""
    cluster = Cluster(lambda chunk: "dies" if any(i.item.id == "37" for i in chunk.items) else "")
    done, failures = spread(cluster, 100, light)
    assert sorted(done, key=int) == [str(n) for n in range(100) if n != 37]
    assert [(one.id, one.error) for one in failures] == [("37", "PassingFault")]
    assert "died 3 times" in failures[0].message
    assert cluster.made <= 16


def test_workers_that_die_by_chance_lose_nothing(
    light: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "MOST", 16)
    chance = random.Random(5)
    cluster = Cluster(lambda chunk: "dies" if chance.random() < 0.1 else "")
    done, failures = spread(cluster, 3000, light)
    assert sorted(done, key=int) == [str(n) for n in range(3000)]
    assert not failures and cluster.made > 15


def test_a_machine_that_goes_blames_no_item(light: Path) -> None:
    """However often: the same chunk goes on as it is."""
    gone: list[Chunk] = []

    def fate(chunk: Chunk) -> str:
        gone.append(chunk)
        return "dies" if len(gone) < 9 else ""

    cluster = Cluster(fate, cpus=1)
    Died.preempted = True  # type: ignore[attr-defined]
    try:
        done, failures = spread(cluster, 4, light)
    finally:
        del Died.preempted  # type: ignore[attr-defined]
    assert sorted(done) == ["0", "1", "2", "3"] and not failures
    assert {len(chunk.items) for chunk in gone} == {4}


def test_a_run_without_progress_ends_in_words(light: Path) -> None:
    cluster = Cluster(lambda chunk: "hangs")
    with pytest.raises(StoreError, match=r"no worker has given a result for 0\.2 s") as raised:
        spread(cluster, 10, light, patience=0.2)
    assert "the same command goes on" in str(raised.value)


def test_what_a_hanging_worker_had_runs_elsewhere(light: Path) -> None:
    hung: list[Chunk] = []

    def fate(chunk: Chunk) -> str:
        hangs = not hung and "20" in {one.item.id for one in chunk.items}
        if hangs:
            hung.append(chunk)
        time.sleep(0.02)
        return "hangs" if hangs else ""

    done, failures = spread(Cluster(fate), 400, light, patience=0.4)
    assert sorted(done, key=int) == [str(n) for n in range(400)] and hung and not failures


def test_a_cluster_of_other_vectors_embeds_nothing(light: Path) -> None:
    cluster = Cluster(lambda chunk: "")
    proof = MachineProof.of(penult.Embedder.load(light))
    cluster.proof = replace(proof, vectors=proof.vectors * np.float32(1.01))
    with pytest.raises(StoreError, match=r"no worker is left.*its vectors differ by 1\.0e-02"):
        spread(cluster, 10, light)
    assert not cluster.given


def test_a_machine_that_does_not_find_the_items_embeds_nothing(light: Path, tmp_path: Path) -> None:
    """Else each item that it is given would be a failure."""
    proof = MachineProof.of(penult.Embedder.load(light), tmp_path / "0.wav")
    assert proof.unread == f"it cannot read the items: no such file: {tmp_path / '0.wav'}"
    cluster = Cluster(lambda chunk: "")
    cluster.proof = proof
    (tmp_path / "0.wav").write_bytes(b"RIFF")
    with pytest.raises(StoreError, match=r"no worker is left.*no such file: .*0\.wav") as told:
        spread(cluster, 1, light, folder=tmp_path)
    assert "find the items at one place" in str(told.value) and not cluster.given
    assert set(cluster.samples) == {tmp_path / "0.wav"}
    (tmp_path / "0.wav").unlink()  # from this machine too: no reason to refuse another
    assert spread(cluster, 1, light, folder=tmp_path) == (["0"], [])


@pytest.mark.parametrize(
    ("cpus", "asked", "workers", "each"),
    [(1, None, 1, 1), (2, None, 1, 1), (16, None, 15, 1), (16, 3, 3, 5), (4, 9, 9, 1)],
)
def test_one_processor_is_left(cpus: float, asked: int | None, workers: int, each: float) -> None:
    share = ray_workers._share(Cluster(lambda chunk: "", cpus=cpus), RayOptions(workers=asked))
    assert (share.workers, share.cpus, share.gpus) == (workers, each, 0)


def test_driver_reads_ahead_no_further_than_its_workers_take(light: Path) -> None:
    """The plan of any number of items is read as far as there is room for, and no further."""
    read: list[int] = []

    def planned() -> Iterator[Planned]:
        for number in range(10_000):
            read.append(number)
            yield unread(number)
            if number == 4:
                yield PAUSE

    embedder = penult.Embedder.load(light)
    cluster = Cluster(lambda chunk: "hangs")
    crew = Crew(
        cluster, RayOptions(), (WorkerModel(str(light)), pa.schema([]), Options()),
        MachineProof.of(embedder),
    )  # fmt: skip
    cluster.proof = MachineProof.of(embedder)
    feed = ChunkFeed(planned(), embedder, Options(), lambda embedded, seconds: None)
    for _ in range(20):
        crew.feed(feed)
        crew.batch(lambda embedded, seconds: None, None)
    assert len(read) <= 2 * 2 * ray_workers.FIRST + ray_workers.FIRST
    assert len(cluster.given[0].items) == 5  # what there was at the pause does not wait


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ray-workers", "2"), "are for --ray, which is not given"),
        (("--ray", "local", "--ray-patience", "0"), "a patience of 0 s ends each run"),
        (("--ray", "127.0.0.1:1"), "no Ray cluster at '127.0.0.1:1': Connection refused"),
        (("--ray", "ray://127.0.0.1:1"), "--ray local needs none"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    options: tuple[str, ...], words: str, light: Path, archive: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = run(["embed", str(light), str(archive), "--into", str(tmp_path / "c"), *options])
    assert code in (1, 2)
    assert words in " ".join(capsys.readouterr().err.split())


def test_without_ray_the_extra_is_named(
    light: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    into = str(tmp_path / "c")
    assert run(["embed", str(light), str(archive), "--into", into, "--ray", "auto"]) == 2
    assert "pip install 'penult[ray]'" in " ".join(capsys.readouterr().err.split())
