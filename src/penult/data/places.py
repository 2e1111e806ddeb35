"""Where a collection is: a path of this machine, or one of an object store."""

from __future__ import annotations

import os
from pathlib import Path

from penult.data.items import checked_uri, is_object, local


def place_of(path: str | os.PathLike[str]) -> Path:
    """A path of this machine, or of an object, as the user names it.

    Raises:
        SourceError: as `checked_uri`, or `file://` of another machine.
    """
    text = os.fspath(path)
    if is_object(text):
        # Nothing of stores is imported for a path of this machine.
        from penult.data.object_store import ObjectPath

        return path if isinstance(path, ObjectPath) else ObjectPath(checked_uri(text))
    return local(text) if text.startswith("file://") else Path(path)
