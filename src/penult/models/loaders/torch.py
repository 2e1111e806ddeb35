"""Open a torch module that is at hand, or one that a factory builds."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from penult.errors import ModelError
from penult.models.base import Classifier
from penult.models.module import ModuleParts, assemble, from_factory, storage_of, unwrapped
from penult.models.options import LoadOptions, imported, preprocessing_of


def open_module(module: Any, options: LoadOptions, spec: str = "") -> Classifier:
    """A model that is at hand, with its weights in it: torch, TorchScript, torch.export, Keras."""
    module = unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        from penult.models.loaders.torchscript import open_scripted

        return open_scripted(module, options, spec or "a TorchScript module")
    if is_keras(module):
        from penult.models.loaders.keras import open_model

        return open_model(module, options, spec or type(module).__name__)
    if isinstance(module, torch.export.ExportedProgram):
        from penult.models.loaders.torch_export import open_program

        return open_program(module, options, spec or "an exported program")
    if not isinstance(module, nn.Module):
        raise ModelError(f"expected a torch module, received {type(module).__name__}")
    name = spec or type(module).__name__
    return assemble(ModuleParts(module.eval(), preprocessing_of(options), name), options)


def open_factory(spec: str, options: LoadOptions) -> Classifier:
    """`package.module:factory`, called without arguments or with `num_classes`."""
    factory = imported(spec, "a factory")
    if options.checkpoint is None and not options.random:
        raise ModelError(
            f"{spec!r} builds a module, and nothing says that its weights are trained: give them "
            "with --checkpoint"
        )
    module, filling, facts = from_factory(factory, options)
    parts = ModuleParts(
        module,
        preprocessing_of(options),
        spec,
        filling,
        facts={"origin": "torch", **facts},
        storage=storage_of("torch", spec, options),
        factory=factory,
    )
    return assemble(parts, options)


def is_keras(model: Any) -> bool:
    """Whether an object is a model of Keras; nothing is imported to tell."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, getattr(keras, "Layer", ()))
