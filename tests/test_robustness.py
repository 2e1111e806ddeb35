"""`check --robust`: what each corruption changes, and how far vectors move by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import penult
from penult.data.corruptions import PICTURE, SOUND
from penult.embedding.robustness import OWN, shift
from test_cli import ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
RATE = 8000


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(
        np.float32
    )


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10((signal**2).mean() / (noise**2).mean()))


def test_what_each_corruption_of_a_sound_changes() -> None:
    low, high = tone(500), tone(3000)
    found = {name: change(low, RATE) for name, change in SOUND.items()}
    padded = found.pop("silence 2 x 0.5 s")
    assert len(padded) == 2 * RATE and np.array_equal(padded[RATE // 2 : -RATE // 2], low)
    assert all(values.shape == low.shape and np.isfinite(values).all() for values in found.values())
    assert np.allclose(found["level -20 dB"], low / 10)
    assert np.abs(found["clipped at half"]).max() == pytest.approx(0.2)
    for wanted in (20, 10):
        assert decibels(low, found[f"noise {wanted} dB"] - low) == pytest.approx(wanted, abs=0.3)
    assert found["DC 10 %"].mean() == pytest.approx(0.04, abs=1e-3)
    assert 10 < decibels(low, found["Vorbis, lowest"] - low) < 60  # lossy, and in place
    # Half of 8 kHz keeps 500 Hz and loses 3 kHz.
    inner = slice(200, -200)
    assert decibels(low[inner], (found["half the rate"] - low)[inner]) > 40
    assert np.abs(SOUND["half the rate"](high, RATE)[inner]).max() < 0.01
    click = np.zeros(RATE, np.float32)
    click[100] = 1
    room = SOUND["reverb 0.5 s"](click, RATE)
    assert room[100] == pytest.approx(1, abs=1e-5) and not np.abs(room[:100]).max() > 1e-6
    later = (room[101:] ** 2).sum()
    assert later == pytest.approx(1, abs=0.01)  # as much as directly
    ends = 10 * np.log10((room[3900:4000] ** 2).sum() / (room[101:201] ** 2).sum())
    assert -66 < ends < -50  # 60 dB in half a second


@pytest.mark.parametrize("samples", [np.zeros(RATE, np.float32), np.ones(3, np.float32)])
def test_silence_and_clicks_can_be_corrupted(samples: np.ndarray) -> None:
    for change in SOUND.values():
        assert np.isfinite(change(samples, RATE)).all()


def test_what_each_corruption_of_a_picture_changes() -> None:
    values = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    picture = Image.fromarray(np.kron(values[::10, ::10], np.ones((10, 10, 1), np.uint8)))
    before = np.asarray(picture, float)
    found = {name: change(picture) for name, change in PICTURE.items()}
    assert found.pop("cropped by 5 %").size == (72, 54)
    for name, one in found.items():
        assert one.size == picture.size and one.mode == "RGB", name
        assert 1 < np.abs(np.asarray(one, float) - before).mean() < 100, name
    assert np.asarray(found["brightness 0.6"], float).mean() == pytest.approx(
        0.6 * before.mean(), abs=1
    )
    grey = np.asarray(found["grey"])
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()


def test_a_shift_by_hand() -> None:
    """Four directions 90° apart; each is turned by 30° towards the next one."""
    before = np.eye(4, dtype=np.float32)
    angle = np.pi / 6
    after = np.cos(angle) * before + np.sin(angle) * np.roll(before, 1, axis=1)
    moved = shift(before, after.astype(np.float32))
    assert moved.cosine == pytest.approx(np.cos(angle)) == moved.lowest
    assert moved.relative == pytest.approx(1 - np.cos(angle))  # different items: distance 1
    assert moved.found == 1 and moved.neighbours == 1  # three others, of which all are near
    past = np.cos(np.pi / 3) * before + np.sin(np.pi / 3) * np.roll(before, 1, axis=1)
    assert shift(before, past).found == 0  # nearer to the next item
    some = np.random.default_rng(0).standard_normal((30, 8))
    other = np.random.default_rng(1).standard_normal((30, 8))
    assert shift(some, other).relative == pytest.approx(1, abs=0.25)
    longer = shift(some, 3 * some)
    assert longer.relative == pytest.approx(0, abs=1e-9)
    assert longer.lowest == pytest.approx(1) and longer.neighbours == longer.found == 1


@pytest.mark.slow
def test_sounds_on_the_command_line(tmp_path: Path) -> None:
    picture = tmp_path / "robust.png"
    done = ask(
        "check", "demo", CLIPS, "--tap", "prelogits", "--robust", "--plot", picture, "--json"
    )
    assert done.code == 0, done.err
    said = done.json
    assert len(said["items"]) == 32 and list(said["readings"][OWN]) == list(SOUND)
    assert set(said["readings"]) > {"prelogits mean", "backbone mean", "layer:0 mean+std"}
    assert said["readings"][OWN] == said["readings"]["prelogits mean"]
    assert Image.open(picture).size[0] > 600
    # By hand: each file read, corrupted and embedded from memory.
    embedder = penult.Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")
    rate = embedder.classifier.rate
    sounds = [soundfile.read(path, dtype="float32") for path in said["items"]]
    assert {own for _, own in sounds} == {rate}
    plain = embedder.run([(values, rate) for values, _ in sounds])
    for name in ("noise 10 dB", "silence 2 x 0.5 s"):
        changed = embedder.run([(SOUND[name](values, rate), rate) for values, _ in sounds])
        one, other = plain.vectors, changed.vectors
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines = (one * other).sum(axis=1) / lengths
        found = said["readings"][OWN][name]
        assert found["cosine"] == pytest.approx(np.median(cosines), abs=1e-5)
        assert found["lowest"] == pytest.approx(cosines.min(), abs=1e-5)
        same = plain.logits.argmax(axis=1) == changed.logits.argmax(axis=1)
        assert said["labels_kept"][name] == pytest.approx(same.mean())
    shown = ask("check", "demo", *said["items"][:4], "--robust")
    assert shown.code == 0 and "noise 10 dB" in shown.out and "reverb 0.5 s" in shown.out
    assert "readings that move more" in shown.out and "every promise" not in shown.out


def test_pictures_on_the_command_line(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, image_size=32, patch_size=8)  # fmt: skip
    config.num_labels = 3
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for number in range(5):
        values = random.integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"none")
    done = ask("check", tmp_path / "vit", tmp_path / "pictures", "--robust", "--json")
    assert done.code == 0, done.err
    assert list(done.json["readings"][OWN]) == list(PICTURE) and len(done.json["items"]) == 5
    assert [one["id"].endswith("broken.png") for one in done.json["failures"]] == [True]


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    for options, message in (
        (["--plot", tmp_path / "a.png"], "--robust"),
        (["--robust", "--dump", tmp_path / "a.npz"], "--dump and --robust"),
        (["--robust", "--plot", tmp_path / "a.gif"], ".png"),
    ):
        done = ask("check", "demo", CLIPS, *options)
        assert done.code == 2 and message in done.error
    (tmp_path / "there.png").write_bytes(b"kept")
    done = ask("check", "demo", CLIPS, "--robust", "--plot", tmp_path / "there.png")
    assert done.code == 2 and "--overwrite" in done.error
    assert (tmp_path / "there.png").read_bytes() == b"kept"
    few = sorted(CLIPS.glob("*.flac"))[:3]
    done = ask("check", "demo", *few, "--robust")
    assert done.code != 0 and "3 of 3 items can be opened" in done.error and "4" in done.error
