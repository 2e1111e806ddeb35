"""Open a timm (`timm:convnext_atto`) or torchvision (`torchvision:squeezenet1_1`) model, with
its own preprocessing.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import partial
from typing import Any

from torch import nn

from penult.errors import ModelError, cause
from penult.extras import require
from penult.models import hub
from penult.models.base import Classifier
from penult.models.checkpoints import Filling
from penult.models.module import ModuleParts, assemble, from_factory, storage_of
from penult.models.options import LoadOptions, Preprocessing, preprocessing_of


def open_timm(name: str, options: LoadOptions) -> Classifier:
    """A model by timm's name; without a checkpoint, with the weights that timm publishes.

    Raises:
        ModelError: timm has no such model, or its weights cannot be fetched.
    """
    timm = require("timm")
    if not timm.is_model(name):
        similar = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise ModelError(
            f"timm has no model {name!r}" + (f"; similar names: {similar}" if similar else "")
        )
    filling = Filling()
    facts: dict[str, Any] = {"revision": "published"}
    if options.checkpoint is None and not options.random:
        module = _published(timm, name, options.trust)
    else:
        module, filling, facts = from_factory(partial(timm.create_model, name), options)
    if options.preprocess is None:
        config = timm.data.resolve_model_data_config(module)
        transform = timm.data.create_transform(**config, is_training=False)
        preprocessing = Preprocessing(transform, {"timm": config})
    else:
        preprocessing = preprocessing_of(options)
    parts = ModuleParts(
        module,
        preprocessing,
        f"timm:{name}",
        filling,
        facts={"origin": "timm", **facts},
        storage=storage_of("timm", name, options),
    )
    return assemble(parts, options)


def _published(timm: Any, name: str, trust: bool) -> nn.Module:
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        url = None if config is None or config.hf_hub_id else config.url or None
        with hub.published(f"timm:{name}", url, trust):
            module: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the published weights of timm:{name} cannot be fetched ({cause(error)}); give "
            "your own with --checkpoint"
        ) from error
    return module.eval()


def open_torchvision(name: str, options: LoadOptions) -> Classifier:
    """A model by torchvision's name; without a checkpoint, with the weights that it publishes.

    Raises:
        ModelError: torchvision has no such classifier, or its weights cannot be fetched.
    """
    torchvision = require("torchvision")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        similar = ", ".join(model for model in known if model[:4] == name[:4])
        raise ModelError(
            f"torchvision has no classifier {name!r}"
            + (f"; similar names: {similar}" if similar else "")
        )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    filling = Filling()
    facts: dict[str, Any] = {}
    if options.checkpoint is None and not options.random:
        try:
            with (
                hub.published(f"torchvision:{name}", weights.url, options.trust),
                redirect_stdout(sys.stderr),  # where torch says what it downloads
            ):
                module = torchvision.models.get_model(name, weights=weights).eval()
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"the published weights of torchvision:{name} cannot be fetched "
                f"({cause(error)}); give your own with --checkpoint"
            ) from error
        facts["revision"] = str(weights)
    else:
        factory = partial(torchvision.models.get_model, name, weights=None)
        module, filling, facts = from_factory(factory, options)
    if options.preprocess is None:
        transforms = weights.transforms()
        preprocessing = Preprocessing(transforms, {"torchvision": repr(transforms)})
    else:
        preprocessing = preprocessing_of(options)
    parts = ModuleParts(
        module,
        preprocessing,
        f"torchvision:{name}",
        filling,
        facts={"origin": "torchvision", **facts},
        labels=() if facts.get("checkpoint") else weights.meta["categories"],
        storage=storage_of("torchvision", name, options),
    )
    return assemble(parts, options)
