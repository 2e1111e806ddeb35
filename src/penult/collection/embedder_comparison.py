"""Two collections of the same items by two embedders: what changed, and which rows moved most."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from penult.analysis import similarity
from penult.analysis.bootstrap import Estimate, estimate
from penult.analysis.episodes import numbered, own_groups
from penult.analysis.neighbour_graph import NONE, Places
from penult.analysis.similarity import PairedMeasure
from penult.analysis.space import RAW
from penult.collection import schema, spaces
from penult.collection.columns import MADE, wider
from penult.collection.derived import keep_values
from penult.collection.labels import names_of
from penult.collection.reader import Reader
from penult.collection.schema import Key
from penult.errors import UsageError

KEPT, MOVED = "neighbours_kept", "moved"  # the derived columns


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A row. moved: from 0, where it stands to the others as before. neighbours_kept: the share of
    its nearest rows; None where it has none. nearest: of the first and second embedder."""

    id: str
    region: str
    moved: float | None
    neighbours_kept: float | None
    nearest: tuple[Key | None, Key | None]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        near = [None if key is None else {"id": key[0], "region": key[1]} for key in self.nearest]
        return {
            "id": self.id,
            "region": self.region,
            "moved": None if self.moved is None else round(self.moved, 6),
            "neighbours_kept": self.neighbours_kept,
            "nearest": near,
        }


@dataclass(frozen=True, slots=True)
class EmbedderComparison:
    """The second embedder against the first, on rows with the same id and region. only: how many
    rows the first and the second have alone. kept: neighbours, the mean over rows. chance: of it.
    cka: linear, without bias. same_label: the share of rows with the same label of the classifiers;
    None where they share no class. relabelled: the most frequent changes. measures: with labels.
    rows: the one that moved most first. stored: as derived columns of the second collection."""

    names: tuple[str, str]
    k: int
    only: tuple[int, int]
    kept: Estimate
    chance: float
    cka: Estimate
    same_label: float | None
    relabelled: list[tuple[str, str, int]]
    measures: list[PairedMeasure]
    rows: list[ComparedRow]
    stored: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult compare --json` prints it."""
        return {
            "embedders": list(self.names),
            "matched": len(self.rows),
            "only": {"first": self.only[0], "second": self.only[1]},
            "k": self.k,
            "neighbours_kept": self.kept.to_dict() | {"chance": self.chance},
            "cka": self.cka.to_dict(),
            "same_label": self.same_label,
            "relabelled": [
                {"first": one, "second": other, "rows": count}
                for one, other, count in self.relabelled
            ],
            "measures": [one.to_dict() for one in self.measures],
            "rows": [row.to_dict() for row in self.rows],
        }

    def table(self) -> pa.Table:
        """One line for each row: id, region, moved, neighbours_kept."""
        types = {"id": pa.string(), "region": pa.string(), "moved": pa.float64(),
                 "neighbours_kept": pa.float64()}  # fmt: skip
        lines = [{name: getattr(row, name) for name in types} for row in self.rows]
        return pa.Table.from_pylist(lines, pa.schema(types))


def compare_embedders(
    first: Reader,
    second: Reader,
    k: int = 10,
    labels: str | None = None,
    groups: str | None = None,
    space: str = RAW,
    where: str | None = None,
) -> EmbedderComparison:
    """Compare the vectors of rows that both have, and keep `moved` and `neighbours_kept` as derived
    columns of the second.

    labels, groups: columns of the first, `folder` or another way of naming rows. where: a filter of
    the first.

    Raises:
        UsageError: fewer than four rows are in both, or k that cannot be. LabelsError: the labels
            or groups name nothing, or fewer than two classes. SpaceError: no such space.
    """
    columns = schema.scalar_columns(wider(first.path, first.schema, [labels, groups]))
    fitted = [spaces.ready(reader, space)[0] for reader in (first, second)]
    table, vectors = first.vectors(where, columns)
    beside, others = second.vectors(columns=[*schema.KEY, "label"])
    place = {key: at for at, key in enumerate(schema.keys(beside))}
    own = schema.keys(table)
    mine = np.array([at for at, key in enumerate(own) if key in place], np.int64)
    _check(first, second, own, list(place), len(mine), k)
    keys = [own[at] for at in mine]
    theirs = np.array([place[key] for key in keys], np.int64)
    table, beside = table.take(pa.array(mine)), beside.take(pa.array(theirs))
    one, other = fitted[0](vectors[mine]), fitted[1](others[theirs])
    names = None if groups is None else names_of(first, table, groups)
    near = [similarity.nearest_rows(rows, k, names).places for rows in (one, other)]
    kept = similarity.neighbours_kept(*near)
    number = numbered(own_groups([None] * len(keys) if names is None else names))[0]
    measures = []
    if labels is not None:
        measures = similarity.paired_measures(one, other, names_of(first, table, labels), names)
    rows = _rows(keys, similarity.moved(one, other), kept, near)
    pairs = list(zip(table["label"].to_pylist(), beside["label"].to_pylist(), strict=True))
    shared = {*first.require_manifest().labels} & {*second.require_manifest().labels}
    given = [pair for pair in pairs if None not in pair] if shared else []
    changed = Counter(pair for pair in given if pair[0] != pair[1]).most_common(5)
    values = {
        MOVED: (pa.float64(), {(row.id, row.region): row.moved for row in rows}),
        KEPT: (pa.float64(), {(row.id, row.region): row.neighbours_kept for row in rows}),
    }
    words = ["penult", "compare", str(first.path), str(second.path), "-k", str(k)]
    words += ["--groups", groups] if groups else []
    words += ["--space", space] if space != RAW else []
    words += ["--where", where] if where else []
    stored = keep_values(second, {MADE: shlex.join(words), "first": str(first.path)}, values)
    return EmbedderComparison(
        (_name(first), _name(second)), k, (len(own) - len(mine), len(place) - len(mine)),
        estimate(kept, number), min(1.0, k / (len(keys) - 1)),
        similarity.estimate_cka(one, other, names),
        sum(a == b for a, b in given) / len(given) if given else None,
        [(*pair, count) for pair, count in changed], measures, rows, stored,
    )  # fmt: skip


def _check(
    first: Reader, second: Reader, own: Sequence[Key], others: Sequence[Key], both: int, k: int
) -> None:
    if both < similarity.LEAST:
        some = [f"{path} has {rows[0][0]} ({rows[0][1]})" if rows else f"{path} has no rows"
                for path, rows in ((first.path, own), (second.path, others))]  # fmt: skip
        raise UsageError(
            f"{both} of {len(own):,} and {len(others):,} rows have the same id and region, and "
            f"{similarity.LEAST} or more are compared: {'; '.join(some)}. Embed the same folder, "
            "with the same windows, with both"
        )
    if not 1 <= k < both:
        raise UsageError(f"-k {k} cannot be: {both:,} rows have 1 to {both - 1:,} neighbours")


def _name(reader: Reader) -> str:
    model = reader.require_manifest().model
    return f"{model.get('spec', '')} {model.get('tap', '')} {model.get('pooling', '')}".strip()


def _rows(
    keys: Sequence[Key],
    moved: similarity.FloatArray,
    kept: similarity.FloatArray,
    near: Sequence[Places],
) -> list[ComparedRow]:
    found = []
    for at, key in enumerate(keys):
        first, second = (
            None if (place := int(lists[at, 0])) == NONE else keys[place] for lists in near
        )
        how, share = (None if np.isnan(one[at]) else float(one[at]) for one in (moved, kept))
        found.append(ComparedRow(*key, how, share, (first, second)))
    return sorted(found, key=lambda row: (-(row.moved or 0.0), row.id, row.region))
