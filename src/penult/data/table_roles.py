"""Roles of a table's columns (path, start, end, box …), by the names that programs give them.

Knows no rows: what a column is for is told by its name, its type and the columns beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from penult.errors import SourceError, UsageError, listed

if TYPE_CHECKING:
    import pyarrow as pa

Roles = dict[str, str]  # a role, such as start, and the column that has it

SECONDS = ("start", "end", "duration")
EDGES = ("left", "top", "right", "bottom", "width", "height")
PATH, FOLDERS = "path", ("root", "folder")  # a path may be divided into up to three columns
ALL = (PATH, *FOLDERS, "id", *SECONDS, "channel", *EDGES, "box")

_PATHS = (
    *("filepath", "file_path", "file path", "file", "filename", "file_name", "file name"),
    *("in file", "audiofilename", "audio_filename", "audio_file", "audio file", "audiofile"),
    *("audio_path", "recording", "recording_path", "recording path", "recording_file"),
    *("notated_path", "sound.files", "sound_file", "soundfile", "wav", "wav_file", "wavfile"),
    *("begin path", "begin file", "input", "audio"),
)
_PICTURES = ("image", "image_path", "image_file", "image_name", "img", "img_path")
# Names that say seconds by themselves, and those that do so beside another of their kind.
_CLEAR = {
    "start": ("start (s)", "start_s", "start_sec", "start_seconds", "begin time (s)", "onset_s",
              "start time (s)", "start_time_s", "start_time (s)", "begin (s)", "onset (s)"),
    "end": ("end (s)", "end_s", "end_sec", "end_seconds", "end time (s)", "offset_s",
            "end_time_s", "end_time (s)", "stop (s)", "offset (s)"),
    "duration": ("duration (s)", "duration_s", "duration_sec", "duration_seconds"),
}  # fmt: skip
_TIMES = {
    "start": (*_CLEAR["start"], "start", "start_time", "start time", "starttime", "begin_time",
              "begin time", "begin", "onset", "tmin"),
    "end": (*_CLEAR["end"], "end", "end_time", "end time", "endtime", "stop", "stop_time", "tmax"),
    "duration": (*_CLEAR["duration"], "duration"),
}  # fmt: skip
_BOXES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("left", "top", "right", "bottom"), EDGES[:4]),
    (("xmin", "ymin", "xmax", "ymax"), EDGES[:4]),
    (("x_min", "y_min", "x_max", "y_max"), EDGES[:4]),
    (("x1", "y1", "x2", "y2"), EDGES[:4]),
    (("x0", "y0", "x1", "y1"), EDGES[:4]),
    (("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"), EDGES[:4]),
    (("left", "top", "width", "height"), ("left", "top", "width", "height")),
    (("x", "y", "w", "h"), ("left", "top", "width", "height")),
    (("x", "y", "width", "height"), ("left", "top", "width", "height")),
    (("bbox_x", "bbox_y", "bbox_w", "bbox_h"), ("left", "top", "width", "height")),
    (("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("left", "top", "width", "height")),
)

# Names that tell a delimiter from a sign within a name, and columns that hold numbers.
KNOWN = frozenset(
    [
        *(*ALL, *_PATHS, *_PICTURES, "text", "offset", "selection"),
        *("low freq (hz)", "high freq (hz)"),
        *(name for names in _TIMES.values() for name in names),
        *(name for names, _ in _BOXES for name in names),
    ]
)


def parse_columns(texts: Sequence[str]) -> Roles:
    """`path=IN FILE,start=OFFSET` as roles; a comma divides only in front of a role.

    Raises:
        UsageError: no such role, or no column.
    """
    given: Roles = {}
    for text in texts:
        role = ""
        for part in text.split(","):
            name, equals, column = part.partition("=")
            if equals and name.strip() in ALL:
                role = name.strip()
                given[role] = column.strip()
            elif role and not equals:
                given[role] += f",{part}"
            elif not equals:
                raise UsageError(f"--column {text!r}: write ROLE=COLUMN, as in path=IN FILE")
            else:
                raise UsageError(
                    f"--column {text!r} names no role {name.strip()!r}; write ROLE=COLUMN, as in "
                    f"path=IN FILE,start=OFFSET; roles are {', '.join(ALL)}"
                )
    if empty := [role for role, column in given.items() if not column]:
        raise UsageError(f"--column {empty[0]}= names no column")
    return given


IsNumber = Callable[[str], bool]


def find_roles(
    source: str,
    types: Mapping[str, pa.DataType],
    modality: str,
    given: Mapping[str, str],
    is_number: IsNumber,
) -> Roles:
    """The column of each role: the given ones, then those that are called as their role, then
    those of programs. Without a column `path` in the result, the table's own name names the file.

    is_number: whether a column holds numbers, bad cells aside.

    Raises:
        SourceError: a given column that the table lacks, or nothing that says what the items are.
    """
    plain: dict[str, str] = {}
    for name in types:
        plain.setdefault(name.strip().casefold(), name)
    roles: Roles = {}
    for role, column in given.items():
        if (found := column if column in types else plain.get(column.casefold())) is None:
            raise SourceError(
                f"{source} has no column {column!r} for {role}; it has {listed(types) or 'none'}"
            )
        roles[role] = found
    named = _named(types, plain, modality, is_number)
    free = {name: column for name, column in plain.items() if column not in roles.values()}
    if PATH in named or PATH in roles:
        roles = named | _clear(free, modality, named | roles, is_number) | roles
    else:
        roles = _by_program(free, types, modality, is_number) | named | roles
    if modality == "image":
        roles = _box(free, types, roles, is_number) | roles
    if PATH not in roles and not {"start", *EDGES[:2]} & roles.keys():
        raise SourceError(
            f"{source} has no column `path`; it has {listed(types) or 'none'}. Name the columns: "
            f"--column path=COLUMN" + (",start=COLUMN,end=COLUMN" if modality == "audio" else "")
        )
    return roles


_SPAN = (
    re.compile(r"(start|begin|onset|tmin)(\b|_|time)", re.IGNORECASE),
    re.compile(r"(end|stop|offset|tmax|duration)(\b|_|time)", re.IGNORECASE),
)


def unused_span(types: Mapping[str, object], roles: Roles, is_number: IsNumber) -> list[str]:
    """Columns of numbers that may be a span, its start and its end, where rows are whole files."""
    if {"start", "end"} & roles.keys():
        return []
    found: list[str] = []
    for pattern in _SPAN:
        names = [n for n in types if pattern.match(n.strip()) and n not in roles.values()]
        numbers = [name for name in names if str(types[name]) != "null" and is_number(name)]
        if not numbers:
            return []
        found.append(numbers[0])
    return found


def _named(
    types: Mapping[str, pa.DataType],
    plain: Mapping[str, str],
    modality: str,
    is_number: IsNumber,
) -> Roles:
    """Columns that are called as their role; in other letters only where they hold numbers."""
    wanted = {"audio": (*SECONDS[:2], "channel"), "video": SECONDS[:2]}.get(modality, ())
    roles = {role: role for role in (PATH, "id", *wanted) if role in types}
    if PATH not in roles and PATH in plain:
        roles[PATH] = plain[PATH]
    for role in wanted:
        if role not in roles and role in plain and is_number(plain[role]):
            roles[role] = plain[role]
    return roles


def _clear(free: Mapping[str, str], modality: str, roles: Roles, is_number: IsNumber) -> Roles:
    """Beside a path, columns whose names say seconds: a start, with an end or a duration."""
    if modality not in ("audio", "video") or {"start", "end"} & roles.keys():
        return {}
    found = _first(free, _CLEAR, is_number)
    return found if "start" in found and len(found) > 1 else {}


def _first(
    free: Mapping[str, str], names: Mapping[str, Sequence[str]], is_number: IsNumber
) -> Roles:
    found: Roles = {}
    for role, candidates in names.items():
        for name in candidates:
            if name in free and is_number(free[name]):
                found[role] = free[name]
                break
    return found


def _by_program(
    free: Mapping[str, str],
    types: Mapping[str, pa.DataType],
    modality: str,
    is_number: IsNumber,
) -> Roles:
    """Columns as BirdNET, Kaleidoscope, Arbimon, whombat and others call them: a file's name only
    with a place in the file, which alone says what the rows are."""
    paths = (*_PICTURES, *_PATHS) if modality == "image" else _PATHS
    path = next((free[name] for name in paths if name in free), None)
    found: Roles = {}
    if modality == "image":
        found = _box(free, types, {}, is_number)
    elif modality in ("audio", "video"):
        if {"in file", "folder"} <= free.keys() or {"in file", "offset"} <= free.keys():
            # Kaleidoscope; rows without an offset are whole files
            places = {"start": "offset", "duration": "duration"}
            found = {role: free[name] for role, name in places.items() if name in free}
            folders = {"root": "indir", "folder": "folder"}
            found |= {role: free[name] for role, name in folders.items() if name in free}
            if modality == "audio" and "channel" in free and is_number(free["channel"]):
                found["channel"] = free["channel"]
        elif {"recording", "x1", "x2", "y1", "y2"} <= free.keys():  # Arbimon: seconds and hertz
            found = {"start": free["x1"], "end": free["x2"]}
        else:
            found = _first(free, _TIMES, is_number)
            if "end" not in found and "offset" in free and "onset" in free:  # DCASE
                found["end"] = free["offset"]
            if "start" not in found or not {"end", "duration"} & found.keys():
                found = {}
    if not found:
        return {}
    return found if path is None or path in found.values() else {PATH: path} | found


def _box(
    free: Mapping[str, str],
    types: Mapping[str, pa.DataType],
    roles: Roles,
    is_number: IsNumber,
) -> Roles:
    """The columns of a box in a picture: edges, or a corner and a size."""
    if {*EDGES, "box"} & roles.keys():
        return {}
    for names, edges in _BOXES:
        if all(name in free and is_number(free[name]) for name in names):
            return {edge: free[name] for edge, name in zip(edges, names, strict=True)}
    if "bbox" in free and str(types[free["bbox"]]) == "string":  # COCO: [x, y, width, height]
        return {"box": free["bbox"]}
    return {}
