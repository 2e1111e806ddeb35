"""`penult migrate`: a collection under another version of a library, measured on its own rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

import penult
from penult.cli.main import run
from penult.collection.collection import Collection
from test_comparable import command, embed, halved, project, rows

assert project  # a fixture, taken from there

STORE = "../c.lance"


def manifest_of(root: Path) -> Any:
    return json.loads((root.parent / "c.lance" / "collection.json").read_text())


def migrate(*how: str, code: int = 0) -> tuple[str, str]:
    found, out, err = command("migrate", STORE, "--device", "cpu", *how)
    assert found == code, err + out
    return " ".join(out.split()), " ".join(err.split())


def many(root: Path, count: int = 6) -> None:
    for number in range(2, count):
        sound = np.random.default_rng(number).standard_normal(4000) * 0.2
        soundfile.write(root / "same" / f"{number}.wav", sound, 8000)


def slightly(patch: pytest.MonkeyPatch, factor: float) -> None:
    """Another version of the preprocessing's library, which also has another hash."""
    tensor = torch.from_numpy
    patch.setattr(torch, "from_numpy", lambda values: tensor(values) * factor)
    patch.setattr("penult.models.module.ModulePreparer.truncation", lambda self: "another")


def test_a_library_of_another_hash_is_accepted_after_its_rows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(project)
    embed()
    former = manifest_of(project)
    assert migrate()[0] == "nothing to migrate: ../c.lance fits this installation"
    slightly(monkeypatch, 1 + 1e-7)
    assert "penult migrate" in embed("other", code=2)
    assert "penult migrate" in command("search", STORE, "other/0.wav")[2]
    said = json.loads(command("migrate", STORE, "--dry-run", "--json", "--sample", "4")[1])
    assert said["sampled"] == said["measured"] == 4 and said["rows"] == 6 and not said["written"]
    assert manifest_of(project) == former
    out, _ = migrate()
    assert "6 rows of 6 embedded again: as stored" in out and "truncation: none → another" in out
    after = manifest_of(project)
    (entry,) = after["model"]["history"]
    assert entry["fingerprint"] == former["fingerprint"] and entry["rows"] == 6
    assert 0 < entry["worst"] < 1e-5 and "truncation" in entry["changed"][0]
    assert after["fingerprint"]["truncation"] == "another"
    assert "migrate" not in embed("other") and rows(project) == 8
    assert "measured then on 6 rows: truncation" in " ".join(command("info", STORE)[1].split())
    assert migrate()[0].startswith("nothing to migrate")


def test_what_gives_other_vectors_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(project)
    embed()
    former = manifest_of(project)
    slightly(monkeypatch, 1.1)
    told = migrate(code=2)[1]
    assert "6 of 6 rows" in told and "… and 3 more" in told and "--like" in told
    assert manifest_of(project) == former
    monkeypatch.undo()


def test_one_row_that_differs_is_enough(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is read in another way: its content is another one, and its date is not."""
    many(project)
    embed()
    former = manifest_of(project)
    slightly(monkeypatch, 1.0)
    file = project / "same" / "4.wav"
    before = file.stat()
    soundfile.write(file, soundfile.read(file)[0] / 2, 8000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = migrate(code=2)[1]
    assert "1 of 6 rows" in told and "4.wav" in told
    assert manifest_of(project) == former


def test_only_files_that_are_as_they_were_count(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(project)
    embed()
    slightly(monkeypatch, 1.0)
    soundfile.write(project / "same" / "2.wav", np.ones(4000) / 9, 8000)
    (project / "same" / "3.wav").unlink()
    said = json.loads(command("migrate", STORE, "--json", "--dry-run")[1])
    assert (said["measured"], said["left_out"]) == (4, 2)
    for file in (project / "same").iterdir():
        file.unlink()
    told = migrate(code=2)[1]
    assert "none of 6 rows" in told and "6 of their files are gone" in told


def test_another_resampler_is_measured_on_the_rows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives other values: what was resampled refuses it, what was not does not care."""
    embed("other")
    with monkeypatch.context() as patch:
        halved(patch)
        assert "2 of 2 rows" in migrate("--workers", "0", code=2)[1]
    (same,) = (Collection.open(project.parent / "c.lance"),)
    assert same.count == 2
    with monkeypatch.context() as patch:
        patch.setattr(soxr, "__version__", "9.9.9")  # of the same values: no question
        assert "accepted" in embed()


def test_one_resampled_file_behind_many_that_were_not_is_seen(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are asked for their rate, not those of the first rows."""
    many(project, 70)
    embed("same", "other/0.wav")
    halved(monkeypatch)
    assert "resampled noise" in embed("other/1.wav", "--workers", "0", code=2)
    assert migrate("--all", "--workers", "0", code=2)[1].count("others now") == 1


def test_weights_are_measured_on_every_row(project: Path) -> None:
    """A few rows do not show what other weights do; all of them tell for this collection."""
    embed()
    weights = torch.load(project / "weights.pt")
    weights["5.bias"] += 1e-9  # no logit of these rows changes by as much as is seen
    weights["5.weight"][0, 0] *= 1 + 1e-6
    torch.save(weights, project / "weights.pt")
    told = migrate(code=2)[1]
    assert "other weights" in told and "--all" in told
    assert "weights: " in migrate("--all")[0]
    assert "migrate" not in embed("other")


def test_precision_and_pooling_are_no_matter_of_versions(project: Path) -> None:
    embed()
    file = project.parent / "c.lance" / "collection.json"
    document = json.loads(file.read_text())
    document["fingerprint"]["pooling"] = "max"
    file.write_text(json.dumps(document))
    assert "another pooling" in migrate(code=2)[1]


def test_classes_taught_before_still_fit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class file holds the former fingerprint."""
    many(project)
    embed()
    store = Collection.open(project.parent / "c.lance")
    ids = store.vectors()[0]["id"].to_pylist()
    for id, name in zip(ids, "aabb", strict=False):
        store.label(id, "whole", name, who="x", source="test")
    assert command("classes", STORE, "--save", "classes.npz")[0] == 0
    expected = len(list(penult.ClassSpace.load("classes.npz").predict_collection(store)))
    slightly(monkeypatch, 1.0)
    migrate()
    assert command("predict", "classes.npz", "same", "--json")[0] == 2  # files, by this version
    assert command("migrate", "classes.npz", "--like", STORE)[0] == 0
    assert command("predict", "classes.npz", "same", "--json")[0] == 0
    assert "nothing to migrate" in command("migrate", "classes.npz", "--like", STORE)[1]
    again = penult.ClassSpace.load("classes.npz")
    assert len(list(again.predict_collection(store))) == expected == 6


def test_a_collection_of_0_1_0_gets_what_it_lacks(project: Path) -> None:
    embed()
    file = project.parent / "c.lance" / "collection.json"
    older = json.loads(file.read_text())
    del older["model"]["code"], older["model"]["behaviour"], older["model"]["hash"]
    del older["fingerprint"]["code"]
    file.write_text(json.dumps(older))
    assert "missing code, behaviour, hash" in migrate()[0]
    now = manifest_of(project)
    assert {"code", "behaviour", "hash"} <= now["model"].keys() and "history" not in now["model"]
    assert migrate()[0].startswith("nothing to migrate")


def test_a_saved_embedder_gets_its_list(tiny: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    assert run(["convert", str(tiny), str(saved)]) == 0
    (saved / "SHA256SUMS").unlink()
    assert run(["migrate", str(saved), "--dry-run"]) == 0 and not (saved / "SHA256SUMS").exists()
    assert run(["migrate", str(saved), "--json"]) == 0 and (saved / "SHA256SUMS").exists()
    assert run(["migrate", str(saved)]) == 0
    (saved / "config.json").write_text("{}")
    assert run(["migrate", str(saved)]) == 2


def test_what_is_no_collection(tmp_path: Path) -> None:
    assert run(["migrate", str(tmp_path / "none.lance")]) == 2
    assert run(["migrate", str(tmp_path), "--sample", "0"]) == 2
