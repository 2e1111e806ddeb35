"""Hidden states → one vector per item: pooling over position axes, never over channels.

A mask marks the valid positions; every pooling obeys it. Another package adds a pooling by an
entry point (`penult.poolings`). Knows nothing of models or taps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING

from penult import extras
from penult.errors import PenultError, TapError, cause
from penult.models.options import source_of

if TYPE_CHECKING:
    from torch import Tensor

    # (hidden, channel axis, mask (B, T) or None where every position is valid) → (B, D)
    PoolingFunction = Callable[[Tensor, int, Tensor | None], Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pooling:
    """One pooling.

    name: as `--pooling` takes it. function: hidden states → vectors. times: numbers that it gives
    for each channel; of another package's they are measured. needs_positions: no use where a tap
    has one vector per item. one_vector: whether it gives one vector per item. on_maps:
    whether `choose` compares it where positions have several axes. package: `NAME VERSION` of the
    other package that it comes from. key: changes where the package's own code does.
    """

    name: str
    function: PoolingFunction
    times: int = 1
    needs_positions: bool = False
    one_vector: bool = True
    on_maps: bool = True
    package: str = ""
    key: str = ""


def pool(hidden: Tensor, pooling: str, channel: int = -1, mask: Tensor | None = None) -> Tensor:
    """Pool hidden states over every axis but the batch and the channel.

    hidden: (B, …positions…, C), with the channels on axis `channel`. mask: (B, T) of the valid
    positions, for one position axis of T. Returns (B, D), which is (B, C) for the built-in ones,
    (B, 2C) for `mean+std`, (B, 3C) for `mean+std+delta`; `none` returns (B, …positions…, C). A
    mask that leaves nothing out changes nothing, to the bit.

    Raises:
        TapError: unknown pooling, a mask that does not fit the positions, or a pooling of another
            package that gives anything but one vector per item.
    """
    chosen = find_pooling(pooling)
    channel %= hidden.ndim
    if hidden.ndim == 2:
        if chosen.needs_positions:
            raise TapError(
                f"{pooling} needs positions to pool over; this tap has one vector per item"
            )
        return hidden
    if mask is not None:
        mask = mask.to(hidden.device).bool()
        # A pass that is being recorded has to serve for other masks, too.
        if not _recorded() and mask.all():
            mask = None
    if mask is not None and (
        hidden.ndim != 3 or mask.shape != (hidden.shape[0], hidden.shape[3 - channel])
    ):
        raise TapError(
            f"a mask of shape {tuple(mask.shape)} does not fit hidden states of shape "
            f"{tuple(hidden.shape)} with channels on axis {channel}"
        )
    vectors = chosen.function(hidden, channel, mask)
    if chosen.package and not _recorded():
        width = pooled_width(pooling, hidden.shape[channel])
        if vectors.shape[1] != width:
            raise TapError(
                f"pooling {pooling!r} of {chosen.package} gives {vectors.shape[1]} numbers here, "
                f"and {width} before; a vector has one length for all items"
            )
    return vectors


@cache
def pooled_width(pooling: str, width: int) -> int:
    """D, the numbers in the vector that a pooling makes of `width` channels; of another package's
    it is measured.

    Raises:
        TapError: unknown pooling, or one of another package that fails on hidden states of five
            positions, or gives anything but finite vectors of one length.
    """
    chosen = find_pooling(pooling)
    if not chosen.package:
        return chosen.times * width
    import torch

    hidden = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    try:
        found = [chosen.function(hidden[:, :p], 2, mask[:, :p]) for p in (5, 3)]
    except TapError:
        raise
    except Exception as error:  # a package of somebody else may raise anything
        raise TapError(
            f"pooling {pooling!r} of {chosen.package} fails on hidden states (2, 5, {width}) and a "
            f"mask (2, 5): {cause(error, named=True)}"
        ) from error
    if found[0].shape != found[1].shape:
        raise TapError(
            f"pooling {pooling!r} of {chosen.package} gives {found[0].shape[1]} numbers for five "
            f"positions and {found[1].shape[1]} for three; a vector has one length for all items"
        )
    if not all(values.isfinite().all() for values in found):
        raise TapError(
            f"pooling {pooling!r} of {chosen.package} gives values that are not finite for finite "
            "hidden states"
        )
    return found[0].shape[1]


def pooling_names() -> list[str]:
    """The built-in poolings, then those of other packages; none is imported."""
    return list(dict.fromkeys([*BUILT_IN, *extras.plugins(extras.POOLINGS)]))


def usable_poolings(width: int) -> list[Pooling]:
    """Every pooling that gives vectors of `width` channels; one of another package that does not is
    left out, with a warning."""
    return [find_pooling(name) for name in pooling_names() if _usable(name, width)]


@cache
def _usable(name: str, width: int) -> bool:
    try:
        pooled_width(name, width)
    except PenultError as error:
        log.warning("left out: %s", error)
        return False
    return True


def find_pooling(name: str) -> Pooling:
    """The pooling of a name.

    Raises:
        TapError: there is none. UsageError: its package cannot be imported.
    """
    return BUILT_IN[name] if name in BUILT_IN else _plugin(name)


@cache
def _plugin(name: str) -> Pooling:
    entry = extras.plugins(extras.POOLINGS).get(name)
    if entry is None:
        raise TapError(unknown(name))
    function = extras.load_plugin(entry)
    package = extras.package_of(entry)
    if not callable(function):
        raise TapError(
            f"pooling {name!r} of {package} is {type(function).__name__}, and a pooling is a "
            "function pool(hidden, mask)"
        )
    return Pooling(
        name,
        partial(_apply, function, f"{name!r} of {package}"),
        needs_positions=True,
        package=package,
        key=f"{name} of {package.partition(' ')[0]}, code {source_of(function)}",
    )


def _apply(
    function: Callable[[Tensor, Tensor], Tensor],
    name: str,
    hidden: Tensor,
    channel: int,
    mask: Tensor | None,
) -> Tensor:
    """A pooling of another package on copies of the hidden states and the mask."""
    import torch

    rows = _sequence(hidden, channel).clone(memory_format=torch.contiguous_format)
    valid = torch.ones_like(rows[..., 0], dtype=torch.bool) if mask is None else mask.clone()
    vectors = function(rows, valid)
    if _recorded():
        return vectors
    is_tensor = isinstance(vectors, type(rows))
    shape = tuple(vectors.shape) if is_tensor else type(vectors).__name__
    if not is_tensor or vectors.ndim != 2 or len(vectors) != len(hidden):
        raise TapError(
            f"pooling {name} gives {shape} for hidden states of shape (B, P, C) = "
            f"{tuple(rows.shape)}; a pooling gives (B, D), one vector for each item"
        )
    return vectors


def _recorded() -> bool:
    """Whether the pass at hand is being recorded as a graph."""
    import torch

    return bool(torch.jit.is_tracing() or torch.compiler.is_exporting())  # type: ignore[attr-defined,no-untyped-call]


def unknown(pooling: str, package: str = "") -> str:
    """Error text for a pooling that is not here. package: `NAME VERSION` that is known to bring
    it."""
    if package:
        return (
            f"pooling {pooling!r} comes from the package {package}, which is not installed; "
            f"install it with: pip install {package.partition(' ')[0]}"
        )
    *names, last = (name for name in pooling_names() if name != "none")
    return (
        f"unknown pooling {pooling!r}; choose {', '.join(names)} or {last} (none keeps every "
        "position, and no collection takes that; another package adds a pooling by an entry point "
        "in penult.poolings)"
    )


def check_poolings(
    names: Iterable[str], packages: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse poolings that are not here. packages: `NAME VERSION` that brought each of them.

    Raises:
        TapError: one is not installed, or unknown.
    """
    for name in names:
        if name not in pooling_names():
            raise TapError(unknown(name, packages.get(name, "")))


def codes_of(poolings: Iterable[str]) -> list[str]:
    """For each pooling of another package, its name, package and a hash of its code."""
    keys = (find_pooling(name).key for name in dict.fromkeys(poolings))
    return [key for key in keys if key]


def packages_of(poolings: Iterable[str]) -> dict[str, str]:
    """`NAME VERSION` of the other package of each pooling that comes from one."""
    return {name: find_pooling(name).package for name in poolings if find_pooling(name).package}


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
        hidden = hidden.masked_fill(~mask[..., None], -inf)
    return hidden.amax(dim=1)


def _first(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    hidden = _sequence(hidden, channel)
    if mask is None:
        return hidden[:, 0]
    return _row(hidden, mask.char().argmax(dim=1))


def _last(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    hidden = _sequence(hidden, channel)
    if mask is None:
        return hidden[:, -1]
    return _row(hidden, mask.shape[1] - 1 - mask.flip(1).char().argmax(dim=1))


def _row(hidden: Tensor, positions: Tensor) -> Tensor:
    """(B, C) at one position of each item."""
    import torch

    return hidden[torch.arange(hidden.shape[0], device=hidden.device), positions]


def _mean_std(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    # The population's deviation: zero, not NaN, for a single position.
    mean = _mean(hidden, channel, mask)
    spread = (_sequence(hidden, channel) - mean[:, None]).square()
    import torch

    return torch.cat([mean, _mean(spread, 2, mask).sqrt()], dim=1)


def _gem(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    """The generalised mean of what is above zero, with exponent 3 (Radenović, Tolias and Chum,
    2018). Each channel is divided by its maximum first: cubes neither overflow nor vanish."""
    top = _max(hidden, channel, mask).clamp(min=0.0)
    scale = top.masked_fill(top == 0, 1.0)
    parts = _sequence(hidden, channel).clamp(min=0.0) / scale[:, None]
    return _mean(parts.pow(3), 2, mask).pow(1 / 3) * top


def _mean_std_delta(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    """Beside mean and deviation the root mean square of the steps from one position to the next,
    zero where there is none: the order of positions, which the other two do not see."""
    import torch

    rows = _sequence(hidden, channel)
    steps = (rows[:, 1:] - rows[:, :-1]).square()
    if mask is None:
        size = steps.sum(dim=1) / max(1, steps.shape[1])
    else:
        both = mask[:, 1:] & mask[:, :-1]
        total = steps.masked_fill(~both[..., None], 0.0).sum(dim=1)
        size = total / both.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([_mean_std(hidden, channel, mask), size.sqrt()], dim=1)


def _none(hidden: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    return hidden.movedim(channel, -1)


BUILT_IN = {
    one.name: one
    for one in (
        Pooling("mean", _mean),
        Pooling("max", _max),
        Pooling("first", _first, on_maps=False),  # the corner of a picture says nothing of it
        Pooling("last", _last, on_maps=False),
        Pooling("mean+std", _mean_std, 2, needs_positions=True),
        Pooling("gem", _gem),
        Pooling("mean+std+delta", _mean_std_delta, 3, needs_positions=True, on_maps=False),
        Pooling("none", _none, one_vector=False),
    )
}
