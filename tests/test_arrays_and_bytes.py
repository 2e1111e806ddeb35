"""Items that are arrays of numbers, and files of any kind by their first and last bytes."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult
from penult import Embedder
from penult.data import array
from penult.data import bytes as ends
from penult.data.decode import Content, DecodedRegion
from penult.data.items import Item
from penult.data.messages import answer_of, packed_answer
from penult.data.regions import WHOLE
from penult.errors import DecodeError, EmptyItem, ItemError, ModelError
from test_cli import ask

FIRST, LAST, CLASSES = 24, 16, 5
TABLE = np.random.default_rng(0).standard_normal((257, 12)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((12, CLASSES)).astype(np.float32)
NAMES = ["csv", "elf", "png", "python", "zip"]


def file_types(folder: Path, **changes: Any) -> Path:
    """A classifier of file types as ONNX: a row of a table for each byte, their mean, five
    classes; and its configuration beside it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, constant = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Gather", ["table", "bytes"], ["rows"]),
        helper.make_node("Tanh", ["rows"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden"], ["z"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["z", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["target_label"]),
    ]
    value, float32 = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "types", [value("bytes", onnx.TensorProto.INT32, ("n", FIRST + LAST))],
        [value("target_label", float32, ("n", CLASSES))],
        [constant(TABLE, "table"), constant(10 * WEIGHT, "weight")],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    config = {"beg_size": FIRST, "mid_size": 0, "end_size": LAST, "padding_token": 256,
              "target_labels_space": NAMES} | changes  # fmt: skip
    (folder / "config.min.json").write_text(json.dumps(config))
    return folder / "model.onnx"


def prelogits(content: bytes) -> Any:
    """The same in numpy, out of the bytes of a file."""
    first, last = content[:4096].lstrip()[:FIRST], content[-4096:].rstrip()[-LAST:]
    numbers = [*first, *[256] * (FIRST - len(first)), *[256] * (LAST - len(last)), *last]
    return np.tanh(TABLE[numbers]).mean(axis=0)


FILES = {
    "a.py": b"\n\n  import os\nprint(os.name)\n\n\n", "b.csv": b"path,label\nx.wav,y\n",
    "c": bytes(range(256)) * 40, "d.zip": b"PK\x03\x04" + b"\0" * 90, "e.txt": b"x",
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def test_files_by_their_bytes(tmp_path: Path, files: Path) -> None:
    classifier = penult.load(file_types(tmp_path), modality="bytes")
    assert classifier.labels == tuple(NAMES)
    embedder = Embedder.from_classifier(classifier, tap="prelogits")
    found = embedder.run([files / name for name in FILES])
    expected = np.stack([prelogits(content) for content in FILES.values()])
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.logits, expected @ (10 * WEIGHT), rtol=1e-4, atol=1e-4)
    given = embedder.run([*FILES.values()])  # bytes at hand are the same
    np.testing.assert_array_equal(given.vectors, found.vectors)


def test_files_of_any_kind_on_the_command_line(tmp_path: Path, files: Path) -> None:
    model, place = file_types(tmp_path), tmp_path / "c.lance"
    asked = ("--modality", "bytes", "--tap", "prelogits")
    (files / "empty.bin").write_bytes(b"")
    found = ask("embed", model, files, "--into", place, *asked, "--json")
    assert found.code == 3
    assert (found.json["done"], found.json["failed"]) == (len(FILES), 1)
    keys, vectors = penult.Collection.open(place).vectors()
    for name, vector in zip(keys["id"].to_pylist(), vectors, strict=True):
        np.testing.assert_allclose(vector, prelogits(FILES[name.split("/")[-1]]), atol=1e-6)
    hits = ask("search", place, files / "b.csv", "--json").json  # a file, and no table of paths
    assert hits["hits"][0]["id"].endswith("b.csv")
    assert ask("classify", model, files / "c", "--modality", "bytes").code == 0
    assert ask("embed", model, files, "--into", place, *asked, "--json").json["skipped"] == 5


def test_the_explorer_says_what_they_are(tmp_path: Path, files: Path) -> None:
    from test_explorer_rows import Page

    place = tmp_path / "c.lance"
    assert (
        ask("embed", file_types(tmp_path), files, "--into", place, "--modality", "bytes").code == 0
    )
    with closing(Page(place)) as page:
        names = [page.explorer.rows.key(row)[0] for row in range(len(FILES))]
        row = next(at for at, name in enumerate(names) if name.endswith("a.py"))
        shown = page.get("/api/row", row=row)["media"]
        assert (shown["kind"], shown["error"]) == ("bytes", None)
        assert "import os" in shown["text"] and f"{len(FILES['a.py'])} bytes" in shown["text"]


def test_a_saved_embedder_keeps_the_configuration(tmp_path: Path, files: Path) -> None:
    classifier = penult.load(file_types(tmp_path), modality="bytes")
    embedder = Embedder.from_classifier(classifier)
    saved = embedder.save(tmp_path / "emb")
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "config.min.json").unlink()
    again = Embedder.load(saved)
    assert again.fingerprint == embedder.fingerprint
    one, other = (each.run([files / "c"]).vectors for each in (again, embedder))
    np.testing.assert_array_equal(one, other)


def test_another_configuration_is_another_fingerprint(tmp_path: Path) -> None:
    found = []
    for padding in (256, 0):
        model = file_types(tmp_path, padding_token=padding)
        classifier = penult.load(model, modality="bytes")
        found.append(Embedder.from_classifier(classifier).fingerprint["preprocessing"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "changes",
    [{"mid_size": 8}, {"block_size": 512}, {"min_file_size_for_dl": 99},
     {"beg_size": 1 << 30}, {"beg_size": "many"}, {"end_size": -1},
     {"use_inputs_at_offsets": True}, {"beg_size": 0, "end_size": 0}],
)  # fmt: skip
def test_a_configuration_that_is_not_done_here(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not say which bytes are taken"):
        penult.load(file_types(tmp_path, **changes), modality="bytes")


def test_files_of_which_the_model_was_never_asked(tmp_path: Path, files: Path) -> None:
    model = file_types(tmp_path, min_file_size_for_dl=8)
    (files / "spaces").write_bytes(b" " * 5000 + b"text behind more than a block of spaces")
    (files / "eight").write_bytes(b"\n12345678")
    place = tmp_path / "c.lance"
    assert ask("embed", model, files, "--into", place, "--modality", "bytes").code == 3
    failures = ask("failures", place, "--json").json["failures"]
    assert {Path(one["id"]).name for one in failures} == {"e.txt", "spaces"}
    assert all("this model tells files of 8 or more" in str(one) for one in failures)


def test_in_any_batch_the_same(tmp_path: Path, files: Path) -> None:
    """Each item is run by itself: mostly padded ones differ in a batch by more than rounding."""
    classifier = penult.load(file_types(tmp_path), modality="bytes")
    embedder = Embedder.from_classifier(classifier)
    items = [b"x" * count for count in range(1, 40)]
    together = embedder.run(items).vectors
    alone = np.concatenate([embedder.run([one]).vectors for one in items])
    np.testing.assert_array_equal(together, alone)
    assert ask("check", file_types(tmp_path), files, "--modality", "bytes").code == 0


def test_without_a_configuration_it_says_what_to_give(tmp_path: Path, files: Path) -> None:
    model = file_types(tmp_path)
    (tmp_path / "config.min.json").unlink()
    found = ask("embed", model, files, "--into", tmp_path / "c.lance", "--modality", "bytes")
    assert found.code == 2
    assert "--preprocess package.module:function, or config.min.json" in found.error


def test_a_preprocessing_of_bytes_of_ones_own(tmp_path: Path, files: Path) -> None:
    def prepare(content: Any) -> Any:
        return np.resize(np.frombuffer(content.first, np.uint8), FIRST + LAST).astype(np.int32)

    classifier = penult.load(file_types(tmp_path), modality="bytes", preprocess=prepare)
    found = Embedder.from_classifier(classifier, tap="prelogits").run([files / "c"])
    np.testing.assert_allclose(found.vectors[0], np.tanh(TABLE[:40]).mean(axis=0), atol=1e-6)


def test_of_a_large_file_both_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(b"begins")
        file.seek(1 << 36)  # 64 GB, which the disk does not hold
        file.write(b"ends")
    try:
        found = ends.load(path)
    finally:
        path.unlink()
    assert (found.first[:6], found.last[-4:], found.size) == (b"begins", b"ends", (1 << 36) + 4)
    assert len(found.first) == len(found.last) == ends.BLOCK


# ---- arrays


def test_arrays_are_what_the_graph_takes(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from tflite_models import FloatNet

    net = FloatNet()
    path = net.save(tmp_path / "m.tflite")
    items = list(np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32))
    expected = net.hidden(np.stack(items)).mean((1, 2))
    classifier = penult.load(path)
    assert classifier.modality == "array"
    embedder = Embedder.from_classifier(classifier, tap="prelogits")
    for given in (items, [one[None] for one in items], [one.astype(np.float64) for one in items]):
        found = embedder.run(given)
        np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ItemError, match=r"an array of shape \(31, 32, 3\) does not fit"):
        embedder.run([items[0][1:]])


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from tflite_models import IntegerNet

    net = IntegerNet()
    model, folder = net.save(tmp_path / "m.tflite"), tmp_path / "features"
    folder.mkdir()
    items = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)
    for number, one in enumerate(items):
        np.save(folder / f"{number}.npy", one)
    np.save(folder / "stored.npy", net.stored(items[0]).astype(np.int8))  # as the file has it
    np.save(folder / "short.npy", items[0][:20])
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    (folder / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': (9")
    place = tmp_path / "c.lance"
    found = ask("embed", model, folder, "--into", place, "--tap", "prelogits", "--json")
    assert found.code == 3
    assert (found.json["done"], found.json["failed"]) == (6, 3)
    keys, vectors = penult.Collection.open(place).vectors()
    rows = {
        name.split("/")[-1]: one for name, one in zip(keys["id"].to_pylist(), vectors, strict=True)
    }
    np.testing.assert_array_equal(rows["stored.npy"], rows["0.npy"])
    inner = net.inner(net.stored(items))
    for number in range(5):
        step = np.float32(net.z[0])
        integers = np.round(rows[f"{number}.npy"] / step) + net.z[1]
        assert np.abs(integers - inner[number]).max() <= 1
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "a.wav").write_bytes(b"RIFF")
    assert "--sample-rate or --preprocess" in ask("embed", model, sounds, "--into", place).error


def test_arrays_into_an_onnx_file_when_asked_for(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,8] x) => (float[n,3] y) '
        "{y = MatMul(x, W)}"
    )
    weight = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    onnx.save(model, tmp_path / "m.onnx")
    items = list(np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32))
    classifier = penult.load(tmp_path / "m.onnx", modality="array")
    found = Embedder.from_classifier(classifier, tap="prelogits").run(items)
    np.testing.assert_array_equal(found.vectors, np.stack(items))
    np.testing.assert_allclose(found.logits, np.stack(items) @ weight, rtol=1e-5)


@pytest.mark.parametrize("kind", ["f2", "f8", "i1", "u2", "?"])
def test_arrays_pass_between_processes(kind: str) -> None:
    values = array.load(np.random.default_rng(0).integers(0, 2, (2, 3, 4)).astype(kind))
    item = Item("x", b"")
    message = packed_answer(DecodedRegion(item, WHOLE, Content(values)))
    header, _, body = b"".join(map(bytes, message)).partition(b"}")
    size = len(header) + 1 - 16
    found = answer_of((json.loads(header[16:] + b"}"), body), "array").content
    assert isinstance(found, Content) and size > 0
    assert found.values.dtype == values.dtype
    np.testing.assert_array_equal(found.values, values)


def test_what_is_no_array(tmp_path: Path) -> None:
    for bad in (np.array(["a"]), np.array([1j])):
        with pytest.raises(DecodeError):
            array.load(bad)
    with pytest.raises(EmptyItem):
        array.load(np.zeros((0, 3)))
    with pytest.raises(DecodeError, match="no such file"):
        array.load(tmp_path / "none.npy")
    with pytest.raises(EmptyItem):
        ends.load(b"")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DecodeError, match="pipe"):
            ends.load(tmp_path / "pipe")
