"""`penult convert --format …` and `penult.convert`: what was written is opened by the program that
it is for, where Penult cannot be imported, and gives the embedder's own vectors."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

import penult
import zoo
from conftest import SHARED, clip, thinned
from penult.cli.main import app
from penult.conversion.parity import ConversionParity
from penult.errors import EngineError, UsageError

DEMO = Path(penult.__file__).parent / "demo" / "clips"
NAMES = ("one_scottish-man", "apple_oxford-woman", "seven_caribbean-woman")
LENGTHS = (0.9, 0.41, 1.3)
PAGE = (Path(__file__).parents[1] / "docs" / "conversion.md").read_text("utf-8")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def written(*arguments: object) -> dict[str, Any]:
    found = run("convert", *arguments, "--json")
    assert found.exit_code == 0, found.output
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def without_penult(code: str, folder: Path) -> Any:
    """What a program prints as JSON, run where Penult is not: without .pth files, an installation
    in place is none."""
    packages = sysconfig.get_paths()["purelib"]
    start = (
        f"import sys; sys.path.append({packages!r})\n"
        "from importlib.util import find_spec\nassert find_spec('penult') is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def relative(found: Any, expected: Any) -> float:
    one, other = np.float64(found), np.float64(expected)
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / np.abs(other).max())


def padded(clips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(one) for one in clips])
    samples = np.full(
        (len(clips), int(lengths.max())), 0.25, np.float32
    )  # not zeros: masked inside
    for row, one in zip(samples, clips, strict=True):
        row[: len(one)] = one
    return samples, lengths


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files as the examples name them, at the demo's rate, of different lengths."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, source in (("one.wav", NAMES[0]), ("two.wav", NAMES[2])):
        samples, rate = soundfile.read(DEMO / f"{source}.flac", dtype="float32")
        assert rate == 8000
        soundfile.write(
            folder / name, samples[: 6000 if name == "two.wav" else None], rate, "FLOAT"
        )
    return folder


@pytest.fixture(scope="module")
def expected(recordings: Path) -> Any:
    embedder = penult.Embedder.from_classifier(penult.load("demo"))
    return embedder.run([recordings / "one.wav", recordings / "two.wav"], alone=True)


@pytest.mark.parametrize(
    ("format", "name"), [("onnx", "one.onnx"), ("openvino", "one.xml"), ("pt2", "one.pt2")]
)
def test_graph_of_sound_runs_without_penult(
    format: str, name: str, recordings: Path, expected: Any
) -> None:
    """The example that the command prints, as it is, in a program that has no Penult."""
    found = written(
        "demo", recordings / name, "--format", format,
        "--verify", DEMO / "no_british-man.flac", "--verify", DEMO / f"{NAMES[1]}.flac",
    )  # fmt: skip
    assert found["parity"]["own"] and found["parity"]["items"] == 2
    assert found["example"].replace(name, f"words.{name.split('.')[1]}") in PAGE
    assert found["parity"]["vector"] < 1e-5 and found["parity"]["logits"] < 1e-5
    assert found["facts"]["inputs"] == ["samples float32 (n, T)", "lengths int64 (n,)"]
    show = """
import json
print(json.dumps([[[float(x) for x in row] for row in rows] for rows in (vector, logits)]))
"""
    vector, logits = without_penult(found["example"] + show, recordings)
    assert relative(vector, expected.vectors) < 1e-5
    assert relative(logits, expected.logits) < 1e-5


def test_transformers_folder_runs_without_penult(recordings: Path, expected: Any) -> None:
    found = written("demo", recordings / "auto", "--format", "transformers")
    assert found["example"].replace('"auto"', '"words"') in PAGE
    show = "\nimport json; print(json.dumps([float(x) for x in vector]))"
    vector = without_penult(found["example"] + show, recordings)
    assert relative(vector, expected.vectors[0]) < 1e-5
    card = (recordings / "auto" / "README.md").read_text()
    assert "library_name: transformers" in card and found["facts"]["fingerprint"] in card


def test_sentence_transformers_of_texts_needs_no_penult(tmp_path: Path) -> None:
    """The library's own modules, where they are right."""
    model = zoo.save_text(tmp_path / "model")
    found = written(model, tmp_path / "st", "--format", "sentence-transformers")
    assert found["facts"]["modules"] == ["Transformer", "Pooling"]
    assert not found["facts"]["needs_penult"]
    texts = ["one text", "a longer second text", "w1 w2 w3 w4 w5 w6 w7"]
    code = f"""
from sentence_transformers import SentenceTransformer
import json
rows = SentenceTransformer('st', device='cpu').encode({texts!r}, show_progress_bar=False)
print(json.dumps([[float(x) for x in row] for row in rows]))
"""
    embedder = penult.Embedder.from_classifier(penult.load(model))
    want = embedder.run(texts, alone=True).vectors
    assert relative(without_penult(code, tmp_path), want) < 1e-5


def test_sentence_transformers_of_sound(tmp_path: Path) -> None:
    """Clips of different lengths in one batch have the vectors that they have alone; so have they
    in a model whose norms run over time, which padding with zeros changes."""
    from penult.integrations.sentence_transformers import open_model

    model = zoo.save_audio(tmp_path / "model", "wav2vec2")
    found = written(model, tmp_path / "st", "--format", "sentence-transformers")
    assert found["facts"]["needs_penult"] and found["parity"]["batching"] < 1e-5
    assert found["example"].replace('"st"', '"words"') in PAGE
    opened = open_model(tmp_path / "st")
    clips = [clip(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
    items = [{"array": one, "sampling_rate": 16_000} for one in clips]
    together = opened.encode(items, batch_size=3)
    alone = np.stack([opened.encode([one])[0] for one in items])
    assert relative(together, alone) < 1e-5
    embedder = penult.Embedder.from_classifier(penult.load(model))
    assert relative(together, np.stack([embedder.embed(one)[0] for one in clips])) < 1e-5
    other_rate = opened.encode([{"array": clips[0], "sampling_rate": 8_000}])[0]
    assert relative(other_rate, embedder.embed([(clips[0], 8_000)])[0]) < 1e-5
    assert opened.get_embedding_dimension() == embedder.dim
    assert opened.encode(items, convert_to_tensor=True).shape == (3, embedder.dim)


@pytest.mark.parametrize(
    "kind",
    thinned(
        ["audio-spectrogram-transformer", "whisper", "wav2vec2", "wav2vec2-bert", "wavlm"],
        ["audio-spectrogram-transformer", "whisper", "wav2vec2"],
    ),
)
def test_front_ends_are_inside(kind: str, tmp_path: Path) -> None:
    """Samples of different lengths, padded with anything; longer than what the model keeps, too."""
    model = zoo.save_audio(tmp_path / "model", kind)
    embedder = penult.Embedder.from_classifier(penult.load(model))
    done = penult.convert(embedder, tmp_path / "one.onnx", "onnx")
    assert done.facts["front_end"] == "inside" and done.facts["inputs"][0].startswith("samples")
    clips = [clip(seconds, seed) for seed, seconds in enumerate((*LENGTHS, 2.2))]
    want = embedder.run(clips, alone=True)
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    samples, lengths = padded(clips)
    vector, logits = session.run(["vector", "logits"], {"samples": samples, "lengths": lengths})
    assert relative(vector, want.vectors) < 2e-5
    assert relative(logits, want.logits) < 2e-5
    # Any number of clips, and any length.
    one = session.run(["vector"], {"samples": samples[1:2, : lengths[1]], "lengths": lengths[1:2]})
    assert relative(one[0][0], vector[1]) < 1e-5


def test_a_clip_that_padding_would_change_is_nan(tmp_path: Path) -> None:
    model = zoo.save_audio(tmp_path / "model", "wav2vec2-conformer")
    embedder = penult.Embedder.from_classifier(penult.load(model))
    done = penult.convert(embedder, tmp_path / "one.onnx", "onnx")
    assert done.facts["padding"].startswith("not allowed")
    clips = [clip(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    samples, lengths = padded(clips)
    vector, logits = session.run(["vector", "logits"], {"samples": samples, "lengths": lengths})
    assert np.isnan(vector[:2]).all() and np.isnan(logits[:2]).all()
    assert relative(vector[2], embedder.embed(clips[2])[0]) < 1e-5


@pytest.mark.parametrize("make", [zoo.save_image, zoo.save_text, zoo.save_video])
def test_other_modalities_take_the_arguments_of_the_model(make: Any, tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    embedder = penult.Embedder.from_classifier(penult.load(model))
    done = penult.convert(embedder, tmp_path / "one.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    prepared = embedder.classifier.example(3).tensors
    names = [one.name for one in session.get_inputs()]
    assert done.facts["front_end"] == "outside"
    found = session.run(["logits"], {name: np.asarray(prepared[name]) for name in names})[0]
    with torch.no_grad():
        want = embedder.classifier.module(**{n: torch.as_tensor(v) for n, v in prepared.items()})
    assert relative(found, want.logits.numpy()) < 1e-5


def test_taught_classes_and_a_space_are_inside(tmp_path: Path) -> None:
    """Probabilities are those of `penult predict`, for each method."""
    words = {"yes": "yes_british-man", "no": "no_british-man"}
    embedder = penult.Embedder.from_classifier(penult.load("demo"))
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(DEMO.glob("*.flac"))]
    samples, lengths = padded(clips)
    for method in ("prototype", "knn", "ridge"):
        space = penult.ClassSpace(
            embedder, space="centre+l2" if method != "ridge" else None, method=method
        )
        for number, one in enumerate(sorted(DEMO.glob("*.flac"))[:12]):
            space.add("odd" if number % 2 else "even", [one])
        if method == "prototype":
            space.add("odd", [DEMO / f"{words['no']}.flac"], mark="no")
        space.save(tmp_path / f"{method}.npz")
        done = written(
            "demo", tmp_path / f"{method}.pt2", "--format", "pt2",
            "--classes", tmp_path / f"{method}.npz",
        )  # fmt: skip
        assert done["facts"]["classes"] == ["even", "odd"]
        with torch.no_grad():
            module = torch.export.load(tmp_path / f"{method}.pt2").module()
            found = module(torch.from_numpy(samples), torch.from_numpy(lengths))[2].numpy()
        predicted = space.predict([(one, 8000) for one in clips])
        want = [one.scores for one in predicted]
        assert np.abs(found - np.array(want)).max() < 1e-4, method


def test_space_of_the_embedder_is_inside(tmp_path: Path) -> None:
    from penult.analysis.space import fit

    plain = penult.Embedder.from_classifier(penult.load("demo"))
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(DEMO.glob("*.flac"))[:9]]
    raw = plain.embed(clips)
    space = fit("scale+pca:5+l2", raw)
    embedder = penult.Embedder.from_classifier(penult.load("demo"), space=space)
    done = penult.convert(embedder, tmp_path / "one.pt2", "pt2", clips[:3])
    assert done.facts["dim"] == 5 and done.parity.own
    samples, lengths = map(torch.from_numpy, padded(clips))
    with torch.no_grad():
        vector = torch.export.load(tmp_path / "one.pt2").module()(samples, lengths)[0]
    own = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    turned = np.linalg.svd(own - own.mean(axis=0), full_matrices=False)[2][:5]
    places = own @ turned.T
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    signs = np.sign((places * vector.numpy()).sum(axis=0))
    assert np.abs(places * signs - vector.numpy()).max() < 1e-4


class Recorded(torch.nn.Module):
    """A model of sound that is another one while it is recorded. change: of its hidden states."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(8, 12), torch.nn.Linear(12, 5)
        self.change = change

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(4 * self.body(samples.unfold(1, 8, 8))).mean(dim=1)
        if torch.compiler.is_exporting():
            hidden = self.change(hidden)
        found: torch.Tensor = self.head(hidden)
        return found


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda hidden: hidden, True),
        (lambda hidden: hidden * torch.linspace(1, 1.02, 12), False),
        (lambda hidden: hidden * 1.001, False),  # whose cosine is 1
    ],
)
def test_what_gives_other_values_is_not_kept(change: Any, kept: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = penult.load(Recorded(change).eval(), sample_rate=8000)
    embedder = penult.Embedder.from_classifier(classifier, "prelogits")
    target = tmp_path / "one.onnx"
    target.write_text("what was there before")
    if kept:
        assert penult.convert(embedder, target, "onnx").parity.vector < 1e-5
        return
    with pytest.raises(EngineError, match="gives other values than torch"):
        penult.convert(embedder, target, "onnx")
    assert target.read_text() == "what was there before" and [*tmp_path.iterdir()] == [target]


def test_a_bound_holds_for_vectors_alone() -> None:
    """A vector of another length has the same cosine, and logits say nothing of a space."""
    near = {"items": 3, "own": True, "cosine": 1.0, "logits": 0.0}
    assert ConversionParity(**near, vector=9e-5).ok
    assert not ConversionParity(**near, vector=2e-4).ok


def test_what_cannot_be_recorded_for_any_length_is_refused(tmp_path: Path) -> None:
    """A number that follows from the sound, which a recorded graph holds fast."""

    def fixed(hidden: torch.Tensor) -> torch.Tensor:
        return hidden * float(hidden.abs().mean())

    classifier = penult.load(Recorded(fixed).eval(), sample_rate=8000)
    embedder = penult.Embedder.from_classifier(classifier, "prelogits")
    with pytest.raises(EngineError, match="cannot record"):
        penult.convert(embedder, tmp_path / "one.onnx", "onnx")
    assert not [*tmp_path.iterdir()]


def test_metadata_says_what_the_file_is(tmp_path: Path) -> None:
    import onnx

    embedder = penult.Embedder.from_classifier(penult.load("demo"))
    done = penult.convert(embedder, tmp_path / "one.onnx", "onnx")
    model = onnx.load(tmp_path / "one.onnx")
    facts = json.loads({one.key: one.value for one in model.metadata_props}["penult"])
    assert facts == json.loads(json.dumps(done.facts))
    assert facts["fingerprint"] == embedder.fingerprint_id and facts["parity"]["ok"]
    assert facts["labels"] == list(embedder.classifier.labels) and facts["rate"] == 8000
    shapes = [
        [axis.dim_param for axis in one.type.tensor_type.shape.dim] for one in model.graph.input
    ]
    assert shapes == [["n", "T"], ["n"]]
    penult.convert(embedder, tmp_path / "one.pt2", "pt2")
    kept = {"penult.json": ""}
    torch.export.load(tmp_path / "one.pt2", extra_files=kept)
    assert json.loads(kept["penult.json"])["fingerprint"] == embedder.fingerprint_id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "out.onnx", "--format", "tensorrt"), "no format 'tensorrt'"),
        (("demo", "out.bin", "--format", "onnx"), "suffix .onnx"),
        (("demo", "out", "--classes", "words.npz"), "--classes goes with --format"),
        (("demo", "out.onnx", "--format", "onnx", "--pooling", "none"), "one vector an item"),
        (("demo", "out", "--format", "transformers", "--tap", "layer:0.ffn"), "layer:0.ffn"),
        (("demo", "out.onnx", "--format", "onnx", "--engine", "openvino"), "--engine"),
        (("demo", "full", "--format", "transformers"), "name another folder"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    found = run("convert", *arguments)
    assert found.exit_code in (1, 2) and words in str(found.exception)
    assert "Traceback" not in found.output
    assert {one.name for one in tmp_path.iterdir()} <= {"full", "fresh cache"}


def test_classes_of_another_embedder_are_refused(tmp_path: Path) -> None:
    embedder = penult.Embedder.from_classifier(penult.load("demo"))
    space = penult.ClassSpace(penult.Embedder.from_classifier(penult.load("demo"), "layer:1"))
    space.add("one", [DEMO / f"{NAMES[0]}.flac"])
    with pytest.raises(penult.PenultError, match="other vectors"):
        penult.convert(embedder, tmp_path / "one.onnx", "onnx", classes=space)
    with pytest.raises(UsageError, match="no place for taught classes"):
        penult.convert(embedder, tmp_path / "folder", "transformers", classes=space)


@pytest.mark.skipif(not SHARED.exists(), reason="real recordings are not here")
def test_real_recordings(tmp_path: Path) -> None:
    """Ten seconds of speech of several people, each of another length, from their files."""
    folders = sorted(one for one in (SHARED / "librispeech_speakers").iterdir() if one.is_dir())
    files = [next(one.rglob("*.flac")) for one in folders[:4]]
    embedder = penult.Embedder.from_classifier(penult.load("demo"))
    done = penult.convert(embedder, tmp_path / "one.onnx", "onnx", files)
    assert done.parity.items == 4 and done.parity.vector < 1e-5
