"""Find an operation's tensor again in another forward pass, to read it there or to write over it.

What a hook is to a module, this is to an operation: for spots that no module's edge carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.splitting.taps import INPUT, Spot
from penult.splitting.trace import Read, _Recorder, _watching

See = Callable[[Spot, Tensor], None]


class _Watcher(_Recorder):  # type: ignore[no-untyped-call]
    """Shows the tensors of some operations as they run; records nothing."""

    def __init__(self, spots: Sequence[Spot], see: See) -> None:
        super().__init__([])
        self._see = see
        self._wanted: dict[tuple[str, str], list[Spot]] = {}
        for spot in spots:
            self._wanted.setdefault((spot.operation, spot.module), []).append(spot)

    def reads(self, values: Any) -> list[Read]:
        return []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        key = str(func.overloadpacket), self.stack[-1].module if self.stack else ""
        spots = self._wanted.get(key, ())
        self._show([spot for spot in spots if spot.side == INPUT], (args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._show([spot for spot in spots if spot.side != INPUT], result)
        return result

    def _show(self, spots: Sequence[Spot], values: Any) -> None:
        if not spots:
            return
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        for spot in spots:
            if spot.index < len(tensors):
                self._see(spot, tensors[spot.index])


@contextmanager
def watching(module: nn.Module, spots: Sequence[Spot], see: See) -> Iterator[None]:
    """While a forward pass runs: `see(spot, tensor)` for every operation that a spot may mean.

    Operations of one name in one module look alike from here; `Spot.later` tells them apart once
    the pass is over. An operand is shown before its operation runs, a result after it.
    """
    watcher = _Watcher(spots, see)
    # Inference mode hides what composite operations are made of; the trace was made without it.
    with torch.inference_mode(False), torch.no_grad(), _watching(module, watcher), watcher:
        yield
