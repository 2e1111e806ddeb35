"""Find an operation's tensor again in another forward pass, to read it there or to write over it.

What a hook is to a module, this is to an operation: for taps that no module's edge carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from penult.splitting.taps import INPUT, Tap
from penult.splitting.trace import Read, _Recorder, _watching

See = Callable[[Tap, Tensor], None]


class _Watcher(_Recorder):  # type: ignore[no-untyped-call]
    """Shows the tensors of some operations as they run; records nothing."""

    def __init__(self, taps: Sequence[Tap], see: See) -> None:
        super().__init__([])
        self._see = see
        self._wanted: dict[tuple[str, str], list[Tap]] = {}
        for tap in taps:
            self._wanted.setdefault((tap.operation, tap.module), []).append(tap)

    def reads(self, values: Any) -> list[Read]:
        return []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        key = str(func.overloadpacket), self.stack[-1].module if self.stack else ""
        taps = self._wanted.get(key, ())
        self._show([tap for tap in taps if tap.side == INPUT], (args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._show([tap for tap in taps if tap.side != INPUT], result)
        return result

    def _show(self, taps: Sequence[Tap], values: Any) -> None:
        if not taps:
            return
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        for tap in taps:
            if tap.index < len(tensors):
                self._see(tap, tensors[tap.index])


@contextmanager
def watching(module: nn.Module, taps: Sequence[Tap], see: See) -> Iterator[None]:
    """While a forward pass runs: `see(tap, tensor)` for every operation that a tap may mean.

    Operations of one name in one module look alike from here; `Tap.later` tells them apart once
    the pass is over. An operand is shown before its operation runs, a result after it.
    """
    watcher = _Watcher(taps, see)
    # Inference mode hides what composite operations are made of; the trace was made without it.
    with torch.inference_mode(False), torch.no_grad(), _watching(module, watcher), watcher:
        yield
