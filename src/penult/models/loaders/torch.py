"""Open a torch module that is at hand, or one that a factory builds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from penult.errors import ModelError, PenultError, cause
from penult.models.base import Classifier, store_as
from penult.models.module import ModuleParts, assemble, from_factory, storage_of
from penult.models.options import LoadOptions, preprocessing_of
from penult.models.trust import imported, named_by
from penult.models.wrappers import network, unwrapped


def open_module(module: Any, options: LoadOptions, spec: str = "") -> Classifier:
    """A model that is at hand, with its weights in it: torch, TorchScript, torch.export, Keras."""
    module = network(module)
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
    parts = ModuleParts(unwrapped(module).eval(), preprocessing_of(options), name)
    return assemble(parts, options)


def open_factory(spec: str, options: LoadOptions) -> Classifier:
    """`package.module:factory`, called without arguments or with `num_classes`.

    Raises:
        ModelError: it cannot be called, or nothing says that its weights are trained.
    """
    factory = imported(spec, "a factory", options.trust)
    if options.weights_inside:
        return _open_trained(factory, spec, options)
    if options.checkpoint is None and not options.random:
        raise ModelError(
            f"{spec!r} builds a module, and nothing says that its weights are trained: give them "
            "with --checkpoint, or say --weights-inside if the factory loads them itself"
        )
    with named_by(""):  # what the user's own code opens is named by the user
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


def _open_trained(factory: Callable[..., Any], spec: str, options: LoadOptions) -> Classifier:
    """What a factory gives with its trained weights in it: any model that `penult.load` takes. It
    is saved as the factory's name, and its module's weights are kept where torch reads them."""
    inside = replace(options, weights_inside=False)
    try:
        with redirect_stdout(sys.stderr), named_by(""):
            made = factory()
    except PenultError:
        raise
    except Exception as error:  # somebody else's code may raise anything
        raise ModelError(
            f"the factory {spec!r} failed: {type(error).__name__}: {cause(error)}"
        ) from error
    if (
        not isinstance(made, nn.Module)
        or isinstance(made, torch.jit.ScriptModule)
        or is_keras(made)
    ):
        classifier = open_module(made, inside, spec)
        store_as(classifier, storage_of("torch", spec, options, files={}))
        return classifier
    parts = ModuleParts(
        unwrapped(made).eval(),
        preprocessing_of(options),
        spec,
        facts={"origin": "torch", "checkpoint": f"the factory {spec}"},
        storage=storage_of("torch", spec, inside),
        factory=factory,
    )
    return assemble(parts, options)


def is_keras(model: Any) -> bool:
    """Whether an object is a model of Keras; nothing is imported to tell."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, getattr(keras, "Layer", ()))
