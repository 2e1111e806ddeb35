"""Commands where POSIX is not: the same rows, files and answers, by the other way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import penult

HERE = Path(__file__).parent
DEMO = Path(penult.__file__).parent / "demo" / "clips"
CLIPS = [DEMO / f"{word}_british-man.flac" for word in ("yes", "no", "one", "two", "six", "right")]
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import other_system
if sys.argv[2]:
    other_system.imitate(*sys.argv[2].split())
from typer.testing import CliRunner
from penult.cli.main import app
for arguments in json.loads(sys.argv[3]):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    print(json.dumps(done.stdout))
assert other_system.SEEN or not sys.argv[2], "nothing was imitated"
"""


def a_day(system: str, folder: Path) -> dict[str, Any]:
    """What people do: embed, embed again, search, teach, predict, export, convert, repair."""
    folder.mkdir()
    clips = [str(clip) for clip in CLIPS]
    embed = ["embed", "demo", *clips, "--into", "w.lance", "--json"]
    commands = [
        embed,
        embed,
        ["search", "w.lance", clips[0], "-k", "3", "--json"],
        ["teach", "words.npz", "yes", clips[0], "--model", "demo"],
        ["predict", "words.npz", clips[1], "--json"],
        ["export", "w.lance", "w.parquet"],
        ["convert", "demo", "saved"],
        ["repair", "w.lance"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HERE), system, json.dumps(commands)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    first, again, found, taught = (json.loads(said[at]) for at in (0, 1, 2, 4))
    table = pq.read_table(folder / "w.parquet", columns=["id", "vector"]).sort_by("id")
    return {
        "done": [first["done"], again["done"], again["skipped"]],
        "hits": [hit["id"] for hit in found["hits"]],
        "predicted": taught["predictions"][0]["label"],
        "ids": table["id"].to_pylist(),
        "vectors": np.stack(table["vector"].to_pylist()),
        "left": sorted(path.name for path in folder.iterdir()),
    }


@pytest.mark.parametrize(
    "system", ["win32 nt", pytest.param("darwin posix", marks=pytest.mark.slow)]
)
def test_a_day_without_posix(system: str, tmp_path: Path) -> None:
    other, here = a_day(system, tmp_path / "other"), a_day("", tmp_path / "here")
    vectors = other.pop("vectors"), here.pop("vectors")
    assert other == here and other["done"] == [6, 0, 6]
    assert np.abs(vectors[0] - vectors[1]).max() <= 1e-5 * np.abs(vectors[1]).max()
