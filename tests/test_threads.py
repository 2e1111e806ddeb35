"""One object that several threads share: no call disturbs another.

Every public member of an embedder, a collection and a class space is asked alone, on an object of
its own, and then all of them at once on one. What is asked of each stands in a table here; a member
that is missing in it fails the test.
"""

from __future__ import annotations

import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

import penult
from conftest import RATE, clip
from penult.collection.reader import append_labels
from penult.collection.spaces import append_space
from penult.collection.writer import writing
from penult.errors import CollectionLocked, PenultError

THREADS, TIMES = 6, 3
CLIPS = [clip(0.2 + 0.03 * (seed % 5), seed) for seed in range(6)]


@dataclass(frozen=True)
class Call:
    """A call of one thread. number: of the thread's own, for names that no other thread uses."""

    folder: Path
    number: int

    @property
    def name(self) -> str:
        return f"own{self.number}"

    def file(self, suffix: str = "") -> Path:
        return self.folder / f"{self.name}{suffix}"


Table = Mapping[str, Callable[[Any, Call], Any]]


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def plain(value: Any) -> Any:
    """Dicts, lists, arrays and text; arrays stay as they are."""
    if isinstance(value, pa.Table | pa.RecordBatch):
        return plain(value.to_pydict())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | float):
        return value
    if isinstance(value, list | tuple | Iterator):
        return [plain(one) for one in value]
    return repr(value)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, one in expected.items():
            same(found[name], one)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, np.ndarray | float):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    else:
        assert found == expected


def outcome(call: Callable[[Any, Call], Any], target: Any, about: Call) -> Any:
    """What a call gives: a value, or its error. A collection that another thread writes to is
    tried again, as its message says."""
    for _ in range(2_000):
        try:
            return plain(call(target, about))
        except CollectionLocked:
            time.sleep(0.01)
        except PenultError as error:
            return f"{type(error).__name__}: {error}"
    raise AssertionError("locked for 20 s")


def together(make: Callable[[], Any], table: Table, folder: Path) -> None:
    """Every call alone, on an object of its own; then all of them at once on one object."""
    folder.mkdir()
    numbers = iter(range(10_000))
    alone = {
        name: outcome(call, make(), Call(folder, next(numbers))) for name, call in table.items()
    }
    shared, gate = make(), threading.Barrier(THREADS)
    jobs = [(name, Call(folder, next(numbers))) for name in table for _ in range(TIMES)]
    random.Random(0).shuffle(jobs)

    def work(part: list[tuple[str, Call]]) -> list[tuple[str, Any]]:
        gate.wait()
        return [(name, outcome(table[name], shared, about)) for name, about in part]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            parts = pool.map(work, [jobs[start::THREADS] for start in range(THREADS)])
            found = [one for part in parts for one in part]
    finally:
        sys.setswitchinterval(before)
    assert len(found) == TIMES * len(table)
    for name, value in found:
        try:
            same(value, alone[name])
        except AssertionError as error:
            raise AssertionError(f"{name}, at once with the others: {error}") from error


# ---- an embedder


def saved(embedder: penult.Embedder, about: Call) -> Any:
    folder = embedder.save(about.file())
    return penult.Embedder.load(folder, device="cpu").embed(CLIPS[:2])


def sample() -> Any:
    from penult.data.sources import from_objects
    from penult.embedding.source_sample import SourceSample

    return SourceSample(from_objects(CLIPS[:2], "audio"))


def proved(embedder: penult.Embedder, about: Call) -> Any:
    embedder.prove_on(sample())
    return embedder.certificate.ok


def made(embedder: penult.Embedder, about: Call) -> Any:
    other = penult.Embedder.from_classifier(embedder.classifier, "layer:0", device="cpu")
    return other.run(CLIPS)


EMBEDDER: Table = {
    "certificate": lambda e, _: e.certificate.ok,
    "dim": lambda e, _: e.dim,
    "embed": lambda e, _: e.embed(CLIPS, logits=False),
    "fingerprint": lambda e, _: e.fingerprint,
    "fingerprint_id": lambda e, _: e.fingerprint_id,
    "from_classifier": made,
    "load": lambda e, about: saved(e, about),
    "prove_on": proved,
    "run": lambda e, _: e.run(CLIPS),
    "save": saved,
    "settle": lambda e, _: e.settle(sample()),
}
RUNNER: Table = {
    "runner.policy": lambda e, _: e.runner.policy,
    "runner.mode": lambda e, _: e.runner.mode.words,
    "runner.shortest": lambda e, _: e.runner.shortest,
}


@pytest.fixture(scope="module")
def embedder(tiny: Path) -> penult.Embedder:
    return penult.Embedder.from_classifier(penult.load(tiny), "layer:1", device="cpu")


def test_an_embedder(tiny: Path, tmp_path: Path) -> None:
    assert set(EMBEDDER) == public(penult.Embedder)
    classifier = penult.load(tiny)  # one module, on which all of them set their hooks
    together(
        lambda: penult.Embedder(classifier, penult_tap(classifier), "mean", device="cpu"),
        {**EMBEDDER, **RUNNER},
        tmp_path / "e",
    )


def penult_tap(classifier: Any) -> Any:
    from penult.embedding.inspect import taps_of

    return taps_of(classifier, ["layer:1"])[0]


def test_labels_are_there_while_another_thread_wants_none(embedder: penult.Embedder) -> None:
    expected = embedder.run(CLIPS)
    ended = threading.Event()

    def without() -> None:
        while not ended.is_set():
            embedder.embed(CLIPS, logits=False)

    other = threading.Thread(target=without)
    other.start()
    try:
        for _ in range(20):
            found = embedder.run(CLIPS)
            assert found.labels == expected.labels
            np.testing.assert_array_equal(found.logits, expected.logits)
    finally:
        ended.set()
        other.join()


def test_seconds_are_those_of_the_run(embedder: penult.Embedder, tmp_path: Path) -> None:
    """Runs at once, into collections: a short one's seconds hold none of a long one's."""
    from penult.collection.ingest import Seen, ingest
    from penult.data.sources import from_objects
    from penult.embedding.runner import Stopwatch

    nothing = Seen({}, {}, {})
    watches = [Stopwatch(), Stopwatch()]
    runs = [
        ingest(embedder, from_objects(clips, "audio"), lambda ids: nothing, watch=watch)
        for clips, watch in zip((CLIPS, []), watches, strict=True)
    ]
    for run in runs:
        list(run)
    assert watches[0].seconds["model"] > 0
    assert "model" not in watches[1].seconds and "decode" not in watches[1].seconds

    summaries: dict[str, Any] = {}

    def add(name: str, clips: list[Any]) -> None:
        collection = penult.Collection.open(tmp_path / name)
        summaries[name] = collection.add(embedder, clips)

    threads = [
        threading.Thread(target=add, args=args)
        for args in (("long", CLIPS * 10), ("none", []), ("short", CLIPS[:1]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert summaries["long"].done == 10 * len(CLIPS) and summaries["short"].done == 1
    assert "model" not in summaries["none"].seconds
    assert summaries["short"].seconds["model"] > 0


def test_a_budget_never_grows_again(tiny: Path) -> None:
    """What did not fit is remembered for later runs, also where two runs find it out at once: the
    smaller of the two budgets stays. A run that is under way goes on with its own."""
    emb = penult.Embedder.from_classifier(penult.load(tiny), device="cpu")
    engine, budgets = emb.runner.engine, []
    late, early = threading.Event(), threading.Event()

    def full(batch: Any, logits: bool = True) -> Any:
        large = len(batch) > 2 if threading.current_thread().name == "small" else len(batch) > 4
        if large:
            if len(batch) == 8 and threading.current_thread().name == "large":
                late.set()
                early.wait(timeout=30)  # the other run ends meanwhile
            raise MemoryError
        return engine(batch, logits)

    emb.runner.engine = full
    clips = [clip(0.2, seed) for seed in range(8)]
    expected = emb.run(clips, alone=True).vectors

    def run() -> None:
        np.testing.assert_allclose(emb.run(clips).vectors, expected, rtol=1e-4, atol=1e-5)
        budgets.append(emb.runner.budget)

    large = threading.Thread(target=run, name="large")
    small = threading.Thread(target=run, name="small")
    large.start()
    late.wait(timeout=30)
    small.start()
    small.join()
    early.set()
    large.join()
    assert len(budgets) == 2 and budgets[0] == budgets[1] == emb.runner.budget


def test_an_engine_settles_while_others_run(tiny: Path, tmp_path: Path) -> None:
    """Whoever comes first settles it; all give what torch gives, and have what belongs to it."""
    pytest.importorskip("openvino")
    plain_one = penult.Embedder.from_classifier(penult.load(tiny), device="cpu")
    expected = plain_one.run(CLIPS)
    emb = penult.Embedder.from_classifier(penult.load(tiny), device="cpu", engine="openvino")
    gate = threading.Barrier(4)

    def work(number: int) -> penult.Result:
        gate.wait()
        return emb.run(CLIPS)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-3, atol=1e-4)
            assert found.labels == expected.labels
    assert emb.runner.mode.engine == "openvino" and emb.engine == "openvino"


def test_a_collections_engine_is_not_set_on_the_embedder(tiny: Path, tmp_path: Path) -> None:
    collection = penult.Collection.open(tmp_path / "c.lance")
    collection.add(penult.Embedder.from_classifier(penult.load(tiny), device="cpu"), CLIPS[:1])
    emb = penult.Embedder.from_classifier(penult.load(tiny), device="cpu", engine="auto")
    assert collection.add(emb, CLIPS[1:3]).done == 2
    assert emb.engine == "auto"


# ---- a collection


def write_nothing(collection: penult.Collection, about: Call) -> Any:
    manifest = collection.manifest
    assert manifest is not None
    with writing(collection.path, manifest, run={"command": about.name}) as writer:
        return bool(writer.run_id)


def labelled(collection: penult.Collection, about: Call) -> Any:
    row = collection.vectors()[0].to_pylist()[0]
    collection.label(row["id"], row["region"], about.name, who="me", source="test")
    return [one["mark"] for one in collection.labels().to_pylist() if one["class"] == about.name]


def appended(collection: penult.Collection, about: Call) -> Any:
    record = {"id": "a", "region": "whole", "class": about.name, "mark": "no"}
    collection.reader.append("labels", [{**record, "who": "me", "source": "test"}])
    return [one["mark"] for one in collection.labels().to_pylist() if one["class"] == about.name]


def appended_labels(collection: penult.Collection, about: Call) -> Any:
    record = {"id": "a", "region": "whole", "class": about.name, "mark": "unsure"}
    append_labels(collection.reader, [{**record, "who": "me", "source": "test"}])
    return [one["mark"] for one in collection.labels().to_pylist() if one["class"] == about.name]


def fitted(collection: penult.Collection, about: Call) -> Any:
    space = collection.fit_space("scale+l2", about.name)
    return space(np.ones((1, space.dim), np.float32)), collection.space(about.name).recipe


def added_space(collection: penult.Collection, about: Call) -> Any:
    append_space(collection.reader, about.name, about.name, {}, b"x")
    names = collection.spaces().column("name").to_pylist()
    return names.count(about.name)


def again(collection: penult.Collection, about: Call) -> Any:
    classifier = penult.load(collection.manifest.model["spec"])  # type: ignore[union-attr]
    emb = penult.Embedder.from_classifier(classifier, "layer:1", device="cpu")
    did = collection.add(emb, CLIPS)
    return did.done, did.skipped, did.failed


def searched(collection: penult.Collection, about: Call) -> Any:
    """By a vector, and by a file."""
    sf.write(about.file(".wav"), CLIPS[2], RATE, subtype="FLOAT")
    queries = [*collection.vectors()[1][:2], about.file(".wav")]
    return [[hit.id for hit in collection.search(query, k=2)] for query in queries]


def key_of(collection: penult.Collection) -> tuple[str, str]:
    row = collection.vectors()[0].to_pylist()[1]
    return row["id"], row["region"]


COLLECTION: Table = {
    "add": again,
    "build_index": lambda c, _: c.build_index(),
    "count": lambda c, _: c.count,
    "drop_index": lambda c, _: c.drop_index(),
    "embedder": lambda c, _: c.embedder(device="cpu").embed(CLIPS[:1]),
    "failures": lambda c, _: c.failures(),
    "fit_space": fitted,
    "get": lambda c, _: c.get(*key_of(c)),
    "index": lambda c, _: c.index,
    "label": labelled,
    "labels": lambda c, _: [one for one in c.labels().to_pylist() if one["class"] == "first"],
    "manifest": lambda c, _: c.manifest,
    "open": lambda c, _: type(c).open(c.path, must_exist=True).count,
    "runs": lambda c, _: c.runs().slice(0, 1),
    "search": searched,
    "space": lambda c, _: c.space("first").recipe,
    "spaces": lambda c, _: c.spaces().slice(0, 1),
    "vectors": lambda c, _: c.vectors(columns=["id", "label"]),
}
# Its reader, and what writes beside it.
READER: Table = {
    "add_space": added_space,
    "append": appended,
    "append_labels": appended_labels,
    "columns": lambda c, _: c.reader.schema.names,
    "count_where": lambda c, _: c.reader.count_rows("region = 'whole'"),
    "ordered": lambda c, _: c.reader.ordered(["id", "region", "label", "vector"]),
    "scan": lambda c, _: sorted(
        str(row) for batch in c.reader.scan(["id", "label"]) for row in batch.to_pylist()
    ),
    "schema": lambda c, _: str(c.reader.schema),
    "writer": write_nothing,
}


def filled(tmp_path: Path, embedder: penult.Embedder) -> Path:
    path = tmp_path / "filled.lance"
    collection = penult.Collection.open(path)
    collection.add(embedder, CLIPS)
    for row, name in zip(collection.vectors()[0].to_pylist(), "ababab", strict=True):
        collection.label(row["id"], row["region"], name, who="me", source="test")
    id, region = key_of(collection)
    collection.label(id, region, "first", "unsure", who="me", source="test")
    collection.fit_space("l2", "first")
    return path


def test_a_collection(embedder: penult.Embedder, tmp_path: Path) -> None:
    assert set(COLLECTION) == public(penult.Collection)
    path = filled(tmp_path, embedder)
    together(lambda: penult.Collection.open(path), COLLECTION | READER, tmp_path / "c")


# ---- a class space


def taught_unsure(space: penult.ClassSpace, about: Call, add: Callable[[str], Any]) -> Any:
    """An example that is kept and never used, so that it changes no answer of another thread."""
    add(about.name)
    return own(space, about.name)


def own(space: penult.ClassSpace, name: str) -> Any:
    return [one.get(name) for one in space.examples.marks if name in one]


def vector_of(about: Call, width: int) -> Any:
    return np.random.default_rng(about.number).standard_normal((1, width)).astype(np.float32)


def unsure(space: penult.ClassSpace, about: Call, name: str | None = None) -> None:
    space.add(name or about.name, [CLIPS[0]], "unsure")


def renamed(space: penult.ClassSpace, about: Call) -> Any:
    unsure(space, about)
    space.rename(about.name, about.name + "b")
    return own(space, about.name), own(space, about.name + "b")


def merged(space: penult.ClassSpace, about: Call) -> Any:
    unsure(space, about)
    space.merge([about.name], about.name + "b")
    return own(space, about.name), own(space, about.name + "b")


def removed(space: penult.ClassSpace, about: Call) -> Any:
    unsure(space, about)
    space.remove(about.name)
    return own(space, about.name)


def kept(space: penult.ClassSpace, about: Call) -> Any:
    other = penult.ClassSpace.load(space.save(about.file(".npz")))
    vectors = np.stack([space.examples.vectors[0], space.examples.vectors[1]])
    return other.predict_vectors(vectors)


def named(space: penult.ClassSpace, about: Call) -> Any:
    folder = about.file() / about.name
    folder.mkdir(parents=True, exist_ok=True)
    sf.write(folder / "a.wav", CLIPS[0], RATE, subtype="FLOAT")
    return list(space.add_named(about.file(), "folder", "unsure").values())


def streamed(space: penult.ClassSpace, about: Call) -> Any:
    from penult.data.sources import from_objects

    return list(space.stream(from_objects(CLIPS, "audio")))


def first_classes(space: penult.ClassSpace) -> Any:
    return [one for one in space.classes if one.name in ("a", "b")]


ROWS = "id NOT LIKE '%.wav'"  # those that no thread adds

SPACE: Table = {
    "add": lambda s, about: taught_unsure(s, about, lambda name: unsure(s, about, name)),
    "add_head": lambda s, _: s.add_head(),  # no prelogits here: see below
    "add_named": named,
    "add_named of rows": lambda s, _: s.add_named(None, "label", "unsure", ROWS),
    "add_vectors": lambda s, about: taught_unsure(
        s,
        about,
        lambda name: s.add_vectors(name, vector_of(about, s.source.manifest.dim), mark="unsure"),
    ),
    "classes": lambda s, _: first_classes(s),
    "examples": lambda s, _: (
        [one.get("a") for one in s.examples.marks if "a" in one],
        sorted(
            line for line in s.examples.to_csv().splitlines() if line.endswith(("a,yes", "b,yes"))
        ),
    ),
    "history": lambda s, _: all(one.number > 0 for one in s.history.versions),  # others teach
    "fitted": lambda s, _: (s.fitted.method, s.fitted.names, s.fitted.accuracy),
    "load": kept,
    "merge": merged,
    "predict": lambda s, _: s.predict(CLIPS, unknown=0),
    "predict with nearest": lambda s, _: [
        [near.id for near in one.nearest] for one in s.predict(CLIPS, unknown=0, nearest=2)
    ],
    "predict_collection": lambda s, _: s.predict_collection(where=ROWS, unknown=0),
    "predict_vectors": lambda s, _: s.predict_vectors(s.examples.vectors[:2], unknown=0),
    "remove": removed,
    "rename": renamed,
    "save": kept,
    "settings": lambda s, _: s.settings.space,  # others say whether items are of several
    "source": lambda s, _: (s.source.embedder.dim, s.source.collection is None, s.source.manifest),
    "source is replaced": lambda s, _: (
        s.source.open_with(lambda: s.source.embedder),
        s.source.use(s.source.embedder),
    ),
    "space": lambda s, _: s.space.recipe,
    "stream": streamed,
}


def test_a_class_space_of_an_embedder(embedder: penult.Embedder, tmp_path: Path) -> None:
    methods = public(penult.ClassSpace) | {"source"}
    assert {name.partition(" ")[0] for name in SPACE} == methods

    def make() -> penult.ClassSpace:
        space = penult.ClassSpace(embedder, space="raw", unknown=0)
        space.add("a", CLIPS[::2])
        space.add("b", CLIPS[1::2])
        return space

    together(make, SPACE, tmp_path / "s")


def test_a_class_space_of_a_collection(embedder: penult.Embedder, tmp_path: Path) -> None:
    path, numbers = filled(tmp_path, embedder), iter(range(10_000))

    def make() -> penult.ClassSpace:
        copy = tmp_path / f"{next(numbers)}.lance"
        shutil.copytree(path, copy)
        space = penult.ClassSpace(penult.Collection.open(copy), space="raw", unknown=0)
        space.source.use(embedder)
        return space

    together(make, SPACE, tmp_path / "s")


def test_no_thread_loses_what_another_one_teaches(embedder: penult.Embedder) -> None:
    space = penult.ClassSpace(embedder, space="raw")
    gate = threading.Barrier(THREADS)

    def teach(number: int) -> None:
        gate.wait()
        for one in range(20):
            about = Call(Path(), 100 * number + one)
            space.add_vectors(about.name, vector_of(about, embedder.dim))
            assert about.name in space.fitted.names

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(teach, range(THREADS)))
    finally:
        sys.setswitchinterval(before)
    assert len(space.classes) == 20 * THREADS == len(space.fitted.names)


def test_the_head_is_taught_while_another_thread_teaches(tiny: Path) -> None:
    emb = penult.Embedder.from_classifier(penult.load(tiny), "prelogits", device="cpu")
    expected = penult.ClassSpace(emb, space="raw").add_head()
    space = penult.ClassSpace(emb, space="raw")
    with ThreadPoolExecutor(2) as pool:
        head = pool.submit(space.add_head)
        own = [
            pool.submit(space.add_vectors, f"own{n}", vector_of(Call(Path(), n), emb.dim))
            for n in range(20)
        ]
        [one.result() for one in own]
        assert head.result() == expected
    assert {one.name for one in space.classes} == {*expected, *(f"own{n}" for n in range(20))}
