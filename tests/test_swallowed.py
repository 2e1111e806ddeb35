"""Passes that end early, in models whose `forward` catches what is raised inside of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import penult
from test_cli import ask

RATE, FRAMES, FRAME = 8000, 20, 400
FACTORY = '''
import torch
from torch import nn

BEHIND = []  # one for each block that was run to its end, by its number


class Block(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number, self.mix = number, nn.Linear(8, 8)

    def forward(self, x):
        y = x + torch.tanh(self.mix(x))
        BEHIND.append(self.number)
        return y


class Careful(nn.Module):
    """Clips of one second, in frames of 50 ms; goes on with zeros wherever something fails."""

    def __init__(self, catches=Exception):
        super().__init__()
        torch.manual_seed(0)
        self.catches = catches
        self.embed = nn.Linear(400, 8)
        self.blocks = nn.ModuleList([Block(number) for number in range(3)])
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        hidden = self.embed(x.reshape(len(x), 20, 400))
        for block in self.blocks:
            try:
                hidden = block(hidden)
            except self.catches:
                hidden = torch.zeros_like(hidden)
        try:
            return self.fc(hidden.mean(dim=1))
        except self.catches:
            return torch.zeros(len(x), 5)


def careful():
    return Careful()


def careless():
    """Catches everything, also what is no Exception."""
    return Careful(BaseException)
'''


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    (tmp_path / "swallowing.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "swallowing", raising=False)
    return vars(__import__("swallowing"))


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=round(seconds * RATE))
    return (0.1 * noise).astype(np.float32)


def hidden(model: nn.Module, samples: np.ndarray, blocks: int) -> np.ndarray:
    """(20, 8) behind so many blocks, without hooks."""
    padded = np.zeros(FRAMES * FRAME, np.float32)
    padded[: len(samples)] = samples
    with torch.no_grad():
        x = model.embed(torch.from_numpy(padded).reshape(1, FRAMES, FRAME))  # type: ignore[operator]
        for block in list(model.blocks)[:blocks]:  # type: ignore[arg-type]
            x = block(x)
    return x[0].numpy()


@pytest.mark.parametrize("name", ["careful", "careless"])
def test_the_vectors_of_a_model_that_swallows_exceptions(zoo: dict, name: str) -> None:
    model, behind = zoo[name]().eval(), zoo["BEHIND"]
    classifier = penult.load(f"swallowing:{name}", sample_rate=RATE, seconds=1, random=True)
    embedder = penult.Embedder.from_classifier(classifier, tap="layer:1", engine="torch")
    clips = [sound(1.0, seed) for seed in range(5)]
    wanted = [hidden(model, one, 1).mean(axis=0) for one in clips]
    for _ in range(2):
        np.testing.assert_allclose(embedder.run(clips).vectors, wanted, atol=1e-6)
    behind.clear()
    np.testing.assert_allclose(embedder.embed(clips, logits=False), wanted, atol=1e-6)
    assert 0 in behind and (name == "careless" or not {1, 2} & set(behind))


@pytest.mark.parametrize("name", ["careful", "careless"])
def test_valid_positions_of_a_model_that_swallows_exceptions(
    zoo: dict, name: str, tmp_path: Path
) -> None:
    """Through the command line: of 0.45 s, nine frames of 50 ms are the clip's."""
    model = zoo[name]().eval()
    torch.save(model.state_dict(), tmp_path / "trained.pt")
    clips = {"a.wav": sound(0.45, 1), "b.wav": sound(0.9, 2)}
    for file, samples in clips.items():
        soundfile.write(tmp_path / file, samples, RATE, subtype="FLOAT")
    done = ask("embed", f"swallowing:{name}", tmp_path / "a.wav", tmp_path / "b.wav",
               "--checkpoint", tmp_path / "trained.pt", "--sample-rate", RATE, "--seconds", "1",
               "--tap", "layer:2", "--pool-over", "valid", "--engine", "torch", "--workers", "0",
               "--into", tmp_path / "c.lance")  # fmt: skip
    assert done.code == 0, done.err
    table = penult.Collection.open(tmp_path / "c.lance").reader.scan(["id", "vector"])
    rows = [row for part in table for row in part.to_pylist()]
    vectors = {Path(row["id"]).name: row["vector"] for row in rows}
    for file, frames in (("a.wav", 9), ("b.wav", 18)):
        wanted = hidden(model, clips[file], 2)[:frames].mean(axis=0)
        np.testing.assert_allclose(vectors[file], wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["careful", "careless"])
def test_the_prelogits_of_a_model_that_swallows_exceptions(zoo: dict, name: str) -> None:
    model, behind = zoo[name]().eval(), zoo["BEHIND"]
    x = torch.from_numpy(np.stack([sound(1.0, seed) for seed in range(3)]))
    cut = penult.split(model, x)
    assert cut.certificate.ok, cut.certificate
    wanted = np.stack([hidden(model, one.numpy(), 3).mean(axis=0) for one in x])
    ends: list[int] = []
    model.fc.register_forward_hook(lambda *_: ends.append(1))
    for _ in range(3):
        np.testing.assert_allclose(cut.prelogits(x), wanted, atol=1e-6)
    ends.clear()
    np.testing.assert_allclose(cut.prelogits(x), wanted, atol=1e-6)
    assert not ends  # the head itself is not run
    cut.read(x, ["layer:1"])
    behind.clear()
    (read,) = cut.read(x, ["layer:1"]).values()
    np.testing.assert_allclose(read, [hidden(model, one.numpy(), 1) for one in x], atol=1e-6)
    assert 0 in behind and (name == "careless" or not {1, 2} & set(behind))
