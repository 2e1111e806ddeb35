"""The recipes of docs/extending.md, as packages of somebody else: written from the page's own code
blocks, found by their entry points, used through the command line and through Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import penult
import test_cli
from plugins import write_package

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
RATE, LABELS = 8000, ("low", "high", "noise")


def install(site: Path, package: str, entry_points: str) -> None:
    """What an installer leaves: metadata beside the modules."""
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


def entry_points_of(blocks: str) -> str:
    """The page's TOML as an installer writes it."""
    sections = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n(.*?)(?=\n\[|\Z)', blocks, re.S)
    return "\n".join(
        f"[{group}]\n" + "".join(line.replace('"', "") + "\n" for line in lines.splitlines())
        for group, lines in sections
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: every module of the page, with its entry points."""
    site = tmp_path_factory.mktemp("site")
    modules = re.findall(r"File `(\w+\.py)`:\n+```python\n(.*?)```", PAGE, re.S)
    assert modules
    for name, text in modules:
        (site / name).write_text(text)
    entries = "\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.S))
    install(site, "penult-extras", entry_points_of(entries))
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of the new format, and a folder of three clips."""
    folder = tmp_path_factory.mktemp("lines")
    random = np.random.default_rng(0)
    arrays = {
        "filters": random.standard_normal((4, 9)).astype(np.float32),
        "weight": random.standard_normal((3, 4)).astype(np.float32),
        "bias": random.standard_normal(3).astype(np.float32),
    }
    model = folder / "birds.lines.npz"
    np.savez(model, **arrays, labels=np.array(LABELS), rate=RATE)  # type: ignore[arg-type]
    clips = folder / "clips"
    clips.mkdir()
    for number in range(3):
        samples = 0.1 * random.standard_normal(RATE // 2 + 100 * number)
        soundfile.write(clips / f"{number}.wav", samples, RATE, subtype="FLOAT")
    return model, clips


def by_hand(model: Path, clip: Path) -> tuple[np.ndarray, np.ndarray]:
    """(what enters the last layer, logits), by NumPy alone."""
    arrays = np.load(model)
    samples = soundfile.read(clip, dtype="float32")[0]
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), 9)
    hidden = np.maximum(windows @ arrays["filters"].T, 0).mean(0)
    return hidden, hidden @ arrays["weight"].T + arrays["bias"]


def ask(site: Path, *arguments: object) -> tuple[int, str, str]:
    """Another process, in which the packages of a folder are installed."""
    path = os.pathsep.join([str(ROOT / "src"), str(site)])
    done = subprocess.run(
        [sys.executable, "-m", "penult", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def asked(site: Path, *arguments: object) -> Any:
    code, out, err = ask(site, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_loader_opens_its_models_and_they_are_saved(
    installed: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    model, clips = files
    clip = clips / "1.wav"
    hidden, logits = by_hand(model, clip)
    for spec in (f"lines:{model}", model):
        clf = penult.load(spec)
        assert (clf.labels, clf.modality, clf.rate) == (LABELS, "audio", RATE)
        np.testing.assert_allclose(clf.classify(clip)[0].logits, logits, rtol=1e-4)
    assert penult.load(model, class_names=["a", "b", "c"]).labels == ("a", "b", "c")
    emb = penult.Embedder.from_classifier(penult.load(model), tap="prelogits")
    assert emb.certificate.ok
    np.testing.assert_allclose(emb.embed(clip)[0], hidden, rtol=1e-4)
    saved = emb.save(tmp_path / "reader")
    again = penult.Embedder.load(saved)
    assert again.fingerprint == emb.fingerprint and again.classifier.labels == LABELS
    np.testing.assert_array_equal(again.embed(clip), emb.embed(clip))


def test_the_command_line_takes_its_models(
    installed: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    model, clips = files

    def said(*arguments: object) -> Any:
        done = test_cli.ask(*arguments, "--json")
        assert done.code == 0, done.err
        return done.json

    found = said("classify", f"lines:{model}", clips)
    for prediction in found["predictions"]:
        logits = by_hand(model, Path(prediction["id"]))[1]
        np.testing.assert_allclose(prediction["logits"], logits, rtol=1e-4)
        assert prediction["label"] == LABELS[logits.argmax()]
    about = said("inspect", model)
    assert about["origin"] == "lines" and about["head"]["last_weight_layers"] == ["fc"]
    done = test_cli.ask("embed", model, clips, "--into", tmp_path / "c.lance")
    assert done.code == 0 and "3 embedded" in done.out + done.err, done.err
    assert said("convert", model, tmp_path / "reader")["dim"] == 4
    assert said("classify", tmp_path / "reader", clips)["labels"] == list(LABELS)


@pytest.mark.slow
def test_plugins_stand_in_doctor_and_help(site: Path) -> None:
    plugins = asked(site, "doctor")["plugins"]
    assert {"kind": "loader", "name": "lines", "package": "penult-extras 1.0", "error": None} in (
        plugins
    )
    assert "loader lines of penult-extras 1.0: works" in ask(site, "doctor")[1]
    assert "lines:NAME" in ask(site, "classify", "--help")[1]
    code, _, err = ask(site, "classify", "no-such-model/at all", ".")
    assert code == 2 and "lines:NAME" in err


@pytest.mark.slow
def test_a_package_that_is_broken_stops_nothing_else(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    _, clips = files
    site = tmp_path / "site"
    install(
        site,
        "unlucky",
        "[penult.loaders]\nbroken = unlucky:LOADER\nother = json:dumps\nfails = clumsy:LOADER\n",
    )
    (site / "unlucky.py").write_text("import a_module_that_is_not_there\n")
    (site / "clumsy.py").write_text(
        "from penult.models.specs import LoaderSpec\n"
        "LOADER = LoaderSpec('fails', 'fails:NAME', lambda name, options: {}[name])\n"
    )
    code, _, err = ask(site, "classify", "demo", clips)
    assert (code, err) == (0, "")
    for spec, sentence in (
        ("broken:x", "loader 'broken' of unlucky 1.0 cannot be imported"),
        ("other:x", "not a penult.models.specs.LoaderSpec"),
        ("fails:x", "loader 'fails' of unlucky 1.0 failed: KeyError"),
    ):
        code, _, err = ask(site, "classify", spec, clips, "--modality", "audio")
        assert code == 2 and sentence in err and "Traceback" not in err, err
    states = {one["name"]: one["error"] for one in asked(site, "doctor")["plugins"]}
    assert "a_module_that_is_not_there" in states["broken"] and states["fails"] is None


def test_a_saved_embedder_without_its_loader_says_so(
    installed: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = penult.Embedder.from_classifier(penult.load(files[0])).save(tmp_path / "reader")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(installed)])
    with pytest.raises(penult.PenultError, match="the loader 'lines', which is not installed"):
        penult.Embedder.load(saved)


def test_the_page_of_a_server(files: tuple[Path, Path], tmp_path: Path) -> None:
    blocks = re.findall(r"## A server.*?```python\n(.*?)```", PAGE, re.S)
    scope: dict[str, Any] = {}
    exec(compile(blocks[0], "extending.md", "exec"), scope)
    _, clips = files
    collection = penult.Collection.open(tmp_path / "c.lance")
    collection.add(scope["embedder"], clips)
    answer = json.loads(scope["answer"](clips / "0.wav", collection))
    assert answer["nearest"][0]["id"].endswith("0.wav")
    assert answer["prediction"]["label"] in scope["classifier"].labels


def pooled_by_hand(clip: Path) -> np.ndarray:
    """(128,) root mean square of the demo's last hidden states over their positions."""
    classifier = penult.load("demo")
    every = penult.Embedder.from_classifier(classifier, pooling="none").embed(clip)[0]
    return np.asarray(np.sqrt((every.astype(np.float64) ** 2).mean(axis=0)))


CLIPS = ROOT / "src" / "penult" / "demo" / "clips"
CLIP = CLIPS / "one_british-man.flac"


def test_a_score_is_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    code = re.findall(r"## A score for each row.*?```python\n(.*?)```", PAGE, re.S)[0]
    exec(compile(code, "extending.md", "exec"), scope)
    assert (scope["summary"].done, scope["summary"].skipped) == (0, len(scope["isolation"]))
    values = dict(zip(scope["keys"]["id"].to_pylist(), scope["isolation"], strict=True))
    assert len(scope["odd"]) == 3
    for hit in scope["odd"]:
        assert hit.metadata["isolation"] == pytest.approx(values[hit.id]) and values[hit.id] > 0.2


def test_a_pooling_works_by_name(installed: Path, tmp_path: Path) -> None:
    emb = penult.Embedder.from_classifier(penult.load("demo"), pooling="rms")
    expected = pooled_by_hand(CLIP)
    np.testing.assert_allclose(emb.embed(CLIP)[0], expected, rtol=1e-4)
    assert emb.dim == len(expected) and emb.fingerprint["pooling"].startswith("rms; rms of ")
    assert penult.Embedder.load(emb.save(tmp_path / "m")).pooling == "rms"
    with pytest.raises(penult.PenultError, match=r"unknown pooling 'rns'; choose mean, .* rms"):
        penult.Embedder.from_classifier(penult.load("demo"), pooling="rns")


@pytest.mark.slow
def test_a_pooling_on_the_command_line(site: Path, tmp_path: Path) -> None:
    into = tmp_path / "c.lance"
    code, out, err = ask(site, "embed", "demo", CLIP, "--into", into, "--pooling", "rms")
    assert code == 0 and "1 embedded" in out + err, err
    rows = penult.Collection.open(into).reader.vectors()[1]
    np.testing.assert_allclose(rows[0], pooled_by_hand(CLIP), rtol=1e-4)
    assert asked(site, "search", into, CLIP, "-k", "1")["hits"][0]["id"] == f"clips/{CLIP.name}"
    plugins = asked(site, "doctor")["plugins"]
    kinds = {(one["kind"], one["name"]): one["error"] for one in plugins}
    assert kinds["pooling", "rms"] is None and kinds["engine", "traced"] is None
    assert "rms" in ask(site, "embed", "--help")[1] and "traced" in ask(site, "embed", "--help")[1]


def test_choose_compares_a_pooling(installed: Path) -> None:
    """Its readings stand among those that are ranked, without labels as with them."""
    chosen = penult.choose(penult.load("demo"), sorted(CLIPS.glob("*.flac"))[:12])
    assert chosen.ranking is not None
    names = {one.reading for one in chosen.ranking}
    assert "backbone rms" in names and "backbone mean" in names and "prelogits rms" not in names


@pytest.mark.parametrize("pooling", ["mean", "rms"])
def test_an_engine_works_by_name(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    clips = sorted(CLIPS.glob("*.flac"))[:5]
    plain = penult.Embedder.from_classifier(penult.load("demo"), pooling=pooling)
    emb = penult.Embedder.from_classifier(penult.load("demo"), pooling=pooling, engine="traced")
    found, expected = emb.run(clips), plain.run(clips)
    np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
    choice = emb.runner.choice
    assert emb.runner.mode.words == "traced f32" and choice is not None
    assert choice.parity is not None and choice.parity.items == 5
    assert penult.Embedder.load(emb.save(tmp_path / "m")).engine == "traced"
    with pytest.raises(penult.PenultError, match=r"no engine 'traces'; there are auto, .* traced"):
        penult.Embedder.from_classifier(penult.load("demo"), engine="traces")
    with pytest.raises(penult.PenultError, match=r"no device 'cuda' for engine 'traced', .* cpu"):
        penult.Embedder.from_classifier(penult.load("demo"), engine="traced", device="cuda")


@pytest.mark.slow
def test_an_engine_on_the_command_line(site: Path, tmp_path: Path) -> None:
    into = tmp_path / "c.lance"
    clips = sorted(CLIPS.glob("*.flac"))[:4]
    found = asked(site, "embed", "demo", *clips, "--into", into, "--engine", "traced")
    assert found["engine"] == "traced f32" and found["done"] == 4
    document = asked(site, "check", "demo", *clips, "--engine", "traced")
    assert document["engine"] == "traced f32" and document["parity"]["cosine"] > 0.999999
    code, out, err = ask(ROOT / "docs", "embed", "demo", CLIPS, "--into", into, "--json")
    assert code == 0 and json.loads(out)["engine"] == "torch f32", err  # its package is gone
    model = ROOT / "docs" / "no.onnx"
    code, _, err = ask(site, "embed", model, clips[0], "--into", into, "--engine", "traced")
    assert code != 0 and "Traceback" not in err


ODD = """
    import dataclasses, torch
    from penult.engines.base import EngineSpec
    from penult.engines.torch import TorchEngine, open_torch

    def changed(change):
        def open(request):
            engine = open_torch(request)
            def run(batch, logits=True):
                return change(engine(batch))
            return run
        return open

    def fails(readout):
        raise KeyError("no such thing")

    wrong = changed(lambda r: r._replace(vectors=[v + 0.5 for v in r.vectors]))
    short = changed(lambda r: r._replace(vectors=[v[:, :-1] for v in r.vectors]))
    other = changed(lambda r: None)
    OFF = EngineSpec("off", wrong)
    SHORT = EngineSpec("short", short)
    NOTHING = EngineSpec("nothing", other)
    FAILS = EngineSpec("fails", changed(fails))
    APART = EngineSpec("apart", open_torch, auto=False)
    GPU = EngineSpec("gpu", open_torch, devices=("cuda",))
    ABSENT = EngineSpec("absent", open_torch, modules=("no_such_runtime",), install="no-runtime")
    GOOD = EngineSpec("good", open_torch, devices=("cuda", "cpu"))
    GRAPH = EngineSpec("graph", open_torch, runs="onnxruntime")
    ANYTHING = 3
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("off", "short", "nothing", "fails", "apart", "gpu", "absent", "good", "graph")
    entries = {name: f"penult_odd:{name.upper()}" for name in (*names, "anything")}
    site = tmp_path / "odd"
    site.mkdir()
    write_package(site, "penult-odd", ODD, {"penult.engines": entries})
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("off", "off f32: cosine ≥ .* exact asks for more"),
        ("short", "short f32: .*exact asks for more"),
        ("nothing", "nothing f32: "),
        ("fails", "fails f32: .*no such thing"),
        ("absent", "absent is not installed; install it with: pip install no-runtime"),
        ("graph", "engine 'graph' does not run this model"),
        ("anything", "'anything' of penult-odd 1.0 is 3, and has to be .*EngineSpec"),
    ],
)
def test_an_engine_that_does_not_hold_is_refused(odd: None, engine: str, says: str) -> None:
    with pytest.raises(penult.PenultError, match=says):
        emb = penult.Embedder.from_classifier(penult.load("demo"), engine=engine)
        emb.embed(sorted(CLIPS.glob("*.flac"))[:4])


def test_auto_tries_engines_of_other_packages(odd: None, eager: None) -> None:
    """Each on its devices, if it allows that; one that is wrong or broken stops no run."""
    clips = sorted(CLIPS.glob("*.flac"))[:4] * 12
    emb = penult.Embedder.from_classifier(penult.load("demo"), engine="auto", device="cpu")
    plain = penult.Embedder.from_classifier(penult.load("demo"), device="cpu").embed(clips)
    np.testing.assert_allclose(emb.embed(clips, alone=True), plain, rtol=1e-3, atol=1e-4)
    choice = emb.runner.choice
    assert choice is not None and "good f32" in choice.seconds and "torch f32" in choice.seconds
    assert {"off f32", "short f32", "nothing f32", "fails f32"} <= choice.dropped.keys()
    tried = {*choice.seconds, *choice.dropped}
    assert not {"apart f32", "gpu f32", "absent f32", "graph f32"} & tried
    apart = penult.Embedder.from_classifier(penult.load("demo"), engine="apart")
    np.testing.assert_allclose(apart.embed(clips), plain, rtol=1e-3, atol=1e-4)
    assert apart.runner.mode.engine == "apart"
