"""`check`: the promises on a user's own files, and that it can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import penult.engines.torch as engine
from conftest import RATE
from penult.cli.main import run
from penult.data.sources import from_paths
from penult.embedding.check import check
from penult.embedding.embedder import Embedder
from penult.embedding.inspect import certify_on
from penult.embedding.source_sample import SourceSample
from penult.models.specs import load
from zoo import save_audio, save_image


def test_report(tiny: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(tiny), str(recordings), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["broken"] == [] and document["law"]["name"] == "masked norms"
    assert sum(document["batches"]) == len(document["items"]) == 6 > len(document["batches"])
    assert document["drift"]["relative"] <= 1e-5 >= document["batched"]["relative"]
    assert document["order"]["ok"] and document["certificate"]["ok"]
    assert len(document["proved_on"]) == 2
    assert document["plain_padding"]["relative"] > 0.01  # what the mask is for
    assert run(["check", str(tiny), str(recordings)]) == 0
    assert "every promise holds" in capsys.readouterr().out


def test_it_runs_what_a_run_runs(tmp_path: Path, recordings: Path) -> None:
    """Also where only the positions are pooled that a clip fills."""
    emb = Embedder.from_classifier(load(save_audio(tmp_path / "w", "whisper")), pool_over="valid")
    seen: list[object] = []
    engine = emb.runner.engine
    emb.runner.engine = lambda batch: seen.append(batch.filled) or engine(batch)  # type: ignore
    source = from_paths([str(recordings)], "audio")
    assert not check(emb, source, emb.certificate).broken
    assert seen and None not in seen


def test_a_broken_mask_is_seen(
    tiny: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Embedder.from_classifier(load(tiny)).save(tmp_path / "m")
    monkeypatch.setattr(engine, "frame_mask", lambda *_: None)
    assert run(["check", str(tmp_path / "m"), str(recordings), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert any("in a batch" in words for words in document["broken"])


def test_a_law_that_does_not_hold_is_seen(tmp_path: Path, recordings: Path) -> None:
    """Saved with a law that is not this model's: group norms that see the padding."""
    Embedder.from_classifier(load(save_audio(tmp_path / "c", "hubert"))).save(tmp_path / "m")
    file = tmp_path / "m" / "penult.json"
    saved = json.loads(file.read_text())
    saved["batching"]["name"] = "padded"
    file.write_text(json.dumps(saved))
    assert run(["check", str(tmp_path / "m"), str(recordings)]) == 1


FACTORY = """
import torch
from torch import nn

class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(50, 8), nn.Linear(8, 3)
    def forward(self, x):
        hidden = self.inner(x.unfold(1, 50, 50)).mean(dim=1)
        return self.head(nn.functional.dropout(hidden, 0.5, training=True))
"""


def test_a_model_that_drifts(
    tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "restless.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import restless

    torch.save(restless.Restless().state_dict(), "w.pt")
    command = ["check", "restless:Restless", str(recordings), "--checkpoint", "w.pt",
               "--sample-rate", str(RATE)]  # fmt: skip
    assert run(command) == 1
    said = capsys.readouterr().out
    assert "the same item twice" in said and "not proved" in said
    sys.modules.pop("restless")


def test_other_modalities_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    model = save_image(tmp_path / "m")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 256, (50, 40 + 9 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    assert run(["check", str(model), str(pictures)]) == 0
    (pictures / "broken.png").write_bytes(b"no picture")
    assert run(["check", str(model), str(pictures), "--json"]) == 3
    document = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(["{", ""]))
    assert document["failures"][0]["error"] == "DecodeError"
    assert run(["check", str(model), str(pictures / "broken.png")]) == 3


def test_nothing_is_marked(tiny: Path, recordings: Path) -> None:
    emb = Embedder.from_classifier(load(tiny))
    modules: list[nn.Module] = list(emb.classifier.module.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    before = {n: v.clone() for n, v in emb.classifier.module.state_dict().items()}
    source = from_paths([str(recordings)], "audio")
    report = check(emb, source, certify_on(emb.runner, SourceSample(source))[0])
    assert not report.broken
    after = emb.classifier.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
