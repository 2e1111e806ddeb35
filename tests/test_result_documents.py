"""`to_dict` of what Python returns is what the command prints with `--json`, in the same order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penult
from penult.analysis.clustering import ClusterOptions
from penult.analysis.evaluation import evaluate
from penult.analysis.probe import probe
from penult.cli.output import json_text
from penult.collection import derived
from penult.collection.labels import labelled
from penult.fewshot.events import merged
from penult.fewshot.trials import verify_collection
from test_cli import ask

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
KNOWN = "voice IN ('british-man', 'oxford-woman', 'american-woman')"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled clips as rows, four of whose words are taught."""
    path = tmp_path_factory.mktemp("documents") / "words.lance"
    assert ask("embed", "demo", CLIPS / "clips.csv", "--into", path, "--tap", "prelogits").code == 0
    where = f"{KNOWN} AND word IN ('one', 'two', 'three', 'four')"
    assert ask("teach", path, "--from", "word", "--where", where).code == 0
    return path


def printed(*arguments: object) -> dict[str, Any]:
    done = ask(*arguments, "--json")
    assert done.code == 0, done.err
    document: dict[str, Any] = done.json
    return document


def same(document: dict[str, Any], printed: dict[str, Any]) -> None:
    """The command's document has all of the result's, in its order; NaN is null there."""
    assert list(document) == [name for name in printed if name in document]
    own = json.loads(json_text(document))
    assert json.dumps(own) == json.dumps({name: printed[name] for name in own})


def test_an_evaluation(words: Path) -> None:
    rows = labelled(penult.Collection(words), ["word", "voice"])
    found = evaluate(rows.vectors, rows.names["word"], rows.names["voice"], "scale+l2", 5)
    asked = ("--by", "word", "--groups", "voice", "--space", "scale+l2", "--ways", 5)
    same(found.to_dict(), printed("evaluate", words, *asked))


def test_a_verification(words: Path) -> None:
    found, space = verify_collection(penult.Collection(words), "word", "voice")
    document = printed("verify", words, "--by", "word", "--groups", "voice")
    same(found.to_dict(), document)
    assert document["space"] == space.recipe and 0 < found.low <= found.eer <= found.high < 1


def test_a_probe(words: Path) -> None:
    rows = labelled(penult.Collection(words), ["word", "voice"])
    found = probe(rows.vectors, rows.names["word"], rows.names["voice"])
    same(found.to_dict(), printed("probe", words, "--by", "word", "--groups", "voice"))


def test_a_probe_with_features(words: Path, tmp_path: Path) -> None:
    """The measures of every matrix, and all else of the last one."""
    rows = labelled(penult.Collection(words), ["word"])
    ids = rows.keys["id"].to_pylist()
    depth = np.random.default_rng(0).standard_normal(len(ids)).round(6)
    lines = ["path,depth", *(f"{id},{value}" for id, value in zip(ids, depth, strict=True))]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    document = printed("probe", words, "--by", "word", "--features", tmp_path / "own.csv")
    both = probe(np.column_stack([rows.vectors, depth]), rows.names["word"])
    last = both.to_dict("both")
    measures = last.pop("measures")["both"]
    for name, one in document["measures"].pop("both").items():
        assert one == pytest.approx(measures[name])
    assert list(document["measures"]) == ["vectors", "features"]
    same(last, document)


def test_clusters(words: Path) -> None:
    collection = penult.Collection(words)
    found = derived.find_clusters(collection.reader, ClusterOptions("kmeans", 16), by="word")
    document = printed("cluster", words, "--clusters", 16, "--by", "word")
    same(found.to_dict(), document)
    numbers = found.clustering.to_dict()
    assert numbers["rows"] == document["rows"] == 128
    assert found.agreement is not None and found.agreement.to_dict() == document["agreement"]


def test_classes(words: Path) -> None:
    space = penult.ClassSpace(penult.Collection(words))
    none = dict.fromkeys(("threshold", "chosen", "average_precision", "f1"))  # one class an item
    expected = [one.to_dict() | none for one in space.classes]
    assert expected == printed("classes", words)["classes"]


def test_predictions(words: Path) -> None:
    space = penult.ClassSpace(penult.Collection(words))
    document = printed("predict", words, "--where", "word = 'two'", "--nearest", 2)
    found = list(space.predict_collection(where="word = 'two'", nearest=2))
    assert len(found) == len(document["predictions"]) == 8
    for one, line in zip(found, document["predictions"], strict=True):
        same(one.to_dict(), line)
    same(space.fitted.to_dict(0.05), document)
    without = printed("predict", words, "--where", "word = 'two'", "--unknown", 0)
    same(space.fitted.to_dict(), without)
    assert without["unknown"] is None


def test_events(words: Path) -> None:
    clip = CLIPS / "two_british-man.flac"
    document = printed(
        "predict", words, clip, "--window", "200ms", "--hop", "100ms", "--unknown", 0
    )
    space = penult.ClassSpace(penult.Collection(words))
    found = space.predict(clip, window=0.2, hop=0.1, unknown=0)
    events = merged(one.detection for one in found)
    assert [one.to_dict() for one in events] == document["events"] and len(events) > 0


@pytest.mark.parametrize("labels", ["word", None])
def test_a_selection(labels: str | None, tmp_path: Path) -> None:
    voices = ("british-man", "oxford-woman", "american-woman")
    clips = [CLIPS / f"{word}_{voice}.flac" for word in ("one", "two", "six") for voice in voices]
    clips.append(CLIPS / "four_british-man.flac")
    rule = "{}_*" if labels else None
    found = penult.choose(penult.load("demo"), clips, rule, device="cpu")
    asked = ("--labels", rule) if rule else ()
    document = printed("choose", "demo", *clips, "--into", tmp_path / "best", *asked)
    own = found.to_dict()
    same({name: value for name, value in own.items() if name != "space"}, document)
    assert (found.report is None) == (labels is None) == (found.ranking is not None)


def test_the_progress_of_a_selection() -> None:
    from penult.selection import Progress

    items: list[bool] = []
    lines: list[str] = []
    voices = ("british-man", "oxford-woman", "american-woman")
    clips = [CLIPS / f"{word}_{voice}.flac" for word in ("one", "two", "six") for voice in voices]
    progress = Progress(lambda embedded, seconds: items.append(embedded), lines.append)
    penult.choose(penult.load("demo"), clips, "{}_*", device="cpu", progress=progress)
    assert items == [True] * 9
    assert lines[0].startswith("reading ") and any("ranking" in line for line in lines)
