"""The part of a classifier of transformers that lies below its head, as a checkpoint of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penult.errors import EngineError
from penult.models.base import Classifier
from penult.models.hub import SAFE_WEIGHTS
from penult.models.processors import quiet

# Of a saved classifier: all other files say how items are prepared.
_OF_THE_MODEL = (
    "config.json", "generation_config.json", "README.md", "*.py", "*.bin", *SAFE_WEIGHTS,
)  # fmt: skip


def write_base(classifier: Classifier, folder: Path) -> None:
    """Write the model below the head, and the files that prepare its items.

    Raises:
        EngineError: no classifier of transformers, or one that is all head.
    """
    base: Any = getattr(classifier.module, "base_model", None)
    if not hasattr(base, "save_pretrained") or base is classifier.module:
        raise EngineError(
            f"{classifier.spec} is no classifier of transformers with a model below its head, "
            "which this format needs; --format onnx, openvino and pt2 take any torch module"
        )
    with quiet(), TemporaryDirectory() as scratch:
        classifier.save(scratch)
        for file in Path(scratch).iterdir():
            if file.is_file() and not any(file.match(pattern) for pattern in _OF_THE_MODEL):
                shutil.copyfile(file, folder / file.name)
        base.save_pretrained(folder)
