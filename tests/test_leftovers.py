"""Tensors that a model has no place for: those that the trained network computed with are refused,
others are listed. In every loader that fills a model from weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import penult
from penult.cli.main import run
from penult.errors import IncompleteWeights
from zoo import save_audio, save_image, save_text

RATE = 8000
MODELS = '''
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, scaled):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.ls = Scale() if scaled else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x):
        return x + self.ls(self.act(self.fc(x)))

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x):
        return x * self.gamma

class Net(nn.Module):
    """Frames of 40 samples through a stem, blocks and a head; `side` is no way to the logits."""

    def __init__(self, depth=2, scaled=False, num_classes=3):
        super().__init__()
        self.stem = nn.Linear(40, 8, bias=False)
        self.blocks = nn.Sequential(*(Block(scaled) for _ in range(depth)))
        self.side = nn.Linear(8, 2)
        self.norm_pre = nn.Identity()
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        hidden = self.blocks(self.norm_pre(self.stem(x.unfold(1, 40, 40))))
        self.side(hidden)
        return self.head(hidden.mean(1))

def build(num_classes=3):
    return Net(num_classes=num_classes)
'''
CLIP = np.random.default_rng(0).standard_normal(RATE // 4).astype(np.float32)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("factories")
    (folder / "leftover_models.py").write_text(MODELS)
    sys.path.insert(0, str(folder))
    import leftover_models  # type: ignore[import-not-found]

    yield leftover_models
    sys.path.remove(str(folder))
    sys.modules.pop("leftover_models")


def opened(content: Any, folder: Path, name: str = "w.pt") -> penult.Classifier:
    torch.save(content, folder / name)
    return penult.load("leftover_models:build", checkpoint=folder / name, sample_rate=RATE)


def refused(content: Any, folder: Path) -> str:
    with pytest.raises(IncompleteWeights) as caught:
        opened(content, folder)
    return str(caught.value)


def test_a_deeper_network_is_refused_by_parts(models: Any, tmp_path: Path) -> None:
    said = refused({"state_dict": models.Net(9).state_dict(), "arch": "net9"}, tmp_path)
    assert "has 14 tensors in modules that lead to the logits, for which Net has no place" in said
    assert "blocks.2 (2 tensors), blocks.3 (2 tensors)" in said and "blocks.8 (2 tensors)." in said
    assert "The checkpoint says that it is a net9." in said and "w.pt" in said


def test_a_layer_scale_is_refused_where_the_model_has_an_identity(
    models: Any, tmp_path: Path
) -> None:
    """The trained network answers otherwise: by 0.3 against 1."""
    said = refused(models.Net(scaled=True).state_dict(), tmp_path)
    assert "no place: blocks.0.ls.gamma, blocks.1.ls.gamma. The trained network" in said


@pytest.mark.parametrize(
    "name",
    [
        "stem.bias",  # of a layer that ran without one
        "blocks.0.act.weight",  # a PReLU where the model has a ReLU
        "blocks.1.norm.weight",
        "blocks.0.fc.weight_g",
        "blocks2.0.fc.weight",
        "norm_pre.weight",
        "fc_norm.weight",
        "dist_token",
        "reg_token",
        "pos_embed",
    ],
)
def test_what_lies_on_the_way_is_refused(models: Any, tmp_path: Path, name: str) -> None:
    weights = models.Net().state_dict() | {name: torch.ones(8)}
    if name == "blocks2.0.fc.weight":  # no row of numbers that goes on: named, and opened
        assert opened(weights, tmp_path).describe()["uncertain_weights"] == {"blocks2": 1}
        return
    assert f"for which Net has no place: {name}." in refused(weights, tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("blocks.0.num_batches_tracked", torch.tensor(7)),
        ("blocks.0.fc.total_ops", torch.ones(1, dtype=torch.float64)),
        ("blocks.0.position_ids", torch.arange(9)[None]),
        ("blocks.0.attn.bias", torch.ones(1, 1, 5, 5).tril()),
        ("blocks.0.attn.masked_bias", torch.tensor(-1e4)),
        ("blocks.0.attn.relative_position_index", torch.randint(9, (4, 4))),
        ("blocks.0.attn_mask", torch.randn(2, 4, 4)),
        ("blocks.0.rotary_emb.inv_freq", torch.randn(4)),
        ("blocks.0.mask_token", torch.randn(8)),
        ("blocks.0.pooler.dense.weight", torch.randn(8, 8)),
        ("side.extra", torch.randn(8)),
        ("cls.predictions.decoder.weight", torch.randn(8, 8)),
        ("lm_head.weight", torch.randn(8, 8)),
        ("decoder_blocks.0.fc.weight", torch.randn(8, 8)),
        ("decoder_pos_embed", torch.randn(1, 4, 8)),
        ("AuxLogits.fc.weight", torch.randn(3, 8)),
        ("aux1.fc.weight", torch.randn(3, 8)),
        ("quantizer.codevectors", torch.randn(3, 8)),
        ("project_q.weight", torch.randn(8, 8)),
        ("teacher.blocks.0.fc.weight", torch.randn(8, 8)),
        ("model_ema.blocks.0.fc.weight", torch.randn(8, 8)),
        ("projection_head.0.weight", torch.randn(8, 8)),
        ("loss_fn.weight", torch.randn(3)),
        ("n_averaged", torch.tensor(5)),
    ],
)
def test_what_lies_beside_the_way_is_listed(
    models: Any, tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    weights = models.Net().state_dict()
    plain = opened(weights, tmp_path, "plain.pt").classify(CLIP)[0].logits
    classifier = opened(weights | {name: tensor}, tmp_path)
    facts = classifier.describe()
    (part,) = facts["unused_weights"]
    assert name.startswith(part) and "uncertain_weights" not in facts
    np.testing.assert_array_equal(classifier.classify(CLIP)[0].logits, plain)


def test_a_trained_bias_under_the_name_of_a_mask_is_refused(models: Any, tmp_path: Path) -> None:
    weights = models.Net().state_dict() | {"blocks.0.attn.bias": torch.randn(8)}
    assert "blocks.0.attn.bias" in refused(weights, tmp_path)


@pytest.mark.parametrize(
    "name", ["blocks.0.fc.lora_A.default.weight", "neck.lora_B.weight", "side.ia3_l.default"]
)
def test_adapters_are_refused_wherever_they_lie(models: Any, tmp_path: Path, name: str) -> None:
    said = refused(models.Net().state_dict() | {name: torch.ones(2, 8)}, tmp_path)
    assert (
        f"matrices of an adapter beside the base weights, which this model would leave out: {name}"
        in said
    )
    assert "merge_and_unload" in said and "--weights-inside" in said


def test_quantised_weights_are_named_before_missing_ones(models: Any, tmp_path: Path) -> None:
    weights = models.Net().state_dict()
    del weights["blocks.0.fc.weight"]
    weights |= {"blocks.0.fc.qweight": torch.ones(1, 8, dtype=torch.int32)}
    said = refused(weights, tmp_path)
    assert "quantised weights, which this model cannot read: blocks.0.fc.qweight" in said


def test_a_part_as_a_whole_is_named_aloud(
    models: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A neck may transform the features or hang beside them; nobody can tell from its name."""
    weights = models.Net().state_dict() | {f"neck.{n}.weight": torch.ones(8, 8) for n in range(3)}
    classifier = opened(weights, tmp_path)
    assert classifier.describe()["uncertain_weights"] == {"neck": 3}
    assert "no place for these parts of the checkpoint: neck (3 tensors)" in caplog.text


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "parallel, compiled": lambda name: f"module._orig_mod.{name}",
    "compiled blocks": lambda name: name.replace("blocks.", "blocks._orig_mod."),
    "parallel blocks": lambda name: name.replace("blocks.", "blocks.module."),
    "checkpointed blocks": lambda name: name.replace(
        "blocks.0.", "blocks.0._checkpoint_wrapped_module."
    ),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_wrappers_inside_of_names(models: Any, tmp_path: Path, form: str) -> None:
    weights = models.Net().state_dict()
    plain = opened(weights, tmp_path, "plain.pt").classify(CLIP)[0].logits
    classifier = opened({WRAPPED[form](n): value for n, value in weights.items()}, tmp_path)
    assert "unused_weights" not in classifier.describe()
    np.testing.assert_array_equal(classifier.classify(CLIP)[0].logits, plain)


def test_of_two_names_that_of_the_wrapper_counts(models: Any, tmp_path: Path) -> None:
    """The network under `model.`, and a stray tensor of the same name beside it."""
    weights = models.Net().state_dict()
    plain = opened(weights, tmp_path, "plain.pt").classify(CLIP)[0].logits
    both = {f"model.{n}": v for n, v in weights.items()} | {"head.bias": torch.full((3,), 9.0)}
    np.testing.assert_array_equal(opened(both, tmp_path).classify(CLIP)[0].logits, plain)


def test_inspect_lists_them(
    models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With which copy of the weights was taken, what else the file has, and its training's size."""
    weights = models.Net().state_dict()
    content = {
        "state_dict": weights | {"lm_head.weight": torch.ones(8, 8), "neck.weight": torch.ones(8)},
        "state_dict_ema": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "args": argparse.Namespace(img_size=192, model="net"),
    }
    torch.save(content, tmp_path / "w.pt")
    options = ["--checkpoint", str(tmp_path / "w.pt"), "--sample-rate", str(RATE)]
    assert run(["inspect", "leftover_models:build", *options]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "w.pt#state_dict; the file has further copies: state_dict_ema" in text
    assert "architecture net, size 192 × 192 pixels" in text
    assert "do not lead to the logits, and are not used: lm_head" in text
    assert "has no place for these parts of the checkpoint: neck" in text
    assert "beside them, not used: optimizer, args" in text
    assert run(["inspect", "leftover_models:build", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unused_weights"] == {"lm_head": 1} and found["uncertain_weights"] == {"neck": 1}
    assert found["other_copies"] == ["state_dict_ema"]
    assert found["trained"] == {"architecture": "net", "size": "192 × 192"}


def test_a_resnet34_is_no_resnet18(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torchvision = pytest.importorskip("torchvision")
    big = torchvision.models.resnet34(num_classes=5).state_dict()
    torch.save(big, tmp_path / "r34.pth")
    checkpoint = ["--checkpoint", str(tmp_path / "r34.pth")]
    assert run(["inspect", "torchvision:resnet18", *checkpoint]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "layer1.2 (10 tensors), layer2.2 (10 tensors), layer2.3 (10 tensors)" in said
    assert "layer4.2 (10 tensors)" in said and "Traceback" not in said
    small = torchvision.models.resnet18(num_classes=5).eval()
    torch.save(small.state_dict(), tmp_path / "r18.pth")
    classifier = penult.load("torchvision:resnet18", checkpoint=tmp_path / "r18.pth")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    with torch.no_grad():
        expected = small(*classifier.preprocess(picture).tensors.values())[0].numpy()
    np.testing.assert_allclose(classifier.classify(picture)[0].logits, expected, rtol=1e-5)


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    scaled = timm.create_model("test_vit", num_classes=4, init_values=0.3).state_dict()
    torch.save(scaled, tmp_path / "scaled.pth")
    with pytest.raises(IncompleteWeights, match=r"no place: blocks\.0\.ls1\.gamma, blocks\.0\.ls2"):
        penult.load("timm:test_vit", checkpoint=tmp_path / "scaled.pth")


def with_tensors(folder: Path, **more: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    added = {name.replace("__", "."): tensor for name, tensor in more.items()}
    save_file(load_file(path) | added, path, {"format": "pt"})
    return folder


def test_a_folder_with_adapters_or_more_layers(tmp_path: Path) -> None:
    """As transformers saves them: with LoRA matrices, and with a config of fewer layers."""
    lora = save_image(tmp_path / "lora")
    rows = {n: t for n, t in load_file(lora / "model.safetensors").items() if "query.weight" in n}
    assert rows
    with_tensors(
        lora,
        **{
            n.replace("weight", f"lora_{side}.default.weight"): torch.randn(4, 32)
            for n in rows
            for side in "AB"
        },
    )
    with pytest.raises(IncompleteWeights, match=r"adapter.*q_proj\.lora_A\.default\.weight"):
        penult.load(lora)
    deep = save_image(tmp_path / "deep")
    config = json.loads((deep / "config.json").read_text())
    layers = config["num_hidden_layers"]
    (deep / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers - 1}))
    with pytest.raises(IncompleteWeights, match=rf"no place: vit\.layers\.{layers - 1} \(16 tens"):
        penult.load(deep)


def test_heads_of_pretraining_in_folders(tmp_path: Path) -> None:
    text = with_tensors(
        save_text(tmp_path / "text"),
        cls__predictions__bias=torch.ones(3),
        cls__seq_relationship__weight=torch.ones(2, 3),
        bert__embeddings__position_ids=torch.arange(32)[None],
    )
    assert penult.load(text).describe()["unused_weights"] == {"cls": 2}
    audio = with_tensors(
        save_audio(tmp_path / "audio", "wav2vec2"),
        quantizer__codevectors=torch.ones(1, 4, 4),
        project_hid__weight=torch.ones(4, 4),
        wav2vec2__mask_time_emb=torch.ones(4),
    )
    assert penult.load(audio).describe()["unused_weights"] == {
        "project_hid": 1,
        "quantizer": 1,
        "wav2vec2.mask_time_emb": 1,
    }
