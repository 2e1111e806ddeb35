"""Tables that are opened in a spreadsheet: no cell of them runs, and they are read as they were."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penult.cli.main import run
from penult.data.formulas import Cells, harmless, original
from penult.fewshot.events import Event, csv_lines, to_csv, to_raven

BAD = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "=",
       "'=1", "''=1", "\uff1d1+1", "=HYPERLINK(\"http://x\")", "-", "+1+1", "-A1", "\u00a0=1",
       "-1e5+A1"]  # fmt: skip
PLAIN = ["-3.5", "+4", "-1e-3", "-,5", "-12,5", "5-3", "a=b", "'hello", "'", "", "x.wav", "-5%",
         "(=1)", "+inf", "-inf", "#=1", " x", "''", "'-5", "\u2212a"]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_formulas_are_shown(text: str) -> None:
    assert harmless(text) == f"'{text}"
    assert original(harmless(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_numbers_and_words_stay(text: str) -> None:
    assert harmless(text) == text
    assert original(text) == text


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("'=+-@ \t\r\n1.,eE%a\uff1d"), max_size=8))
def test_every_text_comes_back(text: str) -> None:
    written = harmless(text)
    assert original(written) == text
    assert written.lstrip(" \u00a0")[:1] not in tuple("=@\t\r\n\uff1d") or not written.strip()


def test_values_that_are_no_texts() -> None:
    cells = Cells()
    assert [cells(v) for v in (-3.5, None, -2, True, "=1")] == [-3.5, None, -2, True, "'=1"]
    assert cells.changed == 1
    raw = Cells(raw=True)
    assert (raw("=1"), raw.path("=1"), raw.changed) == ("=1", "=1", 0)


def test_what_was_changed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    cells = Cells()
    cells("=1")
    cells.tell("a.csv")
    cells.path("=1.wav")
    cells.tell("b.txt")
    one, two = (record.getMessage() for record in caplog.records)
    assert one.startswith("a.csv: 1 text") and "a formula begins with an apostrophe;" in one
    assert two.startswith("b.txt: 2 texts") and "formulas begin with an apostrophe or ./;" in two
    assert Cells().path("-a.wav") == "./-a.wav"
    assert Cells().joined(["a", "=b", "-1"]) == "a;'=b;-1"


def test_events_in_both_forms() -> None:
    event = Event("-a.wav", None, 0.0, 1.0, "=cmd", 0.5, metadata={"@site": "+x", "value": -2.5})
    rows = list(csv.reader(to_csv([event]).splitlines()))
    assert rows[0][-2:] == ["'@site", "value"]
    assert rows[1][0] == "'-a.wav" and rows[1][4] == "'=cmd" and rows[1][-2:] == ["'+x", "-2.5"]
    raven = [line.split("\t") for line in to_raven([event]).splitlines()]
    found = dict(zip(*raven, strict=True))
    assert found["Begin Path"] == "./-a.wav" and found["Class"] == "'=cmd"
    assert "".join(csv_lines(["a"], [["=1"]], Cells(raw=True))) == "a\n=1\n"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: Any, clips: Any) -> Path:
    """Two recordings with odd names, in a table with odd columns."""
    folder: Path = tmp_path_factory.mktemp("odd")
    for source, name in zip(clips, ("-first.flac", "=second.flac"), strict=False):
        (folder / name).write_bytes(source.read_bytes())
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["path", "@site", "amount"], ["-first.flac", "=1+1", "-3"],
             ["=second.flac", "plain", "4"]]
        )  # fmt: skip
    made = folder / "made.lance"
    assert run(["embed", "demo", str(folder / "items.csv"), "--into", str(made)]) == 0
    return made


@pytest.fixture(scope="module")
def clips() -> list[Path]:
    from importlib.resources import files

    return sorted(Path(str(files("penult") / "demo" / "clips")).rglob("*.flac"))[:2]


def cells_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_an_export_runs_nothing_and_is_told(collection: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "v.csv"
    assert run(["export", str(collection), str(out)]) == 0
    said = capsys.readouterr()
    assert "--raw-cells" in " ".join((said.out + said.err).split())
    header, *rows = cells_of(out)
    site, amount = header.index("site"), header.index("amount")
    assert {row[site] for row in rows} == {"'=1+1", "plain"}
    assert {row[amount] for row in rows} == {"-3", "4"}
    assert run(["export", str(collection), str(tmp_path / "r.csv"), "--raw-cells"]) == 0
    assert "--raw-cells" not in capsys.readouterr().err
    header, *rows = cells_of(tmp_path / "r.csv")
    assert {row[header.index("site")] for row in rows} == {"=1+1", "plain"}
    assert run(["export", str(collection), str(tmp_path / "n.npy")]) == 0
    assert "'=1+1" in {cell for row in cells_of(tmp_path / "n.csv") for cell in row}


def test_an_export_is_read_again_as_it_was(collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.csv"
    assert run(["export", str(collection), str(out), "--no-logits"]) == 0
    header, *rows = cells_of(out)
    place, site = header.index("path"), header.index("site")
    listed = tmp_path / "again.csv"
    with listed.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "site"], *([r[place], r[site]] for r in rows)])
    assert run(["embed", "demo", str(listed), "--into", str(tmp_path / "b.lance")]) == 0
    assert run(["export", str(tmp_path / "b.lance"), str(tmp_path / "b.parquet")]) == 0
    found = pq.read_table(tmp_path / "b.parquet")["site"].to_pylist()
    assert sorted(found) == ["=1+1", "plain"]
