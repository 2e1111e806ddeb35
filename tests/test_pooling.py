"""Pooling against numpy, position by position: masks, channel axes, deviation, refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import penult
from penult.cli import run
from penult.embedding.readings import poolings_of, readings_of
from penult.engines import pooling as poolings
from penult.engines.pooling import pool, pooled_width
from penult.errors import TapError, UsageError
from plugins import write_package

NAMES = ("mean", "max", "first", "last", "mean+std", "gem", "mean+std+delta")


def by_hand(rows: np.ndarray, pooling: str) -> np.ndarray:
    """(positions, C) of one item, all of them its own → (C,), (2C,) or (3C,)."""
    count = len(rows)
    mean = sum(rows) / count
    if pooling == "gem":
        return (sum(np.maximum(row, 0) ** 3 for row in rows) / count) ** (1 / 3)
    if pooling.startswith("mean+std"):
        deviation = np.sqrt(sum((row - mean) ** 2 for row in rows) / count)
        if pooling == "mean+std":
            return np.concatenate([mean, deviation])
        steps = [(after - before) ** 2 for before, after in pairwise(rows)]
        return np.concatenate([mean, deviation, np.sqrt(sum(steps) / max(1, count - 1) + 0 * mean)])
    return {"mean": mean, "max": rows.max(axis=0), "first": rows[0], "last": rows[-1]}[pooling]


def with_holes(rows: np.ndarray, own: np.ndarray, pooling: str) -> np.ndarray:
    """As `by_hand` for some of the positions: a step across a left-out one is none."""
    found = by_hand(rows[own], pooling)
    if pooling == "mean+std+delta":
        steps = [(rows[i + 1] - rows[i]) ** 2 for i in range(len(own) - 1) if own[i] and own[i + 1]]
        width = rows.shape[1]
        found[2 * width :] = np.sqrt(sum(steps) / max(1, len(steps))) if steps else 0
    return found


def hidden(*shape: int, seed: int = 0) -> torch.Tensor:
    """Positive and negative numbers, all below 0 in some channels: a maximum is not 0."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64) - 1


@pytest.mark.parametrize("pooling", NAMES)
@pytest.mark.parametrize("channel", [1, 2, -1, -2])
@pytest.mark.parametrize("masked", [False, True])
def test_one_position_axis(pooling: str, channel: int, masked: bool) -> None:
    values = hidden(3, 5, 4)
    rows = values.numpy() if channel in (2, -1) else values.numpy().transpose(0, 2, 1)
    own = np.ones(rows.shape[:2], bool)
    if masked:  # at the front, at the back, and with a hole
        own[0, :2], own[1, -1], own[2, 1:3] = False, False, False
    mask = torch.tensor(own) if masked else None
    found = pool(values, pooling, channel, mask).numpy()
    expected = [with_holes(item, valid, pooling) for item, valid in zip(rows, own, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.shape[1] == pooled_width(pooling, rows.shape[2])


@pytest.mark.parametrize("pooling", NAMES)
@pytest.mark.parametrize("channel", [1, 2, 3, -1, -3])
def test_a_map_is_read_row_by_row(pooling: str, channel: int) -> None:
    values = hidden(2, 3, 4, 5)
    rows = np.moveaxis(values.numpy(), channel, -1)
    rows = rows.reshape(2, -1, rows.shape[-1])
    expected = [by_hand(item, pooling) for item in rows]
    np.testing.assert_allclose(pool(values, pooling, channel).numpy(), expected, rtol=1e-12)


@given(st.data())
def test_any_mask(data: st.DataObject) -> None:
    items, positions = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    size = st.lists(st.booleans(), min_size=positions, max_size=positions).filter(any)
    own = np.array(data.draw(st.lists(size, min_size=items, max_size=items)))
    values = hidden(items, positions, 3, seed=data.draw(st.integers(0, 99)))
    number = data.draw(st.sampled_from([torch.bool, torch.int64, torch.float32]))
    for pooling in NAMES:
        found = pool(values, pooling, mask=torch.tensor(own).to(number)).numpy()
        expected = [with_holes(v, o, pooling) for v, o in zip(values.numpy(), own, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_none_keeps_every_position_with_the_channels_last() -> None:
    values = hidden(2, 3, 4, 5)
    np.testing.assert_array_equal(pool(values, "none", 1), values.numpy().transpose(0, 2, 3, 1))
    assert pooled_width("none", 7) == pooled_width("mean", 7) == 7
    assert pooled_width("mean+std", 7) == 14


def test_one_vector_per_item_stays_as_it_is() -> None:
    values = hidden(3, 4)
    for pooling in ("mean", "max", "first", "last", "gem", "none"):
        assert pool(values, pooling) is values
    with pytest.raises(TapError, match="needs positions to pool over"):
        pool(values, "mean+std")


@pytest.mark.parametrize("pooling", NAMES)
def test_a_mask_that_leaves_nothing_out_changes_no_bit(pooling: str) -> None:
    values = hidden(2, 700, 3).float()
    found = pool(values, pooling, mask=torch.ones(2, 700))
    assert torch.equal(found, pool(values, pooling))
    mapped = hidden(2, 3, 4, 5)  # whatever its shape
    assert torch.equal(pool(mapped, pooling, mask=torch.ones(2, 9)), pool(mapped, pooling))


@pytest.mark.parametrize(
    ("shape", "mask", "channel"),
    [
        ((2, 5, 4), (2, 4), -1),  # as long as there are channels
        ((2, 5, 4), (2, 5), 1),
        ((2, 5, 4), (1, 5), -1),
        ((2, 3, 5, 4), (2, 15), -1),
        ((2, 3, 5, 4), (2, 5), -1),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    shape: tuple[int, ...], mask: tuple[int, ...], channel: int
) -> None:
    with pytest.raises(TapError, match="does not fit hidden states of shape"):
        pool(hidden(*shape), "mean", channel, torch.zeros(mask))


def test_a_deviation_of_one_position_is_zero() -> None:
    mask = torch.tensor([[False, True, False]])
    found = pool(hidden(1, 3, 4), "mean+std", mask=mask)
    assert torch.equal(found[:, 4:], torch.zeros(1, 4, dtype=torch.float64))


def test_powers_keep_small_and_large_numbers() -> None:
    """Cubes of float32 numbers below 1e-15 are nothing, of numbers above 1e13 infinite."""
    for size in (1e-30, 1e30):
        values = torch.full((1, 4, 2), size) * torch.tensor([1.0, -1.0])
        assert pool(values, "gem")[0].tolist() == pytest.approx([size, 0.0])


def test_a_mask_is_an_input_of_a_recorded_pass() -> None:
    """A pass recorded with a full mask serves for other masks."""

    class Pool(nn.Module):
        def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return pool(values, "mean", mask=mask)

    values, full = hidden(2, 3, 4), torch.ones(2, 3)
    traced = torch.jit.trace(Pool(), (values, full))
    part = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    expected = [values[0, 0].numpy(), values[1, :2].numpy().mean(axis=0)]
    np.testing.assert_allclose(traced(values, part).numpy(), expected, rtol=1e-12)


class Frames(nn.Module):
    """Frames of 40 samples, a layer over them, their mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(40, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(x.unfold(1, 40, 40))).mean(dim=1))


@pytest.mark.parametrize("pooling", NAMES)
def test_what_an_embedder_gives(pooling: str) -> None:
    torch.manual_seed(0)
    module = Frames().eval()
    clip = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    classifier = penult.load(module, sample_rate=8000)
    emb = penult.Embedder.from_classifier(classifier, tap="inner", pooling=pooling)
    weight, bias = (p.detach().numpy() for p in (module.inner.weight, module.inner.bias))
    rows = clip.reshape(10, 40) @ weight.T + bias
    found = emb.run([clip]).vectors
    np.testing.assert_allclose(found, [by_hand(rows, pooling)], rtol=1e-4, atol=1e-5)


def test_a_pooling_that_there_is_not() -> None:
    with pytest.raises(TapError, match="unknown pooling 'median'; choose mean, max, first, last"):
        pool(hidden(1, 2, 3), "median")


RMS = """
    import torch

    def rms(hidden, mask):
        squares = hidden.square_() * mask[..., None]  # changes its input: it has a copy of its own
        return (squares.sum(dim=1) / mask.sum(dim=1, keepdim=True)).sqrt()

    def widths(hidden, mask):
        rows = hidden.masked_fill(~mask[..., None], 0).amax(dim=1)
        return torch.cat([rows, rows, -rows], dim=1)

    def unmasked(hidden, mask):
        return hidden.square().mean(dim=1).sqrt()

    def scalar(hidden, mask):
        return hidden.sum()

    def positions(hidden, mask):
        return hidden

    def flat(hidden, mask):
        return hidden.flatten(1)

    def never_finite(hidden, mask):
        return hidden.mean(dim=1) / 0

    def log_of_silence(hidden, mask):
        return hidden.abs().amax(dim=1).log()

    def broken(hidden, mask):
        return hidden.quadratic_mean()

    def listed(hidden, mask):
        return [0.0]

    number = 3
"""
FUNCTIONS = ("rms", "widths", "unmasked", "scalar", "positions", "flat", "never_finite",
             "log_of_silence", "broken", "listed", "number")  # fmt: skip


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`penult-other`, which registers poolings; found as long as the test runs."""
    folder = tmp_path_factory.mktemp("other")
    entries = {name: f"penult_other:{name}" for name in FUNCTIONS}
    entries |= {"absent": "penult_nowhere:pool"}
    write_package(folder, "penult-other", RMS, {"penult.poolings": entries})
    monkeypatch.syspath_prepend(str(folder))
    poolings._plugin.cache_clear()  # of a package of another test
    return folder


def embedder_of(pooling: str, tap: str = "inner", module: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    classifier = penult.load(module or Frames().eval(), sample_rate=8000)
    return penult.Embedder.from_classifier(classifier, tap=tap, pooling=pooling)


def test_a_pooling_of_another_package(package: Path) -> None:
    emb = embedder_of("mean,rms,mean,widths", "inner,inner,inner,inner")
    assert emb.dim == 6 + 6 + 6 + 18
    clip = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    weight, bias = (p.detach().numpy() for p in emb.classifier.module.inner.parameters())
    rows = clip.reshape(10, 40) @ weight.T + bias
    top = rows.max(axis=0)
    expected = [
        rows.mean(axis=0),
        np.sqrt((rows**2).mean(axis=0)),
        rows.mean(axis=0),
        top,
        top,
        -top,
    ]
    found = emb.run([clip]).vectors
    np.testing.assert_allclose(found, [np.concatenate(expected)], rtol=1e-4, atol=1e-5)
    named = r"mean,rms,mean,widths; rms of penult-other, code \w{16}; widths of penult-other, code "
    assert re.match(named, emb.fingerprint["pooling"])


def test_a_mask_reaches_a_pooling_of_another_package(package: Path) -> None:
    values, mask = hidden(2, 4, 3), torch.tensor([[True, True, False, False], [True] * 4])
    expected = [
        np.sqrt((v[m] ** 2).mean(axis=0)) for v, m in zip(values.numpy(), mask.numpy(), strict=True)
    ]
    before = values.clone()
    np.testing.assert_allclose(pool(values, "rms", mask=mask), expected, rtol=1e-12)
    np.testing.assert_allclose(pool(values.mT, "rms", 1, mask), expected, rtol=1e-12)
    assert torch.equal(values, before)  # what it does to its input is done to a copy
    mapped = hidden(2, 3, 4, 5)  # a map's positions, flattened in order
    rows = mapped.movedim(1, -1).reshape(2, -1, 3).numpy()
    np.testing.assert_allclose(pool(mapped, "rms", 1), np.sqrt((rows**2).mean(axis=1)), rtol=1e-12)


@pytest.mark.parametrize(
    ("pooling", "says"),
    [
        ("scalar", r"'scalar' of penult-other 1.0 gives \(\) for hidden states of shape"),
        ("positions", r"gives \(2, 5, 6\) for hidden states .* a pooling gives \(B, D\)"),
        ("flat", "gives 30 numbers for five positions and 18 for three"),
        ("never_finite", "'never_finite' of penult-other 1.0 gives values that are not finite"),
        ("broken", r"fails on hidden states \(2, 5, 6\) and a mask \(2, 5\): AttributeError"),
        ("listed", "gives list for hidden states"),
        ("number", "'number' of penult-other 1.0 is int, and a pooling is a function"),
        ("absent", "'absent' of penult-other 1.0 cannot be imported .*penult_nowhere"),
    ],
)
def test_a_pooling_that_gives_no_vector(package: Path, pooling: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        embedder_of(pooling)
    assert "\n" not in str(caught.value)


def test_an_item_that_a_pooling_makes_infinite_fails_alone(package: Path) -> None:
    module = Frames().eval()
    nn.init.zeros_(module.inner.bias)
    nn.init.ones_(module.inner.weight)
    emb = embedder_of("log_of_silence", module=module)
    clips = [
        np.linspace(0.5, 1, 400, dtype=np.float32),
        np.tile(np.array([1, -1], np.float32), 200),
    ]
    result = emb.run(clips, on_error="skip")
    assert len(result.vectors) == 1 and len(result.failures) == 1
    assert "tap inner, pooled by log_of_silence, gave values that are not finite" in str(
        result.failures[0].message
    )


def test_a_tap_without_positions_needs_no_such_pooling(package: Path) -> None:
    with pytest.raises(TapError, match="nothing to pool: choose pooling mean"):
        embedder_of("rms", "prelogits")


def test_the_padding_law_is_measured_with_the_pooling(package: Path, tiny: Path) -> None:
    """A pooling that leaves the mask aside is no reason for another vector: items of different
    length then share no batch."""
    clips = [
        np.random.default_rng(n).standard_normal(4000 + 2000 * n).astype(np.float32)
        for n in range(3)
    ]
    law = {}
    for pooling in ("mean", "rms", "unmasked"):
        emb = penult.Embedder.from_classifier(penult.load(tiny), pooling=pooling)
        law[pooling] = emb.runner.policy
        together, alone = emb.embed(clips), emb.embed(clips, alone=True)
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert law["rms"].name == law["mean"].name and law["mean"].pads and not law["unmasked"].pads


def test_errors_name_it_and_choose_tries_it(package: Path, tiny: Path) -> None:
    with pytest.raises(TapError, match=r"choose mean, .*, rms, .* \(none keeps"):
        embedder_of("median")
    names = [f"{one.tap.name} {one.pooling}" for one in readings_of(penult.load(tiny))]
    assert "layer:0 rms" in names and "layer:0 widths" in names and "layer:0 first" in names
    assert "layer:0 broken" not in names and "layer:0 none" not in names
    assert "prelogits rms" not in names


def test_a_saved_embedder_names_the_package(
    package: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = penult.Embedder.from_classifier(penult.load(tiny), pooling="rms")
    folder = emb.save(tmp_path / "saved")
    assert penult.Embedder.load(folder).pooling == "rms"
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(package)])
    with pytest.raises(UsageError, match=r"'rms' comes from the package penult-other 1.0, which .*"
                       r"pip install penult-other$"):  # fmt: skip
        penult.Embedder.load(folder)
    with pytest.raises(UsageError, match=r"unknown pooling 'rms'; .* penult.poolings"):
        penult.Embedder.from_classifier(penult.load(tiny), pooling="rms")


@pytest.mark.slow
def test_another_code_of_the_same_pooling_is_refused(
    package: Path, tiny: Path, tmp_path: Path
) -> None:
    """In processes of their own, as a package is edited between two runs."""
    clips = [tmp_path / f"{n}.wav" for n in range(2)]
    for seed, clip in enumerate(clips):
        samples = np.random.default_rng(seed).standard_normal(8000) / 10
        soundfile.write(clip, samples, 16000)
    found = []
    for clip in clips:
        words = [str(tiny), str(clip), "--pooling", "rms", "--into", str(tmp_path / "c")]
        path = os.pathsep.join([str(package), str(Path(penult.__file__).parents[1])])
        found.append(subprocess.run(
            [sys.executable, "-m", "penult", "embed", *words], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": path}, check=False,
        ))  # fmt: skip
        code = package / "penult_other.py"
        code.write_text(code.read_text("utf-8").replace(".sqrt()", ".sqrt() * 3"), "utf-8")
    assert [done.returncode for done in found] == [0, 2], found[1].stderr
    assert "another embedder" in found[1].stderr and "rms of penult-other" in found[1].stderr
    collection = penult.Collection(tmp_path / "c")
    assert collection.count == 1
    command = collection.runs()["command"].to_pylist()[0]
    assert command.startswith("penult embed ")


def test_two_packages_of_one_pooling_are_told(
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_package(tmp_path, "penult-twin", RMS, {"penult.poolings": {"rms": "penult_twin:rms"}})
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level("WARNING", "penult"):
        embedder_of("max")
    assert run(["doctor", "--json"]) == 0
    added = {one["package"]: one for one in json.loads(capsys.readouterr().out)["plugins"]
             if one["name"] == "rms"}  # fmt: skip
    assert added["penult-twin 1.0"]["error"] is None
    assert "another package with this name counts" in added["penult-other 1.0"]["error"]
    assert any("penult-twin 1.0 counts, and that of penult-other 1.0 does not" in one
               for one in caplog.messages)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino"])
def test_a_recorded_graph_holds_it(
    package: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    clips = [
        np.random.default_rng(n).standard_normal(4000 + 900 * n).astype(np.float32)
        for n in range(4)
    ]
    plain = penult.Embedder.from_classifier(penult.load(tiny), pooling="rms").embed(clips)
    emb = penult.Embedder.from_classifier(penult.load(tiny), pooling="rms", engine=engine)
    found = emb.embed(clips)
    assert emb.runner.choice is not None and emb.runner.choice.parity is not None
    cosines = (
        (found * plain).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(plain, axis=1)
    )
    assert cosines.min() > 0.999999
    (graph,) = {path.parent for path in (tmp_path / "cache").rglob("model.*")}
    code = package / "penult_other.py"
    code.write_text(code.read_text().replace("squares.sum", "2 * squares.sum"))
    script = (
        "import penult, numpy as np, sys; "
        f"emb = penult.Embedder.from_classifier(penult.load({str(tiny)!r}), pooling='rms', "
        f"engine={engine!r}); np.save(sys.argv[1], "
        "emb.embed([np.random.default_rng(n).standard_normal(4000 + 900 * n).astype(np.float32)"
        " for n in range(4)]))"
    )
    paths = os.pathsep.join([str(package), *filter(None, sys.path)])
    variables = {**os.environ, "PYTHONPATH": paths}
    file = str(tmp_path / "again.npy")
    subprocess.run([sys.executable, "-c", script, file], env=variables, check=True, timeout=300)
    np.testing.assert_allclose(np.load(file), np.sqrt(2) * plain, rtol=1e-3, atol=1e-6)
    assert graph.is_dir()  # recorded anew beside the graph of the older code


def test_poolings_that_are_compared() -> None:
    """One where there are no positions; of a map no corner; of frames all, but those of other
    packages may be there, too."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(36, 5), nn.Flatten(1),
                        nn.Linear(20, 3)).eval()  # fmt: skip
    cut = penult.split(net, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    of_map, of_frames, of_vector = (poolings_of(cut.tap(name)) for name in ("0", "2", "3"))
    assert of_vector == ("mean",)
    assert of_map[:3] == ("mean", "max", "mean+std") and not {"first", "last"} & {*of_map}
    assert {*of_frames} >= set(NAMES) and "none" not in of_frames
    assert {*of_frames} - {*of_map} == {"first", "last", "mean+std+delta"}
