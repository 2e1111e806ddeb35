"""The recipes for kinds of models: each command and each block of Python of their pages runs, and
the vectors are those that the network itself has in front of its head."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import penult
from recipe_models import STAND_INS, save_items, write
from test_cli import ask

PAGES = Path(__file__).resolve().parents[1] / "docs" / "models"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.S | re.M)
MARK = re.compile(r"^\*(These commands download|Needs) .*\*( .*)?\n$")


def blocks_of(page: str) -> list[tuple[str, str, str]]:
    """(language, file, text) of a page's blocks, with the names of models replaced."""
    text = (PAGES / f"{page}.md").read_text("utf-8")
    for name, local in STAND_INS[page][2].items():
        text = text.replace(name, local)
    return BLOCK.findall(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder; modules that are imported there are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    save_items()
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("nets", "models", "monai"):
            del sys.modules[name]


def follow(page: str) -> dict[str, Any]:
    """Do what a page says; gives what its Python defines."""
    modules, prepare, _ = STAND_INS[page]
    write(modules)
    blocks = blocks_of(page)
    for language, file, text in blocks:
        if language == "python" and file:
            Path(file).write_text(text, "utf-8")
    if prepare is not None:
        prepare()
    scope: dict[str, Any] = {}
    for language, file, text in blocks:
        if language == "python" and not file:
            exec(compile(text, page, "exec"), scope)
        for line in text.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            assert words[0] == "penult", line
            said = ask(*words[1:])
            assert said.code == 0, f"{line}\n{said.out}\n{said.err}"
            if words[1] == "inspect":
                assert "head proved" in said.out and "not proved" not in said.out, said.out
            if "--kind" in words:
                assert words[words.index("--kind") + 1] in said.out or words[1] != "inspect"
    return scope


def vectors(collection: str) -> np.ndarray:
    found: np.ndarray = penult.Collection.open(collection).vectors()[1]
    return found


def sounds(rate: int) -> list[np.ndarray]:
    """The recordings as the network of a recipe gets them."""
    import soxr

    pairs = [soundfile.read(f"recordings/{n}.wav", dtype="float32") for n in range(2)]
    return [x if rate == r else soxr.resample(x, r, rate) for x, r in pairs]


def entering(model: torch.nn.Module, layer: str, inputs: list[Any]) -> np.ndarray:
    """(n, d) what enters a layer, captured by a hook as people do by hand."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone())
    )
    with torch.no_grad():
        for one in inputs:
            model(torch.as_tensor(one)[None])
    hook.remove()
    return torch.cat(seen).numpy()


def test_every_page_is_followed() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {"index", *STAND_INS}
    index = (PAGES / "index.md").read_text("utf-8")
    assert all(f"({page}.md)" in index for page in STAND_INS)


@pytest.mark.parametrize("page", STAND_INS)
def test_what_cannot_run_here_is_marked(page: str) -> None:
    """Hub names, files and code of others stand in blocks that say so in front."""
    text = (PAGES / f"{page}.md").read_text("utf-8")
    for found in re.finditer(r"^```bash\n", text, re.M):
        before = text[: found.start()].rstrip().rpartition("\n\n")[2] + "\n"
        made = page == "peft"  # by the block of Python in front of it
        assert made or MARK.match(before) or "*Needs" in before, before
    for heading in ("## What the head is", "## What to watch for"):
        assert heading in text or page == "emotion"


@pytest.mark.parametrize("page", ["birdnet", "yamnet", "tflite", "timm"])
def test_files_and_names(page: str, place: Path) -> None:
    follow(page)


def test_ast(place: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    follow("ast")
    model = AutoModelForAudioClassification.from_pretrained("ast").eval()
    extractor = AutoFeatureExtractor.from_pretrained("ast")
    for row, samples in enumerate(sounds(16_000)):
        inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            hidden = model.base_model(**inputs).last_hidden_state[0]
        np.testing.assert_allclose(vectors("ast.lance")[row], hidden.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(vectors("ast-token.lance")[row], hidden[0], rtol=1e-4, atol=1e-5)


def test_emotion(place: Path) -> None:
    """The card's own class is refused as the standard one, and opens by its factory."""
    follow("emotion")
    import nets  # type: ignore[import-not-found]

    model = nets.EmotionModel.from_pretrained("emotion-model").eval()
    inputs = [nets.normalised(samples) for samples in sounds(16_000)]
    found = entering(model, "classifier", inputs)
    np.testing.assert_allclose(vectors("vad.lance"), found, rtol=1e-4, atol=1e-5)
    refused = ask("inspect", "emotion-model")
    assert refused.code == 2
    for piece in ("does not fill Wav2Vec2ForSequenceClassification; its logits would come from",
                  "classifier.bias: missing", "classifier.dense.weight"):  # fmt: skip
        assert piece in refused.error


def test_peft(place: Path) -> None:
    """The adapter is refused in the page's words; merged it gives what base and adapter give."""
    scope = follow("peft")
    refused = ask("inspect", "adapter")
    assert (
        refused.code == 2
        and "holds an adapter (LORA) for base, and no whole model" in refused.error
    )
    texts = ["the quick brown fox", "a lazy dog"]
    said = penult.load("merged").classify(texts)
    tokenizer = scope["AutoTokenizer"].from_pretrained("base")
    for text, one in zip(texts, said, strict=True):
        with torch.no_grad():
            logits = scope["model"](**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(one.logits, logits, rtol=1e-4, atol=1e-4)
    (name,) = scope["split"].head.names
    assert name == "base_model.model.classifier.modules_to_save.default"


CASES = {  # page → collection, tap's layer, rate; the function of `nets` that prepares
    "ced": ("ced.lance", "outputlayer", 16_000, "waveform"),
    "efficientat": ("mn-prelogits.lance", "classifier.5", 32_000, "spectrogram"),
    "panns": ("panns.lance", "fc_audioset", 32_000, "waveform"),
    "ssast": ("ssast.lance", "ast.mlp_head", 16_000, "fbank"),
}


@pytest.mark.parametrize("page", CASES)
def test_projects_of_others(page: str, place: Path) -> None:
    follow(page)
    import nets

    collection, layer, rate, prepare = CASES[page]
    torch.manual_seed(0)  # as their weights were made
    model = (nets.Tagger if page == "ssast" else nets.network)().eval()
    expected = entering(model, layer, [getattr(nets, prepare)(one) for one in sounds(rate)])
    np.testing.assert_allclose(vectors(collection), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("page", "collection", "layer"),
    [("plain-torch", "scans.lance", "class_layers.out"), ("lightning", "lit.lance", "4")],
)
def test_networks_of_one_s_own(page: str, collection: str, layer: str, place: Path) -> None:
    from PIL import Image

    follow(page)
    import nets

    torch.manual_seed(0)
    model = nets.network().eval()
    pictures = [nets.prepare(Image.open(f"pictures/{n}.png").convert("RGB")) for n in range(2)]
    found = entering(model, layer, pictures)
    np.testing.assert_allclose(vectors(collection), found, rtol=1e-4, atol=1e-5)
