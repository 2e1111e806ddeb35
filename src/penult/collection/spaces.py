"""The spaces of a collection: fitted on its raw vectors, kept in a side table, found again by name.

Fitting one reads vectors and appends one record; no row is embedded or written again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from penult.analysis import space
from penult.analysis.space import AUTO, RAW, STEPS, Space
from penult.collection import lance, schema
from penult.collection.manifest import store_errors
from penult.errors import CollectionError, SpaceError, StoreError

if TYPE_CHECKING:
    from penult.collection.collection import Collection


log = logging.getLogger(__name__)
SAMPLE = 100_000  # rows that a space is fitted on at most
SEED = 0
OWN = "embedder"  # the name of the space that the rows' embedder has


@dataclass(frozen=True, slots=True)
class About:
    """What a space was fitted on: so many of `matching` rows, those that `where` leaves."""

    recipe: str
    rows: int
    matching: int
    where: str | None = None
    seed: int = SEED


def fit_space(
    collection: Collection, recipe: str, name: str | None = None, where: str | None = None
) -> Space:
    """Fits a recipe on the collection's raw vectors and keeps it under a name, else its recipe.

    Of more than 100,000 rows so many are drawn by chance, the same ones each time. Fitted again
    under the same name, the newest counts.

    Raises:
        SpaceError: an unknown recipe, too few rows, or a name that means another recipe.
    """
    fitted, about = _fitted(collection, recipe, where)
    _check_name(name, fitted.recipe)
    _keep(collection, fitted, name or fitted.recipe, about)
    return fitted


def keep_own(collection: Collection, own: Space) -> bool:
    """Keeps the space of the embedder that the rows are from, as `embedder`; whether that is
    news."""
    known = stored(collection, OWN)
    if known is not None and known.id == own.id:
        return False
    collection.add_space(own.id, OWN, {"recipe": own.recipe}, own.to_bytes())
    return True


def stored(collection: Collection, name: str) -> Space | None:
    """The space that was kept under this name last; `raw` is always there."""
    manifest = collection.manifest
    if name == RAW and manifest is not None:
        return Space(RAW, manifest.dim)
    table = lance.opened(collection.path, "spaces") if manifest is not None else None
    if table is None:
        return None
    with store_errors(collection.path):
        found = table.search().where(f"name IN ({schema.quoted([name])})").limit(None).to_arrow()
    if not len(found):
        return None
    return Space.from_bytes(found.sort_by("when")["data"][-1].as_py())


def meant(collection: Collection, asked: str) -> Space | None:
    """The space that is kept under this name; `auto` means the one of the rows' embedder. None for
    a recipe, and where there is none."""
    name = OWN if asked == AUTO else asked
    return None if is_recipe(name) else stored(collection, name)


def space_of(collection: Collection, name: str) -> Space:
    """The space of this name.

    Raises:
        SpaceError: none was kept under it.
    """
    if (found := stored(collection, name)) is None:
        there = sorted({RAW, *collection.spaces()["name"].to_pylist()})
        raise SpaceError(
            f"{collection.path} has no space {name!r} yet; it has {', '.join(there)}. "
            f"A recipe works too: {', '.join(STEPS)} joined by +, for example scale+l2"
        )
    return found


def resolved(collection: Collection, asked: str | Space) -> Space:
    """The space that is meant: a fitted one, or by its name or recipe, as `ready` finds it."""
    return asked if isinstance(asked, Space) else ready(collection, asked)[0]


def ready(collection: Collection, name: str) -> tuple[Space, About | None]:
    """The space of this name; a recipe that is not there yet is fitted and kept, and what it was
    fitted on is given with it. Where nothing may be written it is fitted for this once.

    Raises:
        SpaceError: neither a space that is there nor a recipe.
    """
    if (found := stored(collection, name)) is not None:
        return found, None
    if not is_recipe(name):
        return space_of(collection, name), None
    fitted, about = _fitted(collection, name, None)
    try:
        _keep(collection, fitted, fitted.recipe, about)
    except StoreError as error:
        log.warning("the space %s was fitted and could not be kept: %s", name, error)
    return fitted, about


def _fitted(collection: Collection, recipe: str, where: str | None) -> tuple[Space, About]:
    if collection.manifest is None:
        raise CollectionError(f"there is no collection at {collection.path} yet")
    matching = collection.count_where(where)
    if not matching:
        what = f"no row of {collection.path} matches {where!r}" if where else "it has no rows"
        raise SpaceError(f"the space {recipe!r} cannot be fitted to {collection.path}: {what}")
    keys, vectors = collection.vectors(where, most=SAMPLE, seed=SEED)
    fitted = space.fit(recipe, vectors)
    return fitted, About(fitted.recipe, len(keys), matching, where)


def _keep(collection: Collection, fitted: Space, name: str, about: About) -> None:
    if name != RAW:
        collection.add_space(fitted.id, name, asdict(about), fitted.to_bytes())


def is_recipe(name: str) -> bool:
    """Whether a name is `raw` or steps joined by +."""
    return name == RAW or all(word in STEPS or word.startswith("pca:") for word in name.split("+"))


def _check_name(name: str | None, recipe: str) -> None:
    if name is None or name == recipe:
        return
    if not name.strip() or name == RAW or is_recipe(name):
        raise SpaceError(
            f"a space {recipe!r} cannot be called {name!r}: that is empty or means another recipe; "
            "a name of its own works, such as 'calls-2024'"
        )
