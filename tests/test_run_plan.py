"""`embed --plan`: what a run would take, and that it changes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import soundfile

from conftest import RATE, clip
from penult.collection.collection import Collection
from test_cli import ask

QUIET = ("--workers", "0", "--engine", "torch")


@pytest.fixture
def recs(tmp_path: Path) -> Path:
    """Three recordings of 1, 2 and 3 s, and one that is no sound."""
    folder = tmp_path / "recs"
    folder.mkdir()
    for number in (1, 2, 3):
        soundfile.write(folder / f"{number}.wav", clip(float(number), number), RATE)
    (folder / "torn.wav").write_bytes(b"RIFF no sound at all")
    return folder


def test_a_plan_counts_what_the_run_then_does(tiny: Path, recs: Path, tmp_path: Path) -> None:
    into = tmp_path / "c.lance"
    arguments = ("embed", tiny, recs, "--into", into, "--window", "0.5s", "--json", *QUIET)
    said = ask(*arguments, "--plan")
    assert said.code == 3 and not into.exists()
    plan = json.loads(said.out)
    assert (plan["items"], plan["rows"], plan["unchanged"]) == (4, 12, 0)
    assert plan["hours"] == pytest.approx(6 / 3600)
    assert [Path(one["id"]).name for one in plan["failures"]] == ["torn.wav"]
    assert plan["measured"] > 0 and plan["seconds"] > 0 and plan["free"] > plan["bytes"]
    before = plan["seconds_before"]
    assert [*before] == ["start", "model", "proof", "engine", "opening"] and min(
        before.values()
    ) >= 0
    assert before["opening"] == plan["seconds_opening"] > 0 and plan["proof_kept"] is True
    done = json.loads(ask(*arguments).out)
    assert {*before} - {"opening"} <= {*done["stages"]}
    assert (done["done"], done["failed"]) == (plan["rows"], len(plan["failures"]))
    collection = Collection.open(into)
    width = collection.vectors()[1].shape[1] + len(collection.manifest.labels)  # type: ignore[union-attr]
    assert plan["bytes"] > 12 * 4 * width
    soundfile.write(recs / "new.wav", clip(0.5, 7), RATE)
    version = collection.reader.latest_rows()[1].version  # type: ignore[union-attr]
    plan = json.loads(ask(*arguments, "--plan").out)
    assert (plan["items"], plan["rows"], plan["unchanged"]) == (5, 1, 12)
    assert Collection.open(into).reader.latest_rows()[1].version == version  # type: ignore[union-attr]


def test_a_plan_foresees_what_is_too_long(tiny: Path, recs: Path, tmp_path: Path) -> None:
    (recs / "torn.wav").unlink()
    arguments = ("embed", tiny, recs, "--into", tmp_path / "c.lance", *QUIET, "--plan")
    said = ask(*arguments, "--max-seconds", "2.5")
    assert said.code == 3
    assert "3.wav" in said.out and "longer than the limit of 2.5 s" in said.out
    assert ask(*arguments, "--max-seconds", "2.5", "--window", "1s").code == 0
    said = ask(*arguments)
    assert said.code == 0, said.err
    assert "3 items, 0.00167 h: 3 rows to embed" in said.out
    assert "disk: about" in said.out and "time: about" in said.out
    told = re.search(
        r"time: about (\S+) s: (\S+) s for the rows, .* here: (.*); the proof", said.out
    )
    assert told is not None
    stages = [float(one) for one in re.findall(r"([\d.]+) s", told[3])]
    assert len(stages) == 5 and abs(float(told[1]) - float(told[2]) - sum(stages)) <= 1.3
    assert not (tmp_path / "c.lance").exists()
