"""What `split` is asked, checked before anything runs: a module that is whole, inputs that fit it.

Every complaint is one sentence that says what was received and what would do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from penult.errors import UsageError
from penult.splitting.variants import Inputs


def check_model(model: Any) -> None:
    """Refuse what is no module with weights.

    Raises:
        UsageError: what it is, and what to do with it.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"split takes a torch module, not {type(model).__name__}{_instead(model)}")
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise UsageError(
            f"{', '.join(lazy[:3])} get their shapes in the first call (lazy layers): call the "
            "model once, then split it"
        )
    if any(p.device.type == "meta" for p in (*model.parameters(), *model.buffers())):
        raise UsageError("the model's weights are on the meta device: load them first")


def _instead(model: Any) -> str:
    if isinstance(model, str | bytes | os.PathLike):
        return ": open the file first, for example with penult.load"
    if isinstance(model, Mapping):
        return ": weights alone say nothing of how they are used; build the model and load them"
    if isinstance(model, type):
        return ": give an instance, not its class"
    if isinstance(model, torch.export.ExportedProgram):
        return ": give its .module()"
    return ""


def check_inputs(model: nn.Module, inputs: Inputs) -> None:
    """Refuse inputs that no model could be tried on.

    Raises:
        UsageError: no tensor, an empty or a sparse one, or one on another device.
    """
    tensors = inputs.tensors()
    if not tensors:
        given = {type(value).__name__ for value in (*inputs.args, *inputs.kwargs.values())}
        raise UsageError(
            f"the example inputs hold no tensor but {', '.join(sorted(given)) or 'nothing'}; give "
            "what the model is called with"
        )
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_nested:
            raise UsageError(f"the example input {name} is {value.layout}; give a dense tensor")
        if value.ndim and not value.shape[0]:
            raise UsageError(f"the example input {name} is empty, {tuple(value.shape)}")
    there = {p.device for p in (*model.parameters(), *model.buffers())}
    here = {value.device for value in tensors.values()}
    if len(there) == 1 and not here & there:
        raise UsageError(f"the model is on {there.pop()}, the example inputs on {here.pop()}")


def check_shapes(inputs: Inputs, other: Inputs) -> None:
    """Refuse a second input that is not of the first one's shapes.

    Raises:
        UsageError: both shapes.
    """
    one, two = (
        {key: tuple(value.shape) for key, value in x.tensors().items()} for x in (inputs, other)
    )
    if one != two:
        raise UsageError(
            f"the two example inputs have different shapes, {one} and {two}; give two of one shape"
        )
