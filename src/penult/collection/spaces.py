"""The spaces of a collection: fitted on its raw vectors, kept in a side table, found again by name.

Fitting one reads vectors and appends one record; no row is embedded or written again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from penult.analysis import adaptation, space
from penult.analysis.adaptation import Spread
from penult.analysis.space import AUTO, RAW, STEPS, Space
from penult.collection import lance, schema
from penult.collection.manifest import store_errors
from penult.errors import CollectionError, SpaceError, StoreError

if TYPE_CHECKING:
    from penult.collection.reader import Reader


log = logging.getLogger(__name__)
SAMPLE = 100_000  # rows that a space is fitted on at most
_SPREAD = 1000  # rows whose spread is looked at
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
    reader: Reader, recipe: str, name: str | None = None, where: str | None = None
) -> Space:
    """Fits a recipe on the collection's raw vectors and keeps it under a name, else its recipe.

    Of more than 100,000 rows so many are drawn by chance, the same ones each time. Fitted again
    under the same name, the newest counts.

    Raises:
        SpaceError: an unknown recipe, too few rows, or a name that means another recipe.
    """
    fitted, about = _fitted(reader, recipe, where)
    _check_name(name, fitted.recipe)
    _keep(reader, fitted, name or fitted.recipe, about)
    return fitted


def keep_own(reader: Reader, own: Space, adapt: str | None = None) -> bool:
    """Keeps the space of the embedder that the rows are from, as `embedder`; whether that is news.

    adapt: refit it to the rows, as `penult.analysis.adaptation.adapt` does; that one stays until
    another is asked for.

    Raises:
        SpaceError: it cannot be refitted so.
    """
    about: dict[str, Any] = {"recipe": own.recipe, "of": own.id, "adapted": adapt}
    if adapt is not None:
        keys, vectors = reader.vectors(most=SAMPLE, seed=SEED)
        own = adaptation.adapt(own, vectors, adapt)
        about["rows"] = len(keys)
    elif (row := _newest(reader, OWN)) is not None and own.id in (
        row["space_id"],
        json.loads(row["about"]).get("of"),
    ):
        return False
    append_space(reader, own.id, OWN, about, own.to_bytes())
    return True


def own_spread(reader: Reader) -> Spread | None:
    """How far the rows spread in the space of their embedder, by a sample of them; None without
    one, and of fewer rows than say anything."""
    space = stored(reader, OWN)
    if space is None or reader.count_rows() < adaptation.LEAST:
        return None
    keys, vectors = reader.vectors(most=_SPREAD, seed=SEED)
    return adaptation.spread(space, vectors, keys["id"].to_pylist())


def _newest(reader: Reader, name: str) -> dict[str, Any] | None:
    """The record that was kept under this name last."""
    table = lance.open_table(reader.path, "spaces") if reader.manifest is not None else None
    if table is None:
        return None
    with store_errors(reader.path):
        found = table.search().where(f"name IN ({schema.quoted([name])})").limit(None).to_arrow()
    if not len(found):
        return None
    row: dict[str, Any] = found.sort_by("when").slice(len(found) - 1).to_pylist()[0]
    return row


def stored(reader: Reader, name: str) -> Space | None:
    """The space that was kept under this name last; `raw` is always there."""
    manifest = reader.manifest
    if name == RAW and manifest is not None:
        return Space(RAW, manifest.dim)
    if (row := _newest(reader, name)) is None:
        return None
    if gone := json.loads(row["about"] or "{}").get("forgotten"):
        log.warning(
            "the space %s of %s was fitted when %d rows were there that are forgotten by now; "
            "Collection.fit_space(%r, %r) fits it anew",
            *(name, reader.path, gone, json.loads(row["about"]).get("recipe"), name),
        )
    space = Space.from_bytes(row["data"])
    if space.id != row["space_id"]:
        raise SpaceError(
            f"the space {name!r} of {reader.path} is not as it was stored: its numbers have the "
            f"hash {space.id}, and {row['space_id']} is written down; fit it again under its name"
        )
    return space


def meant(reader: Reader, asked: str) -> Space | None:
    """The space that is kept under this name; `auto` means the one of the rows' embedder. None for
    a recipe, and where there is none."""
    name = OWN if asked == AUTO else asked
    return None if is_recipe(name) else stored(reader, name)


def space_of(reader: Reader, name: str) -> Space:
    """The space of this name.

    Raises:
        SpaceError: none was kept under it.
    """
    if (found := stored(reader, name)) is None:
        there = sorted({RAW, *reader.side_table("spaces")["name"].to_pylist()})
        raise SpaceError(
            f"{reader.path} has no space {name!r} yet; it has {', '.join(there)}. "
            f"A recipe works too: {', '.join(STEPS)} joined by +, for example scale+l2"
        )
    return found


def resolved(reader: Reader, asked: str | Space) -> Space:
    """The space that is meant: a fitted one, or by its name or recipe, as `ready` finds it."""
    return asked if isinstance(asked, Space) else ready(reader, asked)[0]


def ready(reader: Reader, name: str) -> tuple[Space, About | None]:
    """The space of this name; a recipe that is not there yet is fitted and kept, and what it was
    fitted on is given with it. Where nothing may be written it is fitted for this once.

    Raises:
        SpaceError: neither a space that is there nor a recipe.
    """
    if (found := stored(reader, name)) is not None:
        return found, None
    if not is_recipe(name):
        return space_of(reader, name), None
    fitted, about = _fitted(reader, name, None)
    try:
        _keep(reader, fitted, fitted.recipe, about)
    except StoreError as error:
        log.warning("the space %s was fitted and could not be kept: %s", name, error)
    return fitted, about


def _fitted(reader: Reader, recipe: str, where: str | None) -> tuple[Space, About]:
    if reader.manifest is None:
        raise CollectionError(f"there is no collection at {reader.path} yet")
    matching = reader.count_rows(where)
    if not matching:
        what = f"no row of {reader.path} matches {where!r}" if where else "it has no rows"
        raise SpaceError(f"the space {recipe!r} cannot be fitted to {reader.path}: {what}")
    keys, vectors = reader.vectors(where, most=SAMPLE, seed=SEED)
    fitted = space.fit(recipe, vectors)
    return fitted, About(fitted.recipe, len(keys), matching, where)


def _keep(reader: Reader, fitted: Space, name: str, about: About) -> None:
    if name != RAW:
        append_space(reader, fitted.id, name, asdict(about), fitted.to_bytes())


def append_space(
    reader: Reader, space_id: str, name: str, about: Mapping[str, Any], data: bytes
) -> None:
    """One record of the side table: the properties of a fitted space as JSON, its arrays."""
    record = {"space_id": space_id, "name": name, "about": json.dumps(about), "data": data}
    reader.append("spaces", [record])


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
