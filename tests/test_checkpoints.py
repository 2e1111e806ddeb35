"""Weights files through `penult.load(…, checkpoint=…)`: what is filled with which numbers, and what
is refused in which words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import penult
from penult.cli.main import run
from penult.errors import IncompleteWeights, ModelError, UntrustedCode
from zoo import save_audio

RATE = 8000
MODELS = '''
import torch
from torch import nn

class Net(nn.Module):
    """Frames of 40 samples; `spare` is no way to the logits."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.inner = nn.Linear(40, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.spare = nn.Linear(4, 7)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        hidden = torch.tanh(self.inner(x.unfold(1, 40, 40))) * self.scale
        self.spare(hidden)
        return self.head(hidden.mean(1))

def build(num_classes=3):
    return Net(num_classes)

def fixed():
    return Net()

class Frames(Net):
    """Scores of each frame."""
    def forward(self, x):
        return self.head(torch.tanh(self.inner(x.unfold(1, 40, 40))) * self.scale)

class Many(Net):
    """More than a dozen tensors on the way to the logits."""
    def __init__(self):
        super().__init__()
        self.more = nn.ModuleList([nn.Linear(3, 3) for _ in range(8)])
    def forward(self, x):
        logits = super().forward(x)
        for layer in self.more:
            logits = torch.tanh(layer(logits))
        return logits
'''
CLIP = np.random.default_rng(0).standard_normal(RATE // 4).astype(np.float32)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("factories")
    (folder / "weights_models.py").write_text(MODELS)
    sys.path.insert(0, str(folder))
    import weights_models  # type: ignore[import-not-found]

    yield weights_models
    sys.path.remove(str(folder))
    sys.modules.pop("weights_models")


@pytest.fixture
def weights(models: Any) -> Weights:
    torch.manual_seed(1)
    return {name: torch.randn_like(value) for name, value in models.Net(3).state_dict().items()}


def logits_of(path: Path | str, factory: str = "build", **options: Any) -> np.ndarray:
    model = penult.load(f"weights_models:{factory}", checkpoint=path, sample_rate=RATE, **options)
    return model.classify(CLIP)[0].logits


def by_hand(weights: Weights) -> np.ndarray:
    """The network in numpy."""
    w = {name: value.double().numpy() for name, value in weights.items()}
    hidden = CLIP.reshape(-1, 40) @ w["inner.weight"].T + w["inner.bias"]
    pooled = (np.tanh(hidden) * w["scale"]).mean(axis=0)
    return pooled @ w["head.weight"].T + w["head.bias"]


def saved(content: Any, folder: Path, name: str = "w.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def close(found: np.ndarray, weights: Weights) -> None:
    np.testing.assert_allclose(found, by_hand(weights), rtol=1e-4, atol=1e-5)


FORMS: dict[str, Callable[[Weights], Any]] = {
    "plain": lambda w: w,
    "nested": lambda w: {"epoch": 3, "state_dict": w, "best": 0.5},
    "twice nested": lambda w: {"run": {"net": w, "step": 1}},
    "beside other tensors": lambda w: w | {"loss.weight": torch.ones(2)},
    "beside numbers": lambda w: w | {"epoch": 3, "best": 0.5},
    "beside an optimiser": lambda w: {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.ones(1)}}},
        "model": w,
    },
    "beside arguments": lambda w: {"args": argparse.Namespace(lr=0.1), "params": w},
    "data parallel": lambda w: prefixed(w, "module."),
    "lightning": lambda w: {"state_dict": prefixed(w, "model.")},
    "compiled, parallel": lambda w: prefixed(w, "module._orig_mod."),
    "network": lambda w: prefixed(w, "network."),
    "classifier": lambda w: prefixed(w, "classifier."),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_as_people_keep_them(
    models: Any, weights: Weights, tmp_path: Path, form: str
) -> None:
    close(logits_of(saved(FORMS[form](weights), tmp_path)), weights)


PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "classifier.")


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.model.", "net.backbone."])
def test_a_prefix_is_taken_off(models: Any, weights: Weights, tmp_path: Path, prefix: str) -> None:
    close(logits_of(saved(prefixed(weights, prefix), tmp_path)), weights)


def test_a_prefix_is_put_on_where_the_module_has_one(
    models: Any, weights: Weights, tmp_path: Path
) -> None:
    """A factory that gives a wrapped network takes the weights of the network alone."""
    models.wrapped = lambda: torch.nn.ModuleDict({"module": models.Net()}) and Wrapped()

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = models.Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    close(logits_of(saved(weights, tmp_path), "wrapped"), weights)


def test_safetensors(models: Any, weights: Weights, tmp_path: Path) -> None:
    save_file(prefixed(weights, "model."), tmp_path / "w.safetensors")
    close(logits_of(tmp_path / "w.safetensors"), weights)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="is not readable as safetensors"):
        logits_of(tmp_path / "bad.safetensors")


def test_of_several_copies(models: Any, weights: Weights, tmp_path: Path) -> None:
    """The usual name first, whatever the order in the file; any other one by its name."""
    ema, third = ({n: v * k for n, v in weights.items()} for k in (2, 3))
    path = saved({"ema": ema, "net": third, "state_dict": weights}, tmp_path)
    close(logits_of(path), weights)
    close(logits_of(f"{path}#ema"), ema)
    close(logits_of(f"{path}#net"), third)
    described = penult.load("weights_models:build", checkpoint=path, sample_rate=RATE).describe()
    assert described["other_copies"] == ["ema", "net"]
    with pytest.raises(ModelError, match="has no entry 'best'; it has 'ema', 'net', 'state_dict'"):
        logits_of(f"{path}#best")
    unusual = saved({"ema": ema, "other": third}, tmp_path, "unusual.pt")
    close(logits_of(unusual), ema)  # the first there is
    nested = saved({"runs": {"a": ema, "b": weights}}, tmp_path, "nested.pt")
    close(logits_of(f"{nested}#runs.b"), weights)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_as_many_classes_as_the_weights_have(
    models: Any, weights: Weights, tmp_path: Path, classes: int
) -> None:
    for name in ("head.weight", "head.bias"):
        weights[name] = torch.randn(classes, *weights[name].shape[1:])
    found = logits_of(saved(weights, tmp_path))
    assert found.shape == (classes,)
    close(found, weights)
    if classes != 3:
        with pytest.raises(IncompleteWeights) as caught:
            logits_of(tmp_path / "w.pt", "fixed")  # a factory that takes no number
        assert f"head.bias: ({classes},) in the checkpoint, (3,) in the model" in str(caught.value)
        assert f"head.weight: ({classes}, 4) in the checkpoint, (3, 4)" in str(caught.value)


def test_scores_of_each_frame_have_as_many_classes(
    models: Any, weights: Weights, tmp_path: Path
) -> None:
    path = saved(weights, tmp_path)
    model = penult.load("weights_models:Frames", checkpoint=path, sample_rate=RATE)
    assert len(model.labels) == 3
    assert logits_of(path, "Frames").shape == (len(CLIP) // 40, 3)


def test_two_numbers_of_classes_are_none(models: Any, weights: Weights, tmp_path: Path) -> None:
    weights["head.weight"] = torch.randn(5, 4)
    weights["head.bias"] = torch.randn(6)
    with pytest.raises(IncompleteWeights, match=r"head\.bias: \(6,\) in the checkpoint, \(3,\)"):
        logits_of(saved(weights, tmp_path))


@pytest.mark.parametrize("name", ["inner.weight", "inner.bias", "scale", "head.weight"])
def test_what_is_missing_is_named_and_nothing_else(
    models: Any, weights: Weights, tmp_path: Path, name: str
) -> None:
    del weights[name]
    with pytest.raises(IncompleteWeights) as caught:
        logits_of(saved(weights, tmp_path))
    assert f"{name}: missing." in str(caught.value)
    assert str(caught.value).count("missing") == 1 and "in the model" not in str(caught.value)
    assert "--checkpoint" in str(caught.value)


def test_what_a_checkpoint_has_instead_is_named(tmp_path: Path) -> None:
    """Nine foreign tensors in place of a saved classifier's head: eight are named."""
    folder = save_audio(tmp_path / "m", "wav2vec2")
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    weights |= {f"head.{n}": torch.ones(2) for n in range(9)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompleteWeights) as caught:
        penult.load(folder)
    assert "classifier.weight: missing. The checkpoint has instead: head.0, " in str(caught.value)
    assert "head.6, head.7. Build the class" in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 39), (5, 40), (4,), (4, 40, 1)])
def test_another_shape_is_named_with_both(
    models: Any, weights: Weights, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    weights["inner.weight"] = torch.randn(shape)
    with pytest.raises(IncompleteWeights) as caught:
        logits_of(saved(weights, tmp_path))
    assert f"inner.weight: {shape} in the checkpoint, (4, 40) in the model." in str(caught.value)
    assert "missing" not in str(caught.value) and "has instead" not in str(caught.value)


def test_what_the_logits_never_see_may_be_missing(
    models: Any, weights: Weights, tmp_path: Path
) -> None:
    del weights["spare.weight"]
    weights["spare.bias"] = torch.randn(6, 2)
    close(logits_of(saved(weights, tmp_path)), weights)


@pytest.mark.parametrize(("given", "rest"), [(0, "; and 4 more."), (3, "; and 1 more."), (4, ".")])
def test_a_dozen_of_many_is_named(
    models: Any, weights: Weights, tmp_path: Path, given: int, rest: str
) -> None:
    """Of 16 further tensors some are there: 12 of those missing are named, and others counted."""
    names = [f"more.{n}.{kind}" for n in range(8) for kind in ("bias", "weight")]
    shapes = {"bias": (3,), "weight": (3, 3)}
    weights |= {name: torch.ones(shapes[name.split(".")[2]]) for name in names[:given]}
    with pytest.raises(IncompleteWeights) as caught:
        logits_of(saved(weights, tmp_path), "Many")
    assert str(caught.value).count("missing") == 12
    last = names[given + 11]
    assert f"{last}: missing{rest} Build the class" in str(caught.value)


def test_nothing_that_fits(models: Any, tmp_path: Path) -> None:
    foreign = {f"layer{n}.weight": torch.ones(2) for n in range(5)}
    with pytest.raises(IncompleteWeights) as caught:
        logits_of(saved(foreign, tmp_path))
    assert (
        "no weight of the checkpoint fits Net: it has layer0.weight, layer1.weight, layer2.weight "
        "and 2 more, the model has scale, inner.weight, inner.bias and 4 more"
    ) in str(caught.value)
    three = {f"layer{n}.weight": torch.ones(2) for n in range(3)}
    with pytest.raises(IncompleteWeights, match=r"layer2\.weight, the model has"):
        logits_of(saved(three, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no weights: expected a mapping of names to tensors"),
        ([torch.ones(2)], "holds no weights"),
        ({"optimizer": {"a": torch.ones(2)}}, "holds no weights"),
    ],
)
def test_files_without_weights(models: Any, tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        logits_of(saved(content, tmp_path))


def test_files_that_cannot_be_read(models: Any, weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        logits_of(tmp_path / "gone.pt")
    whole = saved(weights, tmp_path).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is not readable as a checkpoint"):
        logits_of(tmp_path / "half.pt")


def test_a_pickled_module_needs_trust(models: Any, weights: Weights, tmp_path: Path) -> None:
    module = models.Net()
    module.load_state_dict(weights)
    path = saved({"model": module, "epoch": 1}, tmp_path)
    with pytest.raises(
        UntrustedCode, match=r"asks for more than tensors .*nothing was run.*--trust"
    ):
        logits_of(path)
    close(logits_of(path, trust=True), weights)


def test_the_command_line_refuses_in_a_sentence(
    models: Any, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", 0.1 * CLIP, RATE)
    del weights["head.bias"]
    command = ["classify", "weights_models:build", str(tmp_path / "a.wav"), "--checkpoint",
               str(saved(weights, tmp_path)), "--sample-rate", str(RATE)]  # fmt: skip
    assert run(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "head.bias: missing" in said and "Traceback" not in said
