"""A pass of the model that does not end: what came before is kept, and its item left out."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import penult
from penult.collection.collection import Collection
from penult.embedding import scheduling

RATE, COUNT, BAD = 100, 6, 4


class Endless(torch.nn.Module):
    """Never ends with one pattern, which no input that is made for a proof has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(RATE, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = 0
        while bool((((x[:, 0] - 0.75).abs() + (x[:, 1] + 0.25).abs()) < 0.01).any()):
            number += 1
        return self.last(torch.relu(self.first(x))) + number


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("endless")
    (made / "clips").mkdir()
    torch.jit.save(torch.jit.script(Endless().eval()), made / "m.pt")
    random = np.random.default_rng(0)
    for number in range(COUNT):
        sound = 0.1 * random.standard_normal(RATE)
        sound[:2] = (0.75, -0.25) if number == BAD else (0.0, 0.1)
        soundfile.write(made / "clips" / f"{number}.wav", sound, RATE)
    return made


def embed(folder: Path, into: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penult", "embed", "m.pt", "clips", "--into", into]
    how = ["--sample-rate", str(RATE), "--workers", "0", "--engine", "torch", *more]
    own = {**os.environ, "PYTHONPATH": str(Path(penult.__file__).parent.parent)}
    return subprocess.run([*command, *how], cwd=folder, env=own, capture_output=True, text=True,
                          check=False, timeout=300)  # fmt: skip


def names(collection: Collection) -> list[str]:
    return sorted(Path(id).stem for id in collection.vectors()[0].column("id").to_pylist())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_item_with_which_the_model_does_not_end(folder: Path) -> None:
    """Any of a batch may be at fault: each has its turn alone, and the one at fault is left out."""
    limit = ["--max-model-seconds", "1"]
    found = [embed(folder, "c.lance", *limit)]
    assert found[0].returncode == 1, found[0].stderr
    assert "the model had not ended after 1 s (--max-model-seconds) with" in found[0].stderr
    assert "Traceback" not in found[0].stderr
    while found[-1].returncode == 1 and len(found) < 4:
        found.append(embed(folder, "c.lance", *limit))
    assert found[-1].returncode == 3, found[-1].stderr
    opened = Collection.open(folder / "c.lance")
    assert names(opened) == [str(number) for number in range(COUNT) if number != BAD]
    # It is known from now on; the run ends without it.
    again = embed(folder, "c.lance", *limit, "--fail-on", "new")
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_without_company_it_is_named_at_once(folder: Path) -> None:
    found = embed(folder, "alone.lance", "--alone", "--max-model-seconds", "1", "--json")
    assert found.returncode == 1
    assert f"with {folder / 'clips' / f'{BAD}.wav'}" in " ".join(found.stderr.split())
    opened = Collection.open(folder / "alone.lance")
    assert names(opened) == [str(number) for number in range(BAD)]  # those before it
    assert embed(folder, "alone.lance", "--alone", "--max-model-seconds", "1").returncode == 3


def test_it_is_told_what_is_in_the_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduling, "NOTICE", 0.01)
    watch: Any = scheduling.PassWatch()
    regions = [_region(f"{number}.wav") for number in range(7)]
    with caplog.at_level(logging.WARNING), watch.under_way(regions):
        time.sleep(0.02)
        watch.check()
        watch.check()
    watch.check()
    (record,) = caplog.records
    told = record.getMessage()
    assert "0.wav" in told and "4.wav and 2 more: in the model" in told and "5.wav" not in told


def _region(id: str) -> Any:
    from penult.data.decode import Content
    from penult.data.items import Item
    from penult.data.regions import Region
    from penult.models.base import Inputs

    return scheduling.PreparedRegion(Item(id, None), Region("whole"), Content(None), Inputs({}))


class Settling(torch.nn.Module):
    """Goes on until what it computes hardly changes: with that branch inverted, for ever."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)
        with torch.no_grad():
            self.step.weight *= 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, moved = torch.zeros_like(x), torch.tensor(1.0)
        while moved > 1e-6:
            new = torch.tanh(self.step(state) + x)
            state, moved = new, (new - state).abs().max()
        return self.last(state)


def test_a_loop_that_ends_by_its_values_is_proved() -> None:
    model, x = Settling().eval(), torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    found = penult.split(model, x)
    assert found.certificate.ok, found.certificate
    torch.testing.assert_close(found.logits(found.prelogits(x)), model(x))


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_one_length_that_does_not_say_so(tmp_path: Path) -> None:
    """Equal items share a pass; those that are made for the law and are refused end nothing."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(RATE, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    torch.jit.save(torch.jit.script(net.eval()), tmp_path / "m.pt")
    sounds = np.random.default_rng(0).standard_normal((5, RATE)).astype(np.float32)
    embedder = penult.Embedder.from_classifier(penult.load(tmp_path / "m.pt", sample_rate=RATE))
    found = embedder.run([(sound, RATE) for sound in sounds])
    with torch.no_grad():
        expected = torch.relu(net[0](torch.from_numpy(sounds)))
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_limit_that_lets_nothing_through(seconds: float, folder: Path) -> None:
    from test_cli import ask

    told = ask("embed", "demo", folder / "clips", "--into", folder / "x.lance",
               "--max-model-seconds", seconds)  # fmt: skip
    assert told.code == 2 and "model seconds lets nothing through" in told.err
