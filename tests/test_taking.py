"""Another model over the same items, parts of the items, and files that are gone."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import RATE, assert_law, clip
from penult.collection.collection import Collection
from penult.collection.reader import append_labels
from penult.data.items import as_id, path_of
from penult.data.regions import Region
from penult.data.sources import Shard, from_paths
from penult.embedding.embedder import Embedder
from penult.errors import CollectionError, FingerprintMismatch, RegionError, UsageError
from penult.models.specs import load
from test_cli import ask
from test_ingest import rows


@pytest.fixture(scope="module")
def embedder(tiny: Path) -> Embedder:
    return Embedder.from_classifier(load(tiny))


@pytest.fixture(scope="module")
def other(tiny: Path) -> Embedder:
    return Embedder.from_classifier(load(tiny), tap="layer:1", pooling="max")


def table_of(recordings: Path) -> Path:
    """A table with ids of its own, segments, channels and metadata."""
    path = recordings.parent / "calls.csv"
    lines = ["path,id,start,end,site,depth"]
    for number, file in enumerate(sorted(recordings.rglob("*.wav"))):
        lines.append(f"{file},call {number},0,0.25,{'AB'[number % 2]},{number / 2}")
    path.write_text("\n".join(lines))
    return path


# ---- like another collection


def test_items_regions_metadata_and_labels_are_taken_along(
    embedder: Embedder, other: Embedder, recordings: Path, tmp_path: Path
) -> None:
    stereo = np.stack([clip(1.0, 1), clip(1.0, 2)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE)
    old, new = Collection.open(tmp_path / "old"), Collection.open(tmp_path / "new")
    old.add(embedder, table_of(recordings))
    old.add(embedder, recordings, window=0.5, hop=0.25, summary="mean")
    old.add(embedder, tmp_path / "stereo.wav", channel="each")
    old.label("call 1", "0-0.25", "owl", who="me", source="explorer")
    when = datetime(2026, 1, 2, tzinfo=UTC)
    mark = {"id": "call 1", "region": "0-0.25", "class": "owl", "mark": "no", "who": "you"}
    append_labels(old.reader, [mark | {"source": "x", "when": when}])
    summary = new.add(other, like=old)
    before, after = rows(old.path), rows(new.path)
    assert before.keys() == after.keys() and summary.done == len(after) and summary.labels == 2
    own = {"vector", "logits", "label", "score"}
    for key, row in before.items():
        assert {n: v for n, v in row.items() if n not in own} == {
            n: v for n, v in after[key].items() if n not in own
        }
    first = sorted(recordings.rglob("*.wav"))[1]
    sound, _ = soundfile.read(first, dtype="float32")
    row = after["call 1", "0-0.25"]
    assert new.reader.roots.path_of(row["path"]) == first and row["site"] == "B"
    assert_law(row["vector"], other.embed(sound[: round(0.25 * RATE)])[0])
    assert new.labels().to_pylist() == old.labels().to_pylist()
    again = new.add(other, like=str(old.path))
    assert (again.done, again.skipped, again.labels) == (
        0,
        len(after) - 6,
        0,
    )  # summaries are not counted
    assert rows(new.path) == after and new.runs()["info"].to_pylist()[0].count("old") == 1


def test_what_has_no_file_any_more_is_named(
    embedder: Embedder, other: Embedder, recordings: Path, tmp_path: Path
) -> None:
    old, new = Collection.open(tmp_path / "old"), Collection.open(tmp_path / "new")
    old.add(embedder, recordings)
    old.add(embedder, [clip(0.4, 9)])
    gone = recordings / "a" / "3.wav"
    gone.unlink()
    assert new.add(other, like=old).counts() == {
        "done": 5, "skipped": 0, "replaced": 0, "failed": 2,
    }  # fmt: skip
    said = {row["id"]: row["message"] for row in new.failures().to_pylist()}
    assert "no such file" in said.pop("recordings/a/3.wav")
    ((id, message),) = said.items()
    assert id.startswith("sha256:") and "array or bytes" in message


def test_texts_are_taken_from_their_column(tmp_path: Path) -> None:
    from zoo import save_text

    model = save_text(tmp_path / "model")
    (tmp_path / "t.csv").write_text('id,text,topic\nx,"the fox, jumps",a\ny,rain falls,b\n')
    assert ask("embed", model, tmp_path / "t.csv", "--into", tmp_path / "old").code == 0
    said = ask(
        "embed", model, "--pooling", "max", "--like", tmp_path / "old", "--into", tmp_path / "new",
        "--json",
    )  # fmt: skip
    assert (said.code, said.json["done"], said.json["labels_taken"]) == (0, 2, 0), said.err
    assert rows(tmp_path / "new")["x", "whole"]["topic"] == "a"


def test_like_on_the_command_line(tiny: Path, recordings: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.lance", tmp_path / "new.lance"
    assert ask("embed", tiny, recordings, "--into", old).code == 0
    said = ask("embed", tiny, recordings, "--into", old, "--pooling", "max")
    assert said.code == 2 and f"penult embed MODEL --like {old} --into another" in said.error
    Collection.open(old).label(str(recordings), "whole", "owl", who="me", source="x")
    said = ask("embed", tiny, "--pooling", "max", "--like", old, "--into", new)
    assert said.code == 0 and "6 embedded" in said.out and "1 label copied" in said.out
    for options, says in (
        ([recordings], "give no paths"),
        (["--window", "1s"], "no windows"),
        (["--channel", "0"], "no channel"),
        (["--like", tmp_path / "none"], "no collection at"),
    ):
        said = ask("embed", tiny, "--like", old, "--into", tmp_path / "c", *options)
        assert said.code == 2 and says in said.error
    assert "like itself" in ask("embed", tiny, "--like", old, "--into", old).error
    assert "Missing argument" in ask("embed", tiny, "--into", tmp_path / "c").error
    assert not (tmp_path / "c").exists()


def test_summaries_whose_way_is_not_known(
    embedder: Embedder, other: Embedder, recordings: Path, tmp_path: Path
) -> None:
    old = Collection.open(tmp_path / "old")
    old.add(embedder, recordings, window=0.3, summary="mean")
    old.add(embedder, recordings, window=0.2, summary="max")
    with pytest.raises(UsageError, match=r"2 ways.*--summary"):
        Collection.open(tmp_path / "new").add(other, like=old)
    assert Collection.open(tmp_path / "new").add(other, like=old, summary="max").failed == 0


@pytest.mark.parametrize(
    "region",
    [
        Region(),
        Region("segment", 1.5),
        Region("segment", None, 2.25, 1),
        Region("window", 0.000001, 36_000.123456),
        Region("summary", channel=3),
        Region("summary", 1.0, 2.0, 0),
        Region("box", box=(1, 2, 30, 40)),
    ],
)
def test_a_region_is_read_back_from_its_key(region: Region) -> None:
    assert Region.of_key(region.key, region.kind).key == region.key


def test_keys_that_are_none() -> None:
    for key, kind in (("hole", "whole"), ("1:2", "segment"), ("box:1,2", "box")):
        with pytest.raises(RegionError, match=r"no (whole|segment|box)"):
            Region.of_key(key, kind)


def test_a_path_is_read_back_from_its_id(tmp_path: Path) -> None:
    for name in (b"plain.wav", b"\xff\xe9.wav", "ü音".encode(), b"back\\udcff.wav"):
        path = tmp_path / name.decode("utf-8", "surrogateescape")
        path.touch()
        assert path_of(as_id(path)) == path


# ---- parts of the items


def test_shards_are_the_whole_and_do_not_overlap(recordings: Path) -> None:
    (recordings / "bad.wav").symlink_to("nowhere")
    source = from_paths([recordings], "audio")
    parts = [list(Shard(n, 3).of(source)) for n in (1, 2, 3)]
    ids = [entry[0].id for part in parts for entry in part]
    assert sorted(ids) == sorted(entry[0].id for entry in source) and len(ids) == 7
    assert [n for n in (1, 2, 3) if Shard(n, 3).has("/data/1.wav")] == [2]  # on every machine
    for text in ("0/4", "5/4", "1-4", "1/0", "a/b", ""):
        with pytest.raises(UsageError, match="1/4, 2/4"):
            Shard.parse(text)


def test_shards_into_one_collection(tiny: Path, recordings: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert ask("embed", tiny, recordings, "--into", whole).code == 0
    for part in ("1/2", "2/2"):
        said = ask("embed", tiny, recordings, "--into", parts, "--shard", part, "--wait", "--json")
        assert said.code == 0 and 0 < said.json["done"] < 6
    one, other = rows(whole), rows(parts)
    assert one.keys() == other.keys()
    for key in one:
        assert_law(one[key]["vector"], other[key]["vector"])
    assert '"shard": "2/2"' in Collection.open(parts).runs()["info"].to_pylist()[1]
    assert (
        "no part of a whole"
        in ask("embed", tiny, recordings, "--into", whole, "--shard", "3/2").error
    )


# ---- files that are gone


def test_gone_files_are_named_and_kept_unless_pruned(
    tiny: Path, recordings: Path, tmp_path: Path
) -> None:
    """Only those that were asked about: another folder's and another table's stay."""
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "c"
    shutil.copytree(recordings, elsewhere)
    table = table_of(elsewhere)
    for source in (recordings, elsewhere, table):
        assert ask("embed", tiny, source, "--into", path).code == 0
    for folder in (recordings, elsewhere):
        (folder / "a" / "3.wav").unlink()
        (folder / "b" / "4.wav").unlink()
    assert Collection.open(path).count == 18
    said = ask("embed", tiny, recordings, "--into", path)
    assert said.code == 0 and "2 files were deleted: " in said.out and "--prune removes" in said.out
    assert Collection.open(path).count == 18
    said = ask("embed", tiny, recordings / "a", "--into", path, "--prune", "--json")
    assert said.json["gone"] == {
        "count": 1, "first": ["recordings/a/3.wav"], "rows_removed": 1,
    }  # fmt: skip
    assert ask("embed", tiny, recordings, "--into", path, "--prune").code == 0
    assert Collection.open(path).count == 16
    said = ask("embed", tiny, table, "--into", path, "--prune", "--json")
    assert said.code == 3 and said.json["gone"]["rows_removed"] == 2  # the table still names them
    assert sorted(said.json["gone"]["first"])[0].startswith("call ")
    left = {id for id, _ in rows(path)}
    assert "elsewhere/a/3.wav" in left and len(left) == 14


def test_a_table_and_a_folder_at_once_are_not_the_table_alone(
    embedder: Embedder, recordings: Path, tmp_path: Path
) -> None:
    from penult.collection.pruning import gone

    extra = tmp_path / "extra"
    shutil.copytree(recordings / "a", extra)
    table = table_of(recordings)
    collection = Collection.open(tmp_path / "c")
    from penult.collection.add import add

    add(collection.reader, embedder, from_paths([table, extra], "audio"))
    (extra / "1.wav").unlink()
    assert gone(collection.reader, [str(table)]) == []
    assert gone(collection.reader, [str(extra)]) == [f"{tmp_path.name}/extra/1.wav"]
    assert gone(collection.reader, [str(extra), str(table)]) == [f"{tmp_path.name}/extra/1.wav"]
    assert gone(collection.reader, [str(tmp_path / "ext")]) == [] == gone(collection.reader, [])


def test_names_that_are_not_utf8_are_not_gone(embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "clips_%"
    folder.mkdir()
    for name in (b"\xff.wav", b"it's.wav"):
        soundfile.write(folder / "x.wav", clip(0.3), RATE)
        (folder / "x.wav").rename(folder / name.decode("utf-8", "surrogateescape"))
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, folder)
    (folder / "it's.wav").unlink()
    assert collection.add(embedder, folder, prune=True).pruned == 1
    assert collection.count == 1


def test_findings_of_a_run_and_their_former_names(
    embedder: Embedder, recordings: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(recordings / "a", folder)
    (folder / "notes.pdf").write_bytes(b"%PDF")
    collection = Collection.open(tmp_path / "c")
    before = len(list(folder.glob("*.wav")))
    assert collection.add(embedder, folder).found.gone == []
    (folder / "1.wav").unlink()
    summary = collection.add(embedder, folder)
    assert summary.found.gone == ["clips/1.wav"] and summary.found.left_out == {".pdf": 1}
    assert summary.pruned == 0 and collection.count == before and not summary.engine  # no choice
    with pytest.warns(DeprecationWarning, match="found.gone"):
        assert summary.gone == summary.found.gone  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match="found.left_out"):
        assert summary.left_out == {".pdf": 1}  # type: ignore[attr-defined]


def test_the_refusal_of_another_embedder_says_what_to_do(
    embedder: Embedder, other: Embedder, recordings: Path, tmp_path: Path
) -> None:
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, recordings)
    with pytest.raises(FingerprintMismatch, match="--like"):
        collection.add(other, recordings)
    with pytest.raises(CollectionError, match="no collection at"):
        Collection.open(tmp_path / "d").add(other, like=tmp_path / "none")
