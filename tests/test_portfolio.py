"""Engines that take turns in a run: which batch goes where, what is dropped, kept, and told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.engines import autoselect, portfolio, verified
from penult.engines.base import EngineRequest, EngineSpec, Readout
from penult.engines.batching import Batch
from penult.engines.graph_cache import Graphs
from penult.engines.parity import relative_error
from penult.engines.recording import GraphRecording, can_copy_process
from penult.engines.registry import BUILT_IN
from penult.engines.torch import TorchEngine
from penult.models.specs import load

Change = Callable[[int, Readout], Readout]
CLIPS = [clip(0.3 + 0.02 * (i % 5), i) for i in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PENULT_CACHE", str(folder))
    return folder


class Engines:
    """Torch under other names: each with the seconds that a batch takes, on a clock of their own,
    and what it makes of the nth readout. `batches` counts what each was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: dict[str, int] = {}
        self._specs: list[EngineSpec] = []
        native = BUILT_IN[0]
        plain = TorchEngine.__call__
        self.now = 0.0
        for module in (portfolio, verified):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

        def slowed(engine: TorchEngine, batch: Batch, logits: bool = True) -> Readout:
            self.now += 0.0 if getattr(engine, "other", False) else 0.02
            return plain(engine, batch, logits)

        monkeypatch.setattr(TorchEngine, "__call__", slowed)
        monkeypatch.setattr(portfolio, "candidates", lambda *_: iter([native, *self._specs]))
        monkeypatch.setattr(portfolio, "missing", lambda name: "")
        opened = autoselect.open_mode  # type: ignore[attr-defined]

        def open_mode(mode: Any, request: EngineRequest) -> Any:
            for spec in self._specs:
                if spec.name == mode.engine:
                    return spec.open(request)
            return opened(mode, request)

        monkeypatch.setattr(autoselect, "open_mode", open_mode)

    def add(
        self,
        name: str,
        seconds: Callable[[int], float],
        change: Change = lambda number, readout: readout,
    ) -> None:
        def open(request: EngineRequest) -> Any:
            engine = TorchEngine(request.classifier, request.readings)
            engine.other = True  # type: ignore[attr-defined]
            self.batches[name] = 0

            def run(batch: Batch, logits: bool = True) -> Readout:
                self.batches[name] += 1
                self.now += seconds(self.batches[name])
                return change(self.batches[name], engine(batch))

            return run

        self._specs.append(EngineSpec(name, open))


@pytest.fixture
def engines(eager: None, monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def embedder(tiny: Path, **how: Any) -> Embedder:
    return Embedder.from_classifier(load(tiny), device="cpu", **{"engine": "auto", **how})


def expected(tiny: Path) -> Any:
    return embedder(tiny, engine="torch").run(CLIPS, alone=True)


def test_a_faster_engine_takes_over(tiny: Path, engines: Engines) -> None:
    """In the middle of a run, with the same vectors; and a later run begins in it."""
    plain = expected(tiny)
    engines.add("quick", lambda number: 0.001)
    emb = embedder(tiny)
    found = emb.run(CLIPS, alone=True)
    assert relative_error(found.vectors, plain.vectors) <= 1e-5 and found.labels == plain.labels
    choice = emb.runner.choice
    assert choice is not None and choice.mode.words == emb.runner.mode.words == "quick f32"
    assert choice.rows["torch f32"] <= 8 and sum(choice.rows.values()) == len(CLIPS)
    assert choice.rows["quick f32"] >= 30 and choice.parity is not None
    assert choice.seconds["quick f32"] < choice.seconds["torch f32"]
    assert "quick f32" in choice.words and "rows: " in choice.words
    document = choice.to_dict()
    assert document["rows"] == choice.rows and document["engine"] == "quick"
    emb.run(CLIPS[:3])
    assert emb.runner.choice is not None and emb.runner.choice.rows == {"quick f32": 3}


def test_what_was_measured_is_kept(
    tiny: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later run begins in the faster engine, held on one item; its law is not measured again."""
    plain = expected(tiny)
    engines.add("quick", lambda number: 0.001)
    embedder(tiny).run(CLIPS)
    assert engines.batches["quick"] > 1
    monkeypatch.setattr(portfolio, "find_batch_policy", lambda *_: pytest.fail("measured again"))
    emb = embedder(tiny)
    assert relative_error(emb.run(CLIPS).vectors, plain.vectors) <= 1e-5
    choice = emb.runner.choice
    assert choice is not None and choice.rows == {"quick f32": len(CLIPS)} and choice.kept
    assert choice.parity is not None and choice.parity.items == 1


def test_a_kept_choice_that_does_not_hold_is_dropped(tiny: Path, engines: Engines) -> None:
    plain = expected(tiny)
    engines.add("quick", lambda number: 0.001)
    embedder(tiny).run(CLIPS, alone=True)
    engines._specs.clear()
    engines.add("quick", lambda number: 0.001, off)
    emb = embedder(tiny)
    np.testing.assert_array_equal(emb.run(CLIPS, alone=True).vectors, plain.vectors)
    choice = emb.runner.choice
    assert choice is not None and choice.rows == {"torch f32": len(CLIPS)}
    assert "exact asks for more" in choice.dropped["quick f32"]


def off(number: int, readout: Readout) -> Readout:
    return readout._replace(vectors=[v + np.float32(0.5) for v in readout.vectors])


def fails(number: int, readout: Readout) -> Readout:
    raise KeyError("no such thing")


def fails_later(number: int, readout: Readout) -> Readout:
    return readout if number < 20 else fails(number, readout)


@pytest.mark.parametrize(
    ("seconds", "change", "says"),
    [
        (lambda number: 0.06, lambda number, readout: readout, ""),
        (lambda number: 0.001, off, "exact asks for more"),
        (lambda number: 0.001, fails, "no such thing"),
    ],
    ids=["slower", "wrong", "broken"],
)
def test_another_engine_gives_no_more_rows_than_its_trial(
    tiny: Path, engines: Engines, seconds: Any, change: Change, says: str
) -> None:
    plain = expected(tiny)
    engines.add("other", seconds, change)
    emb = embedder(tiny)
    found = emb.run(CLIPS, alone=True)
    assert relative_error(found.vectors, plain.vectors) <= (0 if says else 1e-5)
    choice = emb.runner.choice
    assert choice is not None and choice.mode.words == "torch f32"
    assert choice.rows.get("other f32", 0) <= (0 if says else 4)
    assert engines.batches["other"] <= 4 and says in choice.dropped.get("other f32", "")


def test_an_engine_that_becomes_slow_is_left(tiny: Path, engines: Engines) -> None:
    plain = embedder(tiny, engine="torch").run([*CLIPS, *CLIPS], alone=True)
    engines.add("tired", lambda number: 0.001 if number < 30 else 0.15)
    emb = embedder(tiny)
    found = emb.run([*CLIPS, *CLIPS], alone=True)
    assert relative_error(found.vectors, plain.vectors) <= 1e-5
    choice = emb.runner.choice
    assert choice is not None and choice.mode.words == "torch f32"
    assert 20 <= choice.rows["tired f32"] <= 40 and sum(choice.rows.values()) == 80


def test_a_choice_under_load_is_not_for_good(
    tiny: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was slow while it was tried is tried again."""
    monkeypatch.setattr(portfolio, "AGAIN", 10)
    engines.add("disturbed", lambda number: 0.08 if number < 4 else 0.001)
    emb = embedder(tiny)
    emb.run([*CLIPS, *CLIPS, *CLIPS], alone=True)
    assert emb.runner.mode.words == "disturbed f32"


def test_an_engine_that_breaks_later_is_left(tiny: Path, engines: Engines) -> None:
    plain = expected(tiny)
    engines.add("brittle", lambda number: 0.001, fails_later)
    emb = embedder(tiny)
    found = emb.run(CLIPS, on_error="skip", alone=True)
    assert not found.failures and relative_error(found.vectors, plain.vectors) <= 1e-5
    choice = emb.runner.choice
    assert choice is not None
    assert "it fails where torch f32 does not" in choice.dropped["brittle f32"]
    assert emb.runner.mode.words == "torch f32"


def test_an_item_at_fault_is_no_fault_of_an_engine(tiny: Path, engines: Engines) -> None:
    engines.add("quick", lambda number: 0.001)
    emb = embedder(tiny)
    items = [*CLIPS[:10], np.zeros(40, np.float32), *CLIPS[10:]]
    found = emb.run(items, on_error="skip")
    assert [failure.message for failure in found.failures] == [
        failure.message
        for failure in embedder(tiny, engine="torch").run(items, on_error="skip").failures
    ]
    assert len(found.failures) == 1 and len(found.vectors) == len(CLIPS)
    assert not emb.runner.choice.dropped  # type: ignore[union-attr]


def test_a_batch_that_the_model_refuses_is_no_fault_of_an_engine(
    tiny: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that differ in their ends do not go together in BART; each alone does."""
    items = [clip(2.0), clip(1.0), *CLIPS]
    plain = embedder(tiny, engine="torch").run(items, alone=True)
    once = TorchEngine.__call__

    def picky(engine: TorchEngine, batch: Batch, logits: bool = True) -> Readout:
        if len(batch) > 6:
            raise ValueError("these do not go together")
        return once(engine, batch, logits)

    monkeypatch.setattr(TorchEngine, "__call__", picky)
    engines.add("quick", lambda number: 0.001)
    emb = embedder(tiny)
    found = emb.run(items)
    assert relative_error(found.vectors, plain.vectors) <= 1e-5
    choice = emb.runner.choice
    assert choice is not None and not choice.dropped and choice.mode.words == "quick f32"


def test_without_logits(tiny: Path, engines: Engines) -> None:
    plain = expected(tiny)
    engines.add("quick", lambda number: 0.001)
    emb = embedder(tiny)
    vectors = emb.embed(CLIPS, logits=False, alone=True)
    assert relative_error(vectors, plain.vectors) <= 1e-5
    assert emb.runner.mode.words == "quick f32"


def test_few_items_are_run_as_they_are(
    tiny: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tried that costs more than it gives; of an iterator, once it has gone on."""
    monkeypatch.setattr(portfolio, "OPENING", 1.0)
    monkeypatch.setattr(portfolio, "UNKNOWN", 0.2)
    engines.add("quick", lambda number: 0.001)
    emb = embedder(tiny)
    emb.run(CLIPS, alone=True)
    assert emb.runner.mode.words == "torch f32" and "quick" not in engines.batches
    emb = embedder(tiny)
    found = emb.run(iter(CLIPS), alone=True)
    assert len(found.ids) == len(CLIPS) and emb.runner.mode.words == "quick f32"
    assert emb.runner.choice.rows["torch f32"] >= 8  # type: ignore[union-attr]


def test_fast_begins_in_bfloat16(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two items too, with no engine named; agreed on them before a row is given."""
    monkeypatch.setattr("penult.engines.torch.multiplies_bf16", lambda device: True)
    emb = Embedder.from_classifier(load(tiny), precision="fast", device="cpu")
    assert emb.engine == "auto"
    plain = embedder(tiny, engine="torch").run(CLIPS[:2])
    found = emb.run(CLIPS[:2])
    choice = emb.runner.choice
    assert choice is not None and choice.rows == {"torch bf16": 2}
    assert 1e-7 < relative_error(found.vectors, plain.vectors) < 0.05
    monkeypatch.setattr("penult.engines.torch.multiplies_bf16", lambda device: False)
    monkeypatch.setenv("PENULT_CACHE", os.environ["PENULT_CACHE"] + "2")
    emb = Embedder.from_classifier(load(tiny), precision="fast", device="cpu")
    np.testing.assert_array_equal(emb.run(CLIPS[:2]).vectors, plain.vectors)
    choice = emb.runner.choice
    assert choice is not None and choice.rows == {"torch f32": 2}
    assert "no faster than fp32" in choice.dropped["torch bf16"]
    assert "not torch bf16" in choice.words


def test_a_stop_while_engines_change_loses_nothing(
    tiny: Path, engines: Engines, tmp_path: Path
) -> None:
    from penult.collection.add import add
    from penult.data.sources import from_objects

    engines.add("quick", lambda number: 0.001)
    collection = Collection.open(tmp_path / "c.lance")
    for number, wave in enumerate(CLIPS):
        soundfile.write(tmp_path / f"{number:02}.wav", wave, RATE)
    files = sorted(tmp_path.glob("*.wav"))
    seen = 0

    def tick(embedded: bool, seconds: float) -> None:
        nonlocal seen
        seen += 1
        if seen == 7:
            raise KeyboardInterrupt

    source = from_objects(files, "audio")
    with pytest.raises(KeyboardInterrupt):
        add(collection.reader, embedder(tiny), source, tick=tick)
    before = collection.count
    summary = collection.add(embedder(tiny), files)
    assert before + summary.done == collection.count == len(files)
    table, vectors = collection.vectors()
    plain = dict(zip(map(str, files), expected(tiny).vectors, strict=True))
    for row, vector in zip(table.to_pylist(), vectors, strict=True):
        assert relative_error([vector], [plain[row["id"]]]) <= 1e-4  # files are of 16 bits


def test_the_command_names_the_engines(
    tiny: Path, engines: Engines, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("penult.embedding.runner.BUDGETS", {"audio": 8000})
    engines.add("quick", lambda number: 0.001)
    for number, wave in enumerate(CLIPS):
        soundfile.write(tmp_path / f"{number:02}.wav", wave, RATE)
    into = tmp_path / "c.lance"
    assert run(["embed", str(tiny), str(tmp_path), "--into", str(into), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["choice"]["rows"]
    assert rows.keys() == {"torch f32", "quick f32"} and sum(rows.values()) == len(CLIPS)
    assert document["engine"] == "quick f32" and document["done"] == len(CLIPS)
    (record,) = Collection.open(into).runs().to_pylist()
    assert set(record["engine"].split(", ")) == set(rows)
    into = tmp_path / "d.lance"
    assert run(["embed", str(tiny), str(tmp_path), "--into", str(into)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "engine quick f32" in said and "40 quick f32" not in said  # one engine: no list of rows


# ---- recorded beside the run

needs_copies = pytest.mark.skipif(not can_copy_process(), reason="processes are not copied here")


def make(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"graph")


def ended(recording: GraphRecording, seconds: float = 30.0) -> str:
    limit = time.monotonic() + seconds
    while (why := recording.outcome()) is None:
        assert time.monotonic() < limit, "it does not end"
        time.sleep(0.02)
    return why


@needs_copies
def test_a_recording_is_kept_once_it_is_whole(cache: Path) -> None:
    graphs = Graphs("one")
    assert ended(GraphRecording(lambda: graphs.get("asked", make), None, graphs, 1 << 30)) == ""
    kept = graphs.only_kept()
    assert (kept.get("asked", lambda folder: pytest.fail("again")) / "model.bin").is_file()
    assert not kept.lacks


def _kills_itself(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_large(folder: Path) -> None:
    np.ones(1 << 30, np.float64)


def _raises(folder: Path) -> None:
    raise RuntimeError("an operator that is not known")


@needs_copies
@pytest.mark.parametrize(
    ("made", "says"),
    [(_kills_itself, "was ended"), (_is_large, "allocate"), (_raises, "not known")],
)
def test_a_recording_that_fails_is_told(cache: Path, made: Any, says: str) -> None:
    graphs = Graphs("one")
    assert says in ended(GraphRecording(lambda: graphs.get("x", made), None, graphs, 1 << 28))
    assert not list(cache.glob("engines/one/*")) and not list(cache.glob("engines/one/.*"))


def _hangs(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"half")
    time.sleep(600)


@needs_copies
def test_a_recording_that_hangs_is_ended(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs("one")
    recording = GraphRecording(lambda: graphs.get("x", _hangs), None, graphs, 1 << 30)
    while not list(cache.glob("engines/one/.*/model.bin")):
        time.sleep(0.02)
    monkeypatch.setattr("penult.engines.recording.LIMIT", 0.01)
    assert "had not ended" in ended(recording)
    assert not list(cache.glob("engines/one/.*"))


@needs_copies
def test_a_recording_ends_with_the_process(cache: Path) -> None:
    """Also where that is killed; and no interrupt of the terminal ends it before."""
    words, told = os.pipe()
    child = os.fork()
    if child == 0:
        graphs = Graphs("one")
        signal.alarm(60)
        kept = GraphRecording(lambda: graphs.get("x", _hangs), None, graphs, 1 << 30)
        while not list(cache.glob("engines/one/.*/model.bin")):
            time.sleep(0.02)
        assert kept.outcome() is None
        (aside,) = cache.glob("engines/one/.*")
        os.write(told, aside.name.split("-")[-2].encode())
        time.sleep(600)
    recorder = int(os.read(words, 20))
    os.kill(recorder, signal.SIGINT)
    os.kill(child, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    limit = time.monotonic() + 30
    while list(cache.glob("engines/one/.*")):
        assert time.monotonic() < limit
        time.sleep(0.02)


@needs_copies
def test_a_graph_is_recorded_while_rows_are_made(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run goes over to it; the next embedder finds it."""
    pytest.importorskip("openvino")
    for name, value in {"OPENING": 0.0, "RECORDING": (0.0, 0.0)}.items():
        monkeypatch.setattr(portfolio, name, value)
    specs = [spec for spec in BUILT_IN if spec.name in ("torch", "openvino")]
    monkeypatch.setattr(portfolio, "candidates", lambda *_: iter(specs))
    plain = expected(tiny)
    slow = TorchEngine.__call__

    def slower(engine: TorchEngine, *args: Any, **how: Any) -> Readout:
        time.sleep(0.1)
        return slow(engine, *args, **how)

    monkeypatch.setattr(TorchEngine, "__call__", slower)
    emb = embedder(tiny)
    limit = time.monotonic() + 60
    while emb.runner.mode.words != "openvino f32":
        assert time.monotonic() < limit
        found = emb.run(CLIPS, alone=True)
        assert relative_error(found.vectors, plain.vectors) <= 1e-5
    again = embedder(tiny)
    assert relative_error(again.run(CLIPS).vectors, plain.vectors) <= 1e-5
    assert again.runner.choice.rows == {"openvino f32": 40}  # type: ignore[union-attr]


@needs_copies
def test_memory_bounds_a_recording(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "COPIES", 1 << 20)
    for name, value in {"OPENING": 0.0, "RECORDING": (0.0, 0.0)}.items():
        monkeypatch.setattr(portfolio, name, value)
    emb = embedder(tiny)
    emb.run(CLIPS, alone=True)
    choice = emb.runner.choice
    assert choice is not None and choice.mode.words == "torch f32"
    assert any("of memory, which the run has not" in why for why in choice.dropped.values())


def test_a_graph_that_came_with_an_embedder_is_held_on_whole_batches(
    tiny: Path, eager: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    specs = [spec for spec in BUILT_IN if spec.name in ("torch", "openvino")]
    monkeypatch.setattr(portfolio, "candidates", lambda *_: iter(specs))
    saved = embedder(tiny, engine="openvino")
    saved.run(CLIPS[:3])
    folder = saved.save(tmp_path / "saved")
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "elsewhere"))
    emb = penult.Embedder.load(folder, engine="auto", device="cpu")
    emb.run(CLIPS, alone=True)
    choice = emb.runner.choice
    tried = {**choice.seconds, **choice.dropped}  # type: ignore[union-attr]
    assert "openvino f32" in tried
    known = [one for one in emb.runner.portfolio._agreed if one.mode.engine == "openvino"]  # type: ignore[union-attr]
    assert not known or known[0].parity.items >= 2  # type: ignore[union-attr]


def test_bfloat16_is_known_by_the_processors_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is multiplied for it, on a processor with or without instructions."""
    from penult.engines import torch as engine

    monkeypatch.setattr(engine.torch, "ones", lambda *_: pytest.fail("timed"))  # type: ignore[attr-defined]
    cpuinfo = "flags\t\t: fpu avx512f avx512_bf16 vnni\n"
    for text, here in ((cpuinfo, True), (cpuinfo.replace("_bf16", ""), False)):
        monkeypatch.setattr(engine.torch.cpu, "get_capabilities", dict, raising=False)  # type: ignore[attr-defined]
        monkeypatch.setattr(engine, "Path", lambda _, text=text: SimpleNamespace(
            read_text=lambda encoding: text))  # fmt: skip
        engine.multiplies_bf16.cache_clear()
        assert engine.multiplies_bf16("cpu") == here
    monkeypatch.undo()
    engine.multiplies_bf16.cache_clear()
