"""Open a torchvision classifier (`torchvision:squeezenet1_1`), with its own preprocessing."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import partial
from typing import Any

from penult.classifiers.asked import Asked, preparation
from penult.classifiers.from_torch import ModuleClassifier, assembled, from_factory
from penult.errors import ModelError, first_line
from penult.extras import require


def open_torchvision(name: str, asked: Asked) -> ModuleClassifier:
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
