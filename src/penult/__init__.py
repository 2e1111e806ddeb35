"""Turn any trained classifier into an embedding model, prove the cut, use the vectors.

Nothing heavy is imported before it is used: `import penult` loads neither torch nor transformers.
"""

import sys

from penult.import_path import is_own_command, leave_working_folder_out

if is_own_command():  # before anything else is imported
    leave_working_folder_out()

import logging
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from penult.errors import PenultError

if TYPE_CHECKING:
    from penult.api import load
    from penult.collection.collection import Collection
    from penult.conversion.formats import convert
    from penult.embedding.embedder import Embedder
    from penult.embedding.runner import Result
    from penult.fewshot.classspace import ClassSpace
    from penult.models.base import Classifier, Prediction
    from penult.publishing.hub_repository import pull, push
    from penult.selection import choose
    from penult.tracing.split import split

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
    "convert",
    "load",
    "pull",
    "push",
    "split",
]

_HOMES = {
    "ClassSpace": "penult.fewshot.classspace",
    "Classifier": "penult.models.base",
    "Collection": "penult.collection.collection",
    "Embedder": "penult.embedding.embedder",
    "Prediction": "penult.models.base",
    "Result": "penult.embedding.runner",
    "choose": "penult.selection",
    "convert": "penult.conversion.formats",
    "load": "penult.api",
    "pull": "penult.publishing.hub_repository",
    "push": "penult.publishing.hub_repository",
    "split": "penult.tracing.split",
}


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'penult' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)


# Where classes are now that pickles written by 0.1.0 name.
_MOVED = {
    "penult.bridges": "penult",
    "penult.bridges.sklearn": "penult.integrations.sklearn",
    "penult.space": "penult.analysis.space",
}


class _Moved(MetaPathFinder, Loader):
    """Give the modules of old pickles under their former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(_MOVED[module.__name__])


sys.meta_path.append(_Moved())
