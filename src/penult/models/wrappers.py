"""Wrappers around a network or a part of it (torch.compile, DataParallel, averaged weights), taken
off without a change to the caller's module.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

# What wrappers put into the names of weights, where the network or a part of it was wrapped.
_NAMES = re.compile(r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Class → the attribute that holds the network; all of them only pass a call on.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


def plain_name(name: str) -> str:
    """The name of a weight or a module, without what wrappers put into it."""
    return _NAMES.sub("", name)


def network(module: Any) -> Any:
    """What lies inside of the wrappers around a whole model; any other object as it is."""
    while isinstance(module, nn.Module) and (inner := _inside(module)) is not None:
        module = inner
    return module


def unwrapped(module: nn.Module) -> nn.Module:
    """The network itself, with the same weights; as it is where nothing in it is wrapped."""
    return _bare(module, {}) if any(map(_is_wrapped, module.modules())) else module


def _is_wrapped(module: nn.Module) -> bool:
    compiled = getattr(module, "_compiled_call_impl", None) is not None  # by module.compile()
    return compiled or _inside(module) is not None


def _inside(module: nn.Module) -> nn.Module | None:
    if not type(module).__module__.startswith("torch."):  # somebody's own class of such a name
        return None
    inner = getattr(module, _WRAPPERS.get(type(module).__name__, ""), None)
    return inner if isinstance(inner, nn.Module) else None


def _bare(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """A twin that shares every parameter, buffer and hook, and has bare children."""
    if id(module) not in known:
        inner = _inside(module)
        if inner is not None:
            known[id(module)] = _bare(inner, known)
        else:
            known[id(module)] = twin = copy.copy(module)
            children = module._modules.items()
            twin.__dict__["_modules"] = {
                name: child if child is None else _bare(child, known) for name, child in children
            }
    return known[id(module)]


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """A module and, while it takes no named argument itself, what it passes its arguments on to:
    PEFT's models hide the network's own signature."""
    while isinstance(module, nn.Module):
        yield module
        base = getattr(module, "get_base_model", None)
        if base is None:
            return
        module = base()
