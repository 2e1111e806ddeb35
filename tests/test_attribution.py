"""`explain`: the parts of a similarity or a score by frames and patches, and where these lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import penult
from conftest import RATE, clip
from penult.analysis.space import fit
from penult.collection.collection import Collection
from penult.data.objects import item_of
from penult.data.regions import WHOLE, Region
from penult.embedding.attribution import attribute_logit, attribute_similarity
from penult.embedding.embedder import Embedder
from penult.embedding.receptive_fields import PositionPlaces, open_item, places_of
from penult.errors import ItemError, TapError, UsageError
from test_cli import ask
from zoo import save_audio, save_graph, save_image, save_text

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
FILES = [CLIPS / "three_scottish-man.flac", CLIPS / "seven_british-man.flac"]
POOLINGS = ("mean", "max", "gem", "first", "mean+std", "mean+std+delta")


@pytest.fixture(scope="module")
def demo() -> Any:
    return penult.load("demo")


def entry(file: Any, modality: str = "audio", region: Region = WHOLE) -> Any:
    return item_of(file, modality), region


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = np.float64(one), np.float64(other)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_the_parts_of_a_mean_are_those_of_each_frame(demo: Any) -> None:
    """By hand: each frame's product with the example, over the lengths and the number of frames."""
    frames = Embedder.from_classifier(demo, pooling="none", device="cpu").embed(FILES[:1])[0]
    embedder = Embedder.from_classifier(demo, device="cpu")
    vector, like = embedder.embed(FILES)
    found = attribute_similarity(embedder, entry(FILES[0]), like)
    lengths = np.linalg.norm(vector) * np.linalg.norm(like) * len(frames)
    np.testing.assert_allclose(found.parts, frames @ like / lengths, atol=2e-6)
    assert found.exact and found.rest == 0 and found.kind == "similarity"
    assert found.score == pytest.approx(cosine(vector, like), abs=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("recipe", ["raw", "centre", "shrink+l2", "scale+l2+within+l2"])
def test_parts_sum_to_the_whole_in_any_space(demo: Any, pooling: str, recipe: str) -> None:
    embedder = Embedder.from_classifier(demo, tap="layer:2", pooling=pooling, device="cpu")
    rows = np.random.default_rng(0).standard_normal((40, embedder.dim)).astype(np.float32)
    vectors = embedder.embed(FILES)
    rows[:20] += vectors[0]
    labels = np.repeat([0, 1], 20) if "within" in recipe else None
    space = None if recipe == "raw" else fit(recipe, rows, labels)
    moved = vectors if space is None else space(vectors)
    found = attribute_similarity(embedder, entry(FILES[0]), moved[1], space)
    assert found.exact and found.score == pytest.approx(cosine(*moved), abs=2e-5)
    assert found.parts.sum() == pytest.approx(found.score, abs=2e-5)


def test_a_constant_channel_and_a_single_frame_have_parts(demo: Any) -> None:
    """A deviation of zero has no gradient."""
    embedder = Embedder.from_classifier(demo, pooling="mean+std", device="cpu")
    short = clip(0.08, 3, 8000)
    vectors = embedder.embed([(short, 8000), FILES[0]])
    found = attribute_similarity(embedder, entry((short, 8000)), vectors[1])
    assert np.isfinite(found.parts).all() and found.exact
    assert found.parts.sum() == pytest.approx(cosine(*vectors), abs=1e-5)


def test_one_frame_looks_at_its_clip(demo: Any) -> None:
    """And a clip of less is refused as everywhere."""
    embedder = Embedder.from_classifier(demo, device="cpu")
    found = attribute_logit(embedder, entry((clip(0.085, 3, 8000), 8000)))
    assert found.places.placed.tolist() == [True] and found.unplaced == 0
    assert found.places.centres[0, 0] == pytest.approx(0.0425, abs=0.015)
    short = entry((clip(0.01, 3, 8000), 8000))
    with pytest.raises(ItemError, match="shorter than what the model needs"):
        attribute_logit(embedder, short)
    with pytest.raises(ItemError, match="shorter than what the model needs"):
        attribute_similarity(embedder, short, np.ones(128))


def test_a_linear_heads_logit_is_its_frames_and_its_bias(demo: Any) -> None:
    """The demo's head: a projection of each frame, the mean over time, a linear layer."""
    frames = Embedder.from_classifier(demo, pooling="none", device="cpu").embed(FILES[:1])[0]
    found = attribute_logit(Embedder.from_classifier(demo, device="cpu"), entry(FILES[0]), "three")
    weights = {name: np.float64(one.detach()) for name, one in demo.module.named_parameters()}
    row = weights["classifier.weight"][list(demo.labels).index("three")]
    by_hand = frames @ weights["projector.weight"].T @ row / len(frames)
    bias = weights["projector.bias"] @ row
    bias += weights["classifier.bias"][list(demo.labels).index("three")]
    np.testing.assert_allclose(found.parts, by_hand, atol=1e-5)
    assert found.exact and found.rest == pytest.approx(bias, abs=1e-5)
    said = demo.classify(FILES[:1])[0]
    assert found.score == pytest.approx(said.logits[list(demo.labels).index("three")], abs=1e-5)
    largest = attribute_logit(Embedder.from_classifier(demo, device="cpu"), entry(FILES[0]))
    assert largest.name == said.label


def test_where_parts_do_not_sum_it_is_said(demo: Any) -> None:
    """Blocks follow the tap: parts are first-order effects, and the rest makes up the score."""
    embedder = Embedder.from_classifier(demo, tap="layer:1", device="cpu")
    found = attribute_logit(embedder, entry(FILES[0]), "three")
    assert not found.exact
    assert found.parts.sum() + found.rest == pytest.approx(found.score, abs=1e-6)
    said = ask("explain", "demo", FILES[0], "--tap", "layer:1")
    assert "not exact" in said.out
    grown = [parameter.grad for parameter in demo.module.parameters()]
    assert all(one is None for one in grown)  # no mark on the model


@pytest.mark.parametrize(("kind", "linear"), [("ResNet", True), ("ConvNext", False)])
def test_hidden_states_that_a_model_hands_on_beside_their_mean(
    tmp_path: Path, kind: str, linear: bool
) -> None:
    """Their mean is made inside of the module whose output the tap is; ConvNext norms it, so that
    its logits do not change with the scale."""
    import transformers

    torch.manual_seed(0)
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16], "num_labels": 3}
    sizes |= {"embedding_size": 8} if linear else {}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}ForImageClassification")(config).eval().save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 128}).save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    said = ask("explain", tmp_path, tmp_path / "a.png", "--json")
    assert said.code == 0, said.error
    found, model = said.json, penult.load(tmp_path)
    scores = model.classify([tmp_path / "a.png"])[0].logits
    assert found["score"] == pytest.approx(max(scores), abs=1e-5)
    assert found["exact"] == linear and len(found["parts"]) == 8  # 2 × 4
    if linear:
        maps = Embedder.from_classifier(model, pooling="none", device="cpu")
        states = np.asarray(maps.embed([tmp_path / "a.png"])[0]).reshape(8, 16)
        head = model.module.classifier[-1]
        row, bias = (one.detach().numpy()[int(np.argmax(scores))]
                     for one in (head.weight, head.bias))  # fmt: skip
        np.testing.assert_allclose(found["parts"], states @ row / 8, atol=1e-5)
        assert found["rest"] == pytest.approx(bias, abs=1e-5)


def frame_times(seconds: float) -> np.ndarray:
    """Middles of the demo's frames: kernels 128, 5, 3 with strides 64, 2, 2, at 8 kHz."""
    seen = 128 + 4 * 64 + 2 * 128
    count = (int(seconds * 8000) - seen) // 256 + 1
    return (np.arange(count) * 256 + seen / 2) / 8000


def test_frames_lie_where_they_look(demo: Any) -> None:
    embedder = Embedder.from_classifier(demo, device="cpu")
    sound = np.concatenate([soundfile.read(file)[0] for file in sorted(CLIPS.glob("*.flac"))[:9]])
    for samples in (sound, sound[: len(sound) // 8]):
        found = places_of(embedder, open_item(embedder, entry((samples, 8000))))
        expected = frame_times(len(samples) / 8000)
        assert len(expected) == len(found.centres) and not found.is_flat
        assert np.abs(found.centres[:, 0] - expected).max() < 0.064  # two frames
        assert len(found.edges) == len(expected) + 1 and (np.diff(found.edges) > 0).all()


def test_times_are_those_of_the_recording(demo: Any, tmp_path: Path) -> None:
    """A word between silences: what speaks for the word lies in the word."""
    word, rate = soundfile.read(FILES[0], dtype="float32")
    silence = 1e-4 * np.random.default_rng(0).standard_normal(2 * rate).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", np.concatenate([silence, word, silence]), rate)
    end = 2 + len(word) / rate
    part = Region("segment", 2.0, end)
    found = attribute_logit(
        Embedder.from_classifier(demo, device="cpu"),
        entry(tmp_path / "long.wav", region=part),
        "three",
    )
    edges, parts = found.over_time()
    assert 2.0 <= edges[0] < edges[-1] <= end and parts.sum() == pytest.approx(found.parts.sum())
    assert all(2.0 <= one.start < one.end <= end for one in found.segments())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedder, Path]:
    """A tiny ViT of four by four patches, and a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    save_image(folder / "vit")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return Embedder.from_classifier(penult.load(folder / "vit"), device="cpu"), folder


def test_patches_lie_where_they_look(pictures: tuple[Embedder, Path]) -> None:
    embedder, folder = pictures
    found = places_of(embedder, open_item(embedder, entry(folder / "a.png", "image")))
    assert not found.placed[0] and found.placed[1:].all()  # the class token sees no place
    middles = (np.arange(4) + 0.5) / 4
    expected = np.stack([np.tile(80 * middles, 4), np.repeat(60 * middles, 4)], axis=1)
    assert np.abs(found.centres[1:] - expected).max() < 4


def test_a_picture_of_one_point_has_its_patches_there(
    pictures: tuple[Embedder, Path], tmp_path: Path
) -> None:
    _, folder = pictures
    Image.new("RGB", (1, 1), (200, 10, 60)).save(tmp_path / "point.png")
    how = ("--like", folder / "a.png", "--plot", tmp_path / "p.png", "--json")
    said = ask("explain", folder / "vit", tmp_path / "point.png", *how)
    assert said.code == 0 and said.json["places"] == [None, *[[0.5, 0.5]] * 16]


def test_a_changed_patch_moves_its_own_part(pictures: tuple[Embedder, Path]) -> None:
    """The raster has each part where its patch is."""
    embedder, folder = pictures
    found = attribute_similarity(
        embedder, entry(folder / "a.png", "image"), np.ones(embedder.dim, np.float32)
    )
    raster = found.places.on_raster(found.parts, (4, 4))
    np.testing.assert_allclose(raster.ravel(), found.parts[1:] * 17, rtol=1e-12)
    assert found.unplaced == found.parts[0]


def test_places_of_a_box_are_those_in_its_picture(pictures: tuple[Embedder, Path]) -> None:
    embedder, folder = pictures
    part = entry(folder / "a.png", "image", Region("box", box=(40, 20, 80, 60)))
    found = places_of(embedder, open_item(embedder, part))
    middles = (np.arange(4) + 0.5) * 10
    expected = np.stack([np.tile(40 + middles, 4), np.repeat(20 + middles, 4)], axis=1)
    assert np.abs(found.centres[1:] - expected).max() < 4
    assert found.extent.tolist() == [[40, 80], [20, 60]]


def test_margins_that_are_cropped_stay_blank() -> None:
    """Four positions in the middle half of a picture of 80 by 40."""
    centres = np.array([[30.0, 10], [50, 10], [30, 30], [50, 30]])
    places = PositionPlaces(centres, np.array([[0.0, 80], [0, 40]]), np.zeros(0))
    raster = places.on_raster(np.arange(4.0), (2, 8))
    assert np.isnan(raster[:, [0, 7]]).all()
    assert raster[0, 2:6].tolist() == [0, 0, 4, 4] and raster[1, 2:6].tolist() == [8, 8, 12, 12]


def test_what_the_model_cuts_off_is_told(tmp_path: Path) -> None:
    model = save_audio(tmp_path / "whisper", "whisper")
    soundfile.write(tmp_path / "a.wav", clip(1.5, 1), RATE)
    said = ask("explain", model, tmp_path / "a.wav", "--json")
    assert said.json["seconds_kept"] == pytest.approx(1.0, abs=0.01)
    assert "the first 1 s alone" in ask("explain", model, tmp_path / "a.wav").out


def test_a_class_token_has_all_of_a_score(pictures: tuple[Embedder, Path]) -> None:
    embedder, folder = pictures
    found = attribute_logit(embedder, entry(folder / "a.png", "image"))
    assert found.exact and np.abs(found.parts[1:]).max() == 0
    said = ask("explain", folder / "vit", folder / "a.png")
    assert "of positions that see none of them (class tokens, padding)" in said.out


def test_patches_of_sound_lie_in_time_and_frequency(tmp_path: Path) -> None:
    """AST: 96 patches, frequency after frequency, behind two tokens."""
    model = save_audio(tmp_path / "ast", "audio-spectrogram-transformer")
    embedder = Embedder.from_classifier(penult.load(model), device="cpu")
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE // 4).astype(np.float32)
    found = places_of(embedder, open_item(embedder, entry((noise, RATE))))
    assert found.is_flat and not found.placed[:2].any() and found.placed[2:].mean() > 0.8
    grid = found.centres[2:].reshape(8, 12, 2)
    times, hertz = np.nanmedian(grid[..., 0], axis=0), np.nanmedian(grid[..., 1], axis=1)
    assert (np.diff(times) > 0).all() and (np.diff(hertz) > 0).all()


def test_the_padding_of_a_short_clip_is_no_place(tmp_path: Path) -> None:
    model = save_audio(tmp_path / "whisper", "whisper")
    embedder = Embedder.from_classifier(penult.load(model), device="cpu")
    found = places_of(embedder, open_item(embedder, entry((clip(0.3, 1), RATE))))
    placed = np.flatnonzero(found.placed)  # frames of 20 ms of an input of 1 s
    assert placed[0] == 0 and 14 <= placed[-1] <= 18 and len(found.centres) == 50
    np.testing.assert_allclose(found.centres[5:12, 0], 0.02 * np.arange(5, 12), atol=0.025)


class Map(torch.nn.Module):
    """Patches of 20 frames of 10 ms and of half of the spectrum, as convolutions have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(1, 8, (20, 32), (20, 32))
        self.classifier = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.stem(x)).mean(dim=(2, 3)))


def spectrum(samples: np.ndarray) -> torch.Tensor:
    """(n,) at 8 kHz → (1, T, 64) log magnitudes of 80 samples each."""
    frames = samples[: len(samples) // 80 * 80].reshape(-1, 80)
    return torch.from_numpy(np.log(np.abs(np.fft.rfft(frames, 128))[:, 1:] + 1e-3)).float()[None]


def test_maps_of_time_and_frequency_lie_in_both() -> None:
    model = penult.load(Map().eval(), preprocess=spectrum, modality="audio", sample_rate=8000)
    embedder = Embedder.from_classifier(model, tap="backbone", device="cpu")
    found = places_of(embedder, open_item(embedder, entry((clip(3.0, 1, 8000), 8000))))
    assert len(found.centres) == 30 and found.is_flat and found.placed.all()
    times, hertz = found.centres.reshape(15, 2, 2).transpose(2, 0, 1)
    expected = 0.2 * np.arange(15) + 0.1
    np.testing.assert_allclose(times, np.stack([expected] * 2, axis=1), atol=0.1)
    assert (hertz[:, 0] < 2000).all() and (hertz[:, 1] > 2000).all()
    assert len(found.edges) == 16 and (np.diff(found.edges) > 0).all()
    raster = found.on_raster(np.tile([1.0, 0.0], 15), (8, 30))  # all of it low
    assert (raster[:3] == 30).all() and (raster[5:] == 0).all()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, demo_collection: Path) -> Path:
    place = tmp_path_factory.mktemp("taught") / "c.lance"
    embedder = Embedder.from_classifier(penult.load("demo"), device="cpu")
    Collection.open(place).add(embedder, CLIPS)
    for word in ("three", "seven"):
        files = sorted(CLIPS.glob(f"{word}_*.flac"))[:3]
        assert ask("teach", place, word, *files).code == 0
    return place


def test_the_similarity_to_a_taught_class_is_that_of_predict(taught: Path, tmp_path: Path) -> None:
    said = ask("predict", taught, FILES[0], "--json").json["predictions"][0]
    found = ask("explain", taught, FILES[0], "--class", "three", "--json").json
    assert found["score"] == pytest.approx(said["similarities"]["three"], abs=1e-5)
    assert found["exact"] and sum(found["parts"]) == pytest.approx(found["score"], abs=1e-5)
    assert ask("classes", taught, "--save", tmp_path / "c.npz").code == 0
    again = ask("explain", tmp_path / "c.npz", FILES[0], "--class", "three", "--json").json
    assert again["score"] == pytest.approx(found["score"], abs=1e-6)
    own = ask("explain", taught, FILES[0], "--class", "two", "--json").json  # the classifier's own
    assert own["kind"] == "logit"


def test_the_similarity_to_a_row_is_that_of_search(taught: Path) -> None:
    for space in ("raw", "centre"):
        hits = ask("search", taught, FILES[0], "--space", space, "-k", 200, "--json").json["hits"]
        hit = next(one for one in hits if one["id"].endswith(FILES[1].name))
        found = ask("explain", taught, FILES[0], "--like", hit["id"], "--space", space, "--json")
        assert found.json["score"] == pytest.approx(hit["similarity"], abs=1e-5)


def test_rows_are_named_as_they_are_printed(tmp_path: Path) -> None:
    sound = np.concatenate([soundfile.read(file)[0] for file in FILES * 2])[:16000]
    soundfile.write(tmp_path / "a.wav", sound, 8000)
    place = tmp_path / "c.lance"
    embedder = Embedder.from_classifier(penult.load("demo"), device="cpu")
    Collection.open(place).add(embedder, tmp_path / "a.wav", window=0.5)
    hits = ask("search", place, f"{tmp_path / 'a.wav'} 0.5-1", "--json").json["hits"]
    hit = next(one for one in hits if one["start"] == 1.0)
    names = [f"{hit['id']} {span}" for span in ("0.5-1", "1-1.5")]
    said = ask("explain", place, names[0], "--like", names[1], "--json")
    assert said.json["score"] == pytest.approx(hit["similarity"], abs=1e-5) and not said.err
    assert said.json["extent"][0] == [0.5, 1.0]
    whole = ask("explain", place, tmp_path / "a.wav", "--like", names[1])
    assert whole.code == 0 and "windows of 0.5 s" in " ".join(whole.err.split())


def test_a_saved_embedder_brings_its_space(demo: Any, tmp_path: Path) -> None:
    clips = sorted(CLIPS.glob("*.flac"))[:20]
    space = fit("whiten+l2", Embedder.from_classifier(demo, device="cpu").embed(clips))
    embedder = Embedder.from_classifier(demo, space=space, device="cpu")
    embedder.save(tmp_path / "e")
    found = ask("explain", tmp_path / "e", FILES[0], "--like", FILES[1], "--json").json
    assert found["exact"]
    assert found["score"] == pytest.approx(cosine(*embedder.embed(FILES)), abs=1e-5)


def test_the_command_writes_a_picture_and_a_table(tmp_path: Path) -> None:
    picture, table = tmp_path / "a.png", tmp_path / "a.csv"
    how = ("--class", "three", "--plot", picture, "--out", table)
    said = ask("explain", "demo", FILES[0], *how)
    assert said.code == 0 and "exact" in said.out and "three in " in said.out
    assert Image.open(picture).size[0] > 500
    lines = table.read_text().splitlines()
    assert lines[0] == '"path","start","end","part","density"' and len(lines) > 1
    found = ask("explain", "demo", FILES[0], "--class", "three", "--json").json
    start, end = (float(one) for one in lines[1].split(",")[1:3])
    assert (start, end) == pytest.approx(
        (found["segments"][0]["start"], found["segments"][0]["end"])
    )
    assert f"{found['score']:.4f}" in said.out
    again = ask("explain", "demo", FILES[0], *how)
    assert again.code == 2 and "exists" in again.error
    assert ask("explain", "demo", FILES[0], *how, "--overwrite").code == 0


def test_a_picture_on_the_command_line(pictures: tuple[Embedder, Path], tmp_path: Path) -> None:
    _, folder = pictures
    shutil.copy(folder / "a.png", tmp_path / "b.png")
    files = ("--plot", tmp_path / "p.png", "--out", tmp_path / "p.csv")
    said = ask("explain", folder / "vit", folder / "a.png", "--like", tmp_path / "b.png", *files)
    assert said.code == 0 and "similarity 1.0000" in said.out
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 17  # the head and 16 patches
    assert Image.open(tmp_path / "p.png").size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", FILES[0], "--tap", "prelogits"], "no positions"),
        (["demo", FILES[0], "--class", "nobody"], "has no class 'nobody'"),
        (["demo", CLIPS], "not one item"),
        (["demo", FILES[0], "--like", FILES[1], "--class", "two"], "give one of them"),
        (["demo", FILES[0], "--space", "centre"], "--space is for --like"),
        (["demo", FILES[0], "--like", FILES[1], "--space", "centre"], "rows of a collection"),
        (["demo", FILES[0], "--like", FILES[1], "--pooling", "none"], "no one vector"),
        (["demo", FILES[0], "--plot", "a.gif"], ".png"),
        (["demo", FILES[0], "--model", "demo"], "goes with a collection"),
        (["demo", "gone.wav"], "no such file"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(arguments: list[Any], words: str) -> None:
    said = ask("explain", *arguments)
    assert said.code == 2 and words in said.error


def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    text = Embedder.from_classifier(penult.load(save_text(tmp_path / "text")), device="cpu")
    with pytest.raises(UsageError, match="takes text"):
        attribute_logit(text, entry("some words", "text"))
    graph = Embedder.load(save_graph(tmp_path / "graph"))
    with pytest.raises(UsageError, match="no gradient"):
        attribute_logit(graph, entry((clip(0.3), RATE)))
    joined = Embedder.from_classifier(penult.load("demo"), tap="layer:1,prelogits", device="cpu")
    with pytest.raises(TapError, match="different positions"):
        attribute_similarity(joined, entry(FILES[0]), np.ones(joined.dim))


def test_a_graph_has_similarities(tmp_path: Path) -> None:
    """An ONNX file: the frames in front of its mean."""
    embedder = Embedder.from_classifier(
        penult.load(save_graph(tmp_path / "graph").with_suffix(".onnx"), sample_rate=RATE),
        tap="active",
        device="cpu",
    )
    sounds = [(clip(1.0, 1), RATE), (clip(1.0, 4), RATE)]
    vectors = embedder.embed(sounds)
    found = attribute_similarity(embedder, entry(sounds[0]), vectors[1])
    assert found.exact and found.score == pytest.approx(cosine(*vectors), abs=1e-5)
    placed = np.flatnonzero(found.places.placed)
    assert len(found.parts) - len(placed) <= 2  # the last ones see the graph's own padding
    expected = (placed * 160 + 200) / RATE
    assert np.abs(found.places.centres[placed, 0] - expected).max() < 0.03
    json.dumps(found.to_dict())


def test_frames_of_a_graph_lie_where_they_look_in_front_of_its_blocks(tmp_path: Path) -> None:
    """Attention makes every position see all frames; a token stands in front of fifty frames."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs.split(), [output], **attributes)

    random = np.random.default_rng(0)
    nodes = [
        node("Reshape", "x form", "f"), node("MatMul", "f p", "e"),
        node("Slice", "e zero one one", "first"), node("Mul", "first nothing", "empty"),
        node("Add", "empty token", "class"), node("Concat", "class e", "h0", axis=1),
    ]  # fmt: skip
    weights: dict[str, Any] = {
        "form": np.array([0, -1, 320]), "zero": np.array([0]), "one": np.array([1]),
        "nothing": np.zeros(1, np.float32), "token": random.standard_normal((1, 1, 8)),
        "p": random.standard_normal((320, 8)) / 4, "w": random.standard_normal((8, 3)),
    }  # fmt: skip
    for at in range(3):
        nodes += [
            node("MatMul", f"h{at} a{at}", f"q{at}"),
            node("Transpose", f"h{at}", f"k{at}", perm=[0, 2, 1]),
            node("MatMul", f"q{at} k{at}", f"s{at}"), node("Softmax", f"s{at}", f"n{at}", axis=-1),
            node("MatMul", f"n{at} h{at}", f"v{at}"), node("Add", f"h{at} v{at}", f"h{at + 1}"),
        ]  # fmt: skip
        weights[f"a{at}"] = random.standard_normal((8, 8))
    nodes += [node("ReduceMean", "h3", "z", axes=[1], keepdims=0), node("MatMul", "z w", "y")]
    held = [
        numpy_helper.from_array(one if one.dtype.kind == "i" else one.astype(np.float32), name)
        for name, one in weights.items()
    ]
    sound = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", RATE))
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 3))
    graph = helper.make_graph(nodes, "sound", [sound], [scores], held)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    loaded = penult.load(tmp_path / "m.onnx", sample_rate=RATE)
    embedder = Embedder.from_classifier(loaded, tap="backbone", device="cpu")
    noise = 0.1 * random.standard_normal(RATE).astype(np.float32)
    found = places_of(embedder, open_item(embedder, entry((noise, RATE))))
    assert not found.placed[0] and found.placed[1:].all()
    assert np.abs(found.centres[1:, 0] - (np.arange(50) + 0.5) * 0.02).max() < 0.02
