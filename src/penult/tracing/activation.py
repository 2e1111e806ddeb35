"""The activation that ends a torch module: found by value and in the pass, and left off.

A model that returns probabilities has logits in front of its last softmax or sigmoid.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from penult.errors import HeadNotFound
from penult.tracing.head import find_head, logits_of
from penult.tracing.scores import (
    SIGMOID,
    SOFTMAX,
    Array,
    in_unit_range,
    is_applied,
    recognised,
)
from penult.tracing.trace import TensorRead, Trace, ValueAddress, record

# Functions of torch and of its operators by their plain names, and what they are.
_ENDS = {"softmax": SOFTMAX, "safe_softmax": SOFTMAX, "sigmoid": SIGMOID, "expit": SIGMOID}

# Functions that give the same numbers in another layout, or some of them.
_LAYOUTS = frozenset(
    "reshape view squeeze unsqueeze flatten unflatten transpose permute contiguous clone detach "
    "float double half bfloat16 to type type_as cpu cuda view_as reshape_as expand expand_as t "
    "slice "
    "getitem select narrow swapaxes movedim alias unsafe_view to_copy adjoint atleast_1d "
    "atleast_2d cat concat concatenate stack copy".split()
)
_EVIDENCE = ("aten.sigmoid", "aten.sigmoid_", "aten.hardsigmoid", "aten._softmax")


def find_activation(
    module: nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    output: str | int | None = None,
) -> tuple[str, nn.Module | None]:
    """(softmax, sigmoid, log-softmax or nothing; the module without it, where that is exact).

    examples: inputs of one item each. A sigmoid is known by its operation: numbers may lie between
    0 and 1 by chance.
    """
    first = _values(module, examples[0], output)
    if not in_unit_range([first]):
        if first.size and first.max() > 1e-6:
            return "", None
        return recognised([first, *(_values(module, one, output) for one in examples[1:])]), None
    values = [first, *(_values(module, one, output) for one in examples[1:])]
    if not in_unit_range(values):
        return "", None
    own: Callable[[], nn.Module | None] | None = getattr(module, "without_activation", None)
    bare = own() if own is not None else without_activation(module, output)
    if bare is not None and (name := _undone(bare, examples, values, output)):
        return name, bare
    if name := recognised(values):
        return name, None
    shape = values[0].shape
    return (SIGMOID if _has_sigmoid(module, examples[0], output, shape) else ""), None


def _values(module: nn.Module, tensors: Mapping[str, Tensor], output: str | int | None) -> Array:
    with torch.no_grad():
        values = logits_of(module(**tensors), output)
    return np.asarray(values.detach().float().cpu().numpy())


def _undone(
    bare: nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    values: Sequence[Array],
    output: str | int | None,
) -> str:
    """Which function the module without its activation lacks; nothing if it lacks none."""
    try:
        logits = [_values(bare, one, output) for one in examples]
    except (RuntimeError, HeadNotFound):
        return ""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in bare.parameters())
    for name in (SOFTMAX, SIGMOID):
        if name == SOFTMAX and values[0].shape[-1:] == (1,):
            continue  # of one class it is 1, whatever its logit
        if all(is_applied(name, a, b, half) for a, b in zip(logits, values, strict=True)):
            return name
    return ""


def _has_sigmoid(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    output: str | int | None,
    shape: tuple[int, ...],
) -> bool:
    """Whether a sigmoid or softmax lies between the last weights and what is returned: pooled over
    frames for example, so that it cannot be left off; or a sigmoid written as other operations.
    shape: of what is returned."""

    def alike(address: ValueAddress, read: TensorRead) -> bool:
        return address.is_result and address.number == 0 and _is_like(read, shape)

    trace = record(module, kwargs=tensors, keep=alike)
    if _is_sigmoid(trace, logits_of(trace.output, output)):
        return True
    try:
        after = find_head(trace, output).after
    except HeadNotFound:
        return False
    return not {*_EVIDENCE}.isdisjoint(after)


def _is_sigmoid(trace: Trace, scores: Tensor) -> bool:
    """Whether what is returned is, by value, the sigmoid of a tensor on the way there."""
    returned = np.asarray(scores.detach().float().cpu().numpy())
    read = trace.read_of(scores)
    if read is None or np.ptp(returned) < 1e-3:  # all but constant: of nothing in particular
        return False
    half = scores.dtype in (torch.float16, torch.bfloat16)
    made = (op.result() for op in trace.upstream([read]) if op.writes and op.depends)
    return any(
        is_applied(SIGMOID, trace.values.of(one).float().cpu().numpy(), returned, half)
        for one in made
        if _is_like(one, scores.shape)
    )


def _is_like(read: TensorRead, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be what a sigmoid was applied to: floats of this shape."""
    return read.tensor.shape == shape and read.tensor.is_floating_point()


def _plain(name: str) -> str:
    """`softmax` of `aten::softmax`, `aten._softmax.default`, `softmax.int` or `softmax_`."""
    bare = name.removeprefix("aten::").removeprefix("aten.")
    return bare.partition(".")[0].strip("_")


def ends_with(name: str) -> str:
    """The activation that an operation of this name is: softmax, sigmoid or nothing."""
    return _ENDS.get(_plain(name), "")


def is_layout(name: str) -> bool:
    """Whether an operation of this name gives the same numbers in another layout."""
    return _plain(name) in _LAYOUTS


class PreActivations(TorchFunctionMode):
    """While a module runs: what entered the softmax or sigmoid that a tensor came out of, and was
    only laid out anew since. Nothing is kept longer than the tensor itself."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if ends_with(name) and args and isinstance(args[0], Tensor):
            in_place = name.partition(".")[0].endswith("_")
            before = args[0].clone() if in_place else args[0]
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and _is_row_like(result):
                self._keep(result, before.to(result.dtype))
            return result
        result = func(*args, **kwargs)
        if self._known and is_layout(name) and isinstance(result, Tensor):
            self._follow(func, args, kwargs, result)
        return result

    def _keep(self, result: Tensor, before: Tensor) -> None:
        key = id(result)
        gone = functools.partial(self._forget, key)
        self._known[key] = weakref.ref(result, gone), before

    def _forget(self, key: int, _: Any) -> None:
        self._known.pop(key, None)

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        """The same change of layout, of what entered the activation."""
        tensors = [leaf for leaf in tree_leaves((args[:1], kwargs)) if isinstance(leaf, Tensor)]
        if not tensors or any(self.of(tensor) is None for tensor in tensors):
            return
        if self.of(result) is not None:
            return  # the tensor itself was given back
        swapped = tree_map(self._swapped, args)
        self._keep(result, func(*swapped, **tree_map(self._swapped, kwargs)))

    def _swapped(self, leaf: Any) -> Any:
        before = self.of(leaf) if isinstance(leaf, Tensor) else None
        return leaf if before is None else before

    def of(self, tensor: Tensor) -> Tensor | None:
        """What the tensor was before the activation; None where it comes out of none."""
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None


def _is_row_like(tensor: Tensor) -> bool:
    """Whether it can be scores of items or frames: no map, and no attention of several heads."""
    return tensor.ndim <= 3 or all(size == 1 for size in tensor.shape[2:])


def without_activation(module: nn.Module, output: str | int | None = None) -> nn.Module:
    """The module with what enters its last softmax or sigmoid in place of what leaves it.

    It shares weights and parts with the module, which stays as it is.
    """
    kind = type(module)
    own = module.__dict__.get("forward")  # one that was put on this module alone
    forward = kind.forward if own is None else own

    @functools.wraps(forward)
    def bare(*args: Any, **kwargs: Any) -> Any:
        with PreActivations() as mode:
            returned = forward(*args, **kwargs)
            scores = logits_of(returned, output)
            logits = mode.of(scores)
        return returned if logits is None else _replaced(returned, scores, logits)

    twin = copy.copy(module)
    if own is not None:
        twin.__dict__["forward"] = bare
        return twin
    own_names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    twin.__class__ = type(kind.__name__, (kind,), {"forward": bare, **own_names})
    return twin


def _replaced(returned: Any, scores: Tensor, logits: Tensor) -> Any:
    """What a model returned, with other numbers in place of its scores."""
    if returned is scores:
        return logits
    if any(leaf is scores for leaf in tree_leaves(returned)):
        return tree_map(lambda leaf: logits if leaf is scores else leaf, returned)
    changed = copy.copy(returned)
    for name, value in vars(returned).items():
        if value is scores:
            setattr(changed, name, logits)
    return changed
