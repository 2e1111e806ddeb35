"""What every engine owes: the logits and vectors of torch in fp32, for one item and for any batch.

One suite over all engines and over every kind of model that the zoo has.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penult import Embedder, load
from penult.embedding.inspect import taps_of
from penult.engines.base import EXACT, FAST, PRECISIONS, EngineRequest, Reading
from penult.engines.batch_policy import find_batch_policy, probe
from penult.engines.batching import ALONE, Batch
from penult.engines.graph_cache import Graphs
from penult.engines.openvino import OpenVinoEngine, multiplies_bf16
from penult.engines.parity import compare
from penult.engines.torch import TorchEngine, open_torch
from penult.errors import EngineError
from penult.models.base import digest
from zoo import AUDIO, save_audio, save_image, save_text, save_video

ENGINES: dict[str, tuple[str, Any]] = {
    "torch f32": (EXACT, lambda q: TorchEngine(q.classifier, q.readings)),
    "torch bf16": (FAST, open_torch),
    "openvino f32": (EXACT, OpenVinoEngine),
    "openvino bf16": (FAST, OpenVinoEngine),
}
GROUP_OR_LAYER = ("wav2vec2", "hubert", "wavlm")
MODELS = sorted(
    [(kind, norm) for kind in GROUP_OR_LAYER for norm in ("group", "layer")]
    + [(kind, "") for kind in AUDIO if kind not in GROUP_OR_LAYER]
    + [("vit", ""), ("videomae", ""), ("bert", ""), ("roberta", "")]
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each tiny model as an embedder in torch, made once."""
    made: dict[tuple[str, str], Embedder] = {}

    def model(kind: str, norm: str) -> Embedder:
        if (kind, norm) not in made:
            folder = tmp_path_factory.mktemp("model")
            extra = {"feat_extract_norm": norm} if norm else {}
            save = {"vit": save_image, "videomae": save_video}.get(kind)
            if save is not None:
                save(folder)
            elif kind in ("bert", "roberta"):
                save_text(folder, kind)
            else:
                save_audio(folder, kind, **extra)
            made[kind, norm] = Embedder.from_classifier(load(folder))
        return made[kind, norm]

    return model


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch computes in bfloat16 on any processor, if slowly: the numbers are the same."""
    monkeypatch.setattr("penult.engines.torch.multiplies_bf16", lambda device: True)


def opened(name: str, emb: Embedder, folder: Path, readings: list[Reading] | None = None) -> Any:
    _, make = ENGINES[name]
    if name.endswith("bf16") and name.startswith("openvino") and not multiplies_bf16():
        pytest.skip("this processor does not multiply in bfloat16")
    graphs = Graphs(digest(str(folder)))  # a place of its own
    arithmetic = name.partition(" ")[2]
    return make(
        EngineRequest(
            emb.classifier,
            readings or emb.runner.readings,
            arithmetic=arithmetic,
            policy=emb.runner.policy,
            graphs=graphs,
        )
    )


# Recording and exporting take seconds each: of these a few kinds are in the fast suite.
FEW = {
    "openvino": {"wav2vec2", "wav2vec2-bert", "whisper", "bert", "vit"},
    "torch": set(dict(MODELS)),
}
SWEEP = [
    pytest.param(
        name, kind, norm, marks=() if kind in FEW[name.partition(" ")[0]] else pytest.mark.slow
    )
    for kind, norm in MODELS
    for name in ENGINES
    if name != "torch f32"
]


@pytest.mark.parametrize(("name", "kind", "norm"), SWEEP)
def test_as_torch_alone_and_together(
    models: Any, tmp_path_factory: pytest.TempPathFactory, name: str, kind: str, norm: str
) -> None:
    # A folder for all engines of a model, so that f32 and bf16 share a recording.
    tmp_path = tmp_path_factory.getbasetemp() / f"graphs-{kind}-{norm}"
    emb = models(kind, norm)
    engine = opened(name, emb, tmp_path)
    precision = PRECISIONS[ENGINES[name][0]]
    items = probe(emb.classifier)
    assert items is not None
    reference = [TorchEngine(emb.classifier, emb.runner.readings)(Batch(i)).row(0) for i in items]
    alone = [engine(Batch(item)).row(0) for item in items]
    parity = compare(alone, reference)
    assert parity.cosine >= precision.cosine and parity.logits <= precision.logits
    law = find_batch_policy(emb.classifier, engine, emb.runner.policy, precision.batching / 2)
    assert law.name == emb.runner.policy.name != ALONE
    group = range(len(items)) if law.pads or not law.axes else range(2, len(items))
    together = engine(law.batch([items[i] for i in group]))
    rows = [together.row(row) for row in range(len(group))]
    parity = compare(rows, [reference[i] for i in group])
    assert parity.cosine >= precision.cosine and parity.logits <= precision.logits


@pytest.mark.parametrize("name", ENGINES)
def test_every_pooling_and_several_taps_in_one_pass(models: Any, tmp_path: Path, name: str) -> None:
    emb = models("wav2vec2", "group")
    taps = taps_of(emb.classifier, ["layer:1", "backbone"])
    poolings = ("mean", "max", "first", "last", "gem", "mean+std", "mean+std+delta")
    readings = [Reading(tap, pooling) for tap in taps for pooling in poolings]
    items = probe(emb.classifier)
    assert items is not None
    batch = emb.runner.policy.batch(items[:3])
    expected = TorchEngine(emb.classifier, readings)(batch)
    found = opened(name, emb, tmp_path, readings)(batch)
    precision = PRECISIONS[ENGINES[name][0]]
    for one, two in zip(found.vectors, expected.vectors, strict=True):
        assert one.shape == two.shape and one.dtype == np.float32
        for a, b in zip(one, two, strict=True):
            cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            # float32 sums; and one position alone is coarser in bfloat16 than a mean: a run
            # whose items it takes below the bar falls back to fp32.
            assert cosine >= (precision.cosine - 1e-6 if precision.name == EXACT else 0.999)


@pytest.mark.parametrize("name", ENGINES)
def test_logits_per_frame_keep_each_items_own(tmp_path: Path, name: str) -> None:
    auto = "AutoModelForAudioFrameClassification"
    emb = Embedder.from_classifier(load(save_audio(tmp_path / "m", "wav2vec2", auto)))
    items = probe(emb.classifier)
    assert items is not None
    alone = [TorchEngine(emb.classifier, emb.runner.readings)(Batch(item)) for item in items]
    together = opened(name, emb, tmp_path / "graphs")(emb.runner.policy.batch(items))
    for row, one in enumerate(alone):
        assert together.logits[row].shape == one.logits[0].shape


@pytest.mark.parametrize("name", ENGINES)
def test_pooling_over_what_a_clip_fills(tmp_path: Path, name: str) -> None:
    clf = load(save_audio(tmp_path / "w", "whisper"))
    emb = Embedder.from_classifier(clf, pool_over="valid")
    engine = opened(name, emb, tmp_path / "graphs")
    tensors = emb.classifier.example().tensors
    for filled in (0.3, 0.8):
        batch = Batch(tensors, filled=[filled])
        expected = TorchEngine(emb.classifier, emb.runner.readings)(batch).row(0)
        bar = PRECISIONS[ENGINES[name][0]].cosine
        assert compare([engine(batch).row(0)], [expected]).cosine >= bar


def test_a_graph_is_recorded_once(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_cache: Path
) -> None:
    import penult.engines.openvino as module

    emb = models("wav2vec2", "layer")
    opened("openvino f32", emb, tmp_path)
    monkeypatch.setattr(module, "_record", lambda *_: pytest.fail("recorded again"))
    opened("openvino f32", emb, tmp_path)
    (place,) = fresh_cache.glob(f"engines/{digest(str(tmp_path))}")
    folders = list(place.iterdir())
    assert len(folders) == 1 and not folders[0].name.startswith(".")


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = torch.nn.Linear(50, 8), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.inner(x.unfold(1, 50, 50)).mean(dim=1)
            return self.head(torch.special.bessel_j0(hidden))

    emb = Embedder.from_classifier(load(Odd().eval(), sample_rate=16_000))
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    for name in ("openvino f32",):
        with pytest.raises(EngineError):
            opened(name, emb, tmp_path)
        # else Penult's own notes would be lost from then on
        assert (root.level, root.filters, root.handlers) == before
    assert not list(tmp_path.rglob("model.*"))
