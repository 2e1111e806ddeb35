"""Embedding into a collection: nothing twice, nothing lost, nothing stale."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import penult
from conftest import RATE, assert_law, clip
from penult.collection.add import RunSettings, add
from penult.collection.collection import Collection
from penult.collection.ingest import ItemEnd, Options, Seen, assemble, execute, plan
from penult.collection.schema import Known
from penult.collection.writer import Writer, writing
from penult.data.roots import RootOptions
from penult.data.sources import from_paths
from penult.data.windows import Layout
from penult.embedding.embedder import Embedder
from penult.errors import CollectionLocked, FingerprintMismatch, UsageError
from penult.models.specs import load


@pytest.fixture(scope="module")
def embedder(tiny: Path) -> Embedder:
    return Embedder.from_classifier(load(tiny))


def rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All rows by key, without what names the run."""
    found = {}
    for batch in Collection.open(path).reader.scan():
        for row in batch.to_pylist():
            key = row["id"], row["region"]
            assert key not in found, f"twice: {key}"
            row.pop("run_id")
            found[key] = row
    return found


def counted(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that are run from now on."""
    run: list[str] = []
    inputs = embedder.runner._inputs

    def counting(item: Any, *rest: Any) -> Any:
        run.append(item.id)
        return inputs(item, *rest)

    monkeypatch.setattr(embedder.runner, "_inputs", counting)
    return run


def test_rows_hold_what_run_gives(embedder: Embedder, recordings: Path, tmp_path: Path) -> None:
    summary = Collection.open(tmp_path / "c").add(embedder, recordings)
    assert summary.counts() == {"done": 6, "skipped": 0, "replaced": 0, "failed": 0}
    expected = embedder.run(recordings)
    found = rows(tmp_path / "c")
    for i, id in enumerate(expected.ids):
        row = found[f"recordings/{Path(id).relative_to(recordings)}", "whole"]
        np.testing.assert_array_equal(np.float32(row["vector"]), expected.vectors[i])
        np.testing.assert_array_equal(np.float32(row["logits"]), expected.logits[i])
        assert row["label"] == expected.labels[i]
        status = Path(id).stat()
        assert (row["size"], row["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
        assert row["start"] == 0 and row["end"] == pytest.approx(soundfile.info(id).duration)
        assert row["truncated"] is None


def test_the_second_time_reads_nothing(
    embedder: Embedder, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, recordings)
    before = rows(tmp_path / "c")
    times = {path: path.stat() for path in recordings.rglob("*.wav")}
    for path in times:
        path.write_bytes(b"\0" * path.stat().st_size)  # unreadable, and it must not matter
        os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))
    run = counted(embedder, monkeypatch)
    assert collection.add(embedder, recordings).counts()["skipped"] == 6
    assert run == []
    assert rows(tmp_path / "c") == before


def test_touched_is_hashed_and_changed_is_replaced(
    embedder: Embedder, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, recordings)
    touched, changed = recordings / "a" / "1.wav", recordings / "a" / "3.wav"
    os.utime(touched, ns=(1, 1))
    soundfile.write(changed, clip(0.9, 77), RATE)
    run = counted(embedder, monkeypatch)
    counts = collection.add(embedder, recordings).counts()
    assert counts == {"done": 0, "skipped": 5, "replaced": 1, "failed": 0}
    assert run == ["recordings/a/3.wav"]
    found = rows(tmp_path / "c")
    assert found["recordings/a/1.wav", "whole"]["mtime_ns"] == 1
    np.testing.assert_array_equal(
        np.float32(found["recordings/a/3.wav", "whole"]["vector"]), embedder.embed(changed)[0]
    )
    run.clear()
    assert collection.add(embedder, recordings).counts()["skipped"] == 6
    assert run == []


def test_metadata_is_kept_typed_and_follows_the_table(
    embedder: Embedder, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    paths = sorted(recordings.rglob("*.wav"))

    def write(site: str, **extra: str) -> None:
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "site", "depth", "label", *extra])
            for i, path in enumerate(paths):
                writer.writerow([path, site if i else "B", i * 0.5, f"x{i}", *extra.values()])

    write("A")
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, table)
    assert collection.reader.count_rows("site = 'A' AND depth > 1.0") == 3
    assert collection.reader.count_rows("label_given = 'x2'") == 1
    query = embedder.embed(paths[0])[0]
    assert [hit.id for hit in collection.search(query, k=9, where="site = 'B'")] == [
        collection.reader.roots.id_of(paths[0])
    ]
    run = counted(embedder, monkeypatch)
    write("C", season="dry")
    collection.add(embedder, table)
    assert run == []
    assert collection.reader.count_rows("site = 'C' AND season = 'dry'") == 5
    assert collection.reader.count_rows("site = 'A'") == 0
    collection.add(embedder, recordings)  # without a table: what is known of them stays
    assert run == []
    assert collection.reader.count_rows("site = 'C'") == 5


def test_a_segment_is_the_cut_out_file(embedder: Embedder, tmp_path: Path) -> None:
    """At another rate than the model's, in two channels, and in one of them."""
    rate = 22_050
    sound = np.stack([clip(3.0, 1, rate), clip(3.0, 2, rate)], axis=1)
    soundfile.write(tmp_path / "long.wav", sound, rate, subtype="PCM_16")
    cuts = [(0.5, 1.25, None), (1.0, 2.0, 1), (0.5, 2.999, 0)]
    with (tmp_path / "segments.csv").open("w") as file:
        file.write("path,start,end,channel,speaker\n")
        for i, (start, end, channel) in enumerate(cuts):
            part, _ = soundfile.read(
                tmp_path / "long.wav", start=round(start * rate), stop=round(end * rate)
            )
            part = part if channel is None else part[:, channel]
            soundfile.write(tmp_path / f"cut{i}.wav", part, rate, subtype="PCM_16")
            file.write(f"long.wav,{start},{end},{'' if channel is None else channel},s{i}\n")
    collection = Collection.open(tmp_path / "c")
    assert collection.add(embedder, tmp_path / "segments.csv").done == 3
    for i in range(3):
        row = next(collection.reader.scan(where=f"speaker = 's{i}'")).to_pylist()[0]
        assert_law(row["vector"], embedder.embed(tmp_path / f"cut{i}.wav")[0])
        assert (row["kind"], row["start"], row["end"]) == ("segment", *cuts[i][:2])


def test_each_channel_is_a_row(embedder: Embedder, tmp_path: Path) -> None:
    sound = np.stack([clip(0.6, i) for i in range(8)], axis=1)
    soundfile.write(tmp_path / "eight.wav", sound, RATE, subtype="FLOAT")
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, tmp_path / "eight.wav", channel="each")
    collection.add(embedder, tmp_path / "eight.wav")
    found, id = rows(tmp_path / "c"), f"{tmp_path.name}/eight.wav"
    assert len(found) == 9
    for i in range(8):
        row = found[id, f"ch{i}:whole"]
        assert_law(row["vector"], embedder.embed(sound[:, i])[0])
    mixed = found[id, "whole"]
    np.testing.assert_allclose(
        np.float32(mixed["vector"]), embedder.embed(sound.mean(axis=1))[0], rtol=1e-4, atol=1e-5
    )


def test_another_embedder_is_refused_in_words(
    embedder: Embedder, tiny: Path, recordings: Path, tmp_path: Path
) -> None:
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, recordings)
    other = Embedder.from_classifier(load(tiny), pooling="max")
    with pytest.raises(FingerprintMismatch, match=r"pooling.*mean.*max"):
        collection.add(other, recordings)
    assert collection.count == 6


def test_failures_are_named_and_tried_again(
    embedder: Embedder, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = recordings / "bad.wav"
    bad.write_bytes(b"RIFF nothing")
    collection = Collection.open(tmp_path / "c")
    assert collection.add(embedder, recordings).counts() == {
        "done": 6, "skipped": 0, "replaced": 0, "failed": 1,
    }  # fmt: skip
    assert [row["id"] for row in collection.failures().to_pylist()] == ["recordings/bad.wav"]
    run = counted(embedder, monkeypatch)
    assert collection.add(embedder, recordings).failed == 1  # still failed, and not tried again
    assert run == []
    assert collection.add(embedder, recordings, retry_failed=True).failed == 1
    assert run == ["recordings/bad.wav"]
    soundfile.write(bad, clip(0.5), RATE)
    assert collection.add(embedder, recordings).done == 1
    assert collection.failures().num_rows == 0


def test_a_run_in_parts(tiny: Path, embedder: Embedder, recordings: Path, tmp_path: Path) -> None:
    """Planned here, executed by two embedders that get their items as bytes, assembled here: the
    rows, failures and summaries of one run; what is known, stays a note."""
    (recordings / "a" / "broken.wav").write_bytes(b"RIFFxxxxWAVE")
    known, *new = sorted(path for path in recordings.rglob("*.wav") if path.name != "broken.wav")
    options = Options(layout=Layout(window=0.2), summary="mean", logits="none")
    whole = Collection.open(tmp_path / "whole")
    paths = RunSettings(roots=RootOptions(absolute=True))
    add(whole.reader, embedder, from_paths([recordings], "audio"), options, paths)
    expected = rows(tmp_path / "whole")

    def lookup(ids: Sequence[str]) -> Seen:
        stat = known.stat()
        entry = Known(stat.st_size, stat.st_mtime_ns, "hash")
        return Seen({key: entry for key in expected if key[0] == str(known)})

    source = from_paths([recordings], "audio")
    planned = list(plan(options.layout.apply(source, "audio", RATE), lookup, options))
    ends = [place + 1 for place, one in enumerate(planned) if isinstance(one, ItemEnd)]
    assert len(ends) == 6
    results: list[Any] = []
    for part in (planned[: ends[2]], planned[ends[2] :]):
        machine = Embedder.from_classifier(load(tiny), device="cpu")
        sent = pickle.loads(pickle.dumps(part))
        results += pickle.loads(pickle.dumps(list(execute(machine, sent, options))))
    ticks: list[bool] = []
    batches = list(
        assemble(embedder.classifier, results, options, lambda embedded, _: ticks.append(embedded))
    )
    found = [row for one in batches for row in one.rows]
    assert {(row["id"], row["region"]) for row in found} == {
        key for key in expected if key[0] != str(known)
    }
    for row in found:
        other = expected[row["id"], row["region"]]
        np.testing.assert_allclose(row["vector"], other["vector"], rtol=1e-4, atol=1e-5)
        assert row["content_hash"] == hashlib.sha256(Path(row["id"]).read_bytes()).hexdigest()
    parts = sum(key[0] == str(known) and key[1] != "summary" for key in expected)
    assert sum(one.skipped for one in batches) == parts > 1
    assert [Path(one.id).name for batch in batches for one in batch.failures] == ["broken.wav"]
    assert ticks.count(True) == len(found) - len(new) and ticks.count(False) == parts + 1


def test_two_writers(embedder: Embedder, recordings: Path, tmp_path: Path) -> None:
    """The second adds beside the first; one that is alone refuses it, and says who it is."""
    from penult.collection.add import manifest_of

    collection = Collection.open(tmp_path / "c")
    with (
        writing(collection.path, manifest_of(embedder), alone=True),
        pytest.raises(CollectionLocked, match=str(os.getpid())),
    ):
        collection.add(embedder, recordings)
    with writing(collection.path, manifest_of(embedder)):
        assert collection.add(embedder, recordings).done == 6
    assert collection.add(embedder, recordings).skipped == 6


def test_arrays_bytes_and_ids(embedder: Embedder, recordings: Path, tmp_path: Path) -> None:
    path = next(iter(sorted(recordings.rglob("*.wav"))))
    collection = Collection.open(tmp_path / "c")
    things = [clip(0.4, 1), clip(0.4, 2), path.read_bytes()]
    assert collection.add(embedder, things).done == 3
    assert collection.add(embedder, things).skipped == 3
    assert all(id.startswith("sha256:") for id, _ in rows(tmp_path / "c"))


def test_half_precision_and_top_logits(
    embedder: Embedder, recordings: Path, tmp_path: Path
) -> None:
    collection = Collection.open(tmp_path / "c")
    add(
        collection.reader, embedder, from_paths([recordings], "audio"), Options(logits="top:2"),
        RunSettings("float16"),
    )  # fmt: skip
    expected = embedder.run(recordings)
    found = rows(tmp_path / "c")
    for i, id in enumerate(expected.ids):
        row = found[f"recordings/{Path(id).relative_to(recordings)}", "whole"]
        np.testing.assert_allclose(row["vector"], expected.vectors[i], rtol=2e-3, atol=2e-3)
        best = np.argsort(-expected.logits[i])[:2]
        assert [entry["index"] for entry in row["logits"]] == best.tolist()


def test_search_by_file_and_by_row(tiny: Path, recordings: Path, tmp_path: Path) -> None:
    """A row needs no model; another file is embedded as the rows were, after a check."""
    collection = Collection.open(tmp_path / "c")
    collection.add(Embedder.from_classifier(load(tiny)), recordings)
    path = recordings / "a" / "3.wav"
    first = collection.search(str(path), k=3)[0]
    assert (first.id, round(first.similarity, 5)) == ("recordings/a/3.wav", 1.0)
    copy = Path(shutil.copy(path, tmp_path / "copy.wav"))
    assert collection.search(copy, k=1)[0].id == "recordings/a/3.wav"
    with pytest.raises(penult.PenultError, match="neither a file nor the id"):
        collection.search("nothing.wav")


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from penult.cli.main import run
from penult.collection.ingest import Options
defaults = list(Options.__init__.__defaults__)
defaults[-2:] = [10, 0.05]  # rows and seconds between commits: many, so that a kill hits one
Options.__init__.__defaults__ = tuple(defaults)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "stops",
    [
        [signal.SIGKILL, signal.SIGINT],
        *(pytest.param([stop] * 2, marks=pytest.mark.slow)
          for stop in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)),
    ],
)  # fmt: skip
def test_stopped_in_the_middle(light: Path, tmp_path: Path, stops: list[signal.Signals]) -> None:
    """Stopped again and again, run to the end: as if nothing had happened."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(300):
        soundfile.write(folder / f"{i:03d}.wav", clip(0.5 + (i % 7) / 10, i), RATE)
    (folder / "bad.wav").write_bytes(b"no")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    embedder = Embedder.load(light)
    Collection.open(whole).add(embedder, folder)
    run = ["embed", str(light), str(folder), "--into", str(killed)]
    command = [sys.executable, "-c", SCRIPT, *run]
    chance = random.Random(sum(stops))
    for stop in stops * int(os.environ.get("PENULT_KILLS", 1)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (killed / "collection.json").exists():
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 2.0))
        process.send_signal(stop)
        process.wait(60)
    code = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert code.returncode == 3, code.stderr
    assert json.loads(code.stdout)["rows"] == 300
    one, other = rows(whole), rows(killed)
    assert one.keys() == other.keys()
    for key, row in one.items():
        theirs, floats = other[key], ("vector", "logits", "score")
        for name in floats:
            np.testing.assert_allclose(
                np.float32(theirs[name]), np.float32(row[name]), rtol=1e-5, atol=1e-6
            )
        assert theirs.keys() == row.keys()
        assert all(theirs[name] == row[name] for name in row.keys() - set(floats))
    statuses = Collection.open(killed).runs()["status"].to_pylist()
    assert statuses[-1] == "done" and "running" not in statuses


# ---- windows and summaries


@pytest.fixture
def long(tmp_path: Path) -> Path:
    root = tmp_path / "long"
    root.mkdir()
    for number, seconds in enumerate((2.3, 0.4, 1.0)):
        soundfile.write(root / f"{number}.wav", clip(seconds, number), RATE, subtype="PCM_16")
    return root


def test_a_row_for_each_window(embedder: Embedder, long: Path, tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c")
    assert collection.add(embedder, long, window=1.0, hop=0.5).done == 4 + 1 + 1
    found = rows(tmp_path / "c")
    spans = sorted((row["start"], row["end"]) for (id, _), row in found.items() if id[-5] == "0")
    assert spans == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.3, 2.3)]
    for (id, _), row in found.items():
        sound, _ = soundfile.read(collection.reader.roots.path_of(id), dtype="float32")
        part = sound[round(row["start"] * RATE) : round(row["end"] * RATE)]
        assert row["kind"] == "window"
        assert_law(row["vector"], embedder.embed(part)[0])
    again = collection.add(embedder, long, window=1.0, hop=0.5)
    assert (again.done, again.skipped) == (0, 6)
    more = collection.add(embedder, long, window=1.0, hop=0.25)  # the policy may change
    assert (more.done, more.skipped) == (3, 6)


def test_a_summary_for_each_file(embedder: Embedder, long: Path, tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c")
    summary = collection.add(embedder, long, window=1.0, hop=0.5, summary="mean")
    assert summary.done == 6 + 3
    found = rows(tmp_path / "c")
    first = "long/0.wav"
    parts = sorted(
        (row for (id, region), row in found.items() if id == first and region != "summary"),
        key=lambda row: row["start"],
    )
    weights = np.array([1.0, 0.5, 0.5, 0.3])  # seconds that no earlier window covered
    row = found[first, "summary"]
    assert (row["kind"], row["start"], row["end"]) == ("summary", 0.0, 2.3)
    for column in ("vector", "logits"):
        mean = sum(w * np.float64(p[column]) for w, p in zip(weights, parts, strict=True)) / 2.3
        np.testing.assert_allclose(row[column], mean, rtol=1e-5, atol=1e-6)
    again = collection.add(embedder, long, window=1.0, hop=0.5, summary="mean")
    assert (again.done, again.replaced, again.skipped) == (0, 0, 6)


def test_a_summary_that_is_missing_is_made(embedder: Embedder, long: Path, tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, long, window=1.0)
    summary = collection.add(embedder, long, window=1.0, summary="max")
    assert (summary.done, summary.replaced) == (3, 5)
    found = rows(tmp_path / "c")
    first = "long/0.wav"
    parts = [row["vector"] for (id, region), row in found.items()
             if id == first and region != "summary"]  # fmt: skip
    np.testing.assert_allclose(found[first, "summary"]["vector"], np.max(parts, axis=0), rtol=1e-6)


def test_a_window_that_fails_leaves_the_others(embedder: Embedder, tmp_path: Path) -> None:
    sound = np.concatenate([clip(1.0, 1), np.zeros(RATE, np.float32), clip(1.0, 2)])
    soundfile.write(tmp_path / "gap.wav", sound, RATE, subtype="PCM_16")
    collection = Collection.open(tmp_path / "c")
    summary = collection.add(embedder, tmp_path / "gap.wav", window=1.0, summary="mean")
    assert (summary.done, summary.failed) == (3, 1)
    assert collection.failures().to_pylist()[0]["region"] == "1-2"


def test_a_layout_that_does_not_fit_writes_nothing(
    embedder: Embedder, long: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="tiles are cut from images"):
        Collection.open(tmp_path / "c").add(embedder, long, tile=32)
    assert not (tmp_path / "c").exists()


# ---- files that are known


def test_known_files_are_passed_over_by_the_walk(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the store is asked for file by file; what is new, changed, failed or gone is seen
    all the same, and rows come in the order of their paths."""
    folder, emb = tmp_path / "clips", Embedder.from_classifier(load(tiny))
    (folder / "b").mkdir(parents=True)
    for name in ("a.wav", "b/a.wav", "b/b.wav", "c.wav", "d.WAV"):
        soundfile.write(folder / name, clip(0.3, len(name)), RATE, format="WAV")
    (folder / "x.wav").write_text("no sound")
    made = Collection.open(tmp_path / "c.lance")
    assert (made.add(emb, folder).done, made.count) == (5, 5)
    asked: list[str] = []
    known = Writer.known

    def watched(writer: Writer, ids: Any, *rest: Any) -> Any:
        asked.extend(ids)
        return known(writer, ids, *rest)

    monkeypatch.setattr(Writer, "known", watched)
    ticks: list[bool] = []
    options = Options()
    again = add(
        made.reader, emb, from_paths([folder], "audio"), options,
        tick=lambda embedded, _: ticks.append(embedded),
    )  # fmt: skip
    assert (again.done, again.skipped, again.failed) == (0, 5, 1)
    assert asked == ["clips/x.wav"] and ticks == [False] * 6
    (folder / "x.wav").unlink()
    soundfile.write(folder / "b" / "b.wav", clip(0.4, 9), RATE)
    soundfile.write(folder / "b" / "aa.wav", clip(0.4, 10), RATE)
    soundfile.write(folder / "e.wav", clip(0.4, 11), RATE)
    os.utime(folder / "c.wav", ns=(5, 5))  # another time, the same content
    (folder / "a.wav").unlink()
    asked.clear()
    summary = made.add(emb, folder, prune="all")
    assert (summary.done, summary.replaced, summary.skipped) == (2, 1, 3)
    names = ["b/aa.wav", "b/b.wav", "c.wav", "e.wav"]
    assert asked == [f"clips/{name}" for name in names]
    assert summary.found.gone == ["clips/a.wav"]
    ids = made.vectors()[0]["id"].to_pylist()
    assert ids == sorted(
        f"clips/{name}" for name in ("b/a.wav", "b/aa.wav", "b/b.wav", "c.wav", "d.WAV", "e.wav")
    )
    row = made.get(str(folder / "c.wav"))
    assert row is not None and row["mtime_ns"] == 5
    asked.clear()
    summary = made.add(emb, folder)
    assert (summary.done, summary.skipped, asked) == (0, 6, [])
    assert not summary.found.gone and summary.found.losses.rows == 6
    assert made.add(emb, folder, window=0.25).done >= 6 and asked  # windows are other regions


def test_two_runs_at_once_over_the_same_and_other_folders(
    embedder: Embedder, recordings: Path, tmp_path: Path
) -> None:
    """Into a collection that neither has made yet; each folder is a root, one name comes twice."""
    other = tmp_path / "elsewhere" / recordings.name
    other.mkdir(parents=True)
    for number, file in enumerate(sorted(recordings.rglob("*.wav"))[:3]):
        shutil.copy(file, other / f"copy-{number}.wav")
    (other / "broken.wav").write_bytes(b"RIFF")
    path, gate = tmp_path / "c", threading.Barrier(3)

    def run(folder: Path) -> Any:
        gate.wait()
        return Collection.open(path).add(embedder, folder, commit_rows=1)

    with ThreadPoolExecutor(3) as pool:
        first, second, third = pool.map(run, (recordings, recordings, other))
    assert (first.done + second.done, first.skipped + second.skipped) == (6, 6)
    assert third.done == 3 and third.failed == 1
    collection = Collection.open(path)
    roots = collection.reader.roots
    assert sorted(str(roots.path_of(id)) for id, _ in rows(path)) == sorted(
        str(file) for file in [*recordings.rglob("*.wav"), *other.glob("copy*")]
    )
    assert len(roots.roots) == 2 and collection.failures()["region"].to_pylist() == ["whole"]
    sources = {json.loads(run["info"])["sources"][0] for run in collection.runs().to_pylist()}
    assert sources == set(roots.roots)
    assert [collection.add(embedder, one).skipped for one in (recordings, other)] == [6, 3]


def test_what_is_to_be_alone_waits_for_the_others(
    embedder: Embedder, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of deleted files are kept as long as another process writes, and go after it."""
    monkeypatch.setattr("penult.collection.add._PATIENCE", 0.1)
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, recordings)
    next(recordings.rglob("*.wav")).unlink()
    assert collection.manifest is not None
    with writing(collection.path, collection.manifest, run={"command": "nightly"}):
        kept = collection.add(embedder, recordings, prune=True)
    assert kept.pruned == 0 and kept.skipped == 5
    assert re.search(r"by process \d+ \(nightly\)", kept.found.kept_back)
    assert collection.add(embedder, recordings, prune=True).pruned == 1
    assert collection.count == 5
