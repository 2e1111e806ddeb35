"""Scores are those that the model gives; logits are what enters its last softmax or sigmoid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import penult
from penult import Embedder
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.engines.base import Readout
from penult.engines.batching import BatchPolicy
from penult.engines.graph_export import Recipe
from penult.errors import EngineError, UsageError
from penult.fewshot.zeroshot import ByName
from penult.models.outputs import map_of_image
from penult.tracing.scores import Activation, applied, class_count, recognised


class Net(nn.Module):
    """end: from the logits (B, K), six times a linear layer's, to what is returned."""

    def __init__(self, end: Callable[[Tensor], Any], classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, classes)
        self.end = end
        self.eval()

    def logits(self, x: Tensor) -> Tensor:
        return 6 * self.fc(torch.tanh(self.conv(x)).mean((2, 3)))

    def forward(self, x: Tensor) -> Any:
        return self.end(self.logits(x))


def to_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 64


def pictures(count: int = 3) -> list[Any]:
    random = np.random.default_rng(7)
    return [Image.fromarray(random.integers(0, 256, (40, 52 + i, 3), dtype=np.uint8))
            for i in range(count)]  # fmt: skip


def own(module: Net, item: Any) -> tuple[Any, Any]:
    """(what the module returns for an item, its logits), computed without penult."""
    with torch.no_grad():
        x = to_tensor(item)[None]
        returned = module(x)
        while not isinstance(returned, Tensor):
            returned = next(iter(returned.values() if isinstance(returned, dict) else returned))
        return returned.reshape(-1).numpy(), module.logits(x)[0].numpy()


# name → the end, its kind, whether the logits are what enters the activation
FORMS: dict[str, tuple[Callable[[Tensor], Any], str, bool]] = {
    "functional": (lambda z: F.softmax(z, dim=1), "single-label", True),
    "method": (lambda z: z.softmax(-1), "single-label", True),
    "squeezed": (lambda z: z[:, None].softmax(-1).squeeze(1), "single-label", True),
    "of a map": (lambda z: z[:, :, None, None].softmax(1).flatten(1), "single-label", True),
    "in a dict": (lambda z: {"probs": torch.softmax(z, 1)}, "single-label", True),
    "in a tuple": (lambda z: (z.softmax(-1),), "single-label", True),
    "an operator": (lambda z: torch.ops.aten._softmax(z, -1, False), "single-label", True),
    "spelt out": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "single-label", False),
    "mean of two": (lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2, "single-label", False),
    "sigmoid": (lambda z: z.sigmoid(), "multi-label", True),
    "sigmoid in place": (lambda z: z.sigmoid_(), "multi-label", True),
    "expit, reshaped": (lambda z: torch.special.expit(z).reshape(-1, 5), "multi-label", True),
    "sigmoid, clamped": (lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6), "multi-label", False),
    "pooled sigmoid": (
        lambda z: torch.stack([z, z + 1], 1).sigmoid().mean(1), "multi-label", False),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_module_that_returns_probabilities(form: str) -> None:
    end, kind, undone = FORMS[form]
    module = Net(end)
    clf = penult.load(module, preprocess=to_tensor)
    assert clf.kind == kind
    assert clf.describe()["scores"] == ("softmax" if kind == "single-label" else "sigmoid")
    for item in pictures():
        scores, logits = own(module, item)
        (found,) = clf.classify(item)
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)
        assert found.score == pytest.approx(scores.max(), abs=1e-6)
        name = "softmax" if kind == "single-label" else "sigmoid"
        np.testing.assert_allclose(applied(name, found.logits), scores, atol=1e-6)
        if undone:
            np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # the caller's own module is as it was
        again = module(to_tensor(pictures(1)[0])[None])
    assert type(again) is type(end(torch.zeros(1, 5)))


def test_numbers_between_0_and_1_by_chance_are_logits() -> None:
    module = Net(lambda z: 0.5 + z / 100)
    clf = penult.load(module, preprocess=to_tensor)
    assert clf.kind == "single-label"
    assert "scores" not in clf.describe()
    scores, _ = own(module, pictures(1)[0])
    np.testing.assert_array_equal(clf.classify(pictures(1))[0].logits, scores)


def test_a_gate_inside_is_no_end() -> None:
    module = Net(lambda z: z * z.sigmoid())
    clf = penult.load(module, preprocess=to_tensor)
    assert "scores" not in clf.describe()
    np.testing.assert_array_equal(
        clf.classify(pictures(1))[0].logits, own(module, pictures(1)[0])[0]
    )


def test_an_attention_over_frames_is_no_end() -> None:
    module = Net(lambda z: (torch.stack([z, 2 * z], 1).softmax(1) * z[:, None]).sum(1))
    assert "scores" not in penult.load(module, preprocess=to_tensor).describe()


def test_values_of_a_regression_are_as_they_are() -> None:
    module = Net(lambda z: z.sigmoid())
    clf = penult.load(module, preprocess=to_tensor, kind="regression")
    (found,) = clf.classify(pictures(1))
    np.testing.assert_array_equal(found.scores, own(module, pictures(1)[0])[0])
    np.testing.assert_array_equal(found.logits, found.scores)


ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "(B, 1)": lambda z: z,
    "(B,)": lambda z: z[:, 0],
    "squeezed": lambda z: z.squeeze(),
}


@pytest.mark.parametrize("shape", ONE)
def test_one_logit_asks_for_its_kind(shape: str) -> None:
    module = Net(ONE[shape], classes=1)
    with pytest.raises(UsageError, match=r"one number.*--kind binary.*--kind regression"):
        penult.load(module, preprocess=to_tensor)
    binary = penult.load(module, preprocess=to_tensor, kind="binary")
    value = penult.load(module, preprocess=to_tensor, kind="regression")
    for item, one, two in zip(
        pictures(), binary.classify(pictures()), value.classify(pictures()), strict=True
    ):
        logit = float(own(module, item)[1][0])
        assert one.score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
        assert two.score == pytest.approx(logit, rel=1e-5)
    result = Embedder.from_classifier(binary).run(pictures())
    assert result.logits.shape == (3, 1)


@pytest.mark.parametrize("shape", ONE)
def test_one_sigmoid_is_a_probability(shape: str) -> None:
    module = Net(lambda z: ONE[shape](z).sigmoid(), classes=1)
    clf = penult.load(module, preprocess=to_tensor)
    assert clf.kind == "binary"
    for item, found in zip(pictures(), clf.classify(pictures()), strict=True):
        scores, logits = own(module, item)
        assert found.score == pytest.approx(float(scores[0]), abs=1e-6)
        assert found.logits[0] == pytest.approx(float(logits[0]), rel=1e-4)


def test_binary_is_for_one_logit() -> None:
    with pytest.raises(UsageError, match="--kind binary is for a model that gives one number"):
        penult.load(Net(lambda z: z), preprocess=to_tensor, kind="binary")


def test_all_classes_of_a_single_item_squeezed() -> None:
    module = Net(lambda z: z.squeeze())
    clf = penult.load(module, preprocess=to_tensor)
    assert len(clf.labels) == 5
    for item, found in zip(pictures(), clf.classify(pictures()), strict=True):
        np.testing.assert_allclose(found.logits, own(module, item)[1], rtol=1e-5)


def test_a_collection_has_the_models_own_label_score_and_logits(tmp_path: Path) -> None:
    for at, item in enumerate(pictures()):
        item.save(tmp_path / f"{at}.png")
    module = Net(lambda z: {"probs": z.softmax(-1)})
    clf = penult.load(module, preprocess=to_tensor, class_names=["a", "b", "crane", "d", "e"])
    collection = Collection.open(tmp_path / "c.lance")
    collection.add(Embedder.from_classifier(clf), [tmp_path / f"{at}.png" for at in range(3)])
    names = clf.labels
    for row in (collection.get(str(tmp_path / f"{at}.png")) for at in range(3)):
        item = Image.open(row["id"]).convert("RGB")
        scores, logits = own(module, item)
        assert row["label"] == names[int(scores.argmax())]
        assert row["score"] == pytest.approx(scores.max(), abs=1e-5)
        np.testing.assert_allclose(row["logits"], logits, rtol=1e-4, atol=1e-5)


def test_names_are_mixed_by_the_models_own_scores() -> None:
    """ConSE's weights are the scores of the best classes: those that the model gives."""
    module = Net(lambda z: z.softmax(-1))
    names = ["ant", "bee", "cat", "dog", "elk"]
    clf = penult.load(module, preprocess=to_tensor, class_names=names)
    seen = {name: np.eye(5, dtype=np.float32)[at] for at, name in enumerate(names)}
    by_name = ByName(
        names, clf.kind, ["ant", "elk"], lambda texts: np.stack([seen[t] for t in texts]),
        activation=clf.structure.activation,
    )  # fmt: skip
    (found,) = clf.classify(pictures(1))
    scores, _ = own(module, pictures(1)[0])
    judged = by_name.judge(found.logits, _place())
    np.testing.assert_allclose(judged.scores, scores[[0, 4]] / np.linalg.norm(scores), atol=1e-5)


def _place() -> Any:
    from penult.fewshot.predictions import Location

    return Location("x", "whole")


def test_inspect_shows_where_the_logits_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends.py").write_text(
        "import numpy as np\nimport torch\n"
        "def to_tensor(image):\n"
        "    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 64\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = Net(lambda z: z.softmax(-1))
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3, 32, 32)), tmp_path / "m.ts")
    asked = [str(tmp_path / "m.ts"), "--preprocess", "ends:to_tensor"]
    assert run(["inspect", *asked]) == 0
    assert "scores: softmax; logits: what enters the last softmax" in capsys.readouterr().out
    assert run(["inspect", *asked, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["scores"], facts["logits_from"]) == ("softmax", "what enters the last softmax")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-60, 60), min_size=2, max_size=9), st.sampled_from(["softmax", "sigmoid"])
)
def test_scores_computed_back_to_logits_give_the_same_scores(z: list[float], name: str) -> None:
    scores = applied(name, np.array(z)).astype(np.float32)
    logits = Activation(name, inside=True).logits(scores)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(applied(name, logits), scores, atol=1e-6)
    if name == "softmax":
        assert recognised([scores[None]]) == "softmax"


@pytest.mark.parametrize(
    "shape, count",
    [((3,), 3), ((1,), 1), ((), 1), ((2, 5), 5), ((2, 7, 5), 5), ((2, 5, 1, 1), 5), ((2, 1), 1)],
)
def test_the_number_of_classes_of_a_shape(shape: tuple[int, ...], count: int) -> None:
    assert class_count(shape) == count


def test_a_readout_has_one_row_for_each_item() -> None:
    rows = [np.zeros(5, np.float32)] * 2
    Readout(rows, [np.zeros((2, 8), np.float32)]).require_rows(2, 5)
    for readout in (
        Readout(rows[:1], [np.zeros((2, 8), np.float32)]),
        Readout(rows, [np.zeros((6, 8), np.float32)]),
    ):
        with pytest.raises(EngineError, match="for a batch of 2, and every item needs exactly one"):
            readout.require_rows(2, 5)
    with pytest.raises(EngineError, match="it gave 4 logits when it was opened"):
        Readout(rows, [np.zeros((2, 8), np.float32)]).require_rows(2, 4)


class Growing(Net):
    """As many rows for one item as its values ask for: a front end inside of the model."""

    def forward(self, x: Tensor) -> Any:
        return self.logits(x.repeat(2 if x.amax() > 3.9 and x.amin() < 0.1 else 1, 1, 1, 1))


def test_a_model_that_gives_several_rows_for_one_item_is_refused_when_it_does() -> None:
    dark = Image.fromarray(np.full((32, 32, 3), 100, np.uint8))
    sharp = Image.fromarray(np.tile(np.array([0, 255], np.uint8)[:, None, None], (16, 32, 3)))
    module = Growing(lambda z: z)
    clf = penult.load(module, preprocess=to_tensor)
    assert len(clf.classify(dark)) == 1
    with pytest.raises(UsageError, match="every item needs exactly one"):
        clf.classify(sharp)


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "of the image's size": lambda h: F.interpolate(h, size=(32, 32)).mean(1),
    "smaller, with an axis of classes": lambda h: F.adaptive_avg_pool2d(h, 8),
    "classes last": lambda h: F.adaptive_avg_pool2d(h, 16).permute(0, 2, 3, 1),
}


class Mapped(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.end = nn.Conv2d(3, 5, 3, 2), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.conv(x))


@pytest.mark.parametrize("form", MAPS)
@pytest.mark.parametrize("saved", [False, True])
def test_a_map_of_places_is_no_vector_of_classes(form: str, saved: bool, tmp_path: Path) -> None:
    module: Any = Mapped(MAPS[form]).eval()
    if saved:
        path = tmp_path / "m.pt2"
        torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 32, 32),)), path)
        module = path
    with pytest.raises(UsageError, match=r"a map of \d+ × \d+ places.*no vector of classes"):
        penult.load(module, preprocess=to_tensor)


@pytest.mark.parametrize(
    "shape", [(1, 5), (1, 1000), (1, 5, 1, 1), (1, 49, 5), (1, 50, 10), (1, 7, 32), (1, 2, 224)]
)
def test_vectors_and_sequences_are_no_maps(shape: tuple[int, ...]) -> None:
    assert map_of_image([(1, 3, 224, 224)], shape) is None
    assert map_of_image([(1, 16_000)], (1, 50, 224)) is None


def test_a_recorded_graph_of_the_whole_model_is_another_one() -> None:
    """Graphs are kept between runs; one that ends in softmax gives no logits."""
    recipes = []
    for kind in (None, "regression"):  # the values as they are: with the softmax
        clf = penult.load(Net(lambda z: z.softmax(-1)), preprocess=to_tensor, kind=kind)
        embedder = Embedder.from_classifier(clf)
        recipes.append(Recipe(clf, embedder.runner.readings, BatchPolicy()))
    assert recipes[0].key != recipes[1].key
    assert any("softmax" in str(part) for part in recipes[0].key)


WRITTEN_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": lambda z: 1 / (1 + (-z).exp()),
    "tanh": lambda z: 0.5 * (torch.tanh(z / 2) + 1),
}


@pytest.mark.parametrize("end", WRITTEN_OUT)
def test_a_sigmoid_that_is_written_out_is_known_by_value(end: str) -> None:
    """Its numbers do not sum to 1, and no operation is called sigmoid."""
    module = Net(WRITTEN_OUT[end])
    clf = penult.load(module, modality="image", preprocess=to_tensor)
    assert clf.kind == "multi-label"
    for picture in pictures():
        answer = clf.classify(picture)[0]
        expected, logits = own(module, picture)
        np.testing.assert_allclose(answer.scores, np.ravel(expected), atol=1e-5)
        np.testing.assert_allclose(answer.logits, np.ravel(logits), atol=1e-3)


def test_numbers_between_0_and_1_alone_are_no_probabilities() -> None:
    module = Net(lambda z: (z / 100 + 0.5).clamp(0, 1))
    clf = penult.load(module, modality="image", preprocess=to_tensor)
    assert clf.kind == "single-label"
    picture = pictures()[0]
    np.testing.assert_allclose(
        clf.classify(picture)[0].logits, np.ravel(own(module, picture)[0]), atol=1e-6
    )
