"""Texts: windows in the model's own tokens, rows of tables, and what is shown of them."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penult.collection.collection import Collection
from penult.data import text
from penult.data.regions import Region
from penult.embedding.embedder import Embedder
from penult.errors import RegionError, UsageError
from penult.models.processors import TextPreparer
from penult.models.specs import load
from test_cli import ask
from zoo import WORDS, save_text


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that takes 32 tokens."""
    return save_text(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def embedder(bert: Path) -> Embedder:
    return Embedder.from_classifier(load(bert))


def long_text(words: int, seed: int = 0) -> str:
    """So many words of the vocabulary, each one token of the tiny BERT."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def rows_of(place: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All rows by key."""
    found = Collection.open(place).reader.scan()
    return {(row["id"], row["region"]): row for batch in found for row in batch.to_pylist()}


# ---- windows


def test_a_window_of_a_text_has_the_vector_of_the_cut_out_text(embedder: Embedder) -> None:
    content = long_text(40)
    result = embedder.run([content, "the sea"], window=12, hop=5)
    *parts, short = result.regions
    assert short.key == "whole"  # it fits into one window
    words = content.split()
    starts = [0, 5, 10, 15, 20, 25, 30]  # ten of the twelve tokens are the text's own
    spans = [(len(" ".join(words[:s])) + (s > 0), len(" ".join(words[: s + 10]))) for s in starts]
    assert [part.chars for part in parts] == spans
    assert [part.key for part in parts] == [f"chars:{a}-{b}" for a, b in spans]
    alone = embedder.run([content[a:b] for a, b in spans])
    np.testing.assert_allclose(result.vectors[:-1], alone.vectors, rtol=1e-5, atol=1e-6)
    for part in parts:
        assert Region.of_key(part.key, "window") == part


def test_the_last_window_ends_with_the_text_and_a_hop_is_a_window_by_default(
    embedder: Embedder,
) -> None:
    content = long_text(25, 1)
    regions = embedder.run([content], window=12).regions
    assert [content[slice(*region.chars)].count(" ") + 1 for region in regions] == [10, 10, 10]
    assert regions[-1].chars[1] == len(content)


def test_a_summary_weighs_windows_by_the_characters_that_they_newly_cover(
    embedder: Embedder, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(long_text(57, 2))
    place = tmp_path / "c"
    Collection.open(place).add(embedder, tmp_path / "a.txt", window=12, hop=7, summary="mean")
    found = {key: row for (_, key), row in rows_of(place).items()}
    summary = found.pop("summary")
    assert (summary["start"], summary["end"], summary["truncated"]) == (None, None, None)
    covered, total, weight = set[int](), np.zeros(len(summary["vector"])), 0
    spans = sorted(Region.of_key(key, "window").chars or (0, 0) for key in found)
    for first, last in spans:
        new = set(range(first, last)) - covered
        covered |= new
        total += len(new) * np.asarray(found[f"chars:{first}-{last}"]["vector"], np.float64)
        weight += len(new)
    np.testing.assert_allclose(summary["vector"], total / weight, rtol=1e-5)
    again = Collection.open(place).add(
        embedder, tmp_path / "a.txt", window=12, hop=7, summary="mean"
    )
    assert (again.done, again.replaced, again.skipped) == (0, 0, len(spans))


def pieces() -> TextPreparer:
    """A tokenizer that cuts words into letters, as `##a`, and puts two special tokens around."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefgh"
    names = ["[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    raw = Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return TextPreparer(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]"), 64)


PIECES = pieces()
texts = st.lists(st.text("abcdefgh", min_size=1, max_size=14), max_size=12)


@given(texts, st.integers(3, 12), st.one_of(st.none(), st.integers(1, 14)))
@settings(max_examples=60, deadline=None)
def test_windows_fit_in_order_and_leave_nothing_out(
    words: list[str], window: int, hop: int | None
) -> None:
    content = "  ".join(words)
    spans = PIECES.windows(content, window, hop)
    covered = {place for first, last in spans for place in range(first, last)}
    for first, last in spans:
        assert PIECES(content[first:last]).tensors["input_ids"].shape[1] <= window
    assert spans == sorted(set(spans))
    if (hop or 1) <= window - 2:  # a longer hop leaves gaps
        assert {i for i, sign in enumerate(content) if sign != " "} <= covered
    elif spans:
        assert {0, len(content) - 1} <= covered


def test_words_are_not_cut_unless_one_is_longer_than_a_window() -> None:
    content = "abc defg h abcdefgh"
    assert [content[a:b] for a, b in PIECES.windows(content, 7, None)] == [
        "abc",
        "defg h",
        "abcde",
        "defgh",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 33}, "33 tokens is longer than what the model takes; give 32 or less"),
        ({"window": 2}, "2 tokens has no room for a text: 2 of them are special ones"),
        ({"window": 12.5}, "a window of 12.5 tokens cannot be; give a whole number"),
        ({"window": 12, "hop": 0.5}, "a hop of 0.5 tokens cannot be"),
        ({"tile": 8}, "tiles are cut from images, not from text"),
        ({"pages": "each"}, "pages are of images, not of text"),
    ],
)
def test_what_a_text_cannot_be_cut_into_is_refused(
    embedder: Embedder, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        embedder.run(["the sea"], **options)


def test_characters_that_a_text_does_not_have_are_refused() -> None:
    assert text.load("grey whales", (0, 4)) == "grey"
    with pytest.raises(RegionError, match="characters 5-12 are not there: the text has 11"):
        text.load("grey whales", (5, 12))


def test_a_long_text_leaves_no_mark_on_the_fingerprint(bert: Path) -> None:
    before = Embedder.from_classifier(load(bert))
    wanted = before.fingerprint
    other = Embedder.from_classifier(load(bert))
    other.run([long_text(60)])
    assert other.fingerprint == wanted


# ---- rows of tables, and words on the command line

TABLE = (
    ("the sea is calm", "water"),
    ("grey whales sing", "animals"),
    ("the sea is calm", "rest"),
    (long_text(28, 5), "long"),
)


def written(path: Path, rows: Any = TABLE) -> Path:
    lines = ["text,topic", *(f"{words},{topic}" for words, topic in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_of_texts_are_named_by_table_and_line(bert: Path, tmp_path: Path) -> None:
    table, store = written(tmp_path / "texts.csv"), tmp_path / "c.lance"
    assert "4 embedded" in ask("embed", bert, table, "--into", store).out
    found = rows_of(store)
    assert [(id, row["text"], row["topic"]) for (id, _), row in found.items()] == [
        (f"{tmp_path.name}/texts.csv:{line}", *row) for line, row in enumerate(TABLE, 2)
    ]
    shown = ask("search", store, "the sea is calm", "-k", "4").out
    assert all(f"{tmp_path.name}/texts.csv:{line}" in shown for line in (2, 4))
    assert "grey whales sing" in shown
    assert TABLE[3][0] not in shown and f"{TABLE[3][0][:79]}…" in shown
    hits = ask("search", store, "the sea is calm", "-k", "4", "--json").json["hits"]
    assert {hit["metadata"]["text"] for hit in hits} == {words for words, _ in TABLE}
    ask("export", store, tmp_path / "v.csv")
    assert TABLE[3][0] in (tmp_path / "v.csv").read_text()
    # The id of a row is a query, and the table's own ids hold where it has some.
    assert (
        ask("search", store, f"{table}:3", "-k", "1", "--json").json["hits"][0]["id"].endswith(":3")
    )
    (tmp_path / "own.csv").write_text("id,text\nfirst,the sea is calm\n")
    ask("embed", bert, tmp_path / "own.csv", "--into", store)
    assert ("first", "whole") in rows_of(store)


def test_texts_of_a_table_are_not_taken_for_files_that_are_gone(bert: Path, tmp_path: Path) -> None:
    table, store = written(tmp_path / "texts.csv"), tmp_path / "c.lance"
    for _ in range(2):
        said = ask("embed", bert, table, "--into", store, "--prune", "--json").json
    assert said["gone"]["count"] == 0 and said["rows"] == 4


def test_metadata_that_changed_is_counted(bert: Path, tmp_path: Path) -> None:
    table, store = written(tmp_path / "texts.csv"), tmp_path / "c.lance"
    ask("embed", bert, table, "--into", store)
    written(table, [(words, topic.replace("water", "sea")) for words, topic in TABLE])
    assert "0 embedded, 3 unchanged, 1 updated" in ask("embed", bert, table, "--into", store).out
    said = ask("embed", bert, table, "--into", store, "--json").json
    assert (said["done"], said["skipped"], said["updated"]) == (0, 4, 0)
    assert rows_of(store)[f"{tmp_path.name}/texts.csv:2", "whole"]["topic"] == "sea"


def test_rows_of_the_former_version_are_recognised(embedder: Embedder, tmp_path: Path) -> None:
    """They are named by their words; of two lines with one text only the first had a row."""
    table, store = written(tmp_path / "texts.csv"), Collection.open(tmp_path / "c")
    store.add(embedder, [words for words, _ in TABLE])  # texts without a table are named so too
    former = set(rows_of(store.path))
    assert len(former) == 3 and all(id.startswith("sha256:") for id, _ in former)
    for embedded in (1, 0):
        summary = store.add(embedder, table)
        assert (summary.done, summary.skipped) == (embedded, 4 - embedded)
        found = rows_of(store.path)
        assert set(found) - former == {(f"{table}:4", "whole")}
        assert sorted(row["topic"] for row in found.values()) == sorted(t for _, t in TABLE)


def test_words_are_a_query_and_an_existing_file_wins(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table, store = written(tmp_path / "texts.csv"), tmp_path / "c.lance"
    ask("embed", bert, table, "--into", store)
    (tmp_path / "sea").write_text("grey whales sing")
    said = ask("search", store, "sea", "-k", "1", "--json")
    assert said.json["hits"][0]["metadata"]["topic"] == "animals"
    assert "'sea' is taken as the file" in said.err and "text:sea means the words" in said.err
    words = ask("search", store, "text:the sea is calm", "-k", "1", "--json")
    assert words.json["hits"][0]["similarity"] == pytest.approx(1.0, abs=1e-6)
    assert not words.err.count("is taken as")
    missing = ask("search", store, "./none.csv")
    assert missing.code == 2 and "text:./none.csv means the words" in missing.error

    alone = ask("classify", bert, "text:sea", "grey whales", "--json").json["predictions"]
    assert [one["id"] for one in alone] == ["text:sea", "text:grey whales"]
    classifier = load(bert)
    for one, content in zip(alone, ("sea", "grey whales"), strict=True):
        wanted = Embedder.from_classifier(classifier).run([content]).logits[0]
        np.testing.assert_allclose(one["logits"], wanted, atol=1e-5)
    of_file = ask("classify", bert, "sea", "--json")
    assert of_file.json["predictions"][0]["id"] == str(tmp_path / "sea")
    missing = ask("classify", bert, "none.csv")
    assert missing.code == 2 and "no such file or folder: none.csv" in missing.error


def test_predictions_carry_the_metadata_of_their_rows(bert: Path, tmp_path: Path) -> None:
    table, store = written(tmp_path / "texts.csv"), tmp_path / "c.lance"
    ask("embed", bert, table, "--into", store)
    ask("teach", store, "--from", "topic")
    out = tmp_path / "p.csv"
    for items in ([table], []):  # a table, and the collection's own rows
        assert (
            ask("predict", store, *items, "--out", out, "--overwrite", "--unknown", "0").code == 0
        )
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["path"], row["text"], row["topic"]) for row in rows] == [
            (f"{table}:{line}", *row) for line, row in enumerate(TABLE, 2)
        ]
    said = ask("predict", store, table, "--json", "--unknown", "0").json["predictions"]
    assert [one["metadata"]["topic"] for one in said] == [topic for _, topic in TABLE]
    shown = ask("predict", store, table, "--window", "8", "--unknown", "0").out
    assert "chars 0-" in shown and TABLE[3][0][:20] in shown
    assert ask("predict", store, table, "--window", "5s").code == 2
