"""Names of rows as commands print them, such as `rec/a.wav ch0:450.5-451.475`, read again."""

from __future__ import annotations

import re
from collections.abc import Sequence

from penult.collection import schema
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.data.files import user_path
from penult.data.regions import Region
from penult.errors import RegionError

# What stands behind the id: seconds, a channel, a box, a page or characters, as keys have them or
# as tables print them, with a blank for the colon.
_PART = re.compile(
    r"(?P<id>.+?) (?P<part>(?:ch\d+[ :])?\d[\d.]*-(?:end|\d[\d.]*)|ch\d+(?::whole)?|whole|summary|"
    r"(?:page[ :]\d+[ :])?box[ :]\d[\d,]*|page[ :]\d+|chars[ :]\d+-\d+)(?: ?#(?P<annotation>\S+))?",
    re.DOTALL,
)
_PRINTED = 0.005001  # s: tables print hundredths


def split_name(name: str) -> Key | None:
    """The id and the region's key of a printed name; None where it has no region."""
    if (found := _PART.fullmatch(name)) is None:
        return None
    part = found["part"].replace(" ", ":")
    if re.fullmatch(r"ch\d+", part):
        part = f"{part}:whole"
    key = part + (f"#{found['annotation']}" if found["annotation"] else "")
    try:
        return found["id"], Region.of_key(key).key
    except (RegionError, ValueError):
        return None


def names_text(keys: Sequence[Key]) -> str:
    """A name on each line, which `row_of_name` reads again."""
    return "".join(f"{id}\n" if region == "whole" else f"{id} {region}\n" for id, region in keys)


def row_of_name(reader: Reader | None, name: str) -> Key | None:
    """The row that a printed name means: of one printed in hundredths of a second the row that is
    printed so; else the part of a file. None: no row and no part of a file.

    reader: of the collection; None knows no rows.
    """
    split = None if user_path(name).exists() else split_name(name)
    if split is None:
        return None
    (id, key), path, text = split, user_path(split[0]).absolute(), False
    region = Region.of_key(key)
    if reader is not None and (manifest := reader.manifest) is not None:
        text = manifest.model.get("modality") == "text"
        where = f"id IN ({schema.quoted(reader.roots.ids_of(id))})"
        batches = reader.scan(["id", "region", "channel", "start", "end"], where)
        rows = [row for batch in batches for row in batch.to_pylist()]
        exact = [row for row in rows if row["region"] == key]
        for row in exact or [row for row in rows if _is_printed_so(row, region)]:
            return row["id"], row["region"]
        if not path.is_file():
            path = reader.roots.path_of(id)
    return (str(path), key) if path.is_file() and not text else None


def _is_printed_so(row: dict[str, object], region: Region) -> bool:
    """Whether a row's seconds and channel are those of a region, to a hundredth of a second."""
    if region.start is None or region.end is None or row["channel"] != region.channel:
        return False
    ends = zip((row["start"], row["end"]), (region.start, region.end), strict=True)
    return all(isinstance(a, float) and abs(a - b) <= _PRINTED for a, b in ends)


def rows_of_names(reader: Reader | None, names: Sequence[str]) -> list[str | Key]:
    """The names, each that has a region as (id, region)."""
    return [row_of_name(reader, name) or name for name in names]
