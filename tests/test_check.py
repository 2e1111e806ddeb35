"""`check`: the promises on a user's own files, and that it can fail."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
import transformers
from torch import nn

import penult
import penult.engines.torch as engine
from conftest import RATE, clip, thinned
from penult.analysis.space import fit
from penult.cli.main import run
from penult.data.sources import from_objects, from_paths
from penult.embedding.check import check
from penult.embedding.embedder import Embedder
from penult.embedding.inspect import InspectionOptions, certify_on, inspect_model
from penult.embedding.source_sample import SourceSample
from penult.embedding.stations import record_stations
from penult.engines.batching import BatchPolicy
from penult.models.base import Classifier
from penult.models.specs import load
from zoo import save_audio, save_image, save_text, save_video


def test_report(tiny: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(tiny), str(recordings), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["broken"] == [] and document["law"]["name"] == "masked norms"
    assert sum(document["batches"]) == len(document["items"]) == 6 > len(document["batches"])
    assert document["drift"]["relative"] <= 1e-5 >= document["batched"]["relative"]
    assert document["order"]["ok"] and document["certificate"]["ok"]
    assert len(document["proved_on"]) == 2
    assert document["plain_padding"]["relative"] > 0.01  # what the mask is for
    assert document["shared_batches"]
    assert run(["check", str(tiny), str(recordings)]) == 0
    out = capsys.readouterr().out
    assert "every promise holds" in out and "not measured" not in out


def test_a_collection_is_measured_against_its_rows(
    tiny: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = penult.Collection.open(tmp_path / "c.lance")
    emb = Embedder.from_classifier(load(tiny), tap="layer:1", device="cpu")
    store.add(emb, recordings / "a")
    assert run(["check", str(store.path), str(recordings), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["stored"]["ok"] and document["stored"]["relative"] < 1e-5
    assert len(document["items"]) == 6  # three of them have no row
    assert run(["check", str(store.path), str(recordings / "b")]) == 0
    assert "as the collection has it" not in capsys.readouterr().out
    file = next((recordings / "a").glob("*.wav"))
    sf.write(file, clip(0.4, 9), RATE)  # the row is of what it was
    assert run(["check", str(store.path), str(file)]) == 1
    assert "as the collection has it: off by" in capsys.readouterr().out
    assert run(["check", str(store.path), str(file), "--tap", "layer:0"]) == 2
    assert "--tap is what the collection" in " ".join(capsys.readouterr().err.split())
    assert run(["check", str(store.path), str(recordings / "b"), "--model", str(tiny)]) == 0
    assert run(["check", str(tiny), str(recordings / "b"), "--model", str(tiny)]) == 2
    assert "--model goes with a collection" in " ".join(capsys.readouterr().err.split())


def test_items_that_share_no_batch_are_told(
    tiny: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file says nothing about batches, and no more is claimed."""
    one = str(next(recordings.rglob("*.wav")))
    assert run(["check", str(tiny), one]) == 0
    out = capsys.readouterr().out
    assert "not measured: no two of these items share a batch" in out
    assert "of batches nothing was measured" in out
    assert run(["check", str(tiny), one, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["batches"] == [1] and not document["shared_batches"]


def test_it_runs_what_a_run_runs(tmp_path: Path, recordings: Path) -> None:
    """Also where only the positions are pooled that a clip fills."""
    emb = Embedder.from_classifier(load(save_audio(tmp_path / "w", "whisper")), pool_over="valid")
    seen: list[object] = []
    engine = emb.runner.engine
    emb.runner.engine = lambda batch: seen.append(batch.filled) or engine(batch)  # type: ignore
    source = from_paths([str(recordings)], "audio")
    assert not check(emb, source, emb.certificate).broken
    assert seen and None not in seen


def test_a_broken_mask_is_seen(
    tiny: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Embedder.from_classifier(load(tiny)).save(tmp_path / "m")
    monkeypatch.setattr(engine, "frame_mask", lambda *_: None)
    assert run(["check", str(tmp_path / "m"), str(recordings), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert any("in a batch" in words for words in document["broken"])


def test_a_law_that_does_not_hold_is_seen(
    tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A law that is not this model's: group norms that see the padding. What a saved embedder says
    of itself is not believed; what was measured wrongly is seen."""
    Embedder.from_classifier(load(save_audio(tmp_path / "c", "hubert"))).save(tmp_path / "m")
    file = tmp_path / "m" / "penult.json"
    saved = json.loads(file.read_text())
    saved["batching"]["name"] = "padded"
    file.write_text(json.dumps(saved))
    (tmp_path / "m" / "SHA256SUMS").unlink()
    assert run(["check", str(tmp_path / "m"), str(recordings)]) == 0
    law = BatchPolicy.from_dict(saved["batching"])
    monkeypatch.setattr("penult.embedding.embedder.find_batch_policy", lambda *_: law)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    assert run(["check", str(tmp_path / "m"), str(recordings)]) == 1


FACTORY = """
import torch
from torch import nn

class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(50, 8), nn.Linear(8, 3)
    def forward(self, x):
        hidden = self.inner(x.unfold(1, 50, 50)).mean(dim=1)
        return self.head(nn.functional.dropout(hidden, 0.5, training=True))
"""


def test_a_model_that_drifts(
    tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "restless.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import restless

    torch.save(restless.Restless().state_dict(), "w.pt")
    command = ["check", "restless:Restless", str(recordings), "--checkpoint", "w.pt",
               "--sample-rate", str(RATE)]  # fmt: skip
    assert run(command) == 1
    said = capsys.readouterr().out
    assert "the same item twice" in said and "not proved" in said
    sys.modules.pop("restless")


def test_other_modalities_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    model = save_image(tmp_path / "m")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 256, (50, 40 + 9 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    assert run(["check", str(model), str(pictures)]) == 0
    (pictures / "broken.png").write_bytes(b"no picture")
    assert run(["check", str(model), str(pictures), "--json"]) == 3
    document = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(["{", ""]))
    assert document["failures"][0]["error"] == "DecodeError"
    assert run(["check", str(model), str(pictures / "broken.png")]) == 3


def test_nothing_is_marked(tiny: Path, recordings: Path) -> None:
    emb = Embedder.from_classifier(load(tiny))
    modules: list[nn.Module] = list(emb.classifier.module.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    before = {n: v.clone() for n, v in emb.classifier.module.state_dict().items()}
    source = from_paths([str(recordings)], "audio")
    report = check(emb, source, certify_on(emb.runner, SourceSample(source))[0])
    assert not report.broken
    after = emb.classifier.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]


# ---- every station of one item


def dumped(command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """(arrays by station, the JSON document of the command)."""
    file = folder / "dump.npz"
    assert run(["check", *command, "--dump", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    about = json.loads(str(found.pop("about")))
    assert document["stations"] == about
    assert [one["station"] for one in about["stations"]] == list(found)
    for one in about["stations"]:
        values = found[one["station"]]
        assert one["shape"] == list(values.shape)
        if values.dtype.kind in "biuf":
            values = values.astype(np.float64)
            expected = [values.min(), values.max(), values.mean()]
            assert [one["min"], one["max"], one["mean"]] == pytest.approx(expected)
    return found, document


def stored_row(model: Path, file: Path, folder: Path, *options: str) -> dict[str, Any]:
    into = folder / "rows.lance"
    assert run(["embed", str(model), str(file), "--into", str(into), *options]) == 0
    row = penult.Collection(into).get(str(file))
    assert row is not None
    return row


def numpy_pooled(pooling: str, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What docs/batching.md promises of a pooling, in numpy and float64."""
    own = hidden.astype(np.float64)[mask]
    return {
        "mean": lambda: own.mean(axis=0),
        "max": lambda: own.max(axis=0),
        "first": lambda: own[0],
        "last": lambda: own[-1],
        "mean+std": lambda: np.concatenate([own.mean(axis=0), own.std(axis=0)]),
    }[pooling]()


@pytest.mark.parametrize(
    "pooling", thinned(["mean", "max", "first", "last", "mean+std"], ["mean+std", "last"])
)
def test_dump_of_a_recording(
    tiny: Path, tmp_path: Path, pooling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At another rate and in two channels: each station computed again from the one before."""
    file = tmp_path / "a.wav"
    stereo = np.stack([clip(0.7, seed, 44_100) for seed in (1, 2)], axis=1)
    sf.write(file, stereo, 44_100, subtype="FLOAT")
    found, _ = dumped([str(tiny), str(file), "--pooling", pooling], tmp_path, capsys)
    np.testing.assert_allclose(found["decoded"], stereo.mean(axis=1), atol=1e-6)
    resampled = soxr.resample(found["decoded"], 44_100, RATE, quality="HQ")
    np.testing.assert_allclose(found["resampled"], resampled, atol=1e-6)
    clf = load(tiny)
    own = transformers.AutoFeatureExtractor.from_pretrained(tiny)(
        resampled, sampling_rate=RATE, return_tensors="np"
    )
    np.testing.assert_allclose(
        found["prepared.input_values"], own["input_values"], rtol=1e-4, atol=1e-5
    )
    with torch.inference_mode():
        states = clf.module.wav2vec2(torch.from_numpy(found["prepared.input_values"]))[0][0]
    np.testing.assert_allclose(found["hidden"], states.numpy(), rtol=1e-4, atol=1e-5)
    expected = numpy_pooled(pooling, found["hidden"], found["mask"])
    np.testing.assert_allclose(found["pooled"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["vector"], found["pooled"])
    np.testing.assert_array_equal(found["stored"], found["vector"].astype(np.float32))
    row = stored_row(tiny, file, tmp_path, "--pooling", pooling, "--tap", "backbone")
    np.testing.assert_array_equal(found["stored"], np.float32(row["vector"]))
    np.testing.assert_allclose(found["logits"], np.float32(row["logits"]), rtol=1e-6)
    half = stored_row(tiny, file, tmp_path / "half", "--pooling", pooling, "--fp16")
    np.testing.assert_array_equal(found["stored.float16"], np.float16(half["vector"]))


def test_dump_of_a_segment_with_a_space(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of a table; two readings, joined; the mask of a short clip in a fixed-length input."""
    sf.write(tmp_path / "a.wav", clip(1.0), RATE, subtype="FLOAT")
    (tmp_path / "t.csv").write_text("path,start,end\na.wav,0.25,0.75\n")
    classifier = penult.load(tiny)
    plain = Embedder.from_classifier(classifier, "layer:0,layer:1", "first,mean+std")
    vectors = plain.embed([clip(0.4, seed) for seed in range(4)])
    space = fit("centre+l2", vectors)
    made = Embedder.from_classifier(classifier, "layer:0,layer:1", "first,mean+std", space=space)
    folder = made.save(tmp_path / "m")
    found, document = dumped([str(folder), str(tmp_path / "t.csv")], tmp_path, capsys)
    assert document["stations"]["region"] == "0.25-0.75"
    np.testing.assert_array_equal(found["decoded"], clip(1.0)[4000:12000])
    parts = [found["pooled.layer:0 first"], found["pooled.layer:1 mean+std"]]
    np.testing.assert_array_equal(found["vector"], np.concatenate(parts))
    centred = found["vector"].astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    expected = centred / np.linalg.norm(centred)
    np.testing.assert_allclose(found["space"], expected, rtol=1e-4, atol=1e-5)


def test_dump_of_valid_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.wav"
    sf.write(file, clip(0.5), RATE, subtype="FLOAT")
    model = save_audio(tmp_path / "w", "whisper")
    found, _ = dumped([str(model), str(file), "--pool-over", "valid"], tmp_path, capsys)
    assert 0 < found["mask"].sum() < len(found["mask"])
    expected = numpy_pooled("mean", found["hidden"], found["mask"])
    np.testing.assert_allclose(found["vector"], expected, rtol=1e-4, atol=1e-5)


def test_dump_of_pictures_texts_and_films(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found, _ = dumped([str(save_image(tmp_path / "i")), str(tmp_path / "a.png")], tmp_path, capsys)
    np.testing.assert_array_equal(found["decoded"], pixels)
    assert found["prepared.pixel_values"].shape == (1, 3, 32, 32)
    np.testing.assert_allclose(found["vector"], found["hidden"].mean(axis=0), rtol=1e-4, atol=1e-6)

    (tmp_path / "a.txt").write_text("seven grey whales sing")
    found, _ = dumped([str(save_text(tmp_path / "t")), str(tmp_path / "a.txt")], tmp_path, capsys)
    assert str(found["decoded"]) == "seven grey whales sing"
    assert found["prepared.input_ids"].shape == found["mask"][None].shape == (1, 6)
    np.testing.assert_allclose(found["vector"], found["hidden"].mean(axis=0), rtol=1e-4, atol=1e-6)

    frames = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    emb = Embedder.from_classifier(load(save_video(tmp_path / "v")))
    record = record_stations(emb, from_objects([frames], "video"))
    np.testing.assert_array_equal(record["decoded"], frames)
    np.testing.assert_array_equal(record["stored"], emb.embed([frames])[0])


def test_dump_of_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    from test_onnx import FORMS, save

    nodes, weights, _, _ = FORMS["tokens"]
    model = save(tmp_path / "m.onnx", nodes, weights, ("n", 5, 6))
    (tmp_path / "thirty.py").write_text(
        "import torch\n\ndef prepare(samples):\n"
        "    return torch.from_numpy(samples[:30].reshape(5, 6))\n"
    )
    sys.path.insert(0, str(tmp_path))
    sf.write(tmp_path / "a.wav", clip(0.5), RATE, subtype="FLOAT")
    command = [str(model), str(tmp_path / "a.wav"), "--preprocess", "thirty:prepare",
               "--sample-rate", str(RATE)]  # fmt: skip
    found, _ = dumped(command, tmp_path, capsys)
    np.testing.assert_allclose(found["prepared.x"], clip(0.5)[:30].reshape(1, 5, 6), atol=1e-7)
    expected = numpy_pooled("mean", found["hidden"], found["mask"])
    np.testing.assert_allclose(found["vector"], expected, rtol=1e-5, atol=1e-6)
    sys.path.remove(str(tmp_path))


def test_a_wrong_station_is_seen(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preprocessing that doubles: the first station that differs is `prepared`."""
    file = tmp_path / "a.wav"
    sf.write(file, clip(0.5), RATE, subtype="FLOAT")
    right, _ = dumped([str(tiny), str(file)], tmp_path, capsys)
    plain = Classifier.preprocess

    def doubled(self: Any, content: Any) -> Any:
        made = plain(self, content)
        louder = {**made.tensors, "input_values": 2 * made.tensors["input_values"]}
        return replace(made, tensors=louder)

    monkeypatch.setattr(Classifier, "preprocess", doubled)
    wrong, _ = dumped([str(tiny), str(file)], tmp_path, capsys)
    differing = [name for name in right if not np.array_equal(right[name], wrong[name])]
    assert differing[0] == "prepared.input_values"
    np.testing.assert_array_equal(
        wrong["prepared.input_values"], 2 * right["prepared.input_values"]
    )
    assert run(["check", str(tiny), str(file), "--dump", str(tmp_path / "again.npz")]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in wrong) and "wav2vec2" in printed


def test_a_dump_that_cannot_be(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    sf.write(tmp_path / "a.wav", clip(0.5), RATE)
    file = tmp_path / "d.npz"
    assert run(["check", str(tiny), str(tmp_path / "broken.wav"), "--dump", str(file)]) != 0
    nowhere = tmp_path / "no" / "d.npz"
    assert run(["check", str(tiny), str(tmp_path / "a.wav"), "--dump", str(nowhere)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.usefixtures("fresh_cache")  # a model without a record is opened as `load` does
def test_results_give_the_json_of_their_commands(
    tiny: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`to_dict` of what Python returns is what the command prints, in the order of its keys."""
    file = str(next(recordings.rglob("0.wav")))
    (recordings / "broken.wav").write_bytes(b"no sound")
    source = from_paths([str(recordings)], "audio")
    emb = Embedder.from_classifier(load(tiny))
    report = check(emb, source, *certify_on(emb.runner, SourceSample(source)))
    assert run(["check", str(tiny), str(recordings), "--engine", "torch", "--json"]) == 3
    assert json.dumps(report.to_dict()) == json.dumps(json.loads(capsys.readouterr().out))
    assert report.failures

    found = inspect_model(str(tiny), InspectionOptions(verify=[file], taps=["wav2vec2.encoder"]))
    command = ["inspect", str(tiny), "--verify", file, "--tap", "wav2vec2.encoder", "--json"]
    assert run(command) == 0
    assert json.dumps(found.to_dict()) == json.dumps(json.loads(capsys.readouterr().out))
