"""Notes in the user's cache: what was measured for a question, kept for later runs.

A note has the hash of itself and of its question. One that is damaged, or that another user wrote,
is not believed: what it would tell is measured anew.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from penult.data.files import file_aside, user_cache
from penult.data.hashes import digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedNote:
    """What was measured for a question in an earlier run. when: the day, as 2026-11-29."""

    answer: dict[str, Any]
    when: str


class Notes:
    """Notes in the first of these folders that this user may write to."""

    def __init__(self, places: Sequence[Path]) -> None:
        self._places = places

    def recall(self, name: str) -> CachedNote | None:
        """The note of a name."""
        for place in self._places:
            if is_own(place / name) and (found := _read(place / name)) is not None:
                return found
        return None

    def note(self, name: str, answer: dict[str, Any]) -> None:
        """Keep an answer; it is measured again where it cannot be written."""
        for place in self._places:
            try:
                place.mkdir(parents=True, exist_ok=True)
                with file_aside(place / name) as aside:
                    aside.write_text(json.dumps(_sealed(name, answer), indent=1), "utf-8")
            except OSError:
                continue
            return


def own_places(folder: str, name: str) -> list[Path]:
    """Folders of the user's cache for something of a name; the second is for a cache that several
    users share, where the first was another's."""
    cache = user_cache() / folder
    return [cache / name, cache / f"{name}-{_user()}"]


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def is_own(path: Path) -> bool:
    """Whether something in the cache is this user's: of another one (a cache that is shared, a
    folder that was unpacked) nothing is believed. What root has put there is."""
    try:
        found = [path, *path.iterdir()] if path.is_dir() else [path]
        owners = {one.lstat().st_uid for one in found}
    except OSError:
        return False
    return not hasattr(os, "geteuid") or owners <= {0, _user()}


def _sealed(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """A note with the hash of itself and of its question."""
    document = {"of": name, "when": date.today().isoformat(), "answer": answer}
    return {**document, "hash": digest(json.loads(json.dumps(document)))}


def _read(path: Path) -> CachedNote | None:
    """A note that is as it was written, at the place where it was."""
    try:
        document = json.loads(path.read_text("utf-8"))
        seal = document.pop("hash")
        if seal == digest(document) and document["of"] == path.name:
            return CachedNote(dict(document["answer"]), str(document["when"]))
        reason = "it is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it cannot be read: {type(error).__name__}"
    log.info("%s is measured anew: %s", path, reason)
    return None
