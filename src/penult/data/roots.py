"""Roots: named folders that ids of files begin with, so that a moved disk keeps its items. Knows no
store.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from penult.data.files import user_path
from penult.data.items import Entry, Failure, Item, absolute, as_id, is_object, path_of, utf8
from penult.data.tables import PATH, SUFFIXES
from penult.errors import UsageError

_FORBIDDEN = re.compile(r"[:\\\x00-\x1f]")  # in names: what ids of texts and other systems have


@dataclass(frozen=True, slots=True)
class Root:
    """A folder. place: its absolute path; beside: the same from the collection's folder, empty
    where there is none (another drive). Both as ids have paths (`as_id`)."""

    place: str
    beside: str = ""

    @classmethod
    def at(cls, place: Path, collection: Path) -> Root:
        """A folder, for the collection in this one."""
        if is_object(collection):
            return cls(as_id(place))
        try:
            beside = os.path.relpath(place, absolute(collection))
        except ValueError:
            beside = ""
        return cls(as_id(place), as_id(Path(beside)) if beside else "")


class Roots:
    """The roots of one collection: from a path to an id and back.

    roots: by name. Without any, ids are absolute paths. collection: its folder, which `beside`
    starts at.
    """

    def __init__(self, roots: Mapping[str, Root] = {}, collection: Path | None = None) -> None:
        self.roots = dict(roots)
        self.collection = None if collection is not None and is_object(collection) else collection
        self._now = {name: self._found(root) for name, root in self.roots.items()}
        self._texts = {name: as_id(place).rstrip("/") for name, place in self._now.items()}
        self._places = {_slashed(place): name for name, place in self._now.items()}
        self._real: dict[str, str] | None = None
        self._folders: dict[str, str | None] = {}  # ids of folders that no root names as written

    def __bool__(self) -> bool:
        return bool(self.roots)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roots) and self.roots == other.roots

    __hash__ = None  # type: ignore[assignment]

    def place(self, name: str) -> Path:
        """Where the root of this name is: its absolute place, or beside the collection if only that
        is there."""
        return self._now[name]

    def _found(self, root: Root) -> Path:
        place = path_of(root.place)
        if root.beside and self.collection is not None and not place.exists():
            here = absolute(absolute(self.collection) / path_of(root.beside))
            if here.exists():
                return here
        return place

    @property
    def settled(self) -> dict[str, Root]:
        """The same roots, with the places where they are now."""
        if self.collection is None:
            return self.roots
        return {name: Root.at(self.place(name), self.collection) for name in self.roots}

    def id_of(self, path: Path) -> str:
        """The id of an absolute path; that path itself where it lies in no root."""
        return self.within(path) or as_id(path)

    def within(self, path: Path) -> str | None:
        """The id of an absolute path, by the path as it is written, else by its folder with links
        resolved; None where it lies in no root."""
        if not self.roots or is_object(path):
            return None
        if (found := _below(str(path), self._places)) is not None:
            return found
        folder = os.path.dirname(path)  # noqa: PTH120 (of each file of a run)
        if folder not in self._folders:
            self._folders[folder] = self._real_below(folder)
        if (inside := self._folders[folder]) is not None:
            return f"{inside}/{utf8(path.name)}"
        is_folder = os.path.isdir(path)  # noqa: PTH112 (False too where no name is that long)
        return self._real_below(str(path)) if is_folder else None

    def _real_below(self, path: str) -> str | None:
        if self._real is None:
            real = {_slashed(os.path.realpath(place)): n for place, n in self._places.items()}
            self._real = real
        return _below(os.path.realpath(path), self._real)

    def root_of(self, id: str) -> str | None:
        """The name of the root that an id begins with."""
        at = id.find("/")
        while at > 0:
            if id[:at] in self.roots:
                return id[:at]
            at = id.find("/", at + 1)
        return id if id in self.roots else None

    def path_of(self, id: str) -> Path:
        """The path of an id, or of what a column `path` holds."""
        name = self.root_of(id)
        if name is None:
            return path_of(id)
        rest = id[len(name) + 1 :]
        return path_of(f"{self._texts[name]}/{rest}") if rest else self._now[name]

    def shown(self, id: str) -> str:
        """The path of an id that begins with a root, for columns that other programs read; others
        as they are."""
        return id if self.root_of(id) is None else as_id(self.path_of(id))

    def ids_of(self, text: str) -> list[str]:
        """The ids that a user may mean: an id, a path, either with `\\` for `/` or in the other
        normal form of Unicode."""
        found = [text]
        for one in (text, text.replace("\\", "/")):
            try:
                path = absolute(user_path(one))
            except (OSError, ValueError):
                continue
            found += [one, self.id_of(path), as_id(path)]
        forms = [unicodedata.normalize(f, one) for one in found for f in ("NFC", "NFD")]
        return list(dict.fromkeys([*found, *forms]))

    def prefixes_in(self, folder: Path) -> list[str]:
        """What the ids of all files in a folder begin with."""
        own = self.id_of(folder).rstrip("/") + "/"
        above = _slashed(folder)
        inside = [f"{name}/" for place, name in self._places.items() if place.startswith(above)]
        return list(dict.fromkeys([own, as_id(folder).rstrip("/") + "/", *inside]))

    def entry(self, entry: Entry) -> Entry:
        """An entry of a source under the id that it has here."""
        if isinstance(entry, Failure):
            id = self._renamed(entry.id)
            return entry if id == entry.id else replace(entry, id=id)
        item, region = entry
        return self._item(item), region

    def _item(self, item: Item) -> Item:
        """An item of a source under the id that it has here. One that a table names keeps its id,
        and its column `path` is as an id."""
        if not self.roots:
            return item
        if isinstance(item.content, str):  # a text: the table and its line
            id = self._renamed(item.id)
        elif isinstance(item.content, Path):
            path, id = as_id(item.content), item.id
            if item.metadata.get(PATH) == path:
                own = {**item.metadata, PATH: self.id_of(item.content)}
                return replace(item, metadata=own)
            if id == path:
                id = self.id_of(item.content)
        else:
            return item
        return item if id == item.id else replace(item, id=id)

    def _renamed(self, id: str) -> str:
        """An absolute path, perhaps with a line behind it, as an id."""
        if not id.startswith(os.sep) and not (os.name == "nt" and Path(id).is_absolute()):
            return id
        return self.id_of(path_of(id))

    def with_root(self, name: str, place: Path) -> Roots:
        """These and one more; or with another place of one."""
        root = Root.at(place, self.collection) if self.collection else Root(as_id(place))
        return Roots({**self.roots, name: root}, self.collection)

    def free_name(self, place: Path, wanted: str = "") -> str:
        """A name for a new root: the folder's, with as many folders above it as make it another
        one than those that there are."""
        if wanted:
            name = _checked(wanted)
            if clash := self._clash(name):
                raise UsageError(
                    f"--root {wanted}: there is a root {clash!r} already, at {self.place(clash)}, "
                    "and no name may begin another one; give another name. penult relocate names "
                    "the new place of a root"
                )
            return name
        parts = [_FORBIDDEN.sub("_", as_id(Path(part))) for part in place.parts[1:]]
        for count in range(1, len(parts) + 1):
            name = "/".join(parts[-count:])
            if not self._clash(name):
                return name
        stem = parts[-1] if parts else "files"
        number = 2
        while self._clash(f"{stem}-{number}"):
            number += 1
        return f"{stem}-{number}" if parts else stem if not self._clash(stem) else f"files-{number}"

    def _clash(self, name: str) -> str:
        asked = _folded(name)
        for other in self.roots:
            there = _folded(other)
            if asked == there or asked.startswith(f"{there}/") or there.startswith(f"{asked}/"):
                return other
        return ""


@dataclass(frozen=True, slots=True)
class AskedRoot:
    """A root as a user names it. name: empty for the folder's own."""

    place: Path
    name: str = ""

    @classmethod
    def parse(cls, text: str | os.PathLike[str], must_exist: bool = True) -> AskedRoot:
        """`DIR` or `NAME=DIR`.

        Raises:
            UsageError: there is no such folder, or the name cannot be one.
        """
        given = os.fspath(text)
        place, name = absolute(user_path(given)), ""
        if not place.is_dir() and "=" in given:
            name, _, given = given.partition("=")
            place = absolute(user_path(given))
        if not given or (must_exist and not place.is_dir()):
            raise UsageError(f"--root {os.fspath(text)}: there is no folder {given!r}")
        return cls(place, _checked(name) if name else "")


@dataclass(frozen=True, slots=True)
class RootOptions:
    """What was asked about ids. roots: named by the user. absolute: whole paths."""

    roots: Sequence[AskedRoot] = field(default=())
    absolute: bool = False

    @classmethod
    def of(
        cls,
        root: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None,
        absolute_ids: bool = False,
    ) -> RootOptions:
        """As the command line and `Collection.add` take them.

        Raises:
            UsageError: both were given, or as `AskedRoot.parse`.
        """
        given = [root] if isinstance(root, (str, os.PathLike)) else list(root or ())
        if given and absolute_ids:
            raise UsageError("--root names what ids begin with, and --absolute-ids asks for none")
        return cls([AskedRoot.parse(one) for one in given], absolute_ids)


def folders_of(paths: Sequence[str]) -> list[Path]:
    """The folders that are roots by default: those given, those of tables, and the one that single
    files have in common. paths: absolute, as `Source.paths`."""
    found, files = [], list[Path]()
    for path in map(Path, paths):
        if path.is_dir():
            found.append(path)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path.parent)
        else:
            files.append(path.parent)
    if files:
        found.append(Path(os.path.commonpath(files)))
    return [one for one in dict.fromkeys(found) if one != one.parent]


def _checked(name: str) -> str:
    parts = name.split("/")
    if _FORBIDDEN.search(name) or any(part.strip() in ("", ".", "..") for part in parts):
        raise UsageError(
            f"{name!r} cannot be the name of a root: a name, or several with / between them, "
            "without : and \\, such as disk-b/recordings"
        )
    return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _slashed(path: str | Path) -> str:
    text = str(path)
    return text if text.endswith(os.sep) else text + os.sep


def _below(path: str, places: Mapping[str, str]) -> str | None:
    """The path from the name of the innermost root on."""
    path = _slashed(path)
    end = len(path)
    while (end := path.rfind(os.sep, 0, end) + 1) > 0:
        if (name := places.get(path[:end])) is not None:
            rest = path[end:-1]
            return utf8(
                f"{name}/{rest if os.sep == '/' else rest.replace(os.sep, '/')}".rstrip("/")
            )
        end -= 1
    return None
