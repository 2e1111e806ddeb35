"""Open a timm model (`timm:convnext_atto`), with its own preprocessing."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from penult.classifiers.asked import Asked, preparation
from penult.classifiers.from_torch import ModuleClassifier, assembled, from_factory
from penult.errors import ModelError, first_line
from penult.extras import require


def open_timm(name: str, asked: Asked) -> ModuleClassifier:
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
