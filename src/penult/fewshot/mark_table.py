"""Tables of marks, as `penult classes --csv` and `penult suggest --out` write them: a row of a
collection on each line, by its path and region, with a class and a mark. Embeds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from penult.collection.row_names import split_name
from penult.collection.schema import Key
from penult.data.files import user_path
from penult.data.items import Item, file_item, local, named, namer, path_of
from penult.data.regions import Region
from penult.data.roots import Roots
from penult.data.sources import from_paths, recording_folders
from penult.data.tables import PATH, SUFFIXES, Row, TableRows, as_text, check_case, read_table
from penult.errors import LabelsError, RegionError, SourceError
from penult.fewshot.events import MARK as MARK
from penult.fewshot.examples import EVERY, MARKS

REGION = "region"


class Example(NamedTuple):
    """An example of a class, and its mark. where: the line that says so, in words. is_printed: the
    key is a name as tables print it, with seconds in hundredths."""

    name: str
    key: Key
    mark: str
    where: str = ""
    is_printed: bool = False


def mark_in(cell: object, name: str, where: str) -> str | None:
    """The mark of a cell, as people write it; None where there is none.

    Raises:
        LabelsError: another word, or a mark for every class that is not `no`.
    """
    text = (named(cell) or "").casefold()
    if text and text not in MARKS:
        raise LabelsError(
            f"{where}: mark {cell!r} is not known; {', '.join(MARKS)} work, and an empty cell "
            "leaves the row out. --mark yes takes all rows as yes, whatever the column says"
        )
    if text and name.strip() == EVERY and text != "no":
        raise LabelsError(
            f"{where}: {EVERY!r} stands for every class: an item can be marked no for all of them, "
            f"not {text}"
        )
    return text or None


@dataclass(frozen=True, slots=True)
class MarkTable:
    """A table with a column of marks, or with rows that are named by path and region (is_keyed)."""

    path: Path
    rows: TableRows
    is_keyed: bool

    @classmethod
    def of(cls, item: object) -> MarkTable | None:
        """The table of a path; None where it is something else.

        A column `region` may be of another kind: it counts beside a column of marks, or where it
        has a region as a collection names them.

        Raises:
            SourceError: a table that cannot be read.
        """
        if not isinstance(item, (str, os.PathLike)):
            return None
        if not str(os.fspath(item)).lower().endswith(SUFFIXES):
            return None
        path = user_path(item)
        if not path.is_file():
            return None
        rows = _in_small_letters(path, read_table(path))
        has_marks, has_keys = MARK in rows.types, {PATH, REGION} <= rows.types.keys()
        if has_keys and not has_marks:
            regions = (row.get(REGION) for _, row in rows.rows() if isinstance(row, dict))
            has_keys = any(value is not None and _is_region(as_text(value)) for value in regions)
        elif PATH in rows.types and not has_keys and not _SPANS & {*map(str.casefold, rows.types)}:
            paths = (row.get(PATH) for _, row in rows.rows() if isinstance(row, dict))
            has_keys = any(_split(path, as_text(value)) for value in paths if value is not None)
        return cls(path, rows, has_keys) if has_marks or has_keys else None

    @property
    def has_marks(self) -> bool:
        """Whether it has a column of marks."""
        return MARK in self.rows.types

    def check_marks(self) -> None:
        """Refuse marks that there are not, with their line, before an item is opened.

        Raises:
            LabelsError: the first of them.
        """
        for where, row in self._cells():
            mark_in(row.get(MARK), "", where)

    def examples(self, by: str, mark: str | None) -> tuple[list[Example], int]:
        """The rows that have a name, and the number of those without a mark, which are left out.

        mark: in place of the table's own; None is these, or yes where it has no column of them.

        Raises:
            LabelsError: no such name, a mark or a region that there is not.
        """
        name_of, found, left_out = namer(by, list(self.rows.types)), list[Example](), 0
        given = mark or (None if self.has_marks else "yes")
        for where, row in self._cells():
            id = as_text(row[PATH]) if row.get(PATH) is not None else ""
            texts = {name: as_text(value) for name, value in row.items() if value is not None}
            if (name := name_of(id, texts)) is None:
                continue
            own = given or mark_in(row.get(MARK), name, where)
            if own is None:
                left_out += 1
            elif not id:
                raise LabelsError(f"{where}: the path is empty")
            elif REGION not in texts and (printed := _split(self.path, id)):
                found.append(Example(name, printed, own, where, True))
            else:
                found.append(Example(name, (id, _key_of(texts.get(REGION))), own, where))
        return found, left_out

    def placed(
        self,
        examples: Sequence[Example],
        known: Mapping[Key, Any],
        modality: str,
        roots: Roots = Roots(),
    ) -> tuple[list[Example], dict[Key, tuple[Item, Region]]]:
        """The examples by the keys that they have here, and what is to be embedded for those that
        are not known: the file that the path names, relative to the table, or the text. roots: what
        the ids here begin with.

        Raises:
            LabelsError: neither known nor a file, or the summary of one.
        """
        found, new = [], dict[Key, tuple[Item, Region]]()
        texts = {} if modality != "text" else _texts(one.key[0] for one in examples
                                                     if one.key not in known)  # fmt: skip
        for one in examples:
            id, key = one.key
            if one.key not in known:
                one = one._replace(key=self.elsewhere(one.key, roots))
            if one.key not in known:
                region, item = _region(key, one.where), texts.get(id) or self._file(id, roots)
                if item is None or region.kind == "summary":
                    part = "" if key == "whole" else f" ({key})"
                    what = "nor a file" if item is None else "and no part that can be cut"
                    either = "neither " if item is None else "not "
                    raise LabelsError(
                        f"{one.where}: {id!r}{part} is {either}a row that is here {what}"
                    )
                item, _ = roots.entry((item, region))  # type: ignore[misc]
                one = one._replace(key=(item.id, key))
                new[one.key] = item, region
            found.append(one)
        return found, new

    def elsewhere(self, key: Key, roots: Roots = Roots()) -> Key:
        """The key of a path that is relative to the table."""
        try:
            return roots.id_of(self._path(key[0])), key[1]
        except SourceError:
            return key

    def _path(self, id: str) -> Path:
        """The file relative to the table, or in one of the folders with recordings."""
        folders = [self.path.absolute().parent, *recording_folders()]
        paths = [local(str(path_of(id)), str(folder)) for folder in folders]
        return next((one for one in paths if one.is_file()), paths[0])

    def _file(self, id: str, roots: Roots) -> Item | None:
        try:
            path = self._path(id)
            path = path if path.is_file() else roots.path_of(id)
            return file_item(path) if path.is_absolute() and path.is_file() else None
        except (SourceError, OSError, ValueError):
            return None

    def _cells(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for line, row in self.rows.rows():
            where = f"{self.path.name} {self.rows.unit} {line}"
            if isinstance(row, str):
                raise LabelsError(f"{where}: {row}")
            yield where, row


_SPANS = frozenset({"start", "end", "left", "box"})  # columns of a table of parts, not of names


def _split(table: Path, name: str) -> Key | None:
    """The id and the region of a printed name; None of a file that is called so, and of others."""
    found = split_name(name)
    return None if found and (table.parent / user_path(name)).exists() else found


def _in_small_letters(path: Path, rows: TableRows) -> TableRows:
    """The table with its columns path, region and mark in small letters.

    Raises:
        SourceError: two columns differ in case only.
    """
    check_case(path, rows.types)
    own = {name: name.casefold() for name in rows.types}
    own = {name: small for name, small in own.items()
           if small in (PATH, REGION, MARK) and small != name}  # fmt: skip
    if not own:
        return rows

    def renamed() -> Iterator[Row]:
        for line, row in rows.rows():
            is_row = isinstance(row, dict)
            yield line, {own.get(n, n): value for n, value in row.items()} if is_row else row  # type: ignore[union-attr]

    types = {own.get(name, name): kind for name, kind in rows.types.items()}
    return rows._replace(rows=renamed, types=types)


def apart(items: Any) -> tuple[list[MarkTable], Any]:
    """The tables of marks among items, and the other items; None where there are no others."""
    if isinstance(items, (str, os.PathLike)):
        table = MarkTable.of(items)
        return ([], items) if table is None else ([table], None if table.is_keyed else items)
    if not isinstance(items, list):
        return [], items
    found = [(MarkTable.of(item), item) for item in items]
    others = [item for table, item in found if table is None or not table.is_keyed]
    return [table for table, _ in found if table is not None], others or None


def _is_region(text: str) -> bool:
    try:
        Region.of_key(text)
    except (RegionError, ValueError):
        return False
    return True


def _key_of(text: str | None) -> str:
    """A region as a key; what is none, as that of a row of a head, stays as it is."""
    text = "whole" if text is None else text.strip()
    return Region.of_key(text).key if _is_region(text) else text


def _region(key: str, where: str) -> Region:
    try:
        return Region.of_key(key)
    except (RegionError, ValueError) as error:
        raise LabelsError(
            f"{where}: region {key!r} is none of an item; whole, 1.5-2.25, ch0:1.5-end and "
            "box:0,0,512,512 are"
        ) from error


def _texts(ids: Iterable[str]) -> dict[str, Item]:
    """Texts of tables by their ids, which are the table and the line."""
    wanted, found = set(ids), dict[str, Item]()
    tables = {table for id in wanted for table, sign, line in [id.rpartition(":")]
              if sign and line.isdecimal()}  # fmt: skip
    for table in sorted(tables):
        if path_of(table).is_file():
            entries = (one for one in from_paths([table], "text") if isinstance(one, tuple))
            found |= {item.id: item for item, _ in entries if item.id in wanted}
    return found
