"""Memory, limits and time between commits: what is held is bounded, and changes no vector."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image
from pyarrow import parquet

from conftest import RATE, clip
from penult.collection.collection import Collection
from penult.collection.ingest import Options, Seen, ingest
from penult.data import audio, image, text
from penult.data.decode import Content, DecodedRegion, DecodeTarget, Decoding, Limits
from penult.data.delimited import lines
from penult.data.items import Failure, Item, Pause, file_item
from penult.data.regions import WHOLE
from penult.data.sources import from_paths
from penult.data.tables import read_table
from penult.data.windows import Layout
from penult.data.workers import decode
from penult.embedding.demand import PassDemand
from penult.embedding.embedder import Embedder
from penult.embedding.scheduling import ReadAhead
from penult.errors import EmptyItem, ItemError, SourceError, TooLong, UsageError
from penult.memory import Held, MemoryBound, free_memory, parse_size, peak, started, starting
from penult.models.processors import AudioPreparer, TextPreparer
from penult.models.specs import load
from test_cli import ask

COMMAND = [sys.executable, "-c", "import sys; from penult.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def embedder(tiny: Path) -> Embedder:
    return Embedder.from_classifier(load(tiny))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of pictures."""
    from zoo import save_image

    return save_image(tmp_path_factory.mktemp("models") / "image")


# ---- texts


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("words", ["\ufeffgrün und weiß, 白い犬 🐕 " * 3, "plain words " * 9])
def test_a_beginning_is_that_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, words: str
) -> None:
    """Whatever the pieces that a file is read in, also in the middle of a character."""
    monkeypatch.setattr(text, "_PIECE", piece)
    (tmp_path / "t.txt").write_text(words, encoding="utf-8")
    whole = text.load(tmp_path / "t.txt")
    for chars in (None, (4, 40)):
        expected = text.load(tmp_path / "t.txt", chars)
        for most in (1, 5, 30, len(whole), 10_000):
            kept, left = text.load_beginning(tmp_path / "t.txt", chars, most)
            assert (kept, left) == (expected[:most], max(0, len(expected) - most))


@pytest.mark.parametrize("bad", [b"ab\xffcdefgh", b"abcdef\xe2\x82", b"\xef\xbb\xbfab\xc3(cdef"])
def test_a_byte_that_is_no_text_is_named_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes
) -> None:
    (tmp_path / "t.txt").write_bytes(bad)
    with pytest.raises(ItemError) as whole:
        text.load(tmp_path / "t.txt")
    for piece in (1, 3, 4):
        monkeypatch.setattr(text, "_PIECE", piece)
        with pytest.raises(ItemError) as found:
            text.load_beginning(tmp_path / "t.txt", None, 2)
        assert str(found.value) == str(whole.value)
    (tmp_path / "t.txt").write_text(" \n" * 20)
    with pytest.raises(EmptyItem, match="white space"):
        text.load_beginning(tmp_path / "t.txt", None, 2)


def _tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special: Any = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    corpus = [" ".join(_words(seed)) for seed in range(30)]
    if kind == "wordpiece":
        own = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
        own.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
        own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
        trainer: Any = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    elif kind == "bpe":
        own = Tokenizer(models.BPE())
        own.pre_tokenizer = pre_tokenizers.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special)
    else:  # the whole text in one piece: the best division of it, not word by word
        own = Tokenizer(models.Unigram())
        own.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="[UNK]")
    own.train_from_iterator(corpus, trainer)
    own.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        special_tokens=[(one, own.token_to_id(one)) for one in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=own, model_max_length=16, pad_token="[PAD]", unk_token="[UNK]"
    )


def _words(seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    letters = list("abcdefghij")
    return ["".join(random.choice(letters, random.integers(1, 8))) for _ in range(60)]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_long_text_has_the_tokens_that_the_whole_of_it_has(kind: str) -> None:
    tokenizer = _tokenizer(kind)
    prepare = TextPreparer(tokenizer, 16)
    long = " ".join(itertools.chain.from_iterable(map(_words, range(40, 60))))
    given = [long, " " * 900 + long, "a" * 3000, "abc" * 1000 + long, "x-" * 900, "short text"]
    for one in given:
        expected = tokenizer(one, truncation=True, max_length=16, return_tensors="pt")
        found = prepare(one)
        assert set(found.tensors) == set(expected)
        assert all(found.tensors[name].equal(expected[name]) for name in expected)
        whole = len(tokenizer(one)["input_ids"])
        assert found.truncated == (16.0 if whole > 16 else None)


def test_no_more_of_a_long_text_is_tokenised_than_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare, seen = TextPreparer(_tokenizer("wordpiece"), 16), [0]
    own = type(prepare._tokenizer).__call__

    def counting(self: Any, given: str, *rest: Any, **named: Any) -> Any:
        seen.append(len(given))
        return own(self, given, *rest, **named)

    monkeypatch.setattr(type(prepare._tokenizer), "__call__", counting)
    prepare("many words of it " * 20_000)
    assert max(seen) < 5_000


def test_tokens_at_the_end_are_not_looked_for_at_the_beginning() -> None:
    """A tokenizer that keeps the last tokens needs the whole text."""
    tokenizer = _tokenizer("wordpiece")
    tokenizer.truncation_side = "left"
    prepare = TextPreparer(tokenizer, 16)
    long = " ".join(_words(1) * 20)
    expected = tokenizer(long, truncation=True, max_length=16, return_tensors="pt")
    assert prepare(long).tensors["input_ids"].equal(expected["input_ids"])
    assert not prepare.input.beginning


# ---- recordings


def _saved(path: Path, samples: np.ndarray, rate: int) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize("rate", [16_000, 8_000, 22_050, 44_100, 48_000, 96_000])
def test_what_is_kept_of_a_recording_is_what_it_begins_with(tmp_path: Path, rate: int) -> None:
    """To the bit, also behind a resampler; and the rest is counted."""
    stereo = np.stack([clip(9.0, 1, rate), clip(9.0, 2, rate)], axis=1)
    path = _saved(tmp_path / "s.wav", stereo, rate)
    whole = audio.load(path, WHOLE, RATE)
    kept = audio.load(path, WHOLE, RATE, max_seconds=5.0, kept_seconds=4.0)
    assert np.array_equal(kept.samples[: 3 * RATE], whole.samples[: 3 * RATE])
    assert len(kept.samples) <= 4.01 * RATE
    assert kept.seconds == whole.seconds == 9.0


@pytest.mark.parametrize(
    "late",
    [
        np.nan,
        np.inf,
        30_000.0,  # whole numbers, from 16 bits
        0.0,
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_lies_behind_is_checked_all_the_same(
    tmp_path: Path, late: float, channels: int
) -> None:
    samples = np.tile(
        np.float32([[1.0], [-1.0]]) if late else np.float32([[0]]), (40_000, channels)
    )
    samples[70_000:] = late
    path = _saved(tmp_path / "s.wav", samples, RATE)
    with pytest.raises(ItemError) as whole:
        audio.load(path, WHOLE, RATE)
    with pytest.raises(ItemError) as found:
        audio.load(path, WHOLE, RATE, kept_seconds=2.0)
    assert (type(found.value), str(found.value)) == (type(whole.value), str(whole.value))


def test_channels_that_cancel_only_in_the_kept_part_do_not(tmp_path: Path) -> None:
    one = clip(6.0)
    other = np.where(np.arange(len(one)) < 4 * RATE, -one, one)
    path = _saved(tmp_path / "s.wav", np.stack([one, other], axis=1), RATE)
    with pytest.raises(EmptyItem, match="cancel"):
        audio.load(path, WHOLE, RATE, first_seconds=3.0)
    assert audio.load(path, WHOLE, RATE, kept_seconds=3.0).seconds == 6.0
    path = _saved(tmp_path / "t.wav", np.stack([one, -one], axis=1), RATE)
    with pytest.raises(EmptyItem, match="cancel"):
        audio.load(path, WHOLE, RATE, kept_seconds=3.0)


def test_only_extractors_that_take_a_beginning_are_given_one() -> None:
    from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

    fixed = AudioPreparer(ASTFeatureExtractor(max_length=100, num_mel_bins=16))
    assert fixed.input.beginning and fixed.input.seconds is not None
    assert not AudioPreparer(Wav2Vec2FeatureExtractor()).input.beginning

    class OfLevel(ASTFeatureExtractor):
        """As loud as the loudest sample of the whole clip makes it."""

        def __call__(  # type: ignore[override]
            self, samples: Any, *rest: Any, **named: Any
        ) -> Any:
            return super().__call__(samples / np.abs(samples).max(), *rest, **named)

    assert not AudioPreparer(OfLevel(max_length=100, num_mel_bins=16)).input.beginning


def test_a_long_recording_of_a_model_of_fixed_length_is_done(tmp_path: Path) -> None:
    """No limit in seconds is for it, and its row is that of all of it."""
    from zoo import save_audio

    fixed = Embedder.from_classifier(
        load(save_audio(tmp_path / "ast", "audio-spectrogram-transformer"))
    )
    assert fixed.classifier.input.beginning
    folder = tmp_path / "sounds"
    folder.mkdir()
    long = clip(40.0, 3)
    soundfile.write(folder / "long.wav", long, RATE)
    collection = Collection.open(tmp_path / "c")
    assert collection.add(fixed, folder, max_seconds=5.0).counts()["done"] == 1
    row = collection.get(str(folder / "long.wav"))
    assert (row["end"], row["truncated"] is not None) == (40.0, True)
    stored, _ = soundfile.read(folder / "long.wav", dtype="float32")
    readout = fixed.runner.engine
    inputs = fixed.classifier.preprocess(stored)
    from penult.engines.batching import Batch

    expected = readout(Batch(inputs.tensors)).row(0)[1]
    np.testing.assert_array_equal(row["vector"], expected)


# ---- limits


def test_a_limit_is_told_with_its_number_and_its_option(
    pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    from zoo import save_text

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in {"large": (60, 50), "small": (30, 20)}.items():
        noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    said = ask("embed", pictures, folder, "--into", tmp_path / "p", "--max-pixels", 2000)
    assert said.code == 3 and "3,000 pixels" in said.out
    assert "2,000" in said.out and "--max-pixels" in said.out and "--tile" in said.out
    said = ask(
        *("embed", pictures, folder, "--into", tmp_path / "t", "--max-pixels", 2000),
        *("--tile", 30),
    )
    assert said.code == 0  # of the tiles none is too large
    (tmp_path / "long.txt").write_text("some words " * 100)
    texts = save_text(tmp_path / "bert")
    said = ask(
        *("embed", texts, tmp_path / "long.txt", "--into", tmp_path / "w"),
        *("--max-characters", 100),
    )
    assert said.code == 3 and "1,100 characters" in said.out
    assert "first 100 " in said.out and "--max-characters" in said.out
    soundfile.write(tmp_path / "long.wav", clip(3.0), RATE)
    said = ask("embed", tiny, tmp_path / "long.wav", "--into", tmp_path / "s", "--max-seconds", 2)
    assert said.code == 3 and "limit of 2 s" in said.out
    assert "--max-seconds" in said.out and "--window" in said.out


def test_every_command_that_opens_items_has_the_options_that_its_failures_name(
    tiny: Path, pictures: Path, tmp_path: Path
) -> None:
    sound, picture = tmp_path / "long.wav", tmp_path / "large.png"
    soundfile.write(sound, clip(3.0), RATE)
    noise = np.random.default_rng(0).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    low = ("--max-seconds", 2)
    said = ask("classify", tiny, sound, *low)
    assert said.code == 3 and "--max-seconds" in said.out + said.err
    assert ask("classify", tiny, sound, "--max-seconds", 4).code == 0
    assert ask("classify", tiny, sound, "--max-seconds", 0).code == 2
    said = ask("classify", pictures, picture, "--max-pixels", 2000)
    assert said.code == 3 and "--max-pixels" in said.out + said.err
    assert ask("classify", pictures, picture, "--max-pixels", 3000).code == 0
    taught = tmp_path / "taught.npz"
    said = ask("teach", taught, "deep", sound, "--model", tiny, *low)
    assert said.code != 0 and "--max-seconds" in said.out + said.err
    assert ask("teach", taught, "deep", sound, "--model", tiny).code == 0
    said = ask("predict", taught, sound, "--unknown", 0, *low)
    assert said.code == 3 and "--max-seconds" in said.out + said.err
    assert ask("predict", taught, sound, "--unknown", 0).code == 0
    store = tmp_path / "store"
    assert ask("embed", tiny, sound, "--into", store).code == 0
    other = tmp_path / "other.wav"
    soundfile.write(other, clip(3.0, 1), RATE)
    said = ask("search", store, other, *low)
    assert said.code != 0 and "--max-seconds" in said.out + said.err
    for command in ("choose", "check", "migrate"):
        assert "--max-pixels" in ask(command, "--help").out


@pytest.mark.parametrize(
    "options", [["--memory", "lots"], ["--memory", "1MB"], ["--max-pixels", "0"]]
)
def test_limits_that_cannot_be_are_refused(tiny: Path, tmp_path: Path, options: list[str]) -> None:
    soundfile.write(tmp_path / "one.wav", clip(1.0), RATE)
    said = ask("embed", tiny, tmp_path / "one.wav", "--into", tmp_path / "c", *options)
    assert said.code == 2 and ("give" in said.err or "are" in said.err)
    assert not (tmp_path / "c").exists()


def test_a_line_of_json_without_an_end_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penult.data.tables._LONGEST_TEXT", 100)
    table = tmp_path / "texts.jsonl"
    table.write_text('{"text": "one"}\n{"text": "' + "long " * 500 + '"}\n{"text": "two"}\n')
    entries = list(from_paths([str(table)], "text"))
    assert [one[0].content for one in entries if not isinstance(one, Failure)] == ["one", "two"]
    (lost,) = [one for one in entries if isinstance(one, Failure)]
    assert "line 2" in lost.words() + lost.id and "100 characters" in lost.message


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_lines_of_exactly_the_longest_are_lines(tmp_path: Path, end: str) -> None:
    path = tmp_path / "lines"
    path.write_bytes(f"12345678\n1{end}".encode())
    assert list(lines(path, 9)) == [(1, "12345678\n"), (2, f"1{end}")]
    assert [line for _, line in lines(path, 4, "-")] == ["-", f"1{end}"]
    with pytest.raises(SourceError, match="line 1 has more than 4 characters"):
        list(lines(path, 4))


def test_windows_of_a_text_that_no_memory_holds_are_refused_unread(tmp_path: Path) -> None:
    held = MemoryBound(64_000_000)  # room for the tokens of 160,000 characters
    paths = {name: tmp_path / f"{name}.txt" for name in ("sparse", "word", "good")}
    with paths["sparse"].open("wb") as file:
        file.truncate(1 << 40)
    paths["word"].write_text("a" * 170_000)
    paths["good"].write_text("ä" * 150_000)

    def divide(content: str, window: int, hop: int | None) -> list[tuple[int, int]]:
        assert len(content) <= 160_000
        return [(0, 10), (10, 20)]

    pairs = [(file_item(path), WHOLE) for path in paths.values()]
    sparse, word, *windows = Layout(window=4).apply(pairs, "text", divider=divide, bound=held)
    assert isinstance(sparse, Failure) and isinstance(word, Failure)
    assert "170,000 characters" in word.message and "--memory" in word.message
    assert [one[1].chars for one in windows if not isinstance(one, Failure)] == [(0, 10), (10, 20)]


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.png", "a.webp", "a.gif", "a.bmp", "a.jp2"])
def test_a_large_file_is_the_picture_that_a_small_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    path, cut = tmp_path / name, tmp_path / f"cut-{name}"
    Image.fromarray(noise).save(path)
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def seen() -> list[Any]:
        found: list[Any] = [image.size(path), np.asarray(image.load(path)).tolist()]
        with pytest.raises(ItemError) as lost:
            image.load(cut)
        return [*found, type(lost.value)]

    whole = seen()
    monkeypatch.setattr(image, "_IN_MEMORY", 10)
    assert seen() == whole
    if name == "a.png":
        monkeypatch.setattr(image, "_LARGEST_PNG", 100)
        with pytest.raises(TooLong, match="PNG of"):
            image.size(path)


@pytest.mark.skipif(sys.platform != "linux", reason="no bound of a process's memory there")
def test_what_is_too_large_for_the_share_of_one_worker_has_that_of_several(tmp_path: Path) -> None:
    sides = {"a": 40, "b": 3600, "c": 13_000, "d": 50}  # bytes: 4 × side², and more
    for name, side in sides.items():
        Image.new("RGB", (side, side), (9, 90, 200)).save(
            tmp_path / f"{name}.png", compress_level=1
        )
    pairs = [(file_item(tmp_path / f"{name}.png"), WHOLE) for name in sides]
    decoding = Decoding(workers=4, limits=Limits(memory="400MB"))
    assert decoding.share == 100_000_000
    a, b, c, d = decode(pairs, DecodeTarget("image"), decoding)
    for found, side in ((a, 40), (b, 3600), (d, 50)):
        assert isinstance(found, DecodedRegion) and isinstance(found.content, Content)
        assert found.content.values.size == (side, side)
        assert found.content.values.getpixel((side - 1, 0)) == (9, 90, 200)
    assert isinstance(c, DecodedRegion) and isinstance(c.content, TooLong)
    assert "--memory" in str(c.content)


def test_amounts_of_memory() -> None:
    assert parse_size("2GB") == 2_000_000_000
    assert parse_size(" 512 MiB ") == 512 << 20
    assert parse_size("1.5g") == 1_500_000_000
    assert parse_size("100000000") == 100_000_000
    free = free_memory()
    assert 0.2 * free < parse_size("50%") < 0.9 * free
    for wrong in ("", "2 GX", "-1GB", "0%", "140%", "12"):
        with pytest.raises(UsageError):
            parse_size(wrong)
    assert MemoryBound.by_default().size <= 4_000_000_000


# ---- items that are in no file


def _large_arrays(alive: list[weakref.ref[Any]], most: list[int]) -> Iterator[np.ndarray]:
    """40 pictures of 1.5 MB, made one by one; most: how many there were at once."""
    for number in range(40):
        made = np.full((700, 700, 3), number, np.uint8)
        made[:350] = 200
        alive.append(weakref.ref(made))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        yield made
        del made


def test_arrays_of_an_iterator_are_not_gathered(pictures: Path, tmp_path: Path) -> None:
    """However fast they come: a queue of a bound of 64 MB holds 1 MB of them."""
    alive, most = list[weakref.ref[Any]](), [0]
    collection = Collection.open(tmp_path / "c")
    summary = collection.add(
        Embedder.from_classifier(load(pictures)),
        _large_arrays(alive, most),
        limits=Limits(memory="64MB"),
    )
    assert summary.done == 40
    assert most[0] < 8


def test_texts_of_a_table_are_committed_before_they_are_too_many(tmp_path: Path) -> None:
    """Long ones by their bytes, in their order; short ones as many at a time as ever."""
    from zoo import save_text

    embedder = Embedder.from_classifier(load(save_text(tmp_path / "bert")))
    sizes = {"long": 300_000, "short": 30}
    for name, size in sizes.items():
        table = tmp_path / f"{name}.jsonl"
        with table.open("w") as file:
            for number in range(40):
                text = f"{number} " + "words " * (size // 6)
                file.write(json.dumps({"text": text}) + "\n")
        source = from_paths([str(table)], "text")
        batches = list(_ingested(embedder, source, limits=Limits(memory="64MB")))
        rows = [row for batch in batches for row in batch.rows]
        assert [int(row["text"].split()[0]) for row in rows] == list(range(40))
        largest = max(sum(len(row["text"]) for row in batch.rows) for batch in batches)
        assert largest <= 1_000_000 + 2 * size
    assert sum(bool(batch.rows) for batch in batches) < 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak is told")
def test_a_text_in_all_rows_of_a_parquet_table_is_one_text(tmp_path: Path) -> None:
    """1,000 rows of 1 MB each, in a small file."""
    large = "words of it " * 90_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 500, pa.int32()), ["few", large])
    parquet.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 1_000_000
    with peak() as found:
        rows = list(read_table(tmp_path / "t.parquet").rows())
    assert [len(row["text"]) for _, row in rows] == [3, len(large)] * 500
    assert not found or found[0] < 200_000_000


def test_cells_of_a_parquet_table_are_what_was_written(tmp_path: Path) -> None:
    """Whatever the type of their column, with gaps, over several row groups."""
    number = range(3000)
    columns = {
        "text": pa.array([f"text {n}" for n in number]),
        "large": pa.array([f"v{n % 3}" if n % 5 else None for n in number], pa.large_string()),
        "view": pa.array([f"v{n}" for n in number], pa.string_view()),
        "few": pa.array([f"v{n % 4}" for n in number]).dictionary_encode(),
        "whole": pa.array([n if n % 3 else None for n in number]),
        "at": pa.array([1_000 * n for n in number], pa.timestamp("ns")),
        "parts": pa.array([[n, n + 1] for n in number]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=1100)
    rows = [row for _, row in read_table(tmp_path / "t.parquet").rows()]
    for name in ("text", "large", "view", "few", "whole", "parts"):
        assert [row[name] for row in rows] == columns[name].to_pylist()
    micro = columns["at"].cast(pa.timestamp("us")).to_pylist()
    assert [row["at"] for row in rows] == micro


def test_folders_may_lie_deep(embedder: Embedder, tmp_path: Path) -> None:
    """Deeper than Python's calls."""
    steps = []
    deep = str(tmp_path / "top")
    for _ in range(1200):
        steps.append(deep)
        Path(deep).mkdir()
        deep += "/a"
    file = Path(steps[-1]) / "one.wav"
    soundfile.write(tmp_path / "top" / "b.wav", clip(0.5, 1), RATE)
    file.write_bytes((tmp_path / "top" / "b.wav").read_bytes())
    try:
        collection = Collection.open(tmp_path / "c")
        assert collection.add(embedder, tmp_path / "top").done == 2
        assert collection.get(str(file))["end"] == 0.5
    finally:
        file.unlink()
        for step in reversed(steps[1:]):
            Path(step).rmdir()


def test_an_archive_of_zeros_is_refused_unread(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class file of 300 kB that would be 300 MB."""
    place, sound = tmp_path / "classes.npz", tmp_path / "one.wav"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vectors.npy", bytes(300_000_000))
    soundfile.write(sound, clip(1.0), RATE)
    good = tmp_path / "good.npz"
    assert ask("teach", good, "deep", sound, "--model", tiny).code == 0
    monkeypatch.setattr("penult.memory.free_memory", lambda: 400_000_000)
    with peak() as found:
        said = ask("predict", place, sound)
    assert said.code == 2 and "300 MB unpacked" in said.err and "400 MB are free" in said.err
    assert not found or found[0] < 100_000_000
    assert ask("predict", good, sound, "--unknown", 0).code == 0


# ---- the same vectors


def test_a_small_bound_changes_no_vector_and_no_order(embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        soundfile.write(folder / f"{number:02d}.wav", clip(0.2 + number % 9 / 5, number), RATE)
    found = []
    for name, limits in {"large": None, "small": Limits(memory="64MB")}.items():
        collection = Collection.open(tmp_path / name)
        collection.add(embedder, folder, limits=limits, alone=True, workers=2)
        rows = [row for batch in collection.reader.scan() for row in batch.to_pylist()]
        found.append([(row["id"], row["vector"], row["logits"]) for row in rows])
    assert len(found[0]) == 60
    assert found[0] == found[1]


# ---- time between commits


def _blocked(files: list[Path], at: int, go: threading.Event) -> Iterator[Any]:
    for number, file in enumerate(files):
        if number == at:
            assert go.wait(120)
        yield file_item(file), WHOLE


def _ingested(embedder: Embedder, pairs: Any, **options: Any) -> Iterator[Any]:
    settings = Options(commit_seconds=0.2, **options)
    return ingest(embedder, pairs, lambda ids: Seen(), settings)


def test_a_source_that_stands_still_holds_up_no_commit(
    embedder: Embedder, recordings: Path
) -> None:
    """Rows of what came before are there while nothing comes."""
    go, files = threading.Event(), sorted(recordings.rglob("*.wav"))
    batches = _ingested(embedder, _blocked(files, 4, go))
    first: list[Any] = []
    while len(first) < 3:  # the last item that came may have more regions
        first += next(batches).rows
    assert not go.is_set()
    go.set()
    rest = [row for batch in batches for row in batch.rows]
    assert [row["id"] for row in first + rest] == list(map(str, files))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("slow", ["decoder", "hash"])
def test_a_file_that_stands_still_holds_up_no_commit(
    embedder: Embedder, recordings: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    go, files = threading.Event(), sorted(recordings.rglob("*.wav"))
    module: Any = sys.modules["penult.collection.ingest"] if slow == "hash" else audio
    name = "_content_hash" if slow == "hash" else "load_many"
    own = getattr(module, name)

    def waiting(content: Any, *rest: Any, **named: Any) -> Any:
        path = content.content if isinstance(content, Item) else content
        if path == files[3]:
            assert go.wait(120)
        return own(content, *rest, **named)

    monkeypatch.setattr(module, name, waiting)
    batches = _ingested(embedder, ((file_item(file), WHOLE) for file in files))
    first: list[Any] = []
    while len(first) < 3:
        first += next(batches).rows
    assert [row["id"] for row in first] == list(map(str, files[:3])) and not go.is_set()
    go.set()
    assert len([row for batch in batches for row in batch.rows]) == 3


def test_threads_end_with_the_run(embedder: Embedder, recordings: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    Collection.open(tmp_path / "c").add(embedder, recordings)
    batches = _ingested(
        embedder, ((file_item(f), WHOLE) for f in sorted(recordings.rglob("*.wav")))
    )
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_reading_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Iterator[int]:
        yield 1
        time.sleep(0.6)
        yield 2
        raise UsageError("the third")

    ahead, found = ReadAhead(failing(), 5), []
    with pytest.raises(UsageError, match="the third"):
        for one in ahead:
            found.append(one)
    assert [one for one in found if not isinstance(one, Pause)] == [1, 2]
    assert any(isinstance(one, Pause) for one in found)
    ahead.close()
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    endlessly = ReadAhead(endless(), 2, Held(100), lambda one: 60)
    assert next(iter(endlessly)) == 0
    endlessly.close()
    assert closed.wait(10)


def test_held_bytes_wait_for_room() -> None:
    held, came = Held(100), threading.Event()
    held.take(80, lambda: False)

    def more() -> None:
        held.take(30, lambda: False)
        came.set()

    threading.Thread(target=more, daemon=True).start()
    assert not came.wait(0.3)
    held.free(80)
    assert came.wait(10)
    held.take(500, lambda: True)  # one that is alone always may


def test_what_is_decoded_goes_when_it_is_prepared(embedder: Embedder, recordings: Path) -> None:
    files = sorted(recordings.rglob("*.wav"))
    pairs = [(file_item(file), WHOLE) for file in files]
    ready: Any = list(embedder.runner.prepare(pairs))
    assert [one.content.values for one in ready] == [None] * len(files)
    assert [one.samples for one in ready] == [soundfile.info(file).frames for file in files]


# ---- passes over long recordings


def _demand(power: int, monkeypatch: pytest.MonkeyPatch) -> tuple[PassDemand, list[float]]:
    """Passes that take 1000 bytes for each second to that power; and which were run."""
    run: list[float] = []

    @contextmanager
    def known() -> Iterator[list[int]]:
        found: list[int] = []
        yield found
        found.append(int(1000 * run[-1] ** power))

    monkeypatch.setattr("penult.embedding.demand.peak", known)
    return PassDemand(run.append), run


@pytest.mark.parametrize("power", [1, 2])
def test_no_pass_is_run_that_takes_more_than_there_is(
    power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, bound in itertools.product((70, 300, 3000, 40_000), (10**5, 10**6, 10**7, 10**9)):
        demand, run = _demand(power, monkeypatch)
        needed = 1000 * seconds**power
        try:
            demand.check(seconds, bound)
            assert needed <= bound
        except TooLong as error:
            assert needed > bound / 2.5 and "--memory" in str(error) and "--window" in str(error)
        assert all(1000 * one**power <= bound for one in run[1:])
        count = len(run)
        demand.check(70, 10**12)  # what is known is not measured again
        assert len(run) <= count + 1


@pytest.mark.usefixtures("here")
def test_a_recording_that_does_not_fit_is_named_and_the_others_are_there(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penult.embedding.runner.SHORT", 1.5)
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name, seconds in {"a": 1.0, "b": 900.0, "c": 1.2}.items():
        soundfile.write(folder / f"{name}.wav", clip(seconds), RATE)
    collection = Collection.open(tmp_path / "c")
    summary = collection.add(embedder, folder, limits=Limits(memory="64MB"))
    assert (summary.done, summary.failed) == (2, 1)
    (failure,) = collection.failures().to_pylist()
    assert failure["error"] == "TooLong" and "lasts 900 s" in failure["message"]
    monkeypatch.setattr("penult.embedding.runner.SHORT", 1.1)
    short = tmp_path / "short"
    summary = Collection.open(short).add(embedder, folder / "c.wav", limits=Limits(memory="2GB"))
    assert summary.done == 1


# ---- processes


def _largest_process(command: list[str]) -> tuple[int, int]:
    """Exit code, and the most memory that one of its processes had at once, in bytes."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not count it")
@pytest.mark.parametrize(("count", "size"), [(40, (4000, 3000))])
def test_decoded_photos_do_not_wait_beside_their_inputs(
    pictures: Path, tmp_path: Path, count: int, size: tuple[int, int]
) -> None:
    """All of them decoded are 1.4 GB."""
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.linear_gradient("L").resize(size).convert("RGB")
    photo.save(folder / "0.jpg")
    for number in range(1, count):
        os.link(folder / "0.jpg", folder / f"{number}.jpg")
    few = tmp_path / "few.jpg"
    photo.resize((40, 30)).save(few)
    command = [*COMMAND, "embed", str(pictures)]
    code, least = _largest_process([*command, str(few), "--into", str(tmp_path / "one")])
    assert code == 0
    code, most = _largest_process(
        [*command, str(folder), "--into", str(tmp_path / "all"), "--memory", "1GB"]
    )
    assert code == 0 and Collection.open(tmp_path / "all").count == count
    assert most - least < 600_000_000


@pytest.mark.slow
def test_long_texts_and_recordings_within_the_default_bound(tiny: Path, tmp_path: Path) -> None:
    """A text of 100 MB and a recording of two hours, among others that are committed."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    quiet = np.zeros(2 * 3600 * RATE, np.int16)
    quiet[::RATE] = 1
    soundfile.write(folder / "a.flac", quiet, RATE)
    for number in range(5):
        soundfile.write(folder / f"clip{number}.wav", clip(1.0, number), RATE)
    code, most = _largest_process(
        [*COMMAND, "embed", str(tiny), str(folder), "--into", str(tmp_path / "c")]
    )
    assert code == 3 and Collection.open(tmp_path / "c").count == 5
    assert most < 2_000_000_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak is told")
def test_the_peak_of_a_call() -> None:
    with peak() as found:
        values = np.ones(30_000_000)
        del values
    assert not found or 200_000_000 < found[0] < 400_000_000


def test_python_looks_for_cycles_as_often_as_usual_from_the_first_item_on() -> None:
    usual = gc.get_threshold()
    started()  # of a program that imports Penult: no change
    assert gc.get_threshold() == usual
    with starting():
        assert gc.get_threshold()[0] > 10 * usual[0] and gc.isenabled()
        list(decode([], DecodeTarget("text"), Decoding(workers=0)))
        assert gc.get_threshold() == usual
    assert gc.get_threshold() == usual
    with starting():
        pass
    assert gc.get_threshold() == usual


def test_a_command_ends_without_looking_through_all_objects(tmp_path: Path) -> None:
    """What torch and its like have made takes Python a second to look through at the end. What was
    registered for the end is done."""
    code = (
        "import atexit, gc, sys, tempfile, weakref; from penult.cli.main import main;"
        "gc.callbacks.append(lambda *_: print('looked'));"
        "kept = tempfile.TemporaryDirectory(dir=sys.argv[1]); kept.itself = kept;"
        "atexit.register(lambda: print('ended', file=sys.stderr)); gc.disable();"
        "main(['--version'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == "ended\n" and "looked" not in ran.stdout and ran.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_command_ends_without_a_word_of_the_libraries() -> None:
    """Triton, which torch loads where it is there, lists objects that are left as leaked."""
    code = (
        "import penult; penult.load('demo'); from penult.cli.main import main; main(['--version'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
