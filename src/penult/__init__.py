"""Turn any trained classifier into an embedding model, prove the cut, use the vectors.

Nothing heavy is imported before it is used: `import penult` loads neither torch nor transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from penult.errors import PenultError

if TYPE_CHECKING:
    from penult.api import load
    from penult.classifiers.base import Classifier, Prediction
    from penult.classspace import ClassSpace
    from penult.embedding.embedder import Embedder
    from penult.embedding.result import Result
    from penult.selection import choose
    from penult.splitting.cut import split
    from penult.store.collection import Collection

__version__ = "0.1.0"

# Silent until a program, or the command line, says where to: loggers are named after modules.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "ClassSpace",
    "Classifier",
    "Collection",
    "Embedder",
    "PenultError",
    "Prediction",
    "Result",
    "__version__",
    "choose",
    "load",
    "split",
]

_HOMES = {
    "ClassSpace": "penult.classspace",
    "Classifier": "penult.classifiers.base",
    "Collection": "penult.store.collection",
    "Embedder": "penult.embedding.embedder",
    "Prediction": "penult.classifiers.base",
    "Result": "penult.embedding.result",
    "choose": "penult.selection",
    "load": "penult.api",
    "split": "penult.splitting.cut",
}


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'penult' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
