"""Teaching in the explorer, over HTTP: marks, undo, scores of all rows, suggestions, and what the
command line makes of them and the other way round.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Response
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from starlette.testclient import TestClient
from typer.testing import CliRunner

import penult
from penult.cli.main import app
from penult.collection.labels import standing
from penult.errors import PenultError, StoreError
from penult.explorer.routes import build
from penult.explorer.session import Explorer
from penult.server.answers import as_json, error_answer

ANN, BOB = "ann", "bob"
CLIPS = Path(penult.__file__).parent / "demo" / "clips"


class Page:
    """What the page asks, on one collection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.explorer = Explorer(penult.Collection.open(path))
        app = build(self.explorer)
        app.add_exception_handler(PenultError, _on_error)
        self.client = TestClient(app)

    def rows(self, word: str) -> list[int]:
        """The rows of one word, in their order."""
        rows = self.explorer.rows
        return [n for n in range(len(rows)) if Path(rows.key(n)[0]).name.startswith(f"{word}_")]

    def post(self, what: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/api/{what}", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def get(self, what: str, **query: Any) -> dict[str, Any]:
        answer = self.client.get(f"/api/{what}", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def refused(self, what: str, **body: Any) -> str:
        """The words of an error."""
        answer = self.client.post(f"/api/{what}", json=body)
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"]["message"])

    def mark(self, name: str, marks: dict[int, str], who: str = ANN) -> dict[str, Any]:
        listed = [{"row": row, "mark": mark} for row, mark in marks.items()]
        return self.post("marks", **{"class": name}, marks=listed, who=who)

    @property
    def marks(self) -> dict[tuple[str, str], dict[str, str]]:
        """Those that count, as another process reads them."""
        return standing(penult.Collection.open(self.path).reader)

    def scores(self, name: str) -> np.ndarray:
        return self.explorer.teaching.scores(name)


async def _on_error(request: object, error: Exception) -> Response:
    status, document, headers = error_answer(error)
    return Response(as_json(document), status, headers)


def ran(*words: str) -> str:
    found = CliRunner().invoke(app, list(words))
    assert found.exit_code == 0, found.output
    return found.stdout


def classes(path: Path) -> dict[str, tuple[int, int, int]]:
    """What `penult classes` counts."""
    listed = json.loads(ran("classes", str(path), "--json"))["classes"]
    return {one["name"]: (one["yes"], one["no"], one["unsure"]) for one in listed}


def counted(taught: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {one["name"]: (one["yes"], one["no"], one["unsure"]) for one in taught["classes"]}


@pytest.fixture
def page(demo_collection: Path, tmp_path: Path) -> Page:
    return Page(Path(shutil.copytree(demo_collection, tmp_path / "words.lance")))


@pytest.fixture(scope="module")
def taught(demo_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Two classes with some marks each; nothing is changed."""
    folder = tmp_path_factory.mktemp("taught") / "words.lance"
    page = Page(Path(shutil.copytree(demo_collection, folder)))
    zero, one, yes = (page.rows(word) for word in ("zero", "one", "yes"))
    page.mark("zero", dict.fromkeys(zero[:5], "yes") | dict.fromkeys(yes[:6], "no"))
    page.mark("one", dict.fromkeys(one[:4], "yes") | {zero[6]: "unsure"}, BOB)
    page.get("taught", **{"class": "zero"})
    return page


def test_a_first_mark_makes_a_class_that_the_command_line_sees(page: Page) -> None:
    row = page.rows("zero")[0]
    answer = page.mark("zero", {row: "yes"})
    assert (answer["name"], answer["can_undo"], answer["can_redo"]) == ("zero", True, False)
    assert counted(answer) == classes(page.path) == {"zero": (1, 0, 0)}
    stored = penult.Collection.open(page.path).reader.side_table("labels").to_pylist()
    assert [(one["who"], one["source"], one["class"]) for one in stored] == [
        (ANN, "explorer", "zero")
    ]
    assert stored[0]["when"] is not None


def test_scores_are_those_of_penult_suggest(taught: Page) -> None:
    listed = json.loads(ran("suggest", str(taught.path), "zero", "-k", "128", "--json"))
    scores, rows = taught.scores("zero"), taught.explorer.rows
    found = {rows.number((one["id"], one["region"])): one["score"]
             for one in listed["suggestions"]}  # fmt: skip
    assert len(found) == len(rows) - 15  # of unsure ones the class one is no business of zero
    for row, score in found.items():
        assert scores[row] == pytest.approx(score, abs=1e-5)


def test_the_mixed_suggestions_are_those_of_the_command(taught: Page) -> None:
    listed = json.loads(ran("suggest", str(taught.path), "zero", "-k", "20", "--json"))
    rows = taught.explorer.rows
    expected = [(rows.number((one["id"], one["region"])), one["reason"])
                for one in listed["suggestions"]]  # fmt: skip
    answer = taught.get("suggest", **{"class": "zero"}, order="mixed", k=20)
    assert [(one["row"], one["reason"]) for one in answer["rows"]] == expected


def test_the_orders_of_suggestions(taught: Page) -> None:
    scores = taught.scores("zero").astype(np.float64)
    known = {taught.explorer.rows.number(key) for key, one in taught.marks.items()
             if set(one.values()) != {"unsure"}}  # fmt: skip
    left = np.array([row for row in range(len(scores)) if row not in known])
    likely = taught.get("suggest", **{"class": "zero"}, order="likely", k=6)["rows"]
    assert [one["row"] for one in likely] == left[np.argsort(-scores[left])][:6].tolist()
    uncertain = taught.get("suggest", **{"class": "zero"}, order="uncertain", k=6)["rows"]
    margin = np.abs(np.log(scores[left]) - np.log1p(-scores[left]))
    assert [one["row"] for one in uncertain] == left[np.argsort(margin)][:6].tolist()
    different = taught.get("suggest", **{"class": "zero"}, order="different", k=6)["rows"]
    assert {one["reason"] for one in different} == {"different"}
    assert len({one["row"] for one in different} - known) == 6
    pool = left[np.argsort(-scores[left])][:60].tolist()
    assert {one["row"] for one in different} <= set(pool)
    vectors = taught.explorer.vectors.take([one["row"] for one in different + likely])
    nearest = (vectors @ vectors.T - 2 * np.eye(len(vectors))).max(axis=1)
    assert nearest[:6].mean() < nearest[6:].mean()  # they are less alike


def test_predict_uses_what_is_marked(taught: Page) -> None:
    out = json.loads(ran("predict", str(taught.path), "--json", "--unknown", "0"))
    by_file = {Path(one["id"]).name: one["label"] for one in out["predictions"]}
    asked = [name for name in by_file if name.startswith(("zero_", "one_"))]
    right = [by_file[name] == name.split("_")[0] for name in asked]
    assert len(right) == 16 and np.mean(right) > 0.9


def test_held_out_figures(taught: Page) -> None:
    answer = taught.get("taught", **{"class": "zero"})
    held = answer["held_out"]
    assert held["examples"] == 15  # members of one are no zeros
    space = penult.ClassSpace(penult.Collection.open(taught.path))
    expected = _held_out(space, "zero", taught)
    assert held["average_precision"] == pytest.approx(expected, abs=0.02)
    assert answer["expected"] == pytest.approx(len(taught.rows("zero")), rel=0.8)


def test_held_out_figures_of_marks_that_are_hard_to_tell(page: Page) -> None:
    """Two zeros are marked as none."""
    zero, one = page.rows("zero"), page.rows("one")
    page.mark("zero", dict.fromkeys(zero[:6], "yes") | dict.fromkeys([*zero[6:], *one[:5]], "no"))
    held = page.get("taught", **{"class": "zero"})["held_out"]
    expected = _held_out(penult.ClassSpace(penult.Collection.open(page.path)), "zero", page)
    # Of 13 marks each place counts, and here the space is not fitted anew without each of them.
    assert held["average_precision"] == pytest.approx(expected, abs=0.15)
    assert 0 <= held["low"] < held["average_precision"] < held["high"] <= 1
    assert held["high"] - held["low"] > 0.1  # of 13 marks


def _held_out(space: penult.ClassSpace, name: str, page: Page) -> float:
    """Average precision with each item left out, by scikit-learn alone."""
    from sklearn.linear_model import LogisticRegression

    table = page.explorer.collection.reader.vectors()[1]
    keys = [(one["id"], one["region"]) for one in
            page.explorer.collection.reader.vectors()[0].to_pylist()]  # fmt: skip
    examples, found, truth = space.examples, [], []
    rows = space.space(examples.vectors)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    marked = set(examples.keys)
    weak = space.space(table[[key not in marked for key in keys]])
    weak = weak / np.linalg.norm(weak, axis=1, keepdims=True)
    answer = np.array([{"yes": 1, "no": 0}.get(one.get(name, ""), 0 if "yes" in one.values() else
                       -1) for one in examples.marks])  # fmt: skip
    given = np.flatnonzero(answer >= 0)
    for out in given:
        rest = given[given != out]
        sides = np.concatenate([answer[rest] == 1, np.zeros(len(weak), bool)])
        weights = np.concatenate([np.ones(len(rest)), np.full(len(weak), 4 / len(weak))])
        for side in (sides, ~sides):
            weights[side] *= len(rest) / weights[side].sum()
        head = LogisticRegression(C=30, max_iter=1000)
        head.fit(np.concatenate([rows[rest], weak]), sides, weights)
        found.append(float(head.decision_function(rows[out][None])[0]))
        truth.append(answer[out] == 1)
    return float(average_precision_score(truth, found))


def test_too_few_marks_say_so(page: Page) -> None:
    page.mark("zero", {page.rows("zero")[0]: "yes"})
    answer = page.get("taught", **{"class": "zero"})
    assert answer["held_out"]["average_precision"] is None
    assert "3 of each" in answer["held_out"]["words"] and answer["expected"] is None
    suggested = page.get("suggest", **{"class": "zero"}, k=3)
    assert {one["probability"] for one in suggested["rows"]} == {None}


def test_marks_that_are_all_ranked_right_have_no_interval(page: Page) -> None:
    """Draws of them would say 1.00 to 1.00 of any other rows."""
    three, five = page.rows("three"), page.rows("five")
    page.mark("three", dict.fromkeys(three[:4], "yes") | dict.fromkeys(five[:4], "no"))
    held = page.get("taught", **{"class": "three"})["held_out"]
    assert (held["average_precision"], held["low"], held["high"]) == (1.0, None, None)
    assert "interval" in held["words"]


def test_undo_to_the_beginning_and_back(page: Page) -> None:
    zero, one = page.rows("zero"), page.rows("one")
    states = [page.marks]
    for name, marks in (
        ("zero", {zero[0]: "yes"}),
        ("zero", {zero[1]: "yes", one[0]: "no"}),
        ("one", {one[0]: "yes", zero[1]: "yes"}),  # it leaves zero
        ("zero", {zero[0]: "none"}),
        ("one", {one[1]: "unsure"}),
    ):
        page.mark(name, marks)
        states.append(page.marks)
    assert states[3][page.explorer.rows.key(zero[1])] == {"one": "yes"}
    for state in states[-2::-1]:
        answer = page.post("undo", who=ANN)
        assert page.marks == state
    assert not answer["can_undo"] and answer["can_redo"] and answer["classes"] == []
    assert "nothing is left to undo for ann" in page.refused("undo", who=ANN)
    for state in states[1:]:
        answer = page.post("redo", who=ANN)
        assert page.marks == state
    assert counted(answer) == classes(page.path)
    assert "nothing is left to redo" in page.refused("redo", who=ANN)
    table = penult.Collection.open(page.path).reader.side_table("labels")
    assert len(table) > 14  # nothing was taken out of it


@settings(max_examples=3)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"),
                                st.sampled_from(["yes", "no", "unsure", "none", "undo", "redo"]),
                                st.sampled_from([ANN, BOB])), min_size=4, max_size=7))  # fmt: skip
def test_any_steps_can_be_undone(
    steps: list[tuple[int, str, str, str]], taught: Page, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("steps") / "words.lance"
    page = Page(Path(shutil.copytree(taught.path, folder)))
    before = page.marks
    for row, name, step, who in steps:
        if step in ("undo", "redo"):
            page.client.post(f"/api/{step}", json={"who": who})
        else:
            page.mark(name, {row: step}, who)
    told = page.explorer.teaching.taught(None)
    assert counted(told) == classes(page.path)
    refused = 0
    for who in (BOB, ANN, BOB, ANN):  # one may have to wait for the other
        while (answer := page.client.post("/api/undo", json={"who": who})).status_code == 200:
            pass
        refused += "since" in answer.text
    people = {who for *_, step, who in steps if step not in ("undo", "redo")}
    if len(people) < 2:
        assert page.marks == before and not refused


def test_undo_is_refused_where_somebody_else_has_marked_since(page: Page) -> None:
    first, second = page.rows("zero")[:2]
    page.mark("zero", {second: "yes"})
    page.mark("zero", {first: "yes"})
    page.mark("zero", {first: "no"}, BOB)
    words = page.refused("undo", who=ANN)
    assert "bob said no since" in words and "is not taken back" in words
    key = page.explorer.rows.key(first)
    assert page.marks[key] == {"zero": "no"}
    page.post("undo", who=ANN)  # the step before it
    assert set(page.marks) == {key}
    page.post("undo", who=BOB)
    assert page.marks == {key: {"zero": "yes"}}  # ann's mark stands again
    assert page.get("disagreements")["rows"] == []


def test_an_undo_that_cannot_be_written_can_be_tried_again(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = page.rows("zero")
    for row in zero[:3]:
        page.mark("zero", {row: "yes"})

    def full(*given: Any) -> None:
        raise StoreError("no space left on device")

    for what in ("undo", "redo"):
        with monkeypatch.context() as patched:
            patched.setattr("penult.explorer.teaching.append_labels", full)
            answer = page.client.post(f"/api/{what}", json={"who": ANN})
            assert answer.status_code >= 500 and "no space left" in answer.text
        assert counted(page.get("taught"))["zero"] == (3 - (what == "redo"), 0, 0)
        page.post(what, who=ANN)
        assert counted(page.get("taught"))["zero"] == (3 - (what == "undo"), 0, 0)


@pytest.mark.parametrize("step", ["marks", "rename", "remove", "undo"])
def test_a_step_whose_record_cannot_be_written_stands_and_can_be_undone(
    page: Page, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The disk is full once the marks are written, before the record of the change is."""
    zero = page.rows("zero")
    page.mark("zero", dict.fromkeys(zero[:2], "yes"))
    before = page.marks

    def full(*given: Any) -> None:
        raise StoreError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("penult.fewshot.versions.CollectionStore.append", full)
        if step == "marks":
            answer = page.mark("zero", {zero[2]: "yes"})
            assert answer["changed"] and len(page.marks) == 3
        elif step == "rename":
            answer = page.post("classes/rename", old="zero", new="null", who=ANN)
            assert classes(page.path) == {"null": (2, 0, 0)}
        elif step == "remove":
            answer = page.post("classes/remove", name="zero", who=ANN)
            assert page.marks == {}
        else:
            answer = page.post("undo", who=ANN)
            assert page.marks == {}
    assert "no space left" in answer["warning"] and "The marks are kept" in answer["warning"]
    assert counted(answer) == classes(page.path)
    answer = page.post("redo" if step == "undo" else "undo", who=ANN)
    assert page.marks == before and answer["warning"] is None
    assert page.get("taught")["warning"] is None


def test_disagreements_outlast_a_rename_and_its_undo(page: Page) -> None:
    first, second = page.rows("zero")[:2]
    page.mark("zero", {first: "yes", second: "yes"})
    page.mark("zero", {first: "no", second: "yes"}, BOB)
    own = [page.get("marks", **{"class": "zero"}, who=who) for who in (ANN, BOB, "eve")]
    assert [dict(zip(one["rows"], one["marks"], strict=True)) for one in own] == [
        {first: "yes", second: "yes"}, {first: "no", second: "yes"}, {}
    ]  # fmt: skip
    expected = {"row": first, "class": "zero", "marks": {ANN: "yes", BOB: "no"}}
    assert page.get("disagreements")["rows"] == [expected]
    page.post("classes/rename", old="zero", new="null", who=BOB)
    assert page.get("disagreements")["rows"] == [expected | {"class": "null"}]
    assert classes(page.path) == {"null": (1, 1, 0)}
    page.post("undo", who=BOB)
    assert page.get("disagreements")["rows"] == [expected]
    assert classes(page.path) == {"zero": (1, 1, 0)}


def test_a_class_is_removed_and_comes_back(page: Page) -> None:
    zero, one = page.rows("zero"), page.rows("one")
    page.mark("zero", dict.fromkeys(zero[:3], "yes"))
    page.mark("one", dict.fromkeys(one[:3], "yes"))
    answer = page.post("classes/remove", name="zero", who=BOB)
    assert counted(answer) == classes(page.path) == {"one": (3, 0, 0)}
    page.post("undo", who=BOB)
    assert classes(page.path) == {"one": (3, 0, 0), "zero": (3, 0, 0)}
    assert "there is no class 'two'" in page.refused("classes/remove", name="two")
    assert "already" in page.refused("classes/rename", old="one", new="zero")


def test_marks_of_the_command_line_count_at_once(page: Page) -> None:
    zero = page.rows("zero")
    page.mark("zero", {zero[0]: "yes"})
    before = page.get("suggest", **{"class": "zero"}, order="likely", k=1)["rows"][0]["row"]
    id, _ = page.explorer.rows.key(before)
    ran("teach", str(page.path), "zero", id, "--mark", "no")
    answer = page.get("suggest", **{"class": "zero"}, order="likely", k=1)
    assert answer["rows"][0]["row"] != before and counted(answer) == {"zero": (1, 1, 0)}
    page.mark("zero", {zero[1]: "yes"})
    ran("teach", str(page.path), "--undo")  # of the page's mark
    assert counted(page.get("taught")) == classes(page.path) == {"zero": (1, 1, 0)}
    assert "nothing is said since" in page.refused("undo", who=ANN)


def test_undo_brings_the_version_back_that_was_kept(page: Page) -> None:
    zero, one = page.rows("zero"), page.rows("one")
    page.mark("zero", dict.fromkeys(zero[:3], "yes"))
    page.mark("one", dict.fromkeys(one[:3], "yes"))
    first = json.loads(ran("predict", str(page.path), "--json"))["version"]
    page.mark("one", {one[4]: "yes"})
    assert json.loads(ran("predict", str(page.path), "--json"))["version"] != first
    page.post("undo", who=ANN)
    assert json.loads(ran("predict", str(page.path), "--json"))["version"] == first


def test_rows_that_come_are_scored(page: Page, tmp_path: Path) -> None:
    zero = page.rows("zero")
    page.mark("zero", {zero[0]: "yes", zero[1]: "yes"})
    number, before = len(page.explorer.rows), page.scores("zero")
    clip, name = tmp_path / "zero_new.flac", Path(page.explorer.rows.key(zero[2])[0]).name
    shutil.copy(CLIPS / name, clip)
    ran("teach", str(page.path), "zero", str(clip), "--mark", "yes")
    assert counted(page.get("taught", **{"class": "zero"})) == {"zero": (3, 0, 0)}
    after = page.scores("zero")
    assert (len(before), len(after)) == (number, number + 1) and np.isfinite(after).all()
    assert after[number] == pytest.approx(after[zero[2]], abs=1e-5)


def test_rows_that_go_have_no_score(page: Page) -> None:
    zero, gone = page.rows("zero"), page.rows("yes")[0]
    page.mark("zero", {zero[0]: "yes"})
    assert np.isfinite(page.scores("zero")).all()
    ran("forget", str(page.path), page.explorer.rows.key(gone)[0], "--yes")
    page.explorer.rows.refresh()
    page.explorer.vectors.refresh()
    scores = page.scores("zero")
    assert np.isnan(scores[gone]) and np.isfinite(np.delete(scores, gone)).all()
    assert "is gone" in page.refused(
        "marks", **{"class": "zero"}, marks=[{"row": gone, "mark": "yes"}]
    )


HOSTILE = ["<img src=x onerror=alert(1)>", "'; DROP TABLE labels --", "../../etc/passwd", "=1+1",
           "ß𝕏 \u202e", "%00{0}"]  # fmt: skip


def test_names_stay_text(page: Page) -> None:
    zero = page.rows("zero")
    for row, name in zip(zero, HOSTILE, strict=False):
        assert page.mark(name, {row: "yes"})["name"] == name.strip()
    assert set(classes(page.path)) == {name.strip() for name in HOSTILE}
    found = page.get("suggest", **{"class": HOSTILE[0]}, k=2)
    assert len(found["rows"]) == 2 and found["name"] == HOSTILE[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"class": "unknown"}, "no class can be called"),
        ({"class": "a\nb"}, "would break the lines"),
        ({"class": "*"}, "stands for every class"),
        ({"class": "  "}, "needs a name"),
        ({"marks": [{"row": 10**6, "mark": "yes"}]}, "there is no row 1000000"),
        ({"who": "a\tb\nc"}, "who marks needs a name"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    taught: Page, body: dict[str, Any], words: str
) -> None:
    before = taught.marks
    usual = {"class": "zero", "marks": [{"row": 0, "mark": "yes"}], "who": ANN}
    assert words in taught.refused("marks", **(usual | body))
    assert taught.marks == before


@pytest.mark.parametrize(
    "body",
    [
        {"class": "zero", "marks": [{"row": 0, "mark": "perhaps"}]},
        {"class": "zero", "marks": [{"row": -1, "mark": "yes"}]},
        {"class": "zero", "marks": [{"row": "0", "mark": "yes"}]},
        {"class": "zero", "marks": []},
        {"class": "zero", "marks": [{"row": 0, "mark": "yes"}], "path": "/etc/passwd"},
        {"marks": [{"row": 0, "mark": "yes"}]},
    ],
)
def test_bodies_are_checked(taught: Page, body: dict[str, Any]) -> None:
    assert taught.client.post("/api/marks", json=body).status_code in (400, 422)


def test_a_class_without_an_example_is_refused_in_words(taught: Page) -> None:
    answer = taught.client.get("/api/suggest", params={"class": "nothing"})
    assert answer.status_code == 400
    assert "has no example that is marked yes; there are one, zero" in answer.text


@pytest.mark.parametrize(
    "recipe", ["raw", "centre", "scale", "shrink", "whiten", "pca:8", "l2+centre"]
)
def test_products_in_every_space(taught: Page, recipe: str) -> None:
    from penult.analysis.space import fit

    matrix, rows = taught.explorer.vectors, taught.explorer.rows
    every = matrix.raw(np.arange(len(rows)))
    space = fit(recipe, every)
    moved = space(every.astype(np.float64)).astype(np.float64)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    directions = np.random.default_rng(0).standard_normal((3, moved.shape[1]))
    found = matrix.products(directions, space)
    assert np.abs(found - moved @ directions.T).max() < 1e-5
    assert np.abs(matrix.take([5, 2], space) - moved[[5, 2]]).max() < 1e-5


def test_what_is_closed_lets_nobody_wait(demo_collection: Path) -> None:
    matrix = Explorer(penult.Collection.open(demo_collection)).vectors
    matrix.close()
    with pytest.raises(PenultError, match="closed"):
        matrix.take([0])
