"""Choosing an engine: asked for, or measured; what is kept, saved and said of it; early exit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

import penult.engines.autoselect as choosing
from conftest import RATE, clip
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.engines.base import PRECISIONS, EngineRequest, Readout
from penult.engines.batching import Batch
from penult.engines.parity import compare, cosine, relative_error
from penult.engines.registry import EngineMode
from penult.engines.torch import TorchEngine, with_rounded_weights
from penult.errors import EngineError, ModelError, UsageError
from penult.models.specs import load
from test_batching import Small, calls_of
from zoo import save_audio, save_text

PLAIN = EngineMode("torch")
CLIPS = [clip(0.4 + 0.3 * i, i) for i in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One for all tests: a recording is made once."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("PENULT_CACHE", str(folder))
    return folder


def test_weights_are_rounded_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in each pass, which gives what torch's autocast gives, to the bit."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path))
    monkeypatch.setattr("penult.engines.torch.multiplies_bf16", lambda device: True)
    emb = Embedder.from_classifier(load(tiny), engine="torch", precision="fast", device="cpu")
    found = emb.embed(CLIPS[:2], alone=True)
    types = {one.dtype for one in emb.runner.engine._module.parameters()}  # type: ignore[attr-defined]
    assert types == {torch.float32, torch.bfloat16}  # norms stay
    model = transformers.AutoModelForAudioClassification.from_pretrained(tiny).eval()
    prepare = transformers.AutoFeatureExtractor.from_pretrained(tiny)
    for wave, vector in zip(CLIPS, found, strict=False):
        inputs = prepare(wave, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = model.base_model(**inputs).last_hidden_state
        np.testing.assert_array_equal(vector, hidden.float().mean(1)[0].numpy())


class Tied(torch.nn.Module):
    """A product with a table of embeddings, and one with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
        self.own, self.norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
        self.last.weight = self.table.weight


def test_which_weights_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = Tied()
    copied = with_rounded_weights(tied)
    assert copied is not None and copied.own.weight.dtype == torch.bfloat16
    assert copied.last.weight is copied.table.weight is tied.table.weight
    assert copied.norm.weight is tied.norm.weight and tied.own.weight.dtype == torch.float32
    monkeypatch.setattr("penult.engines.torch.free_memory", lambda: 100)
    assert with_rounded_weights(tied) is None


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("openvino", "exact"), ("openvino", "fast"), ("torch", "fast")],
)
def test_asked_for(tiny: Path, tmp_path: Path, engine: str, precision: str) -> None:
    plain = Embedder.from_classifier(load(tiny))
    expected = plain.run(CLIPS)
    emb = Embedder.from_classifier(load(tiny), engine=engine, precision=precision)
    result = emb.run(CLIPS)
    assert (
        emb.runner.choice is not None
        and emb.runner.choice.parity is not None
        and emb.runner.mode.engine == engine
    )
    assert emb.runner.choice.parity.holds(PRECISIONS[precision])
    assert "cosine ≥ 0.9999" in emb.runner.choice.words or emb.runner.mode == PLAIN
    rows = [[a, b] for a, b in zip(result.logits, result.vectors, strict=True)]
    wanted = [[a, b] for a, b in zip(expected.logits, expected.vectors, strict=True)]
    assert compare(rows, wanted).holds(PRECISIONS[precision])
    same = emb.fingerprint_id == plain.fingerprint_id
    assert same == (precision == "exact")  # the engine is not in it, the precision is
    again = Embedder.load(emb.save(tmp_path / "m"))
    np.testing.assert_array_equal(again.embed(CLIPS), result.vectors)
    assert (again.engine, again.precision) == (engine, precision)
    saved = json.loads((tmp_path / "m" / "penult.json").read_text())
    assert saved["choice"]["parity"]["items"] == 6
    assert list((tmp_path / "m").glob("engines/*/model.*")) != [] or engine == "torch"


def test_auto_measures_only_where_it_is_worth_it(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(cache.with_name("auto")))
    emb = Embedder.from_classifier(load(tiny), engine="auto")
    plain = emb.run(CLIPS * 4, alone=True)
    choice = emb.runner.choice
    assert emb.runner.mode == PLAIN and choice is not None
    assert choice.rows == {"torch f32": 24} and not choice.seconds and not choice.dropped
    request.getfixturevalue("eager")
    emb = Embedder.from_classifier(load(tiny), engine="auto")
    result = emb.run(CLIPS * 4, alone=True)
    choice = emb.runner.choice
    assert choice is not None and len(choice.seconds) >= 2
    assert sum(choice.rows.values()) == 24 and choice.rows[emb.runner.mode.words]
    assert relative_error(result.vectors, plain.vectors) <= 1e-5
    monkeypatch.setattr("penult.engines.openvino._record", lambda *_: pytest.fail("recorded again"))
    again = Embedder.from_classifier(load(tiny), engine="auto")
    again.run(CLIPS * 4, alone=True)
    assert sum(again.runner.choice.rows.values()) == 24  # type: ignore[union-attr]


def test_two_items_are_run_without_a_measurement(
    tiny: Path, cache: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would run them several times; a longer run measures."""
    monkeypatch.setenv("PENULT_CACHE", str(cache.with_name("two")))
    emb = Embedder.from_classifier(load(tiny), engine="auto")
    expected = Embedder.from_classifier(load(tiny)).embed(CLIPS)
    assert relative_error(emb.embed(CLIPS[:2]), expected[:2]) <= 1e-5
    choice = emb.runner.choice
    assert choice is not None and choice.rows == {"torch f32": 2} and not choice.seconds
    assert relative_error(emb.embed(CLIPS, alone=True), expected) <= 1e-5
    assert emb.runner.choice is not None and emb.runner.choice.seconds
    windows = Embedder.from_classifier(load(tiny), engine="auto")
    windows.run(np.tile(CLIPS[0], 20), window=0.2, alone=True)  # one item, and many regions
    assert windows.runner.choice is not None and windows.runner.choice.seconds


def test_what_disagrees_is_dropped(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, eager: None
) -> None:
    def off(mode: EngineMode, request: EngineRequest) -> Any:
        engine = opened(mode, request)
        if mode.engine != "openvino":
            return engine

        def wrong(batch: Any, logits: bool = True) -> Any:
            readout = engine(batch)
            return readout._replace(vectors=[v + np.float32(0.5) for v in readout.vectors])

        return wrong

    opened = choosing.open_mode  # type: ignore[attr-defined]
    monkeypatch.setenv("PENULT_CACHE", str(cache.with_name("other")))
    monkeypatch.setattr(choosing, "open_mode", off)
    emb = Embedder.from_classifier(load(tiny), engine="auto")
    emb.run(CLIPS * 4, alone=True)
    assert emb.runner.choice is not None and emb.runner.mode.engine != "openvino"
    assert "exact asks for more" in emb.runner.choice.dropped["openvino f32"]
    with pytest.raises(EngineError, match="asks for more"):
        Embedder.from_classifier(load(tiny), engine="openvino").run(CLIPS)


def test_bfloat16_that_is_too_coarse_falls_back(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(cache.with_name("coarse")))
    strict = PRECISIONS["exact"]
    monkeypatch.setitem(choosing.PRECISIONS, "fast", strict)  # type: ignore[attr-defined]
    emb = Embedder.from_classifier(load(tiny), engine="torch", precision="fast")
    emb.run(CLIPS)
    assert (
        emb.runner.mode == PLAIN
        and emb.runner.choice is not None
        and "torch bf16" in emb.runner.choice.dropped
    )


def test_bfloat16_without_instructions_for_it_is_not_run(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """It would give the right values, a hundred times slower."""
    monkeypatch.setenv("PENULT_CACHE", str(cache.with_name("without")))
    monkeypatch.setattr("penult.engines.torch.multiplies_bf16", lambda device: False)
    emb = Embedder.from_classifier(load(tiny), engine="torch", precision="fast")
    emb.run(CLIPS)
    assert emb.runner.mode == PLAIN and emb.runner.choice is not None
    assert "no faster than fp32" in emb.runner.choice.dropped["torch bf16"]


def test_what_was_made_in_eight_bits_goes_on_in_bfloat16(
    tiny: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Precision `turbo` of 0.1.0, also in its fingerprint: the same class, held by `fast`, told."""
    into, saved = str(tmp_path / "c.lance"), str(tmp_path / "m")
    first, *rest = sorted(map(str, recordings.rglob("*.wav")))
    how = ["--engine", "torch", "--precision", "turbo"]
    assert run(["embed", str(tiny), first, "--into", into, *how]) == 0
    assert run(["convert", str(tiny), saved, *how]) == 0
    capsys.readouterr()
    for model in (str(tiny), saved):
        assert run(["embed", model, *rest, "--into", into]) == 0
        assert "run as 'fast'" in capsys.readouterr().err
    assert run(["embed", str(tiny), *rest, "--into", into, "--precision", "fast"]) == 2
    assert "precision" in capsys.readouterr().err  # other rows than these are still told apart
    collection = Collection.open(into)
    assert collection.count == 6
    exact = Embedder.from_classifier(load(tiny))
    for one in (first, *rest):
        stored = np.asarray(collection.get(one)["vector"], np.float32)  # type: ignore[index]
        assert cosine(stored, exact.embed([Path(one)])[0]) >= PRECISIONS["fast"].cosine
    query = tmp_path / "other.wav"
    query.write_bytes(Path(first).read_bytes())
    assert run(["search", into, str(query), "-k", "1", "--json"]) == 0


def test_an_engine_that_is_gone_gives_way_to_torch(
    tiny: Path,
    recordings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """ONNX Runtime ran exported torch models in 0.1.0: what names it goes on, told; asked for now,
    it is refused with what there is."""
    into, saved = tmp_path / "c.lance", tmp_path / "m"
    first, *rest = sorted(map(str, recordings.rglob("*.wav")))
    assert run(["embed", str(tiny), first, "--into", str(into), "--engine", "torch"]) == 0
    assert run(["convert", str(tiny), str(saved)]) == 0
    for file in (into / "collection.json", saved / "penult.json"):
        document = json.loads(file.read_text())
        assert document["engine"] == "torch"
        file.write_text(json.dumps(document | {"engine": "onnxruntime"}))
    (saved / "SHA256SUMS").unlink()  # as an earlier version wrote it
    emb = Embedder.load(saved)
    assert emb.engine == "torch" and "onnxruntime runs no models of torch" in caplog.text
    capsys.readouterr()
    np.testing.assert_allclose(
        emb.embed(CLIPS), Embedder.from_classifier(load(tiny)).embed(CLIPS), rtol=1e-5, atol=1e-6
    )
    assert run(["embed", str(tiny), *rest, "--into", str(into), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["engine"] == "torch f32"
    assert "first run was in onnxruntime, and onnxruntime runs no models of torch" in caplog.text
    assert Collection.open(into).count == 6
    for command in (["embed", str(tiny), first, "--into", str(into)], ["check", str(saved), first]):
        assert run([*command, "--engine", "onnxruntime"]) == 2
        assert "openvino" in capsys.readouterr().err


def test_neighbours_are_counted() -> None:
    rows = np.eye(6, dtype=np.float32)
    rows[1] = [1, 0.5, 0, 0, 0, 0]
    rows[3] = [0, 0, 1, 0.5, 0, 0]
    rows[5] = [0, 0, 0, 0, 1, 0.5]
    wanted = [[row, row] for row in rows]
    assert compare(wanted, wanted).neighbours == 1.0
    moved = rows.copy()
    moved[1] = [0.5, 0.5, 0, 0, 1, 0]
    assert compare([[row, row] for row in moved], wanted).neighbours < 0.9


def test_where_no_graph_can_be_kept_torch_runs_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eager: None
) -> None:
    (tmp_path / "file").write_text("no folder can be made in here")
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "file" / "cache"))
    emb = Embedder.from_classifier(load(tiny), engine="auto")
    assert len(emb.run(CLIPS * 4, alone=True).vectors) == 4 * len(CLIPS)
    assert emb.runner.mode == PLAIN and emb.runner.choice is not None
    assert "PENULT_CACHE" in emb.runner.choice.dropped["openvino f32"]
    with pytest.raises(EngineError, match="PENULT_CACHE"):
        Embedder.from_classifier(load(tiny), engine="openvino").run(CLIPS)


@pytest.mark.slow
def test_nothing_is_reported_to_the_network(tiny: Path, tmp_path: Path) -> None:
    """OpenVINO's own reports need a module that it does without, and leave a folder at home."""
    code = (
        "import sys; from penult.cli.main import run; "
        f"code = run(['embed', {str(tiny)!r}, {str(tmp_path / 'a.wav')!r}, '--into', "
        f"{str(tmp_path / 'c')!r}, '--engine', 'openvino', '--precision', 'fast']); "
        "assert 'openvino' in sys.modules; "
        "assert sys.modules['openvino_telemetry'] is None; sys.exit(code)"
    )
    soundfile.write(tmp_path / "a.wav", CLIPS[0], RATE)
    home = tmp_path / "home"
    home.mkdir()
    variables = {**os.environ, "HOME": str(home), "PENULT_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True, timeout=300)
    assert not (home / "intel").exists()


@pytest.mark.parametrize(
    "asked", [{"engine": "tensorrt"}, {"precision": "quick"}, {"engine": "openvino", "device": "x"}]
)
def test_what_there_is_not(tiny: Path, asked: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Embedder.from_classifier(load(tiny), **asked)


def test_a_saved_one_is_still_checked(tiny: Path, tmp_path: Path) -> None:
    folder = Embedder.from_classifier(load(tiny)).save(tmp_path / "m")
    file = folder / "penult.json"
    saved = json.loads(file.read_text())
    saved["fingerprint"]["weights"] = "0" * 16
    file.write_text(json.dumps(saved))
    with pytest.raises(ModelError, match=r"not as it was saved: penult\.json"):
        Embedder.load(folder)
    (folder / "SHA256SUMS").unlink()  # as an earlier version wrote it
    with pytest.raises(ModelError, match="changed since"):
        Embedder.load(folder, precision="fast")


def test_a_collection_keeps_its_engine(
    tiny: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = str(tmp_path / "c.lance")
    first, *rest = sorted(map(str, recordings.rglob("*.wav")))
    assert run(["embed", str(tiny), first, "--into", into, "--engine", "openvino", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "openvino f32"
    assert run(["embed", str(tiny), *rest, "--into", into, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["engine"] == "openvino f32"
    collection = Collection.open(into)
    assert collection.manifest is not None and collection.manifest.engine == "openvino"
    assert collection.count == 6
    assert run(["search", into, first, "-k", "1", "--json"]) == 0


def test_precisions_are_told_apart(
    tiny: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = str(tmp_path / "c.lance")
    command = ["embed", str(tiny), str(recordings), "--into", into]
    assert run([*command, "--precision", "fast", "--engine", "torch"]) == 0
    assert run(command) == 0  # the collection's own
    assert run([*command, "--precision", "exact"]) == 2
    assert "precision" in capsys.readouterr().err
    query = tmp_path / "other.wav"
    query.write_bytes(next(recordings.rglob("*.wav")).read_bytes())
    assert run(["search", into, str(query), "-k", "1", "--json"]) == 0


def test_check_and_convert_name_the_engine(
    tiny: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--engine", "openvino", "--precision", "fast"]
    assert run(["check", str(tiny), str(recordings), *how, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["engine"].startswith("openvino") and document["parity"]["cosine"] >= 0.9999
    assert run(["convert", str(tiny), str(tmp_path / "m"), *how]) == 0
    assert "engine openvino" in capsys.readouterr().out
    assert Embedder.load(tmp_path / "m").engine == "openvino"


def test_a_pass_ends_behind_the_tap(tiny: Path) -> None:
    clf = load(tiny)
    emb = Embedder.from_classifier(clf, tap="layer:1")
    expected = emb.embed(CLIPS)
    last = clf.module.wav2vec2.encoder.layers[1]  # behind which nothing is wanted
    for wanted, runs in ((False, 0), (True, 1)):
        calls, vectors = calls_of(last, lambda w=wanted: emb.embed(CLIPS, logits=w))  # type: ignore[misc]
        assert (calls > 0) == bool(runs)
        np.testing.assert_array_equal(vectors, expected)
    assert emb.run(CLIPS).logits.shape == (6, len(clf.labels))


def test_a_module_that_runs_per_chunk_is_not_cut_short() -> None:
    from penult.tracing.hooks import Calls
    from penult.tracing.spots import Tap

    tap, calls = Tap("t", "m", "output", 0, (1, 3), 1), Calls()
    batches = [{"x": np.zeros((1, n))} for n in (4, 8, 12, 16)]
    for number, batch in enumerate(batches[:3]):
        calls.learn(batch, {("m", "output"): number})  # type: ignore[arg-type]
    assert calls.ends(batches[3], [tap]) is None  # type: ignore[arg-type]
    assert calls.ends(batches[1], [tap]) == {("m", "output"): 1}  # type: ignore[arg-type]


def test_memory_is_still_watched() -> None:
    emb = Embedder.from_classifier(load(Small().eval(), sample_rate=16_000), engine="auto")
    assert emb.run([clip(0.5, i) for i in range(3)]).vectors.shape[0] == 3


def test_a_graph_is_used_at_lengths_where_it_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Conformer's table of positions is recorded as long as it was: longer clips would get other
    vectors in silence. What lies outside of the verified lengths is run by torch, too, once."""
    model = save_audio(tmp_path / "model", "wav2vec2-conformer", max_source_positions=64)
    clips = [clip(0.3 + 0.1 * number, number) for number in range(4)]
    long = [clip(3.0 + number, number) for number in range(2)]
    plain = Embedder.from_classifier(load(model), device="cpu")
    emb = Embedder.from_classifier(load(model), device="cpu", engine="openvino")
    for items in (clips, long, clips + long, long):
        found, expected = emb.run(items), plain.run(items)
        assert relative_error(found.vectors, expected.vectors) <= 1e-5
        assert relative_error(found.logits, expected.logits) <= 1e-4
        assert found.labels == expected.labels
    assert emb.runner.mode.words == "openvino f32"
    calls: list[int] = []
    own = TorchEngine.__call__

    def counted(engine: TorchEngine, batch: Batch, logits: bool = True) -> Readout:
        calls.append(len(batch))
        return own(engine, batch, logits)

    monkeypatch.setattr(TorchEngine, "__call__", counted)
    emb.run(clips)
    assert not calls  # all lengths between were verified
    again = Embedder.from_classifier(load(model), device="cpu", engine="openvino")
    again.run(clips)
    calls.clear()
    again.run(clips)
    assert not calls


def test_a_text_that_torch_refuses_is_refused_on_a_graph(tmp_path: Path) -> None:
    """Of a graph whose table of positions gives a row for any place."""
    model = save_text(tmp_path / "model")
    document = json.loads((model / "tokenizer_config.json").read_text())
    document["model_max_length"] = 10**30
    (model / "tokenizer_config.json").write_text(json.dumps(document))
    texts = ["the quick brown fox", "a lazy dog", "seven grey whales sing " * 3]
    told = []
    for engine in ("torch", "openvino"):
        emb = Embedder.from_classifier(load(model), device="cpu", engine=engine)
        emb.run(texts)
        found = emb.run([*texts, "the quick brown fox jumps over " * 40], on_error="skip")
        told.append((len(found.ids), [one.message for one in found.failures]))
    assert told[0] == told[1]
