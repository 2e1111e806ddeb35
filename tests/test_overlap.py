"""Doubles between two collections: all cosines by numpy, hashes, refusals, files, the page."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import penult
from penult.analysis.neighbour_graph import NONE, nearest_between
from penult.collection.collection import Collection
from penult.collection.overlap import Overlap, find_overlap
from penult.collection.writer import writing
from penult.errors import FingerprintMismatch, UsageError
from test_cli import ask
from test_collection import DIM, MANIFEST, batch, filled

CLIPS = Path(penult.__file__).parent / "demo" / "clips"


def never() -> penult.Embedder:
    raise AssertionError("no threshold is to be measured")


def overlap(one: Collection, other: Collection, threshold: float = 0.9, **more: object) -> Overlap:
    return find_overlap(one.reader, other.reader, never, threshold=threshold, **more)  # type: ignore[arg-type]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_doubles_are_those_of_all_cosines_and_the_other_collection_is_only_read(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    rows, others = (random.standard_normal((count, 3)) @ np.eye(3, DIM) for count in (60, 150))
    rows[7] = 0
    ids, theirs = (
        [f"/{side}/{at:03d}.wav" for at in range(n)] for side, n in (("n", 60), ("a", 150))
    )
    new = filled(tmp_path / "n.lance", batch(ids, vectors=rows, content_hash=ids))
    archive = filled(tmp_path / "a.lance", batch(theirs, vectors=others, content_hash=theirs))
    before = bytes_of(archive.path)
    found = overlap(new, archive, 0.98)
    assert bytes_of(archive.path) == before
    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, others)]
    lengths[0][7] = 1
    cosines = (rows / lengths[0]) @ (others / lengths[1]).T
    wanted = {
        (ids[at], "whole"): (theirs[cosines[at].argmax()], "whole")
        for at in range(60)
        if cosines[at].max() >= 0.98
    }
    assert 10 < len(wanted) < 50 and found.doubles == wanted
    groups: dict[str, list[str]] = {}
    for (id, _), (other, _) in wanted.items():
        groups.setdefault(other, []).append(id)
    assert {one.kept: one.ids for one in found.groups} == groups
    for one in found.groups:
        least = min(cosines[ids.index(id), theirs.index(one.kept)] for id in one.ids)
        assert one.similarity == pytest.approx(least, abs=1e-6) and one.kind == "nearly the same"
    document = ask("duplicates", new.path, archive.path, "--threshold", 0.98, "--json").json
    assert {group[0]: group[1:] for group in document["groups"]} == groups
    for group, detail in zip(document["groups"], document["details"], strict=True):
        sides = [str(archive.path)] + [str(new.path)] * (len(group) - 1)
        assert [row["id"] for row in detail["rows"]] == group
        assert [row["collection"] for row in detail["rows"]] == sides
    assert new.reader.count_rows("duplicate_in_other IS NULL") == 60 - len(wanted)
    table, _ = new.vectors("duplicate_in_other IS NOT NULL", ["id", "duplicate_in_other"])
    stored = dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    assert stored == {id: other for (id, _), (other, _) in wanted.items()}
    made = {one["name"]: one["made"] for one in ask("info", new.path, "--json").json["derived"]}
    assert made["duplicate_in_other"] == (
        f"penult duplicates {new.path} {archive.path} --threshold 0.98"
    )


def test_the_nearest_row_whatever_the_block_and_the_first_of_equal_ones() -> None:
    random = np.random.default_rng(1)
    rows, others = (random.standard_normal((n, 4)).astype(np.float32) for n in (1500, 4500))
    others[4400] = others[30]  # in another block
    rows[0], rows[1], rows[2] = 2 * others[30], 0, np.nan
    apart = np.arange(1500) % 5, np.arange(4500) % 5
    for groups in (None, apart):
        places, cosines = nearest_between(rows, others, groups)
        assert places[1] == places[2] == NONE and np.isnan(cosines[1:3]).all()
        unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows[3:], others)]
        near = unit[0].astype(float) @ unit[1].T.astype(float)
        if groups is not None:
            near[apart[0][3:, None] == apart[1][None]] = -2
        assert np.abs(near.max(axis=1) - cosines[3:]).max() < 1e-6
        assert np.abs(near[np.arange(1497), places[3:]] - cosines[3:]).max() < 1e-6
    assert nearest_between(rows[:1], others)[0][0] == 30
    assert nearest_between(rows, np.zeros((2, 4)))[0].tolist() == [NONE] * 1500


def test_the_same_file_whatever_its_vector_and_its_other_parts_are_none(tmp_path: Path) -> None:
    vectors = np.eye(4, DIM)
    new = filled(
        tmp_path / "n.lance",
        batch(["x", "y", "y", "z"], region=["whole", "0-2", "2-4", "whole"],
              vectors=vectors[[0, 1, 1, 2]], content_hash=["h", "w", "w", None]),
    )  # fmt: skip
    other = filled(
        tmp_path / "a.lance",
        batch(["a", "b", "c", "d"], region=["whole", "whole", "0-2", "1-3"],
              vectors=vectors[[3, 3, 3, 1]], content_hash=["h", "h", "w", "w"]),
    )  # fmt: skip
    found = overlap(new, other)
    # x is a and b by its hash, y's first window is c; d has the vector of y, and is a part of it
    assert found.doubles == {("x", "whole"): ("a", "whole"), ("y", "0-2"): ("c", "0-2")}
    assert {(one.kept, *one.ids, one.kind) for one in found.groups} == {
        ("a", "x", "same content"), ("c", "y", "same content"),
    }  # fmt: skip
    assert found.parted == 1
    assert overlap(new, other, near=False, threshold=None).doubles == found.doubles  # type: ignore[arg-type]
    said = ask("duplicates", new.path, other.path, "--exact")
    assert said.code == 0 and "2 of 4 rows of" in said.out
    assert "1 row of other parts of files that both have" in said.err


def test_what_cannot_be_compared_is_refused_before_any_work(tmp_path: Path) -> None:
    rows = batch(["a"], vectors=np.eye(1, DIM))
    one = filled(tmp_path / "one.lance", rows)
    other = filled(tmp_path / "other.lance", rows)
    empty = filled(tmp_path / "empty.lance")
    unlike = replace(MANIFEST, fingerprint={**MANIFEST.fingerprint, "tap": "layer:3"})
    foreign = filled(tmp_path / "foreign.lance", rows, manifest=unlike)
    own = filled(
        tmp_path / "own.lance",
        batch(["a"], vectors=np.eye(1, DIM), duplicate_of=["mine"], duplicate_in_other=["mine"]),
    )
    for first, second, error, message in (
        (one, one, UsageError, "was given twice"),
        (one, empty, UsageError, "empty.lance has no rows yet"),
        (empty, one, UsageError, "empty.lance has no rows yet"),
        (own, one, UsageError, "have a column 'duplicate_in_other' of their own"),
        (one, foreign, FingerprintMismatch, "hold vectors of different embedders"),
    ):
        with pytest.raises(error, match=message):
            find_overlap(first.reader, second.reader, never)
    with pytest.raises(UsageError, match="a column 'duplicate_of' of their own"):
        penult.collection.duplicates.find_duplicates(own.reader, never)
    said = ask("duplicates", one.path, other.path, "--split", "side")
    assert said.code == 2 and "each of the two is a side" in said.err
    assert ask("duplicates", one.path, tmp_path / "no.lance").code != 0
    assert ask("duplicates", one.path, other.path, "--html", tmp_path / "a.txt").code == 2
    assert ask("duplicates", one.path, foreign.path, "--threshold", 0.9).code != 0


def test_copies_in_a_delivery_are_found_at_the_measured_threshold_and_on_the_page(
    tmp_path: Path,
) -> None:
    clips = sorted(CLIPS.glob("*.flac"))
    for side, some in (("archive", clips[::8]), ("new", clips[2::8])):
        (tmp_path / side).mkdir()
        for clip in some:
            shutil.copy(clip, tmp_path / side)
    shutil.copy(clips[0], tmp_path / "new" / "<b>&'copy.flac")
    samples, rate = soundfile.read(clips[8], dtype="float32")
    soundfile.write(tmp_path / "new" / "quiet.wav", 0.4 * samples, rate)
    quiet = ("--workers", "0", "--engine", "torch")
    for side in ("archive", "new"):
        into = tmp_path / f"{side}.lance"
        assert ask("embed", "demo", tmp_path / side, "--into", into, *quiet).code == 0
    files = ("--html", tmp_path / "p.html", "--out", tmp_path / "p.csv")
    document = ask(
        "duplicates", tmp_path / "new.lance", tmp_path / "archive.lance", *files, "--json"
    ).json
    groups = {tuple(Path(id).name for id in group) for group in document["groups"]}
    assert {(clips[0].name, "<b>&'copy.flac"), (clips[8].name, "quiet.wav")} <= groups
    assert document["threshold"]["different"] > len(clips[2::8])  # near rows of both are heard
    page = (tmp_path / "p.html").read_text()
    assert "<b>" not in page and "<script" not in page
    assert "%3Cb%3E%26%27copy.flac" in page and "&lt;b&gt;&amp;&#x27;copy.flac" in page
    assert page.count("<audio ") == sum(map(len, document["groups"]))
    with (tmp_path / "p.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [id for group in document["groups"] for id in group]


def test_only_columns_that_are_used_are_told_to_be_stale(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ids = [f"{at:02d}" for at in range(12)]
    store = filled(
        tmp_path / "c.lance",
        batch(
            ids, vectors=random.standard_normal((12, DIM)), content_hash=ids, site=["x", "y"] * 6
        ),
    )
    assert ask("neighbours", store.path).code == 0
    assert ask("duplicates", store.path, "--exact").code == 0
    with writing(store.path, MANIFEST) as writer:
        writer.write(batch(["new"], content_hash=["new"], site=["x"]))
    said = ask("select", store.path, "-k", 3, "--over", "site")
    assert "duplicate_of is stale" in said.err and "nearest_similarity" not in said.err
    for words in (("drift", "--by", "site"), ("suspects", "--labels", "site")):
        said = ask(words[0], store.path, *words[1:])
        assert said.code == 0 and "stale" not in said.err, said.err
