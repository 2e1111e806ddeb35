"""Pooling against numpy, position by position: masks, channel axes, deviation, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import penult
from penult.engines.pooling import pool, pooled_width
from penult.errors import TapError

NAMES = ("mean", "max", "first", "last", "mean+std")


def by_hand(rows: np.ndarray, pooling: str) -> np.ndarray:
    """(positions, C) of one item, all of them its own → (C,) or (2C,)."""
    count = len(rows)
    mean = sum(rows) / count
    if pooling == "mean+std":
        return np.concatenate([mean, np.sqrt(sum((row - mean) ** 2 for row in rows) / count)])
    return {"mean": mean, "max": rows.max(axis=0), "first": rows[0], "last": rows[-1]}[pooling]


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
    expected = [by_hand(item[valid], pooling) for item, valid in zip(rows, own, strict=True)]
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
        expected = [by_hand(v[o], pooling) for v, o in zip(values.numpy(), own, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_none_keeps_every_position_with_the_channels_last() -> None:
    values = hidden(2, 3, 4, 5)
    np.testing.assert_array_equal(pool(values, "none", 1), values.numpy().transpose(0, 2, 3, 1))
    assert pooled_width("none", 7) == pooled_width("mean", 7) == 7
    assert pooled_width("mean+std", 7) == 14


def test_one_vector_per_item_stays_as_it_is() -> None:
    values = hidden(3, 4)
    for pooling in ("mean", "max", "first", "last", "none"):
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
