"""A class space as what its file holds, and back. Knows no path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penult.classspace.origin import Origin
from penult.classspace.settings import Settings
from penult.classspace.teaching import Groups
from penult.space import Space
from penult.store.folder import Manifest
from penult.teaching.classfile import Saved
from penult.teaching.examples import Examples

OF_EXAMPLES = "space_of_examples"  # the space is fitted again to the examples, as they change


def saved(
    origin: Origin,
    settings: Settings,
    examples: Examples,
    space: Space,
    groups: Sequence[str | None] | None,
    of_examples: bool,
) -> Saved:
    """All that is needed to judge again without a collection."""
    manifest, about = origin.manifest, settings.to_dict() | {OF_EXAMPLES: of_examples}
    return Saved(examples, space, manifest.fingerprint, manifest.model, about, groups)


def restored(
    saved: Saved, changed: Mapping[str, Any]
) -> tuple[Origin, Settings, Examples, Groups, Space | None]:
    """What a class space is made of, with changed settings; no space is one to be fitted."""
    settings, examples = Settings.of(saved.settings, changed), saved.examples
    manifest = Manifest(saved.fingerprint, examples.dim, len(examples.names), saved.model)
    known = {}
    if "groups" not in changed and saved.groups is not None:
        known = dict(zip(examples.keys, saved.groups, strict=True))
    fixed = "space" not in changed and not saved.settings.get(OF_EXAMPLES)
    groups = Groups(settings.groups, known)
    return Origin(manifest), settings, examples, groups, saved.space if fixed else None
