"""Which of several outputs holds the logits, by name or number; random graphs are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import penult
from penult.errors import HeadNotFound

pytest.importorskip("onnx")


class Pair(nn.Module):
    """Probabilities, then logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = 6 * self.fc(torch.tanh(self.conv(x)).mean((2, 3)))
        return z.softmax(-1), z


class Dropping(Pair):
    """A functional dropout that is at work in eval mode."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(F.dropout(self.conv(x).mean((2, 3)), 0.5, training=True))


def to_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1) / 64


PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def exported(path: Path, model: nn.Module, names: list[str]) -> Path:
    torch.onnx.export(
        model.eval(), (torch.zeros(1, 3, 16, 16),), str(path), input_names=["x"],
        output_names=names, dynamic_axes={"x": {0: "b"}}, dynamo=False,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("output", [0, 1, "0", "1"])
def test_an_output_by_number(output: str | int, tmp_path: Path) -> None:
    model = Pair().eval()
    with torch.no_grad():
        scores, logits = model(torch.from_numpy(PICTURE).permute(2, 0, 1)[None] / 64)
    graph = exported(tmp_path / "m.onnx", model, ["probabilities", "raw"])
    for spec in (model, graph):
        clf = penult.load(spec, modality="image", preprocess=to_tensor, output=output)  # type: ignore[call-overload]
        answer = clf.classify(PICTURE)[0]
        np.testing.assert_allclose(answer.scores, scores[0].numpy(), atol=1e-5)
        found = answer.logits - answer.logits.mean()
        np.testing.assert_allclose(found, (logits[0] - logits[0].mean()).numpy(), atol=1e-4)


def test_several_outputs_ask_for_one() -> None:
    with pytest.raises(HeadNotFound, match=r"0 \(1, 5\), 1 \(1, 5\).*--output"):
        penult.load(Pair().eval(), modality="image", preprocess=to_tensor)


def test_random_numbers_in_a_graph_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "random.onnx"
    torch.onnx.export(
        Dropping(), (torch.zeros(1, 3, 16, 16),), str(path), input_names=["x"],
        dynamic_axes={"x": {0: "b"}}, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    clf = penult.load(path, modality="image", preprocess=to_tensor)
    assert "random numbers reach the scores (Dropout" in caplog.text
    assert clf.describe()["random_scores"]
