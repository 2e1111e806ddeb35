"""Padding against tables made by hand: where it goes, with what, which positions are an item's own,
and group norms over these alone against numpy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from penult.engines.batching import Batch, collate, fill_of, with_mask
from penult.engines.positions import frame_mask, masked_norms, own_frames

ONE, TWO = torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5, 6]])


def test_padded_at_the_end_or_at_the_beginning() -> None:
    items = [{"ids": ONE}, {"ids": TWO}]
    assert collate(items, {"ids": 1}, {})["ids"].tolist() == [[1, 2, 0, 0], [3, 4, 5, 6]]
    filled = collate(items, {"ids": 1}, {"ids": 9})["ids"]
    assert filled.tolist() == [[1, 2, 9, 9], [3, 4, 5, 6]]
    left = collate(items, {"ids": 1}, {"ids": 9, "other": 7}, left=True)["ids"]
    assert left.tolist() == [[9, 9, 1, 2], [3, 4, 5, 6]]


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("left", [False, True])
def test_the_axis_that_grows(axis: int, left: bool) -> None:
    """(1, 2, 3, 4) and one that is two longer along the axis, against numpy's own padding."""
    random = np.random.default_rng(0)
    shape = [1, 2, 3, 4]
    one = random.standard_normal(shape)
    shape[axis] += 2
    two = random.standard_normal(shape)
    sides = [(0, 0)] * 4
    sides[axis] = (2, 0) if left else (0, 2)
    expected = np.concatenate([np.pad(one, sides), two])
    found = collate([{"x": torch.tensor(v)} for v in (one, two)], {"x": axis}, {}, left)
    np.testing.assert_array_equal(found["x"].numpy(), expected)


def test_inputs_of_one_shape_are_put_together_as_they_are() -> None:
    items = [{"x": ONE, "fixed": torch.tensor([[7.0]])}, {"x": TWO, "fixed": torch.tensor([[8.0]])}]
    found = collate(items, {"x": 1}, {"fixed": 5})
    assert found["fixed"].tolist() == [[7.0], [8.0]] and list(found) == ["x", "fixed"]


def test_own_positions_of_a_batch() -> None:
    tensors = {"x": torch.zeros(2, 4)}
    right = Batch(tensors, [2, 4])
    assert right.own.tolist() == [[True, True, False, False], [True] * 4]
    assert Batch(tensors, [1, 3], left=True).own.tolist() == [[False, False, True], [True] * 3]
    assert Batch(tensors).own is None and len(right) == 2


def test_a_mask_of_ones_over_the_axis_that_grows() -> None:
    found = with_mask({"x": torch.zeros(1, 3, 5)}, 2)
    assert found["attention_mask"].tolist() == [[1] * 5]
    assert found["attention_mask"].dtype == torch.long and next(iter(found)) == "x"
    assert with_mask({"x": torch.zeros(1, 3, 5)}, 1)["attention_mask"].shape == (1, 3)
    given = {"x": ONE, "pixel_attention_mask": torch.tensor([[1, 0]])}
    assert with_mask(given, 1) == given


def of(**config: Any) -> nn.Module:
    module = nn.Module()
    module.config = SimpleNamespace(**config)  # type: ignore[assignment]
    return module


def test_tokens_are_padded_with_the_models_own() -> None:
    assert fill_of(of(pad_token_id=3)) == {"input_ids": 3}
    assert fill_of(of(pad_token_id=0)) == {"input_ids": 0}
    assert fill_of(of(text_config=SimpleNamespace(pad_token_id=5))) == {"input_ids": 5}
    assert fill_of(of(pad_token_id=2, text_config=SimpleNamespace(pad_token_id=5))) == {
        "input_ids": 2
    }
    for module in (of(pad_token_id=None), of(pad_token_id=-1), of(), nn.Module()):
        assert fill_of(module) == {}


class Halved(nn.Module):
    """Hidden states at half of the samples' rate, and the mask that goes with them."""

    def _get_feature_vector_attention_mask(self, positions: int, mask: torch.Tensor) -> Any:
        return mask[:, ::2][:, :positions]


def test_a_mask_at_the_resolution_of_the_hidden_states() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    rows = [[True, True, False, False], [True] * 4]
    for name in ("attention_mask", "pixel_attention_mask"):
        found = frame_mask(None, {"x": torch.zeros(2, 4), name: mask}, 4)
        assert found is not None and found.dtype == torch.bool and found.tolist() == rows
    assert frame_mask(None, {"x": mask}, 4) is None
    assert frame_mask(None, {"attention_mask": mask[:, None]}, 1) is None
    assert frame_mask(nn.Module(), {"attention_mask": mask}, 2) is None
    halved = frame_mask(Halved(), {"attention_mask": mask}, 2)
    assert halved is not None and halved.tolist() == [[True, False], [True, True]]


def test_own_frames_of_a_batch() -> None:
    tensors = {"x": torch.zeros(2, 4)}
    assert own_frames(Halved(), Batch(tensors), 2) is None
    found = own_frames(Halved(), Batch(tensors, [2, 4]), 2)
    assert found is not None and found.tolist() == [[True, False], [True, True]]


def normed(rows: np.ndarray, groups: int, eps: float) -> np.ndarray:
    """(C, T) by the mean and the population's variance of each group."""
    parts = np.split(rows, groups)
    return np.concatenate([(p - p.mean()) / np.sqrt(p.var() + eps) for p in parts])


@pytest.mark.parametrize("affine", [True, False])
def test_group_norms_over_own_frames(affine: bool) -> None:
    """A norm alone, in numpy: what stands in the padding changes nothing."""
    norm = nn.GroupNorm(3, 6, eps=0.01, affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    hidden = 5 + 3 * torch.randn(2, 6, 9, dtype=torch.float64)
    lengths = [9, 4]
    with torch.no_grad(), masked_norms(norm, lengths):
        found = norm(hidden).numpy()
    for row, values, length in zip(found, hidden.numpy(), lengths, strict=True):
        expected = normed(values[:, :length], 3, 0.01)
        if affine:
            weight, bias = (p.detach().numpy()[:, None] for p in (norm.weight, norm.bias))
            expected = expected * weight + bias
        np.testing.assert_allclose(row[:, :length], expected, rtol=1e-9)
    with torch.no_grad():  # and the hook is gone
        plain = norm(hidden).numpy()
    assert np.abs(plain[1] - found[1]).max() > 0.1


@pytest.mark.parametrize("convolution", [
    {"kernel_size": 5}, {"kernel_size": 4, "stride": 2}, {"kernel_size": 3, "stride": 3},
    {"kernel_size": 3, "dilation": 4}, {"kernel_size": 5, "padding": 2},
    {"kernel_size": 6, "padding": 1, "stride": 2, "dilation": 2},
])  # fmt: skip
def test_valid_frames_behind_a_convolution(convolution: dict[str, int]) -> None:
    """As many as the item alone has, for any arithmetic of the convolution."""
    torch.manual_seed(0)
    conv = nn.Conv1d(1, 4, **convolution)
    norm = nn.GroupNorm(2, 4)
    seen: list[Any] = []
    net = nn.Sequential(conv, norm).eval()
    lengths = [61, 37, 24]
    items = [torch.randn(1, 1, n) for n in lengths]
    batch = torch.cat([nn.functional.pad(item, (0, 61 - item.shape[2])) for item in items])
    with torch.no_grad():
        with masked_norms(net, torch.tensor(lengths)):
            together = net(batch)
        for row, item in zip(together, items, strict=True):
            alone = net(item)[0]
            padding = convolution.get("padding", 0)
            span = convolution.get("dilation", 1) * (convolution["kernel_size"] - 1) + 1
            frames = math.floor((item.shape[2] + 2 * padding - span)
                                / convolution.get("stride", 1)) + 1  # fmt: skip
            seen.append(frames)
            assert alone.shape[1] == frames
            torch.testing.assert_close(row[:, :frames], alone, rtol=1e-4, atol=1e-5)
    assert len(set(seen)) == 3


def test_what_no_lengths_are_known_for_is_normed_as_ever() -> None:
    """Frames of another number than any layer gave, or maps instead of frames."""
    norm = nn.GroupNorm(2, 4)
    hidden, image = torch.randn(2, 4, 9), torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        plain, mapped = norm(hidden), norm(image)
        with masked_norms(norm, [7, 3]):
            assert torch.equal(norm(hidden), plain)
        with masked_norms(norm, [9, 3]):
            assert torch.equal(norm(image), mapped)
            assert not torch.equal(norm(hidden), plain)
        same = nn.Sequential(nn.Conv1d(1, 4, 3, padding="same"), norm)
        with masked_norms(same, [8, 3]):  # as many frames out as in: still known
            found = same(torch.randn(2, 1, 8))
    assert abs(float(found[1, :2, :3].mean())) < 1e-5
