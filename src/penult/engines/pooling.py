"""Hidden states → one vector per item: pooling over position axes, never over channels.

A mask says which positions are valid; every pooling obeys it. Knows nothing of models or taps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from penult.errors import TapError


def pool(hidden: Tensor, pooling: str, channel: int = -1, mask: Tensor | None = None) -> Tensor:
    """Pool hidden states over every axis but the batch and the channel.

    hidden: (B, …positions…, C), with the channels on axis `channel`. mask: (B, T) of the valid
    positions, for one position axis of T. Returns (B, C), or (B, 2C) for `mean+std`; `none`
    returns (B, …positions…, C). A mask that leaves nothing out changes nothing, to the bit.

    Raises:
        TapError: unknown pooling, or a mask that does not fit the positions.
    """
    if pooling not in POOLINGS:
        raise TapError(unknown(pooling))
    channel %= hidden.ndim
    if hidden.ndim == 2:
        if pooling == "mean+std":
            raise TapError(
                "mean+std needs positions to pool over; this tap has one vector per item"
            )
        return hidden
    if mask is not None:
        mask = mask.to(device=hidden.device, dtype=torch.bool)
        # A pass that is being recorded has to serve for other masks, too.
        recorded = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if not recorded and mask.all():
            mask = None
    if mask is not None and (
        hidden.ndim != 3 or mask.shape != (len(hidden), hidden.shape[3 - channel])
    ):
        raise TapError(
            f"a mask of shape {tuple(mask.shape)} does not fit hidden states of shape "
            f"{tuple(hidden.shape)} with channels on axis {channel}"
        )
    return POOLINGS[pooling](hidden, channel, mask)


def unknown(pooling: str) -> str:
    """What to say of a pooling that there is not."""
    return (
        f"unknown pooling {pooling!r}; choose mean, max, first, last or mean+std (none keeps every "
        "position, and no collection takes that)"
    )


def pooled_width(pooling: str, width: int) -> int:
    """Numbers in the vector that a pooling makes of `width` channels."""
    return 2 * width if pooling == "mean+std" else width


def _positions(hidden: Tensor, channel: int) -> list[int]:
    return [axis for axis in range(1, hidden.ndim) if axis != channel]


def _sequence(hidden: Tensor, channel: int) -> Tensor:
    """(B, positions flattened in order, C)."""
    return hidden.movedim(channel, -1).flatten(1, -2)


def _mean(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.mean(dim=_positions(hidden, channel))
    hidden = _sequence(hidden, channel).masked_fill(~mask[..., None], 0.0)
    return hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _max(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    hidden = _sequence(hidden, channel)
    if mask is not None:
        hidden = hidden.masked_fill(~mask[..., None], -torch.inf)
    return hidden.amax(dim=1)


def _first(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    hidden = _sequence(hidden, channel)
    if mask is None:
        return hidden[:, 0]
    first = mask.to(torch.int8).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def _last(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    hidden = _sequence(hidden, channel)
    if mask is None:
        return hidden[:, -1]
    last = mask.shape[1] - 1 - mask.flip(1).to(torch.int8).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _mean_std(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    # The population's deviation: zero, not NaN, for a single position.
    mean = _mean(hidden, channel, mask)
    spread = (_sequence(hidden, channel) - mean[:, None]).square()
    return torch.cat([mean, _mean(spread, 2, mask).sqrt()], dim=1)


def _none(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    return hidden.movedim(channel, -1)


POOLINGS: dict[str, Callable[[Tensor, int, Tensor | None], Tensor]] = {
    "mean": _mean,
    "max": _max,
    "first": _first,
    "last": _last,
    "mean+std": _mean_std,
    "none": _none,
}
