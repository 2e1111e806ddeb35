"""Open a torch module that is at hand, or one that a factory builds."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from penult.errors import ModelError
from penult.models.module import (
    ModuleClassifier,
    assembled,
    from_factory,
)
from penult.models.options import LoadOptions, imported, preparation


def open_module(module: Any, asked: LoadOptions, spec: str = "") -> ModuleClassifier:
    """A model that is at hand, with its weights in it: torch, TorchScript, torch.export, Keras."""
    if isinstance(module, torch.jit.ScriptModule):
        from penult.models.loaders.torchscript import open_scripted

        return open_scripted(module, asked, spec or "a TorchScript module")
    if is_keras(module):
        from penult.models.loaders.keras import open_model

        return open_model(module, asked, spec or type(module).__name__)
    if isinstance(module, torch.export.ExportedProgram):
        from penult.models.loaders.torch_export import open_program

        return open_program(module, asked, spec or "an exported program")
    if not isinstance(module, nn.Module):
        raise ModelError(f"expected a torch module, received {type(module).__name__}")
    prepare, settings = preparation(asked)
    return assembled(module.eval(), asked, prepare, settings, {}, spec or type(module).__name__)


def open_factory(spec: str, asked: LoadOptions) -> ModuleClassifier:
    """`package.module:factory`, called without arguments or with `num_classes`."""
    factory = imported(spec, "a factory")
    if asked.checkpoint is None and not asked.random:
        raise ModelError(
            f"{spec!r} builds a module, and nothing says that its weights are trained: give them "
            "with --checkpoint"
        )
    module, loose, facts = from_factory(factory, asked)
    prepare, settings = preparation(asked)
    facts = {"origin": "torch", **facts}
    classifier = assembled(module, asked, prepare, settings, loose, spec, facts)
    if not callable(asked.preprocess):
        classifier.recipe = {"origin": "torch", "name": spec, **asked.recipe()}
    return classifier


def is_keras(model: Any) -> bool:
    """Whether an object is a model of Keras; nothing is imported to tell."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, getattr(keras, "Layer", ()))
