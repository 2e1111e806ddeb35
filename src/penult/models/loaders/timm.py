"""Open a timm (`timm:convnext_atto`) or torchvision (`torchvision:squeezenet1_1`) model, with
its own preprocessing.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import partial
from typing import Any

from torch import nn

from penult.errors import ModelError, first_line
from penult.extras import require
from penult.models.module import ModuleClassifier, assembled, from_factory
from penult.models.options import LoadOptions, preparation


def open_timm(name: str, asked: LoadOptions) -> ModuleClassifier:
    """A model by timm's name; without a checkpoint, with the weights that timm publishes.

    Raises:
        ModelError: timm has no such model, or its weights cannot be fetched.
    """
    timm = require("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise ModelError(f"timm has no model {name!r}" + (f"; near it: {near}" if near else ""))
    loose: dict[str, str] = {}
    facts: dict[str, Any] = {"revision": "published"}
    if asked.checkpoint is None and not asked.random:
        module = _published(timm, name)
    else:
        module, loose, facts = from_factory(partial(timm.create_model, name), asked)
    if asked.preprocess is None:
        config = timm.data.resolve_model_data_config(module)
        prepare = timm.data.create_transform(**config, is_training=False)
        settings: dict[str, Any] = {"timm": config}
    else:
        prepare, settings = preparation(asked)
    facts = {"origin": "timm", **facts}
    classifier = assembled(module, asked, prepare, settings, loose, f"timm:{name}", facts)
    if not callable(asked.preprocess):
        classifier.recipe = {"origin": "timm", "name": name, **asked.recipe()}
    return classifier


def _published(timm: Any, name: str) -> nn.Module:
    try:
        module: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the published weights of timm:{name} cannot be fetched ({first_line(error)}); give "
            "your own with --checkpoint"
        ) from error
    return module.eval()


def open_torchvision(name: str, asked: LoadOptions) -> ModuleClassifier:
    """A model by torchvision's name; without a checkpoint, with the weights that it publishes.

    Raises:
        ModelError: torchvision has no such classifier, or its weights cannot be fetched.
    """
    torchvision = require("torchvision")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = ", ".join(model for model in known if model[:4] == name[:4])
        raise ModelError(
            f"torchvision has no classifier {name!r}" + (f"; near it: {near}" if near else "")
        )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    loose: dict[str, str] = {}
    facts: dict[str, Any] = {}
    if asked.checkpoint is None and not asked.random:
        try:
            with redirect_stdout(sys.stderr):  # where torch says what it downloads
                module = torchvision.models.get_model(name, weights=weights).eval()
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the published weights of torchvision:{name} cannot be fetched "
                f"({first_line(error)}); give your own with --checkpoint"
            ) from error
        facts["revision"] = str(weights)
    else:
        factory = partial(torchvision.models.get_model, name, weights=None)
        module, loose, facts = from_factory(factory, asked)
    if asked.preprocess is None:
        prepare: Any = weights.transforms()
        settings: dict[str, Any] = {"torchvision": repr(prepare)}
    else:
        prepare, settings = preparation(asked)
    facts = {"origin": "torchvision", **facts}
    classifier = assembled(module, asked, prepare, settings, loose, f"torchvision:{name}", facts)
    if not classifier.facts.get("checkpoint") and asked.class_names is None:
        classifier.labels = tuple(weights.meta["categories"])
    if not callable(asked.preprocess):
        classifier.recipe = {"origin": "torchvision", "name": name, **asked.recipe()}
    return classifier
