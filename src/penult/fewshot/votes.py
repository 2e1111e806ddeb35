"""Marks with the people who gave them: what each said last, where they differ, and the records that
lead from one state to another. Knows no vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penult.collection.labels import TAKEN_BACK
from penult.collection.reader import Reader
from penult.collection.schema import Key

Said = dict[str, str]  # who → mark; the one that was given last counts, and stands last
Votes = dict[Key, dict[str, Said]]  # by row and class
Spot = tuple[Key, str]  # a row and a class
NOBODY = "unknown"  # whoever gave a mark without a name


def votes_of(reader: Reader) -> Votes:
    """What everybody said last of each row and class. A record that takes back clears what all said
    of it: nothing counts then, as in `penult.collection.labels.standing`."""
    found: Votes = {}
    for row in reader.side_table("labels").to_pylist():
        classes = found.setdefault((row["id"], row["region"]), {})
        said = classes.pop(row["class"], {})  # so that the last mark stands last
        if row["source"] == TAKEN_BACK:
            continue
        who = row["who"] or NOBODY
        said.pop(who, None)
        classes[row["class"]] = said | {who: row["mark"]}
    return {key: classes for key, classes in found.items() if classes}


def standing_in(votes: Votes) -> dict[Key, dict[str, str]]:
    """The marks that count."""
    return {
        key: {name: next(reversed(said.values())) for name, said in classes.items()}
        for key, classes in votes.items()
    }


def said_of(votes: Votes, spots: Iterable[Spot]) -> dict[Spot, Said]:
    """What was said of these rows and classes; nothing of some, perhaps."""
    return {(key, name): dict(votes.get(key, {}).get(name, {})) for key, name in spots}


def is_same(one: Mapping[Spot, Said], other: Mapping[Spot, Said]) -> bool:
    """Whether the same was said, in the same order."""
    return one.keys() == other.keys() and all(
        list(said.items()) == list(other[spot].items()) for spot, said in one.items()
    )


def records(
    before: Mapping[Spot, Said], after: Mapping[Spot, Said], who: str, source: str
) -> list[dict[str, Any]]:
    """The records that lead from what was said to something else, of the same rows and classes. who
    takes back what has to go; what others said is written again under their names."""
    found: list[dict[str, Any]] = []
    for (key, name), new in after.items():
        old, record = before[key, name], {"id": key[0], "region": key[1], "class": name}
        if list(old.items()) == list(new.items()):
            continue
        given = list(new.items())
        rest = [one for one in old.items() if not given or one[0] != given[-1][0]]
        if given and rest == given[:-1]:  # one more mark leads there
            given = given[-1:]
        elif old:
            found.append(record | {"mark": "unsure", "who": who, "source": TAKEN_BACK})
        found += [record | {"mark": mark, "who": one, "source": source} for one, mark in given]
    return found


def disagreements(votes: Votes) -> list[tuple[Key, str, Said]]:
    """The rows and classes that people marked differently, with what each said last."""
    return [
        (key, name, dict(said))
        for key, classes in votes.items()
        for name, said in classes.items()
        if len(set(said.values())) > 1
    ]
