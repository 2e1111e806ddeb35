"""An embedder inside scikit-learn: pipelines, grids, clones, pickles; nothing learnt from tests."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import penult
from conftest import RATE, clip
from penult.analysis.space import fit
from penult.errors import FingerprintMismatch, ItemError, SourceError, TapError, UsageError
from penult.integrations import sklearn
from penult.models.specs import demo_folder
from penult.sklearn import EmbeddingTransformer, rows_of

CLIPS = demo_folder().parent / "clips"


def clips(*words: str) -> list[str]:
    return [str(path) for word in words for path in sorted(CLIPS.glob(f"{word}_*.flac"))]


def test_it_gives_the_embedders_vectors() -> None:
    files = clips("one")
    expected = penult.Embedder.from_classifier(penult.load("demo")).embed(files)
    vectors = EmbeddingTransformer().fit_transform(files)
    assert vectors.dtype == np.float32 and np.allclose(vectors, expected, rtol=1e-5, atol=1e-5)
    names = EmbeddingTransformer().get_feature_names_out()
    assert len(names) == vectors.shape[1] == 128 and names[0] == "embedding0"


def test_any_way_to_give_a_column() -> None:
    files = clips("two")
    expected = EmbeddingTransformer().transform(files)

    class Column:  # as pandas and polars have them
        def to_numpy(self) -> np.ndarray:
            return np.array(files, object)

    for given in (
        np.array(files),
        np.array(files, object)[:, None],
        [Path(f) for f in files],
        Column(),
    ):
        assert np.array_equal(EmbeddingTransformer().transform(given), expected)
    sounds = [soundfile.read(file, dtype="float32") for file in files]
    assert np.allclose(EmbeddingTransformer().transform(sounds), expected, rtol=1e-4, atol=1e-4)
    repeated = EmbeddingTransformer().transform([files[3], files[0], files[3]])
    assert np.array_equal(repeated, expected[[3, 0, 3]])
    assert EmbeddingTransformer().transform([]).shape == (0, 128)


def test_in_a_pipeline_and_a_grid() -> None:
    files = clips("no", "yes", "left")
    words = [Path(file).name.split("_")[0] for file in files]
    model = make_pipeline(EmbeddingTransformer(), LogisticRegression(max_iter=1000))
    grid = GridSearchCV(
        model,
        {"embeddingtransformer__tap": ["backbone", "layer:2"],
         "embeddingtransformer__pooling": ["mean", "mean+std"],
         "embeddingtransformer__space": [None, "scale+l2"]},
        cv=4,
    ).fit(files, words)  # fmt: skip
    assert len(grid.cv_results_["params"]) == 8 and grid.best_score_ > 0.8
    assert list(grid.predict(clips("yes"))).count("yes") >= 7


def test_each_file_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    run = EmbeddingTransformer._run
    monkeypatch.setattr(sklearn, "_MEMORY", sklearn._Memory(1000))
    monkeypatch.setattr(
        EmbeddingTransformer, "_run", lambda self, items: ran.append(len(items)) or run(self, items)
    )
    files = clips("six", "seven")
    model = make_pipeline(EmbeddingTransformer(), LogisticRegression())
    cross_val_score(model, files, [Path(f).name[:2] for f in files], cv=4)
    assert sum(ran) == len(files)


def test_a_space_is_fitted_on_the_training_items_only() -> None:
    train, test = clips("one"), clips("six")
    with_space = EmbeddingTransformer(space="scale+l2").fit(train)
    raw = EmbeddingTransformer()
    expected = fit("scale+l2", raw.transform(train))
    assert with_space.space_.id == expected.id
    assert np.array_equal(with_space.transform(test), expected(raw.transform(test)))
    few = EmbeddingTransformer(space="pca:3").fit(train)
    assert few.transform(test).shape == (len(test), 3) and len(few.get_feature_names_out()) == 3
    for ask in (lambda e: e.transform(test), lambda e: e.get_feature_names_out()):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            ask(EmbeddingTransformer(space="pca:3"))


def test_with_features_of_ones_own() -> None:
    files = np.array(clips("one", "two"))
    table = np.column_stack([files, np.char.str_len(files)]).astype(object)
    own = FunctionTransformer(lambda column: column.astype(float), feature_names_out="one-to-one")
    joined = ColumnTransformer([("sound", EmbeddingTransformer(), [0]), ("length", own, [1])])
    assert np.array_equal(joined.fit_transform(table)[:, -1], np.char.str_len(files))
    assert joined.transform(table).shape == (16, 129)
    both = FeatureUnion([("a", EmbeddingTransformer()), ("b", EmbeddingTransformer(tap="layer:1"))])
    assert both.fit_transform(files).shape == (16, 256)
    assert both.get_feature_names_out()[[0, -1]].tolist() == ["a__embedding0", "b__embedding127"]


def test_clones_and_pickles_carry_no_weights() -> None:
    files = clips("four")
    made = EmbeddingTransformer(tap="layer:2", space="centre", asked={}).fit(files)
    saved = pickle.dumps(made)
    assert len(saved) < 20_000  # the space; the model has 3.4 MB
    again = pickle.loads(saved)
    assert np.array_equal(again.transform(files), made.transform(files))
    copied = clone(made)
    assert copied.get_params() == made.get_params() and not hasattr(copied, "space_")
    assert made.set_params(pooling="max").get_params()["pooling"] == "max"


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
    ],
    ids=lambda check: check.__name__,
)
def test_what_scikit_learn_checks_of_any_estimator(check) -> None:
    """Those of its checks that ask nothing of the items, which are no tables of numbers here."""
    estimator = EmbeddingTransformer()
    check("EmbeddingTransformer", estimator)


def test_items_that_fail(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(good, clip(0.5), RATE)
    bad.write_text("no sound")
    with pytest.raises(ItemError, match=r"b\.wav"):
        EmbeddingTransformer().transform([good, bad])
    for space in (None, "l2"):
        lenient = EmbeddingTransformer(on_error="nan", space=space)
        vectors = lenient.fit_transform([good, bad, good])
        assert np.isfinite(vectors).all(axis=1).tolist() == [True, False, True]


def test_what_is_refused(tmp_path: Path) -> None:
    files = clips("one")[:2]
    for given in ("one.wav", Path("one.wav")):
        with pytest.raises(UsageError, match="give a list"):
            EmbeddingTransformer().fit(given)
    with pytest.raises(UsageError, match="2 columns were given"):
        EmbeddingTransformer().transform(np.array([files, files]))
    with pytest.raises(UsageError, match="raise and nan work"):
        EmbeddingTransformer(on_error="skip").transform(files)
    with pytest.raises(UsageError, match="takes a model's name"):
        EmbeddingTransformer(model=penult.load("demo")).transform(files)
    with pytest.raises(TapError):
        EmbeddingTransformer(tap="layer:99").transform(files)
    with pytest.raises((SourceError, ItemError)):
        EmbeddingTransformer().transform([tmp_path])


def test_segments_and_rows_of_a_collection(demo_collection: Path, tmp_path: Path) -> None:
    """A segment is the vector of the cut-out sound; a row is read from its collection."""
    files = clips("one", "two")
    store = penult.Collection.open(demo_collection)
    rows = rows_of(store, "word = 'zero'")
    keys, vectors = store.vectors("word = 'zero'")
    assert [(row.id, row.region) for row in rows] == list(
        zip(keys["id"].to_pylist(), keys["region"].to_pylist(), strict=True)
    )
    made = EmbeddingTransformer("demo", tap="prelogits", device="cpu")
    assert np.array_equal(made.transform(rows), vectors)
    assert np.array_equal(made.transform(store), store.vectors()[1])
    mixed = made.transform([files[0], *rows[:2], (files[1], 0.1, 0.4)])
    assert np.array_equal(mixed[1:3], vectors[:2])
    assert np.array_equal(mixed[0], made.transform([files[0]])[0])
    sound, rate = soundfile.read(files[1], dtype="float32")
    cut = sound[round(0.1 * rate) : round(0.4 * rate)]
    soundfile.write(tmp_path / "cut.wav", cut, rate, subtype="FLOAT")
    expected = made.transform([tmp_path / "cut.wav"])[0]
    np.testing.assert_allclose(mixed[3], expected, rtol=1e-5, atol=1e-5)
    table = np.array([[str(files[1]), 0.1, 0.4], [str(files[1]), 0.0, 0.2]], object)
    assert np.array_equal(made.transform(table)[0], mixed[3])
    with pytest.raises(ItemError, match="is no row of"):
        made.transform([replace(rows[0], region="7-8")])
    lenient = EmbeddingTransformer("demo", tap="prelogits", device="cpu", on_error="nan")
    assert np.isnan(lenient.transform([replace(rows[0], region="7-8")])).all()
    with pytest.raises(FingerprintMismatch):
        EmbeddingTransformer("demo", tap="backbone", device="cpu").transform(rows)
    with pytest.raises(UsageError, match="path, start and end"):
        made.transform(np.array([["a", "b"]], object))
