"""Exports: what comes out is what is in, in one order, and never a part of a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import soundfile

from conftest import RATE, clip
from penult.collection import schema
from penult.collection.collection import Collection
from penult.collection.derived import keep_values
from penult.collection.export import METADATA_KEY, export, to_arrow
from penult.errors import CollectionError, UsageError
from test_cli import ask
from test_collection import CLASSES, DIM, MANIFEST, batch, filled

REGIONS = ["whole", "ch0:0-5", "5-10", "10-15"]


@pytest.fixture
def collection(tmp_path):
    """Twelve rows that arrived unordered, some replaced."""
    path = tmp_path / "calls.lance"
    texts = ['a "quoted", text', None, "", "line\nbreak"]
    one = batch(["b"] * 4, region=REGIONS, seed=1, site=texts, year=[1, None, 3, 4])
    place = {"start": [None, 0.0, 5.0, 10.0], "end": [None, 5.0, 10.0, 15.0]}
    place["channel"] = [None, 0, None, None]
    parts = []
    for name, seed in (("c", 2), ("b", 1), ("a", 3), ("b", 4)):
        columns = {field.name: one.column(field.name) for field in one.schema}
        columns |= {key: pa.array(value, one.schema.field(key).type) for key, value in
                    place.items()}  # fmt: skip
        new = batch([name] * 4, region=REGIONS, seed=seed)
        columns |= {key: new.column(key) for key in ("id", "vector", "logits", "content_hash")}
        parts.append(pa.RecordBatch.from_pydict(columns, schema=one.schema))
    return filled(path, *parts)


def in_order(collection):
    """All rows, sorted here in plain Python."""
    found = [row for part in collection.scan() for row in part.to_pylist()]

    def key(row):
        low = [-1 if row[name] is None else row[name] for name in ("channel", "start")]
        return (row["id"], *low, np.inf if row["end"] is None else row["end"], row["region"])

    return sorted(found, key=key)


def bits(vectors):
    return np.asarray(vectors, np.float32).tobytes()


def test_parquet_keeps_everything(collection, tmp_path):
    out = tmp_path / "out.parquet"
    assert export(collection, out) == 12
    table = pa.parquet.read_table(out)
    assert table.column_names == collection.columns
    assert table.schema.remove_metadata().equals(collection.schema.remove_metadata())
    assert table.to_pylist() == in_order(collection)
    about = json.loads(table.schema.metadata[METADATA_KEY])
    assert about["fingerprint"] == MANIFEST.fingerprint and about["labels"] == ["cat", "dog", "owl"]
    assert export(collection, tmp_path / "few.parquet", "id = 'a'", logits=False) == 4
    few = pa.parquet.read_table(tmp_path / "few.parquet")
    assert "logits" not in few.column_names and set(few["id"].to_pylist()) == {"a"}


def test_rows_as_an_arrow_table(collection):
    expected = in_order(collection)
    table = to_arrow(collection)
    assert table["id"].to_pylist() == table["path"].to_pylist() == [r["id"] for r in expected]
    assert bits(table["vector"].to_pylist()) == bits([row["vector"] for row in expected])
    assert "logits" not in table.column_names
    few = to_arrow(collection.reader, "id = 'a'", vectors=False)
    assert set(few["id"].to_pylist()) == {"a"} and "vector" not in few.column_names
    with pytest.raises(CollectionError):
        to_arrow(collection, "nope = 1")


def test_npy_and_its_keys_are_in_the_same_order(collection, tmp_path):
    assert export(collection, tmp_path / "out.npy") == 12
    vectors = np.load(tmp_path / "out.npy", allow_pickle=False)
    expected = in_order(collection)
    assert vectors.dtype == np.float32 and vectors.shape == (12, DIM)
    assert bits(vectors) == bits([row["vector"] for row in expected])
    table = pa.csv.read_csv(tmp_path / "out.csv", parse_options=_LINES)
    assert table.column_names == schema.scalar_columns(collection.schema)
    for name in ("id", "region", "content_hash", "year", "start"):
        assert table[name].to_pylist() == [row[name] for row in expected], name
    np.testing.assert_array_equal(vectors, np.load(tmp_path / "out.npy", mmap_mode="r"))


_LINES = pyarrow.csv.ParseOptions(newlines_in_values=True)


def test_csv_spreads_vectors_and_logits_exactly(collection, tmp_path):
    out = tmp_path / "out.csv"
    assert export(collection, out) == 12
    convert = pa.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    table = pa.csv.read_csv(out, parse_options=_LINES, convert_options=convert)
    spread = [f"v{index}" for index in range(DIM)] + [f"logit_{index}" for index in range(CLASSES)]
    assert table.column_names == schema.scalar_columns(collection.schema) + spread
    expected = in_order(collection)
    for prefix, name in (("v", "vector"), ("logit_", "logits")):
        width = len(expected[0][name])
        values = np.stack([table[f"{prefix}{index}"].to_numpy() for index in range(width)], axis=1)
        assert bits(values) == bits([row[name] for row in expected])
    assert table["site"].to_pylist() == [row["site"] for row in expected]


def test_top_logits_and_half_vectors(tmp_path):
    manifest = replace(MANIFEST, logits="top:3", dtype="float16")
    collection = filled(tmp_path / "c", batch(["a"], manifest=manifest), manifest=manifest)
    export(collection, tmp_path / "out.csv")
    row = pa.csv.read_csv(tmp_path / "out.csv").to_pylist()[0]
    assert (row["top_0_index"], row["top_1_logit"], row["top_2_index"]) == (1, 1.5, None)
    export(collection, tmp_path / "out.parquet")
    table = pa.parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.field("vector").type.value_type == pa.float16()
    assert table["logits"].to_pylist()[0][0] == {"index": 1, "logit": 2.5}
    export(collection, tmp_path / "other.npy")
    assert bits(np.load(tmp_path / "other.npy")) == bits(collection.vectors()[1])


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".csv"])
def test_nothing_to_export_is_an_empty_file_of_the_same_form(collection, tmp_path, suffix):
    out = tmp_path / f"none{suffix}"
    assert export(collection, out, "id = 'nobody'") == 0
    if suffix == ".npy":
        assert np.load(out).shape == (0, DIM)
    read = {".parquet": pa.parquet.read_table, ".npy": pa.csv.read_csv, ".csv": pa.csv.read_csv}
    table = read[suffix](out.with_suffix(".csv") if suffix == ".npy" else out)
    assert len(table) == 0 and table.column_names[0] == "id"


def test_refusals_leave_what_was_there(collection, tmp_path):
    with pytest.raises(UsageError, match=r"'x\.xls'.*\.parquet, \.npy, \.csv"):
        export(collection, tmp_path / "x.xls")
    (tmp_path / "out.csv").write_text("mine")
    for name in ("out.csv", "out.npy"):  # the .npy brings a .csv of the same name
        with pytest.raises(UsageError, match=r"out\.csv exists"):
            export(collection, tmp_path / name)
    with pytest.raises(CollectionError, match="nope"):
        export(collection, tmp_path / "out.csv", "nope = 1", overwrite=True)
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert {entry.name for entry in tmp_path.iterdir()} == {"calls.lance", "out.csv"}
    assert export(collection, tmp_path / "out.csv", overwrite=True) == 12
    filled(collection.path, batch(["d"], v0=["clash"]))
    with pytest.raises(UsageError, match="'v0'"):
        export(collection, tmp_path / "new.csv")
    assert export(collection, tmp_path / "new.npy") == 13
    assert not list(tmp_path.glob(".*"))


def test_the_order_does_not_depend_on_history(tmp_path):
    parts = [batch([f"{index:02d}"], seed=index) for index in range(30)]
    first = filled(tmp_path / "first", *parts)
    second = filled(tmp_path / "second", *parts[::-1], parts[5], *parts[10:12])
    for collection, name in ((first, "a.npy"), (second, "b.npy")):
        export(collection, tmp_path / name)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_rows_are_a_data_frame(tiny: Path, tmp_path: Path) -> None:
    """docs/collection.md; the types that pandas makes of them are numbers, texts and times."""
    folder, into = tmp_path / "rec", tmp_path / "c.lance"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"2021060{number + 1}_043000.wav", clip(1.0, number), RATE)
    done = ask("embed", tiny, folder, "--into", into, "--window", "0.5s", "--times")
    assert done.code == 0, done.err
    table = to_arrow(Collection.open(into), "start > 0", vectors=False)
    assert table.num_rows == 3 and str(table.schema.field("recorded_at").type).startswith("timest")
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert list(frame["start"]) == [0.5] * 3 and frame["start"].dtype == "float64"
    wanted = [pandas.Timestamp(f"2021-06-0{day} 04:30:00.5", tz="UTC") for day in (1, 2, 3)]
    assert sorted(frame["recorded_at"]) == wanted
    assert [Path(one).is_file() for one in frame["path"]] == [True] * 3
    matrix = np.stack(to_arrow(Collection.open(into)).to_pandas()["vector"])
    _, vectors = Collection.open(into).vectors(columns=["id"])
    assert matrix.shape == vectors.shape and np.allclose(
        np.sort(matrix, axis=0), np.sort(vectors, axis=0)
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_nan_is_no_value_in_a_filter(light: Path, tmp_path: Path, kind: str) -> None:
    values = [1.0, 5.0, float("nan"), 4.0, None]
    ids = [f"{at}.wav" for at in range(len(values))]
    for id, seed in zip(ids, range(5), strict=True):
        soundfile.write(tmp_path / id, clip(0.2, seed=seed), RATE)
    table, path, out = tmp_path / f"t.{kind}", tmp_path / "c.lance", tmp_path / "out.csv"
    columns = pa.table({"path": ids, "v": pa.array(values, pa.float64(), from_pandas=False)})
    if kind == "csv":
        table.write_text("path,v\n0.wav,1\n1.wav,5\n2.wav,nan\n3.wav,4\n4.wav,\n")
    else:
        pyarrow.parquet.write_table(columns, table)
    with pytest.MonkeyPatch.context() as before:  # as earlier versions stored it
        before.setattr(schema, "without_nan", lambda column: column)
        assert ask("embed", light, table, "--into", path).code == 0
        assert Collection.open(path).reader.count_rows("v > 3") == 3
    assert ask("embed", light, table, "--into", path).code == 0  # stores what changed
    found = {}
    for where in ("v > 3", "NOT v > 3", "v < 3", "v IS NULL", "isnan(v)"):
        assert ask("export", path, out, "--where", where, "--overwrite").code == 0
        rows = out.read_text(encoding="utf-8").splitlines()[1:]
        found[where] = [Path(row.split(",")[0].strip('"')).name for row in rows]
    assert found == {"v > 3": ["1.wav", "3.wav"], "NOT v > 3": ["0.wav"], "v < 3": ["0.wav"],
                     "v IS NULL": ["2.wav", "4.wav"], "isnan(v)": []}  # fmt: skip
    said = ask("search", path, tmp_path / "2.wav", "--where", "v > 3", "--json")
    names = {Path(row["id"]).name for row in json.loads(said.out)["hits"]}
    assert names == {"1.wav", "3.wav"}


def test_nan_of_a_derived_column_is_no_value(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.lance", batch(["a", "b", "c"], n=[1.0, 2.0, 3.0]))
    value = {("a", "whole"): float("nan"), ("b", "whole"): 5.0}
    keep_values(store.reader, {"made": "by hand"}, {"u": (pa.float64(), value)})
    for where, ids in (("u > 3", ["b"]), ("u > 3 OR n = 3", ["b", "c"]), ("u IS NULL", ["a", "c"])):
        out = tmp_path / "out.parquet"
        assert ask("export", store.path, out, "--where", where, "--overwrite").code == 0
        assert pyarrow.parquet.read_table(out)["id"].to_pylist() == ids
