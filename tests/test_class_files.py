"""Files of class spaces, and what must not break them: odd files, names and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penult.analysis.space import RAW, fit
from penult.errors import LabelsError
from penult.fewshot import storage
from penult.fewshot.examples import Examples

Change = Callable[[dict[str, Any]], object]


def examples() -> Examples:
    e = Examples.empty(2).with_marks("a", [("1.wav", "whole"), ("2.wav", "whole")], np.eye(2))
    return e.with_marks("b", [("3.wav", "0-1")], [[1, 1]])


def changed(path: Path, change: Change, **arrays: Any) -> Path:
    """The file with another JSON text, or other arrays."""
    storage.write(path, storage.Saved(examples(), fit(RAW, np.eye(2)), {"weights": "x"}, {}))
    with np.load(path) as file:
        held = dict(file)
    about = json.loads(held["about"].tobytes())
    change(about)
    held["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **{**held, **arrays})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["examples"][0]["marks"].update(a="maybe"), "mark 'maybe'"),
        (lambda a: a["examples"][0]["marks"].update({" ": "yes"}), "needs a name"),
        (lambda a: a.update(groups=["one"]), "1 groups for 3 examples"),
        (lambda a: a["examples"][0].update(id="2.wav"), "comes twice"),
        (lambda a: a["examples"].pop(), "for 2 examples"),
        (lambda a: a["examples"][0].pop("region"), "region"),
        (lambda a: a.update(kind="other"), "its kind is 'other'"),
        (lambda a: a.update(format="new"), "'<='"),
        (lambda a: a.update(format=9), "format 9.*upgrade penult"),
        (lambda a: a.update(settings=7), "not iterable"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, change: Change, message: str
) -> None:
    path = changed(tmp_path / "x.npz", change)
    with pytest.raises(LabelsError, match=f"x.npz .*{message}"):
        storage.read(path)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [0, np.nan], [1, 1]], np.float32)
    with pytest.raises(LabelsError, match="not finite"):
        storage.read(changed(tmp_path / "x.npz", lambda a: None, vectors=vectors))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, about=np.arange(5000), vectors=np.eye(2))
    data = bytearray(path.read_bytes())
    data[200:400] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(LabelsError, match="is no saved class space"):
        storage.read(path)


def test_names_of_files_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    odd = Examples.empty(2).with_marks("a\u2028b", [("caf\udce9 ;\n.wav", "whole")], [[1, 0]])
    saved = storage.Saved(odd, fit(RAW, np.eye(2)), {}, {})
    assert storage.read(storage.write(tmp_path / "x.npz", saved)).examples.keys == odd.keys
