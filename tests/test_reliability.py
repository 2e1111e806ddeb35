"""`scripts/reliability.py`: a trial cannot pass without having tried anything."""

from __future__ import annotations

import importlib
import io
import json
import random
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("psutil")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module("reliability")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_every_attack_is_there(script: ModuleType) -> None:
    for names in script.ATTACKS.values():
        for name in names.split():
            file, *member = script._test(name).split("::")
            text = (ROOT / file).read_text("utf-8")
            assert all(f"def {one}(" in text for one in member), name


def test_a_skipped_attack_has_held_nothing(script: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="t" name="a"/>'
        '<testcase classname="t" name="b"><skipped message="no root"/></testcase>'
        '<testcase classname="t" name="c"><failure message="1 != 2"/></testcase>'
        '<testcase classname="t" name="d"><error message="no place"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert script._results(report) == (1, ["no root"], ["t::c: 1 != 2", "t::d: no place"])
    assert script._results(tmp_path / "none.xml") == (0, [], [])


def test_a_mutant_is_never_the_file_itself(script: ModuleType) -> None:
    chance, data = random.Random(0), bytes(range(256)) * 4
    found = [script.mutated(data, bytes(100), chance) for _ in range(500)]
    assert data not in found
    assert len({*found}) > 490
    assert script.mutated(b"", b"", chance)


def test_half_of_the_documents_are_mutated_inside(script: ModuleType) -> None:
    chance, changed = random.Random(0), script.mutated_documents.changed
    text = json.dumps({"a": [1, 2, {"b": "c"}], "d": None}).encode()
    found = [changed(text, b"", chance, script.mutated) for _ in range(200)]
    assert sum(is_json(one) for one in found) > 80
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/config.json", text)
        archive.writestr("m/data", bytes(500))
    whole, others = 0, set()
    for _ in range(100):
        one = changed(file.getvalue(), b"", chance, script.mutated)
        try:
            with zipfile.ZipFile(io.BytesIO(one)) as archive:
                members = tuple(archive.read(name) for name in archive.namelist())
        except Exception:  # the container is damaged
            continue
        whole += 1
        others.add(members)
    assert whole > 40
    assert len(others) > 30


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_another_answer_or_an_unforeseen_one_is_a_fault(script: ModuleType) -> None:
    documents = script.mutated_documents
    kind = documents.Kind(Path("x"), [("info", "{place}")], exact=True)
    right = documents.Answer(0, "", "", [], {"a": [1.0, 2.0]})
    assert documents.faults(kind, right, right) == []
    assert documents.faults(kind, documents.Answer(2, "", "x is damaged", [], {}), right) == []
    for wrong in (
        documents.Answer(0, "", "", [], {"a": [1.0, 2.1]}),
        documents.Answer(0, "", "", [], {"b": [1.0, 2.0]}),
        documents.Answer(0, "", "", [], {"a": [1.0, float("nan")]}),
        documents.Answer(-11, "", "", [], {}),
        documents.Answer(1, "", "Traceback (most recent call last)", [], {}),
        documents.Answer(2, "", "", [], {}),
        documents.Answer(0, "", "", ["socket.getaddrinfo"], {}),
        documents.Answer(2, "", "x" * 10_000, [], {}),
    ):
        assert documents.faults(kind, wrong, right)


def test_rows_that_differ_are_seen(script: ModuleType) -> None:
    import numpy as np

    rows = {"a": np.ones(3), "b": np.zeros(3) + 2}
    assert script._compared(rows, dict(rows)) == []
    assert script._compared(rows, {"a": rows["a"]})
    assert script._compared(rows, {**rows, "b": np.full(3, 2.001)})
