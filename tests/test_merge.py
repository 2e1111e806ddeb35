"""Collections brought together: every row once, the newest where they differ, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penult.collection.collection import Collection
from penult.collection.transfer import merge
from penult.collection.writer import writing
from penult.data.items import Failure
from penult.errors import CollectionLocked, FingerprintMismatch, UsageError
from test_cli import ask
from test_collection import MANIFEST, all_keys, batch, filled
from test_kills import files_of


def whole(collection: Collection) -> dict:
    found = {}
    for part in collection.reader.scan():
        for row in part.to_pylist():
            found[row["id"], row["region"]] = row
    return found


@pytest.fixture
def places(tmp_path):
    return [Collection.open(tmp_path / name) for name in "abcd"]


def test_shards_become_one(places):
    a, b, into, _ = places
    filled(a.path, batch(["1", "2"], site=["x", "y"]))
    filled(b.path, batch(["3"], seed=1, depth=[2]))
    a.label("1", "whole", "owl", who="me", source="x")
    b.label("1", "whole", "owl", "no", who="you", source="x")
    a.add_space("s", "centred", {"kind": "centre"}, b"\x00")
    did = merge([a.reader, b.reader], into.reader)
    assert (did.new, did.replaced, did.there, did.labels, did.spaces, did.runs) == (
        3,
        0,
        0,
        2,
        1,
        2,
    )
    assert whole(into)["1", "whole"]["site"] == "x" and whole(into)["3", "whole"]["depth"] == 2
    ids = {row["run_id"] for row in whole(into).values()}
    assert ids == {c.runs()["run_id"].to_pylist()[0] for c in (a, b)}
    before = whole(into), into.labels().to_pylist(), into.spaces().to_pylist()
    again = merge([b.reader, a.reader], into.reader)
    assert (again.new, again.replaced, again.there, again.labels, again.runs) == (0, 0, 3, 0, 0)
    assert before == (whole(into), into.labels().to_pylist(), into.spaces().to_pylist())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_newest_run_counts_whatever_the_order(places, order):
    a, b, into, _ = places
    filled(a.path, batch(["same", "changed"], site=["x", "x"]))
    filled(a.path, batch(["changed"], region="0-1"))
    filled(b.path, batch(["same", "new"], depth=[1, 2]))
    filled(b.path, batch(["changed"], seed=9))  # another content: its old segment goes too
    merge([places[place].reader for place in order], into.reader)
    rows = whole(into)
    assert set(rows) == {("same", "whole"), ("changed", "whole"), ("new", "whole")}
    assert rows["changed", "whole"]["content_hash"] == "hash-9"
    same = rows["same", "whole"]
    assert same["run_id"] == b.runs()["run_id"].to_pylist()[0]
    assert (same["site"], same["depth"]) == ("x", 1)  # what the newer one lacks is kept


def test_an_older_content_does_not_come_back(places):
    a, b, into, _ = places
    filled(b.path, batch(["x"], region=["whole"], seed=1), batch(["x"], region="0-1", seed=1))
    filled(a.path, batch(["x"], seed=2))
    for _ in range(2):
        merge([a.reader, b.reader], into.reader)
        assert set(whole(into)) == {("x", "whole")}
        assert whole(into)["x", "whole"]["content_hash"] == "hash-2"


def test_failures_stay_where_there_is_no_row(places):
    a, b, into, _ = places
    with a.writer(MANIFEST) as writer:
        writer.fail([Failure(name, "whole", "DecodeError", "no") for name in ("bad", "mended")])
    with b.writer(MANIFEST) as writer:
        writer.write(batch(["mended"]))
        writer.fail([Failure("bad", "whole", "DecodeError", "still no")])
    merge([b.reader, a.reader], into.reader)
    found = into.failures().to_pylist()
    assert [(row["id"], row["message"]) for row in found] == [("bad", "still no")]
    first, last = a.failures().to_pylist()[0], b.failures().to_pylist()[0]
    history = ("since", "first_run")  # of the collection in which it was met first
    assert found == [last | {name: first[name] for name in history}]
    assert merge([a.reader, b.reader], into.reader).failures == 0


def test_what_cannot_be_merged_is_said(places):
    a, b, into, _ = places
    filled(a.path, batch(["1"]))
    other = replace(MANIFEST, fingerprint={**MANIFEST.fingerprint, "pooling": "max"})
    filled(b.path, batch(["1"], manifest=other), manifest=other)
    with pytest.raises(FingerprintMismatch, match=r"pooling: .*'mean', .*'max'\n.*--like"):
        merge([a.reader, b.reader], into.reader)
    assert into.manifest is None
    for sources, target in (([a, a], into), ([a], a), ([], into)):
        with pytest.raises(UsageError, match="differ from each other"):
            merge([one.reader for one in sources], target.reader)
    with writing(a.path, MANIFEST), pytest.raises(CollectionLocked):
        merge([a.reader], into.reader)


KILLED = """
import sys
import lancedb
from penult.collection import transfer
from penult.collection.collection import Collection
transfer._MERGE_ROWS = 16
*sources, into = [Collection.open(path).reader for path in sys.argv[1:]]
print("ready", flush=True)
transfer.merge(sources, into)
"""


def test_killed_in_the_middle_and_run_again(places):
    a, b, into, straight = places
    filled(a.path, batch([f"a{n}" for n in range(1500)], site=["x"] * 1500))
    filled(a.path, batch([f"both{n}" for n in range(300)], seed=1))
    filled(
        b.path,
        batch([f"both{n}" for n in range(300)], seed=2),
        batch([f"b{n}" for n in range(900)]),
    )
    for n in range(50):
        a.label(f"a{n}", "whole", "owl", who="me", source="x")
    merge([a.reader, b.reader], straight.reader)
    chance = random.Random(0)
    command = [sys.executable, "-c", KILLED, *(str(c.path) for c in (a, b, into))]
    landed = 0
    for _ in range(int(os.environ.get("PENULT_KILLS", 3))):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        before = files_of(into.path)
        while process.poll() is None and files_of(into.path) == before:
            time.sleep(0.005)
        try:
            process.wait(chance.uniform(0.0, 0.4))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        landed += into.exists and 0 < into.count < 2700
    merge([a.reader, b.reader], into.reader)
    assert landed
    assert whole(into) == whole(straight) and len(all_keys(into)) == 2700
    assert into.labels().to_pylist() == straight.labels().to_pylist()


def test_on_the_command_line(places):
    a, b, into, _ = places
    filled(a.path, batch(["1"]))
    filled(b.path, batch(["2"]))
    said = ask("merge", a.path, b.path, "--into", into.path)
    assert said.code == 0 and said.out.startswith("2 new, 0 replaced, 0 present already")
    assert ask("merge", a.path, b.path, "--into", into.path, "--json").json["rows"] == 2
    assert ask("merge", a.path, "none", "--into", into.path).code == 2
    facts = ask("info", into.path, "--json").json
    assert (facts["rows"], facts["kinds"], facts["dim"]) == (2, {"whole": 2}, 8)
    assert facts["index"] is None and facts["bytes"] > 1000 and len(facts["runs"]) == 4
    said = ask("info", into.path)
    assert said.code == 0 and "2 (2 whole)" in said.out and "searches compare all rows" in said.out


# ---- the index


@pytest.fixture
def many(tmp_path: Path):
    random = np.random.default_rng(0)
    manifest = replace(MANIFEST, dim=32)
    near = np.repeat(random.normal(size=(60, 32)), 50, axis=0)
    vectors = near + 0.4 * random.normal(size=near.shape)
    vectors[7] = 0
    ids = [f"{n}" for n in range(3000)]
    rows = batch(ids, manifest=manifest, vectors=vectors, site=[n % 30 for n in range(3000)])
    return filled(tmp_path / "many", rows, manifest=manifest), vectors, manifest


def test_an_index_is_measured_and_used(many):
    collection, vectors, manifest = many
    assert collection.index is None
    made = collection.build_index()
    assert made.recall >= 0.95 and made.rows == 3000 and collection.index == made
    for where in (None, "site = 3", "site > 10", "id = '17'", "site > 99"):
        exact = collection.search(vectors[17], where=where, flat=True)
        found = collection.search(vectors[17], where=where)
        assert len(found) == len(exact)
        assert len({h.id for h in found} & {h.id for h in exact}) >= 0.9 * len(exact)
        for one, other in zip(found, exact, strict=True):
            assert one.similarity == pytest.approx(other.similarity, abs=0.1)
    assert collection.search(vectors[17])[0].similarity == pytest.approx(1, abs=1e-5)  # exact
    new = np.random.default_rng(5).normal(size=(1, 32))
    filled(collection.path, batch(["new"], manifest=manifest, vectors=new), manifest=manifest)
    assert collection.index.since == 1 and collection.search(new[0], k=1)[0].id == "new"  # type: ignore[attr-defined]
    assert collection.search(vectors[3], metric="dot")[0].similarity > 1  # not the index's metric
    assert collection.drop_index() and collection.index is None and not collection.drop_index()


def test_an_index_that_finds_too_little_is_refused(many, monkeypatch):
    from penult.collection import index

    collection = many[0]
    monkeypatch.setattr(index, "PROBES", 1)
    monkeypatch.setattr(index, "REFINE", 1)
    monkeypatch.setattr(index, "measured", lambda *_: (0.71, 1.0, 100))
    said = ask("index", collection.path)
    assert said.code == 1 and "finds 0.710 of the 10" in said.error and "0.71 accepts" in said.error
    assert collection.index is None and not index.is_ready(collection.path)
    said = ask("index", collection.path, "--min-recall", 0.7)
    assert said.code == 0 and "recall@10 0.710" in said.out
    dropped = ask("index", collection.path, "--drop")
    assert dropped.out == "index removed; searches compare all rows\n"


def test_indexes_that_are_not_made(many, places):
    filled(places[0].path, batch(["1"]))
    said = ask("index", places[0].path)
    assert said.code == 2 and "at least 1000" in said.error
    said = ask("index", many[0].path, "--min-recall", 2)
    assert said.code == 2 and "between 0 and 1" in said.error
    with many[0].writer(many[2]), pytest.raises(CollectionLocked):
        many[0].build_index()
