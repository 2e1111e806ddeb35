"""What Python learns of a tensor's values in a forward pass, and how to tell it something else.

`if scores.max() > 0.9` is no operation on tensors, so no trace shows what would have happened
otherwise. Told the opposite, the model shows it. Sizes and lengths are left alone: with another
one, hardly any model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# What gives the place of the largest: a whole number that chooses, and no length.
_CHOOSING = {f"aten.{name}" for name in ("argmax", "argmin", "max", "min", "topk", "sort")}

# How values leave torch without an operation.
_LEAVING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}


def decides(result: Any, makers: Sequence[str]) -> bool:
    """Whether what an operation gave to Python may decide something. makers: names of the
    operations that had made what it read."""
    if isinstance(result, bool | float):
        return True
    return isinstance(result, int) and bool(_CHOOSING & set(makers))


def turned(value: Any, forced: float) -> Any:
    """Something else to tell Python. forced: what takes the place of a float."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 0 if value else 1
    if isinstance(value, float):
        return forced
    if isinstance(value, list):
        return [one if type(one) is int else turned(one, forced) for one in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "bf":
        return ~value if value.dtype.kind == "b" else np.full_like(value, forced)
    return value


class Listener(TorchFunctionMode):
    """Sees the values that leave torch by `.tolist()` and `.numpy()`. depends: whether a tensor
    is made from the input. told: what Python gets instead of such a value."""

    def __init__(self, depends: Callable[[torch.Tensor], bool], told: Callable[[Any], Any]) -> None:
        super().__init__()
        self._depends, self._told = depends, told

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return self._told(result) if func in _LEAVING and self._depends(args[0]) else result
