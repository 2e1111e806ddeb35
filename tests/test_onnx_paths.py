"""Files of weights beside an ONNX file: read and written nowhere else than beside it."""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult
from penult.cli.main import run
from penult.embedding.embedder import Embedder
from penult.errors import ModelError

needed = import_module if os.environ.get("CI") == "true" else pytest.importorskip
onnx, _ = needed("onnx"), needed("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SAMPLES = 6


def tensor(name: str, *shape: int) -> Any:
    random = np.random.default_rng([*map(ord, name)])
    return numpy_helper.from_array(random.standard_normal(shape).astype("f4"), name)


def outside(name: str, location: str, marked: bool = True, **entries: Any) -> Any:
    """A tensor of four numbers that lie in a file."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    made.data_location = TensorProto.EXTERNAL if marked else TensorProto.DEFAULT
    if not marked:
        made.raw_data = b"\0" * 16
    for key, value in {"location": location, **entries}.items():
        made.external_data.add(key=key, value=str(value))
    return made


def model() -> Any:
    """Six samples to three classes, two layers."""
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "w1"], ["y"])]  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "test", [info("x", 1, ["n", SAMPLES])], [info("y", 1, ["n", 3])],
        [tensor("w0", SAMPLES, 8), tensor("w1", 8, 3)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def body(bad: Any) -> Any:
    """A graph that gives the tensor."""
    info = helper.make_tensor_value_info("out", 1, [4])
    one = helper.make_node("Identity", [bad.name], ["out"])
    return helper.make_graph([one], "body", [], [info], [bad])


def as_initializer(made: Any, bad: Any) -> None:
    made.graph.initializer.append(bad)


def as_constant(made: Any, bad: Any) -> None:
    made.graph.node.append(helper.make_node("Constant", [], ["unread"], value=bad))


def as_list(made: Any, bad: Any) -> None:
    made.graph.node.append(helper.make_node("Any", [], ["unread"], domain="own", many=[bad]))


def in_branch(made: Any, bad: Any) -> None:
    branch, other = body(bad), body(tensor("own", 4))
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    made.graph.node.append(
        helper.make_node("If", ["yes"], ["unread"], then_branch=branch, else_branch=other)
    )


def in_function(made: Any, bad: Any) -> None:
    node = helper.make_node("Constant", [], ["c"], value=bad)
    own = helper.make_function("own", "F", [], ["c"], [node], [helper.make_opsetid("", 17)])
    made.functions.append(own)


def as_sparse(made: Any, bad: Any) -> None:
    indices = numpy_helper.from_array(np.arange(4), "indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(bad, indices, [9]))


def for_training(made: Any, bad: Any) -> None:
    made.training_info.add().initialization.CopyFrom(body(bad))


PLACES = [as_initializer, as_constant, as_list, in_branch, in_function, as_sparse, for_training]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a stranger's model lies; `victim` lies beside that folder."""
    (tmp_path / "victim").write_bytes(b"precious content")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "victim").write_bytes(b"content of others")
    return tmp_path / "theirs"


def refused(folder: Path, made: Any, **options: Any) -> str:
    """Save the model, convert it, and see that nothing outside of it was read or written."""
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    inside, before = folder.parent / "made" / "emb", (folder.parent / "victim").read_bytes()
    assert run(["convert", str(folder / "m.onnx"), str(inside), "--sample-rate", "6"]) == 2
    assert not inside.exists()
    assert (folder.parent / "victim").read_bytes() == before
    with pytest.raises(ModelError) as caught:
        penult.load(folder / "m.onnx", sample_rate=6, **options)
    return str(caught.value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("marked", [True, False])
def test_a_tensor_that_lies_beside_the_folder(folder: Path, place: Any, marked: bool) -> None:
    made = model()
    place(made, outside("bad", "../victim", marked, length=16))
    assert "does not lie in its folder" in refused(folder, made)


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "sub/../../victim", "..\\victim", "C:victim", "C:/victim", "victim\0", "\0",
     "./../victim", "//etc/passwd", "", "a\n../victim", "..", "sub/../victim"],
)  # fmt: skip
def test_odd_locations(folder: Path, location: str) -> None:
    made = model()
    as_initializer(made, outside("bad", location))
    assert "does not lie in its folder" in refused(folder, made)


@pytest.mark.parametrize("entries, told", [
    ({"offset": -1}, "bytes from -1"), ({"length": -4}, "-4 bytes"), ({"offset": 1 << 70}, "bytes"),
    ({"length": 1 << 62}, "bytes"), ({"offset": 8, "length": 16}, "has 17 bytes"),
    ({"offset": "all"}, "no number"), ({"length": "1e3"}, "no number"),
])  # fmt: skip
def test_places_beyond_the_file(folder: Path, entries: dict[str, Any], told: str) -> None:
    made = model()
    as_initializer(made, outside("bad", "victim", **entries))
    assert told in refused(folder, made)


def test_links_out_of_the_folder(folder: Path) -> None:
    made = model()
    as_initializer(made, outside("bad", "weights", length=16))
    (folder / "weights").symlink_to(folder.parent / "victim")
    assert "does not lie in its folder" in refused(folder, made)
    (folder / "weights").unlink()
    (folder / "weights").symlink_to("weights")
    assert "weights" in refused(folder, made)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_file_of_weights(folder: Path) -> None:
    made = model()
    as_initializer(made, outside("bad", "pipe"))
    os.mkfifo(folder / "pipe")
    assert "no such file" in refused(folder, made)


def test_one_file_for_many_tensors_is_no_bomb(folder: Path) -> None:
    made = model()
    with (folder / "big").open("wb") as file:
        file.truncate(1 << 30)
    for number in range(400):
        as_initializer(made, outside(f"bad{number}", "big", length=1 << 30))
    assert "more than 2 GB" in refused(folder, made)


def test_two_files_for_one_tensor(folder: Path) -> None:
    made, bad = model(), outside("bad", "victim", length=16)
    bad.external_data.add(key="location", value="../victim")
    as_initializer(made, bad)
    assert "two files" in refused(folder, made)


def vectors(found: Any) -> Any:
    embedder = found if isinstance(found, Embedder) else Embedder.from_classifier(found)
    return embedder.embed([(np.linspace(-1, 1, SAMPLES, dtype=np.float32), SAMPLES)])


def spread(folder: Path, location: str) -> tuple[Path, bytes]:
    """The model with its second layer in a file, and that file's content."""
    made = model()
    values = made.graph.initializer.pop()
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).write_bytes(b"head" + values.raw_data)
    beside = outside("w1", location, offset=4, length=len(values.raw_data))
    del beside.dims[:]
    beside.dims.extend(values.dims)
    made.graph.initializer.append(beside)
    made.graph.initializer.append(outside("own", "absent.bin", marked=False))  # holds its numbers
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx", (folder / location).read_bytes()


@pytest.mark.parametrize("location", [
    "m.data", "m.onnx_data", "onnx::MatMul_12", "layers.0.weight", "./m.bin",  # beside the file
    "penult.json", "classifier.json", "space.npz", "Model.ONNX", ".hidden", "sub/part/w.bin",
])  # fmt: skip
def test_an_embedder_keeps_the_files_of_weights_and_its_own(tmp_path: Path, location: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if location == "Model.ONNX":
        path, _ = spread(theirs, location)
        assert run(["convert", str(path), str(tmp_path / "e"), "--sample-rate", "6"]) == 2
        return
    path, content = spread(theirs, location)
    first = penult.load(path, sample_rate=6)
    expected = np.maximum(
        np.linspace(-1, 1, SAMPLES, dtype=np.float32)
        @ numpy_helper.to_array(model().graph.initializer[0]), 0)  # fmt: skip
    found = vectors(Embedder.from_classifier(first, tap="prelogits"))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    saved = tmp_path / "emb"
    Embedder.from_classifier(first, tap="prelogits").save(saved)
    again = Embedder.load(saved)
    np.testing.assert_array_equal(vectors(again), found)
    assert again.classifier.structure.digest() == first.structure.digest()
    copies = [p for p in saved.rglob("*") if p.is_file() and p.read_bytes() == content]
    assert len(copies) == 1
    plain = ("./m.bin", "m.data", "m.onnx_data", "onnx::MatMul_12", "layers.0.weight")
    assert (copies[0].parent == saved) == (location in plain)


def test_links_of_the_hubs_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    path, _ = spread(snapshot, "m.data")
    found = vectors(penult.load(path, sample_rate=6))
    for file in list(snapshot.iterdir()):
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blobs / name)
        file.symlink_to(os.path.relpath(blobs / name, snapshot))
    linked = penult.load(path, sample_rate=6)
    np.testing.assert_array_equal(vectors(linked), found)
    Embedder.from_classifier(linked).save(tmp_path / "emb")
    assert not (tmp_path / "emb" / "m.data").is_symlink()
