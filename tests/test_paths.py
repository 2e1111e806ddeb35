"""Every public function that takes a path takes a str, a Path and any other os.PathLike alike."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import penult
from conftest import RATE, clip, thinned
from penult.analysis import probe, probe_io
from penult.collection import export
from penult.data.files import write_file
from penult.errors import EngineError, PenultError
from penult.models.options import LoadOptions
from penult.sklearn import EmbeddingTransformer
from penult.viz import report
from test_search import FACTORY, Sounds

MODULES = (export, probe_io, probe_io, report)  # functions that read or write a user's file
PATHS = {"path", "folder", "file", "out_path", "out", "report", "checkpoint"}
ITEMS = {"items", "unlabelled", "X"}  # Any, and a path among what they take


class Named:
    """A path of somebody else's, that is neither a str nor a pathlib.Path."""

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)

    def __fspath__(self) -> str:
        return self._path


FORMS: tuple[Callable[[Path], Any], ...] = (str, Path, Named)


# ---- what takes a path


def is_path(parameter: inspect.Parameter) -> bool:
    annotation = str(parameter.annotation)
    if re.search(r"\bPath(Like)?\b", annotation) or parameter.name in PATHS:
        return True
    return parameter.name in ITEMS and annotation == "Any"


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each public callable by its name: functions, and methods of classes."""
    named = {name: getattr(penult, name) for name in penult.__all__}
    named["EmbeddingTransformer"] = EmbeddingTransformer
    for name, thing in named.items():
        if not inspect.isclass(thing):
            yield from [(name, thing)] if callable(thing) else []
            continue
        for method, function in inspect.getmembers(thing, _is_method):
            ours = str(getattr(function, "__module__", "")).startswith("penult")
            if ours and (method == "__init__" or not method.startswith("_")):
                yield f"{name}.{method}", function
    for module in MODULES:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield f"{module.__name__.rpartition('.')[2]}.{name}", function


def _is_method(thing: object) -> bool:
    return inspect.isfunction(thing) or inspect.ismethod(thing)


def path_parameters() -> list[str]:
    found = [f"load({one.name})" for one in fields(LoadOptions) if "Path" in str(one.type)]
    for name, function in public():
        for parameter in inspect.signature(function).parameters.values():
            if is_path(parameter):
                found.append(f"{name}({parameter.name})")
    return sorted(found)


# ---- one call of each


class World(Sounds):
    """A model, clips in folders of two classes, a collection of them, and what can be saved."""

    def __init__(self, folder: Path) -> None:
        (folder / "counted.py").write_text(FACTORY)
        super().__init__(folder, import_module("counted"))
        self.clips, self.more = folder / "clips", folder / "more"
        for number in range(24):
            root = self.more if number >= 16 else self.clips
            path = root / "ab"[number % 2] / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, clip(0.2, number), RATE, subtype="PCM_16")
        self.one = self.clips / "a" / "0.wav"
        self.emb, self.rows = self.embedder(), penult.Collection.open(self.into)
        self.rows.add(self.emb, self.clips)
        self.saved = self.emb.save(folder / "embedder")
        self.labels = folder / "labels.txt"
        self.labels.write_text("x\ny\nz\n")
        self.classes = self.taught().save(folder / "classes.npz")
        vectors = self.rows.vectors()[1]
        names = ["a", "b"] * 8
        self.probed = probe.trained(vectors, probe.probe(vectors, names))
        self.probe = folder / "kept.skops"
        probe_io.save(self.probe, self.probed, {"by": "folder"})
        self.table = folder / "features.csv"
        self.table.write_text(f"path,depth\n{self.one},3.5\n")
        self._made = 0

    def new(self, suffix: str = "") -> Path:
        """Where nothing is yet."""
        self._made += 1
        return self.folder / f"new-{self._made}{suffix}"

    def load(self, **asked: Any) -> Any:
        usual = {"checkpoint": self.folder / "Model.pt", "sample_rate": RATE}
        return penult.load("counted:Model", **{**usual, **asked})

    def taught(self) -> penult.ClassSpace:
        space = penult.ClassSpace(self.emb)
        for name in "ab":
            space.add(name, [self.clips / name])
        return space


Call = Callable[[World, Callable[[Path], Any]], Any]


def _added(world: World, items: Any, **options: Any) -> Any:
    made = penult.Collection(world.new(".lance"))
    summary = made.add(world.emb, items, **options)
    return summary.done, made.vectors()[0].to_pylist(), made.vectors()[1]


def _space(world: World, items: Any) -> Any:
    space = penult.ClassSpace(world.emb)
    return space.add("a", items), space.examples.to_csv()


def _named(world: World, items: Any) -> Any:
    space = penult.ClassSpace(world.emb)
    return space.add_named(items, "folder"), space.examples.to_csv()


def _saved_space(world: World, as_form: Callable[[Path], Any]) -> Any:
    path = world.new(".npz")
    assert world.taught().save(as_form(path)) == path
    return penult.ClassSpace.load(path).examples.to_csv()


def _saved_embedder(world: World, as_form: Callable[[Path], Any]) -> Any:
    path = world.new()
    assert world.emb.save(as_form(path)) == path
    return penult.Embedder.load(path).embed([world.one])


def _converted(world: World, path: Any, items: Any) -> Any:
    return penult.convert(world.emb, path, "sentence-transformers", items).facts["modules"]


def _refused_conversion(world: World, classes: Any) -> Any:
    """The classes are read before anything is written; this model fixes the number of items."""
    with pytest.raises(EngineError) as refused:
        penult.convert(world.emb, world.new(".pt2"), "pt2", classes=classes)
    return str(refused.value)


def _pulled(world: World, as_form: Callable[[Path], Any]) -> Any:
    """What is there already is refused, before anything is asked for."""
    with pytest.raises(PenultError) as refused:
        penult.pull("owner/name", as_form(world.clips))
    return str(refused.value)


def _saved_classifier(world: World, as_form: Callable[[Path], Any]) -> Any:
    folder = world.new()
    folder.mkdir()
    world.load().save(as_form(folder))
    return penult.load(folder).classify([world.one])


def _chosen(world: World, items: Any, unlabelled: Any) -> Any:
    found = penult.choose(world.load(), items, "folder", unlabelled=unlabelled, device="cpu")
    return found.setting, found.counts


def _transformer(world: World, model: Any, items: Any) -> Any:
    return EmbeddingTransformer(model, space="raw").fit_transform(items)


def _written(world: World, suffix: str, as_form: Any, write: Callable[[Any], Any]) -> Any:
    path = world.new(suffix)
    write(as_form(path))
    return path.read_bytes()


def _probe(world: World, as_form: Callable[[Path], Any]) -> Any:
    path = world.new(".skops")
    probe_io.save(as_form(path), world.probed, {"by": "folder"})
    return probe_io.load(path).predict(world.rows.vectors()[1])


CALLS: dict[str, Call] = {
    "ClassSpace.add(items)": lambda w, p: [_space(w, p(w.one)), _space(w, [p(w.one), p(w.more)])],
    "ClassSpace.add_named(items)": lambda w, p: _named(w, p(w.clips)),
    "ClassSpace.predict(items)": lambda w, p: w.taught().predict(p(w.more), unknown=0),
    "ClassSpace.nearest(items)": lambda w, p: w.taught().predict([p(w.one)], nearest=2)[0].nearest,
    "ClassSpace.save(path)": _saved_space,
    "ClassSpace.load(path)": lambda w, p: penult.ClassSpace.load(p(w.classes)).examples.to_csv(),
    "Classifier.classify(items)": lambda w, p: w.load().classify([p(w.one), p(w.one)]),
    "Classifier.save(folder)": _saved_classifier,
    "Collection.__init__(path)": lambda w, p: penult.Collection(p(w.into)).vectors()[1],
    "Collection.open(path)": lambda w, p: penult.Collection.open(p(w.into)).vectors()[1],
    "Collection.add(items)": lambda w, p: [_added(w, p(w.clips)), _added(w, [p(w.one)])],
    "Collection.add(like)": lambda w, p: _added(w, None, like=p(w.into)),
    "Collection.search(query)": lambda w, p: w.rows.search(p(w.files[0]), k=3),
    "Collection.embedder(model)": lambda w, p: w.rows.embedder(p(w.saved)).embed([w.one]),
    "Embedder.run(items)": lambda w, p: w.emb.run(p(w.clips)).logits,
    "Embedder.embed(items)": lambda w, p: w.emb.embed([p(w.one), p(w.files[0])]),
    "Embedder.save(folder)": _saved_embedder,
    "Embedder.load(folder)": lambda w, p: penult.Embedder.load(p(w.saved)).embed([w.one]),
    "convert(items)": lambda w, p: _converted(w, w.new(), p(w.one)),
    "convert(path)": lambda w, p: _converted(w, p(w.new()), None),
    "convert(classes)": lambda w, p: _refused_conversion(w, p(w.classes)),
    "push(path)": lambda w, p: penult.push(p(w.saved), "owner/name", dry_run=True).files,
    "pull(path)": _pulled,
    "choose(items)": lambda w, p: _chosen(w, p(w.clips), None),
    "choose(unlabelled)": lambda w, p: _chosen(w, w.clips, p(w.more)),
    "load(spec)": lambda w, p: penult.load(p(w.saved)).classify([w.one]),
    "load(checkpoint)": lambda w, p: w.load(checkpoint=p(w.folder / "Model.pt")).classify([w.one]),
    "load(class_names)": lambda w, p: w.load(class_names=p(w.labels)).classify([w.one]),
    "EmbeddingTransformer.__init__(model)": lambda w, p: _transformer(w, p(w.saved), [w.one]),
    "EmbeddingTransformer.fit(X)": lambda w, p: _transformer(w, w.saved, [p(w.one)]),
    "EmbeddingTransformer.transform(X)": lambda w, p: _transformer(w, w.saved, [p(w.one)]),
    "export.export(out_path)": lambda w, p: _written(
        w, ".csv", p, lambda path: export.export(w.rows, path)
    ),
    "export.write_csv(out)": lambda w, p: _written(
        w, ".csv", p, lambda path: export.write_csv(path, pa.table({"a": [1]}))
    ),
    "probe_io.join_features(table)": lambda w, p: (
        probe_io.join_features(p(w.table), [str(w.one)], ["whole"]).values
    ),
    "probe_io.check_suffix(path)": lambda w, p: probe_io.check_suffix(p(w.probe)),
    "probe_io.save(path)": _probe,
    "probe_io.load(path)": lambda w, p: probe_io.load(p(w.probe)).predict(w.rows.vectors()[1]),
    "report.check_kind(path)": lambda w, p: report.check_kind(p(w.new(".html"))),
    "files.write_file(path)": lambda w, p: _written(
        w, ".html", p, lambda path: write_file(path, [b"page"])
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("paths")
    sys.path.insert(0, str(folder))
    sys.modules.pop("counted", None)
    yield World(folder)
    sys.path.remove(str(folder))
    sys.modules.pop("counted", None)


def test_each_parameter_that_is_a_path_is_tried() -> None:
    assert set(path_parameters()) - set(CALLS) == set()  # a new one: add a call of it to CALLS


WITH_PATHS = [*path_parameters(), "files.write_file(path)"]


@pytest.mark.parametrize("name", thinned(WITH_PATHS, WITH_PATHS[::3]))
def test_a_path_is_a_str_a_path_or_what_names_one(world: World, name: str) -> None:
    one, other, third = (plain(CALLS[name](world, form)) for form in FORMS)
    assert one == other == third


def plain(value: Any) -> Any:
    """What two results can be compared by: values, bit for bit."""
    if isinstance(value, np.ndarray):
        return value.shape, value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    slots = [one.name for one in fields(value)] if hasattr(value, "__dataclass_fields__") else []
    return {name: plain(getattr(value, name)) for name in slots} if slots else value
