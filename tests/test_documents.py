"""Files that are wrong about themselves: each is refused in one sentence, of bounded length."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import onnx
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import penult
from conftest import RATE, clip
from penult.collection.index import ABOUT
from penult.data import documents
from penult.errors import CollectionError, ModelError
from penult.models.specs import demo_folder
from penult.viz.plots import draw_confusion, draw_map
from test_cli import ask

DEEP = "[" * 100_000


def said(*arguments: str | Path) -> tuple[int, str]:
    """The exit code of a command, and all that it printed; never a traceback."""
    answer = ask(*arguments)
    words = answer.out + answer.err
    assert "Traceback" not in words
    assert "Nobody foresaw" not in words, answer.err
    assert max(map(len, words.splitlines()), default=0) < 6_000
    return answer.code, words


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of four recordings."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", clip(0.5, number), RATE)
    penult.Collection.open(folder / "calls.lance").add(
        penult.Embedder.from_classifier(penult.load("demo")), folder
    )
    return folder


def changed(made: Path, target: Path, **values: Any) -> Path:
    """A copy of the collection whose manifest has other values."""
    shutil.copytree(made / "calls.lance", target)
    manifest = json.loads((target / "collection.json").read_text("utf-8"))
    (target / "collection.json").write_text(json.dumps({**manifest, **values}), "utf-8")
    return target


VALUES: list[Any] = [None, -1, 3.5, "x", [], {}, [[]], {"a": []}, True, 2**70, 1e308]


@pytest.mark.parametrize("field", ["dim", "n_logits", "labels", "model", "fingerprint", "format"])
def test_a_manifest_of_other_types_is_damaged(made: Path, tmp_path: Path, field: str) -> None:
    copy = changed(made, tmp_path / "copy.lance")
    right = json.loads((copy / "collection.json").read_text("utf-8"))
    for value in VALUES:
        if field == "model" and value in ({}, {"a": []}):
            continue  # of the right type
        if field == "fingerprint" and value == {}:
            continue
        if field == "labels" and value == []:
            continue
        if field == "format" and value == 2**70:
            continue  # a later format
        (copy / "collection.json").write_text(json.dumps({**right, field: value}), "utf-8")
        code, words = said("info", copy)
        assert code == 2
        assert "damaged" in words
        with pytest.raises(CollectionError, match="damaged"):
            penult.Collection.open(copy).reader.count_rows()


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{", DEEP, '{"format": 1e400}', "\0", "{}"]
)
def test_a_manifest_that_is_no_object_is_damaged(made: Path, tmp_path: Path, text: str) -> None:
    copy = changed(made, tmp_path / "copy.lance")
    (copy / "collection.json").write_text(text, "utf-8")
    code, words = said("info", copy)
    assert (code, "damaged" in words) == (2, True)


def test_of_a_manifests_model_each_part_has_its_type(made: Path, tmp_path: Path) -> None:
    model = json.loads((made / "calls.lance/collection.json").read_text("utf-8"))["model"]
    for number, name in enumerate(("spec", "taps", "asked", "behaviour", "modality")):
        copy = changed(made, tmp_path / f"{number}.lance", model={**model, name: 3})
        code, words = said("search", copy, made / "0.wav")
        assert code == 2
        assert name in words


def test_rows_that_the_manifest_does_not_describe(made: Path, tmp_path: Path) -> None:
    code, words = said("search", changed(made, tmp_path / "a.lance", dim=64), made / "0.wav")
    assert code == 2
    assert "column 'vector'" in words
    code, words = said(
        "export", changed(made, tmp_path / "b.lance", n_logits=3), tmp_path / "b.csv"
    )
    assert (code, "column 'logits'" in words) == (2, True)
    code, words = said("info", changed(made, tmp_path / "c.lance"))
    assert code == 0, words


@settings(deadline=None, max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_document_has_its_type_or_is_refused(value: Any) -> None:
    try:
        found = documents.check(value, dict[str, int])
    except ValueError as error:
        assert len(str(error)) < 500
        assert "\n" not in str(error)
    else:
        assert found == value


def test_a_text_is_no_number() -> None:
    assert documents.parse('{"a": 3}', dict[str, int]) == {"a": 3}
    for wrong in ('{"a": "3"}', '{"a": true}', '{"a": 3.0}', '{"a": null}'):
        with pytest.raises(ValueError, match=r"^a: should be a valid integer, not "):
            documents.parse(wrong, dict[str, int])


# ---- models


def onnx_file(path: Path, **metadata: str) -> Path:
    """A classifier of four classes with these texts in its metadata."""
    random = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(random.standard_normal(shape).astype("f4"), name)
        for name, shape in (("hidden", (12, 8)), ("head", (8, 4)))
    ]
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "hidden"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("MatMul", ["b", "head"], ["y"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info("x", 1, ["N", 3, 2, 2])]
    outputs = [onnx.helper.make_tensor_value_info("y", 1, ["N", 4])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, weights)
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "text", [DEEP, DEEP + "]" * 100_000, "-" * 200_000 + "1", "(" * 300 + ")" * 300, "3", "null"]
)
def test_metadata_that_is_no_list_of_names(tmp_path: Path, text: str) -> None:
    path = onnx_file(tmp_path / "m.onnx", names=text)
    assert penult.load(path).labels == ("class_0", "class_1", "class_2", "class_3")
    assert said("inspect", path)[0] == 0


def test_metadata_that_is_a_list_of_names(tmp_path: Path) -> None:
    names = '["owl", "wren", "rook", "gull"]'
    assert penult.load(onnx_file(tmp_path / "m.onnx", names=names)).labels[1] == "wren"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled classifier."""
    return Path(shutil.copytree(demo_folder(), tmp_path / "model"))


def with_settings(folder: Path, file: str = "config.json", **values: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")
    return folder


@pytest.mark.parametrize(
    "kernel", ["flash_attention_2", "kernels-community/flash-attn", "flex_attention", "nonsense"]
)
def test_an_attention_kernel_is_no_part_of_the_model(folder: Path, kernel: str) -> None:
    sound = clip(1.0)
    before = penult.load("demo").classify([sound])[0].logits
    with_settings(folder, _attn_implementation=kernel, attn_implementation=kernel)
    assert np.allclose(penult.load(folder).classify([sound])[0].logits, before, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("architectures", 3), ("architectures", [[1]]), ("id2label", True), ("id2label", -1)],
)
def test_settings_of_other_types_are_named(folder: Path, field: str, value: Any) -> None:
    code, words = said("inspect", with_settings(folder, **{field: value}))
    assert code == 2
    assert field in words


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", [DEEP, "[]", "3", "", '{"a":' * 3000 + "1" + "}" * 3000])
def test_settings_that_are_no_object(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text, "utf-8")
    assert said("inspect", folder)[0] == 2


@pytest.mark.parametrize("rate", [1e9, -1, "x", [], 10**30])
def test_a_sample_rate_that_no_model_has(folder: Path, rate: Any) -> None:
    with_settings(folder, "preprocessor_config.json", sampling_rate=rate)
    with pytest.raises(ModelError, match="sampling_rate"):
        penult.load(folder)


# ---- names in pictures, paths and tables


NAMES = [r"$\frac{$", "$$", "$x$", r"\$", "\ud800", "\0", "a\nb", "x" * 5_000, "", "日本語"]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_any_name_can_stand_in_a_picture(tmp_path: Path, suffix: str) -> None:
    points = np.random.default_rng(0).standard_normal((2 * len(NAMES), 2)).astype(np.float32)
    draw_map(tmp_path / f"map.{suffix}", points, NAMES * 2, set(NAMES[:2]), NAMES[0], NAMES[1])
    counts = np.ones((len(NAMES), len(NAMES)), np.int64)
    draw_confusion(tmp_path / f"confusion.{suffix}", counts, NAMES, NAMES[0])
    for name in ("map", "confusion"):
        file = tmp_path / f"{name}.{suffix}"
        assert file.stat().st_size > 1_000
        if suffix == "png":
            assert max(Image.open(file).size) < 5_000


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path) -> None:
    points = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    draw_map(tmp_path / "map.svg", points, ["5 $ and 6 $"] * 4, set(), "t", "s")
    assert "5 $ and 6 $" in (tmp_path / "map.svg").read_text("utf-8")


@pytest.fixture
def odd(tmp_path: Path, made: Path) -> Iterator[Path]:
    """A recording whose name is not UTF-8."""
    path = tmp_path / "odd\udcff.wav"
    try:
        shutil.copy(made / "1.wav", path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    yield path
    path.unlink()


def test_a_name_that_is_not_utf8_is_searched(made: Path, odd: Path) -> None:
    code, words = said("search", made / "calls.lance", odd, "-k", "1")
    assert code == 0
    assert f"{made.name}/1.wav" in words.replace("\n", "")
    assert " 1.0000  " in words
    code, words = said("search", made / "calls.lance", odd.with_name("none\udcff.wav"))
    assert code == 2
    assert "neither a file nor the id of a row" in words


def test_a_row_of_a_name_that_is_not_utf8_is_found(odd: Path, tmp_path: Path) -> None:
    assert said("embed", "demo", odd, "--into", tmp_path / "one.lance")[0] == 0
    collection = penult.Collection.open(tmp_path / "one.lance")
    stored = collection.reader.vectors()[1][0]
    assert collection.search(stored, k=1)[0].id.endswith(r"odd\udcff.wav")
    assert said("search", tmp_path / "one.lance", odd)[0] == 0


def test_a_folder_of_a_name_that_is_not_utf8_is_pruned(odd: Path, tmp_path: Path) -> None:
    """Names of sources are kept with the run, and compared with those that are given."""
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    for name in "abcdef":
        shutil.copy(odd, folder / f"{name}.wav")
    assert said("embed", "demo", folder, "--into", tmp_path / "c.lance")[0] == 0
    (folder / "b.wav").unlink()
    code, words = said("embed", "demo", folder, "--into", tmp_path / "c.lance", "--prune")
    assert code == 0 and "1 row removed" in words, words
    assert penult.Collection.open(tmp_path / "c.lance").count == 5


def test_a_collection_and_a_class_need_names_in_utf8(made: Path, tmp_path: Path) -> None:
    code, words = said("embed", "demo", made / "0.wav", "--into", tmp_path / "n\udcff.lance")
    assert code == 1
    assert "is not UTF-8" in words
    code, words = said("teach", made / "calls.lance", "owl\udcff", made / "0.wav")
    assert code == 2
    assert "is not UTF-8" in words


def test_a_path_that_is_no_path_is_not_printed_whole(made: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    long = "y" * 4_000
    table.write_text(f"path\n{made}/0.wav\n{'x' * 3_000_000}.wav\n{made}/{long}.wav\n", "utf-8")
    store = tmp_path / "list.lance"
    code, words = said("embed", "demo", table, "--into", store)
    assert (code, len(words) < 5_000) == (3, True)
    code, words = said("failures", store)
    assert code == 0
    assert "an id or path of 3,000," in words
    assert max(map(len, words.splitlines())) < 1_000
    assert "File name too long" in words
    assert len(said("classify", "demo", table)[1]) < 5_000


def test_columns_beyond_number(made: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.csv"
    names = [f"a_column_with_a_name_{number}" for number in range(2_500)]
    wide.write_text(f"path,{','.join(names)}\n{made}/0.wav{',1' * 2_500}\n", "utf-8")
    code, words = said("embed", "demo", wide, "--into", tmp_path / "wide.lance")
    assert code == 2
    assert "2,500 columns" in words
    some = tmp_path / "some.csv"
    some.write_text(f"path,{','.join(names[:300])}\n{made}/0.wav{',1' * 300}\n", "utf-8")
    assert said("embed", "demo", some, "--into", tmp_path / "some.lance")[0] == 0
    assert said("search", tmp_path / "some.lance", made / "0.wav")[0] == 0
    code, words = said("search", tmp_path / "some.lance", made / "0.wav", "--where", "foo = 1")
    assert (code, "more. Texts stand" in words) == (2, True)


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 3000 + "1" + "}" * 3000])
@pytest.mark.parametrize("file", ["penult.json", "classifier.json"])
def test_a_saved_embedder_that_nests_beyond_measure(tmp_path: Path, file: str, text: str) -> None:
    folder = penult.Embedder.from_classifier(penult.load("demo")).save(tmp_path / "embedder")
    (folder / file).write_text(text, "utf-8")
    (folder / "SHA256SUMS").unlink()  # as earlier versions saved it
    with pytest.raises(ModelError, match=f"{file} cannot be read: it nests too deeply"):
        penult.Embedder.load(folder)


@pytest.mark.parametrize("text", [DEEP, "[]", "", '{"kind": 3}'])
def test_a_description_of_an_index_of_other_types(made: Path, tmp_path: Path, text: str) -> None:
    copy = changed(made, tmp_path / "copy.lance")
    (copy / ABOUT).write_text(text, "utf-8")
    code, words = said("info", copy)
    assert (code, f"{ABOUT} is damaged" in words) == (2, True)


@pytest.mark.parametrize("info", ["[]", '{"renamed": 3}', "{", '{"sources": "a"}', DEEP])
def test_what_a_run_tells_of_itself_is_checked(made: Path, tmp_path: Path, info: str) -> None:
    copy = tmp_path / "copy.lance"
    shutil.copytree(made / "calls.lance", copy)
    lancedb.connect(str(copy)).open_table("runs").update(values={"info": info})
    code, words = said("failures", copy, "--new")
    assert code == 1 and "the column info of its runs is damaged" in words
