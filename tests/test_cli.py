"""The command line as a user types it: exit codes, what is on stdout, and names as they come."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import soundfile

import penult
from conftest import RATE, clip
from penult.cli import output
from penult.cli.main import run
from penult.collection.collection import Collection
from penult.embedding.embedder import describe_embedder
from penult.extras import EXTRAS
from zoo import CLASSES, save_audio, save_text

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))[
    "project"
]
COMMANDS = (
    "inspect classify convert embed search export failures info merge index demo doctor".split()
)
PENULT = Path(sys.executable).with_name("penult")


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one sentence on stderr."""
        assert self.err.startswith("penult: ") and "Traceback" not in self.err
        return self.err.removeprefix("penult: ").strip()


def ask(*arguments: object, stdin: str = "") -> Said:
    """Run the command line here, piped."""
    before, sys.stdin = sys.stdin, io.StringIO(stdin)
    try:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = run([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips in two folders, and a table of them."""
    root = tmp_path_factory.mktemp("clips")
    lines = ["path,site,depth,night"]
    for number in range(6):
        name = f"{'ab'[number % 2]}/{number}.wav"
        (root / name).parent.mkdir(exist_ok=True)
        soundfile.write(root / name, clip(0.3 + 0.1 * number, number), RATE)
        lines.append(f"{name},{'AB'[number % 2]},{number / 2},{number > 2}")
    (root / "clips.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def filled(tiny: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of the table's clips; tests only read it."""
    path = tmp_path_factory.mktemp("store") / "calls.lance"
    assert ask("embed", tiny, clips / "clips.csv", "--into", path).code == 0
    return path


# ---- what every command shares


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    said = ask(command, "--help")
    assert said.code == 0 and "--json" in said.out and said.err == ""


def test_help_of_all_names_each_command() -> None:
    for said in (ask("--help"), ask()):
        assert all(f" {command} " in said.out for command in COMMANDS)
        panels = re.findall(r"^╭─ (.*?) ─", said.out, re.M)
        assert panels[:3] == ["Options", "Inspect and prove", "Embed"] and "Commands" not in panels
    assert ask("--help").code == 0
    assert ask("--version").out == f"penult {penult.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["xyzzy"], "No such command 'xyzzy'; see penult --help"),
        (["embed", "--xyzzy"], "No such option: --xyzzy; see penult embed --help"),
        (["embed", "demo", "a.wav"], "Missing option '--into'; see penult embed --help"),
        (["search", "x.lance"], "Missing argument 'query'; see penult search --help"),
        (["search", "x.lance", "y", "-k", "many"], "'-k': Input should be a valid integer"),
        (["inspect", "demo", "--depth", "0"], "--depth"),
        (["classify", "demo", "a.wav", "--top", "0"], "--top"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    said = ask(*arguments)
    assert (said.code, said.out) == (2, "") and says in said.error
    said = ask(*arguments, "--json")
    assert said.code == 2 and says in said.json["error"]["message"]


def test_errors_are_json_too(filled: Path, tmp_path: Path) -> None:
    for arguments in (
        ["failures", tmp_path / "nothing.lance"],
        ["search", filled, "nothing.wav"],
        ["export", filled, tmp_path / "a.doc"],
        ["inspect", "owner/nothing"],
    ):
        said = ask(*arguments, "--json")
        assert said.code == 2
        assert set(said.json) == {"error"} and set(said.json["error"]) == {"type", "message"}
        assert said.json["error"]["message"] == said.error


def test_doctor() -> None:
    said = ask("doctor", "--json")
    assert said.code == 0 and said.json["packages"]["torch"] and said.json["device"]
    assert "torch" in ask("doctor").out


@pytest.fixture(scope="module")
def doctor() -> tuple[Any, str]:
    """What it says, as JSON and as a table."""
    return ask("doctor", "--json").json, ask("doctor").out


@pytest.mark.parametrize("module", EXTRAS)
def test_doctor_finds_what_can_be_imported(module: str, doctor: tuple[Any, str]) -> None:
    """Whatever its distribution is called: `umap` is brought by umap-learn."""
    extra, _ = EXTRAS[module]
    about = doctor[0]["extras"][module]
    assert about["extra"] == extra
    assert (about["version"] is not None) == (find_spec(module) is not None)
    lines = [line.split() for line in doctor[1].splitlines()]
    (line,) = [line for line in lines if line[:1] == [module]]
    assert ("not installed" in " ".join(line)) == (find_spec(module) is None)
    brought = [re.split(r"[][<>=]", one)[0] for one in PROJECT["optional-dependencies"][extra]]
    if about["version"]:
        assert about["version"] in {version_of(name) for name in (*brought, module)}


def test_doctor_knows_every_extra() -> None:
    about = ask("doctor", "--json").json["extras"]
    assert {one["extra"] for one in about.values()} | {"all"} == set(
        PROJECT["optional-dependencies"]
    )


def test_doctor_names_the_extra_of_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penult.extras, "find_spec", lambda name: None)
    assert ask("doctor", "--json").json["extras"]["umap"] == {"version": None, "extra": "map"}
    assert "pip install 'penult[map]'" in ask("doctor").out


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# ---- models


def test_inspect(tiny: Path) -> None:
    said = ask("inspect", tiny)
    assert said.code == 0 and said.err == ""
    for words in ("before", "after", "2 × Wav2Vec2EncoderLayer", "← head", "prelogits", "layer:2"):
        assert words in said.out
    assert "Wav2Vec2EncoderLayer" not in ask("inspect", tiny, "--depth", 1).out
    facts = ask("inspect", tiny, "--json").json
    assert (facts["modality"], facts["classes"], facts["rate"]) == ("audio", CLASSES, RATE)
    assert facts["head"]["last_weight_layers"] == ["classifier"]
    taps = {tap["name"]: tap["width"] for tap in facts["taps"]}
    assert taps["backbone"] == 32 and taps["prelogits"] == 24


def test_classify(tiny: Path, clips: Path) -> None:
    paths = [clips / "a" / "0.wav", clips / "b" / "1.wav"]
    document = ask("classify", tiny, *paths, "--json").json
    expected = penult.load(tiny).classify(paths)
    assert [p["id"] for p in document["predictions"]] == [str(path) for path in paths]
    for got, wanted in zip(document["predictions"], expected, strict=True):
        np.testing.assert_array_equal(np.float32(got["logits"]), wanted.logits)
        assert got["label"] == wanted.label == document["labels"][got["index"]]
        assert got["score"] == pytest.approx(max(got["scores"])) and sum(
            got["scores"]
        ) == pytest.approx(1)
    said = ask("classify", tiny, *paths, "--top", 2)
    assert said.code == 0 and said.err == ""
    assert len(said.out.splitlines()) == 2 * 3
    assert f"{expected[0].score:.4f}  {expected[0].label}  class" in said.out


@pytest.mark.usefixtures("fresh_cache")
def test_documents_are_what_the_objects_give(
    tiny: Path, clips: Path, filled: Path, tmp_path: Path
) -> None:
    """`to_dict` of a prediction and of an embedder, as JSON, are what the commands print."""
    paths = [clips / "a" / "0.wav", clips / "b" / "1.wav"]
    printed = ask("classify", tiny, *paths, "--json").json["predictions"]
    assert (
        json.loads(json.dumps([p.to_dict() for p in penult.load(tiny).classify(paths)])) == printed
    )
    printed = ask("convert", tiny, tmp_path / "e", "--tap", "layer:1", "--json").json
    embedder = penult.Embedder.load(tmp_path / "e")
    kept = embedder.certificate.kept  # the day: proved by the command, in the cache
    assert printed["certificate"]["kept"] == "" != kept
    assert json.loads(json.dumps(describe_embedder(embedder))) == {
        **{name: value for name, value in printed.items() if name != "folder"},
        "certificate": {**printed["certificate"], "kept": kept},
        "model": str(tmp_path / "e"),
    }
    printed = ask("search", filled, paths[0], "-k", 3, "--json").json
    hits = Collection.open(filled).search(paths[0], k=3)
    assert json.loads(json.dumps(hits.to_dict())) == {n: printed[n] for n in ("searched", "hits")}
    own = ["collection", "query", "space", "parts", "notes"]
    assert list(printed) == [*own, "searched", "hits"]


def test_classify_names_what_failed_and_goes_on(tiny: Path, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    paths = [tmp_path / "bad.wav", clips / "a" / "0.wav"]
    said = ask("classify", tiny, *paths)
    assert said.code == 3 and "0.wav" in said.out
    assert said.err.startswith(f"failed {paths[0]}: not readable as audio")
    assert said.err.count("\n") == 1
    document = ask("classify", tiny, *paths, "--json").json
    assert [f["id"] for f in document["failures"]] == [str(paths[0])]
    assert [p["id"] for p in document["predictions"]] == [str(paths[1])]


def test_paths_of_every_kind_at_once(tiny: Path, clips: Path, tmp_path: Path) -> None:
    """A folder, a file that is in it too, a table with the same files, and a list."""
    listed = f"{clips / 'a' / '0.wav'}\n\n{clips / 'b' / '1.wav'}\n"
    said = ask(
        "classify", tiny, clips / "a", clips / "b" / "3.wav", clips / "a" / "2.wav", "-", "--json",
        stdin=listed,
    )  # fmt: skip
    assert said.code == 0
    names = [Path(p["id"]).name for p in said.json["predictions"]]
    assert names == ["0.wav", "2.wav", "4.wav", "3.wav", "1.wav"]
    assert ask("classify", tiny, "-", "--json", stdin="").json["predictions"] == []
    said = ask("classify", tiny, "-", stdin=f"{tmp_path / 'none.wav'}\n{clips / 'a' / '0.wav'}")
    assert said.code == 3 and "none.wav" in said.err and "0.wav" in said.out


def test_text_items(tmp_path: Path) -> None:
    model = save_text(tmp_path / "model")
    (tmp_path / "t.csv").write_text('id,text,topic\nx,"the fox, jumps",a\ny,rain falls,b\n')
    said = ask("embed", model, tmp_path / "t.csv", "--into", tmp_path / "c", "--json")
    assert (said.code, said.json["done"]) == (0, 2)
    hits = ask("search", tmp_path / "c", "y", "--json").json["hits"]
    assert hits[0]["id"] == "y" and hits[0]["similarity"] == pytest.approx(1)


@pytest.mark.usefixtures("fresh_cache")
def test_a_converted_model_gives_the_same(tiny: Path, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my embedder"
    for options in ([], ["--tap", "layer:1", "--pooling", "mean+std"]):
        saved = ask("convert", tiny, folder, *options, "--json").json
        assert saved["folder"] == str(folder)
        one = ask("embed", tiny, clips, "--into", tmp_path / "one", *options, "--json").json
        two = ask("embed", folder, clips, "--into", tmp_path / "two", "--json").json
        assert one["fingerprint"] == two["fingerprint"] == saved["fingerprint"]
        assert one["dim"] == saved["dim"] == (32 if not options else 64)
        vectors = [Collection.open(tmp_path / name).vectors()[1] for name in ("one", "two")]
        np.testing.assert_array_equal(*vectors)
        again = ask("embed", folder, clips, "--into", tmp_path / "one", "--json").json
        assert (again["done"], again["skipped"]) == (0, 6)
        shutil.rmtree(tmp_path / "one")
        shutil.rmtree(tmp_path / "two")
    said = ask("convert", tiny, folder)
    saved_line, proof_line, batches = said.out.splitlines()
    assert (
        batches
        == "batches: padded together, with masks and group norms over each item's own frames"
    )
    assert said.code == 0 and saved_line.startswith("saved ")
    assert re.fullmatch(r"head proved here on [\d-]+ \(kept\), with .*: \d+ checks, .*", proof_line)
    assert ask("classify", folder, clips / "a").out == ask("classify", tiny, clips / "a").out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tap", "projektor"], "no tap 'projektor'; it has backbone, prelogits, layer:0"),
        (["--pooling", "median"], "unknown pooling 'median'; choose mean"),
        (["--pooling", "none"], "a collection keeps one per item; choose mean"),
        (["--tap", "prelogits", "--pooling", "mean+std"], "nothing to pool"),
        (["--logits", "top:x"], "'top:x' is not known; all, none and top:K"),
        (["--logits", "top:0"], "'top:0' is not known"),
        (["--max-seconds", "0"], "a limit of 0 s lets nothing through"),
        (["--max-seconds", "nan"], "a limit of nan s"),
        (["--channel", "left"], "'left' is neither a number from 0 nor 'each'"),
        (["--device", "toaster"], "no device 'toaster'"),
    ],
)
def test_options_that_do_not_fit(
    tiny: Path, clips: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    said = ask("embed", tiny, clips, "--into", tmp_path / "c", *options)
    assert said.code == 2 and says in said.error
    assert not (tmp_path / "c").exists()


# ---- collections


@pytest.mark.usefixtures("fresh_cache")
def test_embed_says_what_it_did(tiny: Path, clips: Path, tmp_path: Path) -> None:
    path = tmp_path / "calls.lance"
    said = ask("embed", tiny, clips, "--into", path)
    assert said.code == 0 and said.err == ""  # piped: no progress
    first, second, proof, stages, spent, left = said.out.splitlines()
    names = ("start", "model", "proof", "engine", "embedding")
    assert re.fullmatch("time by stage: " + " · ".join(rf"{n} [\d.]+ s" for n in names), stages)
    assert left == "other file types left out: 1 file (1 .csv)"
    parts = " · ".join(
        rf"{part} [\d.]+ s" for part in ("decode", "prepare", "wait", "model", "write")
    )
    assert re.fullmatch(rf"time by step \(overlapping\): {parts}", spent)
    assert re.fullmatch(r"head proved on \d.wav and \d.wav: \d+ checks, largest error \S+", proof)
    assert first.startswith("6 embedded in ") and "× real time" in first
    assert second == f"{path}: 6 rows of 32 numbers, tap backbone, pooling mean"
    first = ask("embed", tiny, clips, "--into", path).out.splitlines()[0]
    assert first.startswith("0 embedded, 6 unchanged in ") and "items/s" not in first
    (tmp_path / "bad.wav").write_text("no sound")
    said = ask("embed", tiny, tmp_path / "bad.wav", "--into", path)
    assert said.code == 3
    assert f"{tmp_path.name}/bad.wav: not readable as audio" in said.out
    assert said.out.splitlines()[-1] == f"penult failures {path} lists all with reasons"


@pytest.mark.slow
def test_the_time_of_the_whole_command(tiny: Path, clips: Path, tmp_path: Path) -> None:
    """From the beginning of the process on, whatever is done before the command is known."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import time; time.sleep(1.5)")
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "penult", "embed", tiny, clips, "--json"]
    began = time.monotonic()
    done = subprocess.run(
        [*map(str, command), "--into", str(tmp_path / "c.lance")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        capture_output=True,
        check=True,
    )
    outside = time.monotonic() - began
    said = json.loads(done.stdout)
    assert 1.5 <= said["stages"]["start"] <= said["elapsed_in_all"] <= outside + 0.1
    assert list(said["stages"]) == ["start", "model", "proof", "engine", "embedding"]
    assert sum(said["stages"].values()) <= said["elapsed_in_all"]
    assert said["elapsed"] <= said["stages"]["embedding"]


@pytest.mark.slow
def test_a_model_that_is_opened_late_is_no_part_of_the_rate(
    tiny: Path, clips: Path, tmp_path: Path
) -> None:
    """A second command knows it by its record, and opens it for the first item."""
    command = [sys.executable, "-m", "penult", "embed", tiny, clips, "--json", "--into"]
    environment = os.environ | {"PENULT_CACHE": str(tmp_path / "cache")}
    for into in ("a", "b"):
        words = [*map(str, command), str(tmp_path / f"{into}.lance")]
        done = subprocess.run(words, env=environment, capture_output=True, check=True)
    said = json.loads(done.stdout)
    opening = said["spent"]["open"]
    assert opening > 0.2  # torch and transformers are imported
    assert said["stages"]["model"] >= opening
    assert said["elapsed"] <= said["stages"]["embedding"] + 0.1
    assert said["elapsed_in_all"] >= said["elapsed"] + opening


def test_files_of_another_kind_are_counted(tiny: Path, clips: Path, tmp_path: Path) -> None:
    """Left out, as they should be, and never without a word."""
    folder = shutil.copytree(clips, tmp_path / "mixed")
    for name in ("a.txt", "deep/b.TXT", "deep/c.txt", "deep/d.docx", "e.docx", "LIES", ".hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no sound")
    said = ask("embed", tiny, folder, "--into", tmp_path / "c.lance")
    assert said.code == 0
    wanted = "other file types left out: 7 files (3 .txt, 2 .docx, 1 without extension, 1 .csv)"
    assert said.out.splitlines()[-1] == wanted
    said = ask("embed", tiny, folder, "--into", tmp_path / "c.lance", "--json")
    kinds = {".txt": 3, ".docx": 2, ".csv": 1, "without extension": 1}
    assert json.loads(said.out)["left_out"] == kinds


def test_a_list_on_standard_input(tiny: Path, clips: Path, tmp_path: Path) -> None:
    listed = "\n".join(str(path) for path in sorted(clips.rglob("*.wav")))
    said = ask("embed", tiny, "-", "--into", tmp_path / "c.lance", stdin=listed)
    assert said.code == 0 and said.out.startswith("6 embedded")


def test_segments_and_typed_metadata(tiny: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.stack([clip(2.0, 1), clip(2.0, 2)], axis=1), RATE)
    (tmp_path / "turns.csv").write_text(
        "path,start,end,channel,speaker,turn,loud,site name,label\n"
        "long.wav,0,0.5,0,ann,1,true,A,x\n"
        "long.wav,0.5,1.25,1,bob,2,false,B,y\n"
        "long.wav,1.25,,,ann,3,true,,z\n"
    )
    path = tmp_path / "turns.lance"
    said = ask("embed", tiny, tmp_path / "turns.csv", "--into", path)
    assert said.code == 0
    assert "site_name (string, from 'site name')" in said.err
    assert "label_given (string, from 'label')" in said.err
    query = [path, tmp_path / "long.wav", "--start", 0.5, "--end", 1, "--json", "-k", 9]
    hits = ask("search", *query).json["hits"]
    assert {(h["start"], h["end"], h["channel"]) for h in hits} == {
        (0, 0.5, 0),
        (0.5, 1.25, 1),
        (1.25, 2, None),
    }
    metadata = {"speaker": "bob", "turn": 2, "loud": False, "site_name": "B", "label_given": "y"}
    assert metadata in [hit["metadata"] for hit in hits]
    for where, count in (
        ("speaker = 'ann'", 2),
        ("speaker = 'ann' AND turn > 1", 1),
        ("loud AND start > 1", 1),
        ("site_name IS NULL", 1),
        ("turn > 9", 0),
    ):
        assert len(ask("search", *query, "--where", where).json["hits"]) == count, where
    assert "long.wav" in ask("search", *query[:-3]).out


def test_search(filled: Path, clips: Path, tiny: Path) -> None:
    query, roots = clips / "b" / "3.wav", Collection.open(filled).reader.roots
    hits = ask("search", filled, query, "-k", 4, "--json").json["hits"]
    assert len(hits) == 4 and hits[0]["id"] == roots.id_of(query)
    assert hits[0]["similarity"] == pytest.approx(1)
    assert [h["similarity"] for h in hits] == sorted((h["similarity"] for h in hits), reverse=True)
    said = ask("search", filled, query, "-k", 2, "--where", "site = 'A'")
    header, *lines = said.out.splitlines()
    assert header.split()[:2] == ["similarity", "item"] and len(lines) == 2
    assert all(
        roots.id_of(clips / "a") + "/" in line for line in lines
    )  # piped: whole, on one line each
    assert len(ask("search", filled, query, "-k", 100, "--json").json["hits"]) == 6
    copy = clips.parent / "copy.wav"
    shutil.copy(query, copy)  # not a row: the model is opened
    hit = ask("search", filled, copy, "-k", 1, "--json").json["hits"][0]
    assert (hit["id"], hit["similarity"]) == (roots.id_of(query), pytest.approx(1, abs=1e-6))
    assert ask("search", filled, copy, "-k", 1, "--model", tiny).code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--where", "season = 'dry'"], "season. Columns: id, region"),
        (["--where", "site = "], "does not work"),
        (["--where", "site = 'A'; DROP TABLE items"], "one condition is expected"),
        (["-k", "0"], "at least one neighbour"),
        (["--start", "0.2", "--end", "0.1"], "not after start"),
        (["--start", "7"], "lies beyond the end"),
    ],
)
def test_searches_that_do_not_work(
    filled: Path, clips: Path, options: list[str], says: str
) -> None:
    said = ask("search", filled, clips / "a" / "0.wav", *options)
    assert said.code == 2 and said.out == "" and says in said.error


def test_export_round_trip(filled: Path, tmp_path: Path) -> None:
    keys, vectors = Collection.open(filled).vectors(columns=["id", "site"])
    said = ask("export", filled, tmp_path / "v.parquet", "--json")
    assert said.json == {"file": str(tmp_path / "v.parquet"), "ids": None, "rows": 6}
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table["id"].to_pylist() == keys["id"].to_pylist()
    np.testing.assert_array_equal(np.float32(table["vector"].to_pylist()), vectors)
    said = ask("export", filled, tmp_path / "v.npy")
    assert said.out == f"6 rows in {tmp_path / 'v.npy'}, ids in {tmp_path / 'v.csv'}\n"
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors)
    ids = pyarrow.csv.read_csv(tmp_path / "v.csv")
    assert ids["id"].to_pylist() == keys["id"].to_pylist()
    assert ids["site"].to_pylist() == keys["site"].to_pylist()
    said = ask("export", filled, tmp_path / "v.csv")
    assert said.code == 2 and "exists" in said.error and "--overwrite" in said.error
    where = ["--overwrite", "--where", "site = 'A'"]
    assert ask("export", filled, tmp_path / "v.csv", *where).code == 0
    table = pyarrow.csv.read_csv(tmp_path / "v.csv")
    assert table.num_rows == 3 and {"v0", "v31", "logit_0", "logit_6"} <= set(table.column_names)
    got = np.stack([table[f"v{i}"].to_numpy() for i in range(32)], axis=1)
    chosen = np.array(keys["site"].to_pylist()) == "A"
    np.testing.assert_array_equal(np.float32(got), vectors[chosen])
    said = ask("export", filled, tmp_path / "v.xlsx")
    work = ".parquet, .npy, .csv, .txt and the name of a folder work"
    assert said.code == 2 and work in said.error


# ---- mistakes of every kind: one sentence, exit code 2, and nothing is written


MISTAKES = [
    ("classify MODEL CLIP --sample-rate -5", "a sample rate of -5 Hz cannot be"),
    ("classify MODEL CLIP --sample-rate 0", "a sample rate of 0 Hz cannot be"),
    ("classify MODEL CLIP --seconds 0", "a length of 0 s cannot be"),
    ("classify MODEL CLIP --seconds nan", "a length of nan s cannot be"),
    ("classify MODEL CLIP --kind odd", "kind 'odd' is not known; choose one of single-label"),
    ("classify MODEL CLIP --class-names NEW", "no file of class names"),
    ("classify MODEL CLIP --class-names TEXT", "1 class names were given"),
    ("classify MODEL CLIP --channel ²", "'²' is neither a number from 0 nor 'each'"),
    ("classify MODEL EMPTY", "EMPTY holds no file that is"),
    ("classify TEXT CLIP", "is a file; a model is a folder"),
    ("classify EMPTY CLIP", "has no config.json"),
    ("inspect MODEL --verify NEW", "no such file or folder"),
    ("inspect MODEL --verify TEXT", "not readable as audio"),
    ("embed MODEL CLIP --into TEXT", "is a file; a collection is a folder"),
    ("embed MODEL CLIP --into TEXT/deep/c.lance", "TEXT is not a folder"),
    ("embed MODEL CLIP --into NEW --window -1s", "'-1s' is no length of time"),
    ("embed MODEL CLIP --into NEW --hop 1s", "needs a window"),
    ("embed MODEL CLIP --into NEW --shard 5/4", "'5/4' is no part of a whole"),
    ("embed MODEL --into NEW", "Missing argument 'paths'"),
    ("export STORE NEW/v.npy", "NEW does not exist"),
    ("export STORE TEXT/v.npy --overwrite", "TEXT is not a folder"),
    ("cluster STORE --seed -1", "--seed"),
    ("cluster STORE --out NEW/c.csv", "NEW does not exist"),
    ("cluster STORE --out EMPTY", "is a folder; name a file to write"),
    ("map STORE NEW.html --seed 99999999999", "--seed"),
    ("map STORE TEXT/deep/m.html", "TEXT is not a folder"),
    ("map STORE TEXT/m.png", "TEXT is not a folder"),
    ("probe STORE --by site --seed -1", "--seed"),
    ("probe STORE --by site --picture NEW.doc", "a picture is written as .png, .svg, .pdf"),
    ("probe STORE --by site --picture TEXT/m.png", "TEXT is not a folder"),
    ("probe STORE --by site --save NEW/p.skops", "NEW does not exist"),
    ("predict STORE --out NEW/p.csv", "NEW does not exist"),
    ("classes STORE --csv NEW/c.csv", "NEW does not exist"),
    ("classes STORE --save NEW/c.npz", "NEW does not exist"),
    ("teach NEW/c.npz owl CLIP --model MODEL", "NEW does not exist"),
    ("evaluate STORE --by site --report NEW/r.html", "NEW"),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES)
def test_a_mistake_is_told_in_a_sentence(
    line: str, says: str, tiny: Path, clips: Path, filled: Path, tmp_path: Path
) -> None:
    places = {"MODEL": tiny, "CLIP": clips / "a" / "0.wav", "STORE": filled}
    places |= {name: tmp_path / name for name in ("EMPTY", "TEXT", "NEW")}
    places["EMPTY"].mkdir()
    places["TEXT"].write_text("hello\n")
    for name, place in places.items():
        line = line.replace(name, str(place))
    before = Collection.open(filled).count
    said = ask(*line.split(" "))
    assert said.code == 2 and says in said.error and said.out == ""
    document = ask(*line.split(" "), "--json").json
    assert set(document) == {"error"} and says in document["error"]["message"]
    assert {path.name for path in tmp_path.iterdir()} == {"EMPTY", "TEXT"}
    assert Collection.open(filled).count == before


def test_more_neighbours_than_there_can_be(filled: Path, clips: Path) -> None:
    query = [filled, clips / "a" / "0.wav", "--json", "-k"]
    every = ask("search", *query, 6).json["hits"]
    for k in (10**12, 10**20):
        assert ask("search", *query, k).json["hits"] == every


# ---- names as they come


ODD = ["[red]a b.wav", "[red]].wav", "ünï 音.wav", "-k.wav", "two\nlines.wav", "\x1b[31mx.wav"]


def test_odd_names(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup is not interpreted, control characters never reach the terminal, ids are exact."""
    folder = tmp_path / "my [bold]clips"
    folder.mkdir()
    for number, name in enumerate(ODD):
        soundfile.write(folder / name, clip(0.3, number), RATE)
    raw = os.fsencode(folder) + b"/not-utf8-\xff.wav"
    shutil.copyfile(folder / ODD[0], raw)
    (folder / "[bold]bad.wav").write_text("no sound")
    monkeypatch.chdir(folder)
    into = "[red]c.lance"
    said = ask("embed", tiny, ".", "--into", into)
    assert said.code == 3
    assert said.out.startswith("7 embedded, 1 failed")
    assert "[bold]bad.wav: not readable" in said.out and f"{into}: 7 rows" in said.out
    assert "penult failures '[red]c.lance' lists" in said.out
    hits = ask("search", into, folder / ODD[0], "-k", 9, "--json").json["hits"]
    assert {h["id"] for h in hits} >= {f"{folder.name}/{name}" for name in ODD}
    said = ask("search", into, folder / ODD[0], "-k", 9)
    for name in ("[red]a b.wav", "[red]].wav", "ünï 音.wav", "-k.wav", "two\\nlines.wav"):
        assert f"/{name}  " in said.out
    assert "\x1b" not in said.out and "\\x1b[31mx.wav" in said.out
    assert "[bold]bad.wav" in ask("failures", into).out
    said = ask("classify", tiny, ".")
    assert "two\\nlines.wav\n" in said.out and "\x1b" not in said.out + said.err
    assert ask("export", into, "[green]v.npy").out.startswith("7 rows in [green]v.npy")
    assert ask("convert", tiny, "[b]e").out.startswith(f"saved {folder}/[b]e: ")


def test_a_path_that_looks_like_an_option(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("-x.wav", clip(0.3), RATE)
    said = ask("classify", tiny, "-x.wav")
    assert said.code == 2 and "if '-x.wav' is a path, write ./-x.wav" in said.error
    assert ask("classify", tiny, "./-x.wav").code == ask("classify", tiny, "--", "-x.wav").code == 0


@pytest.fixture(scope="module")
def odd_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ["[bold]cat[/bold]", "[/red]", "[link=x]y", "café", "a\nb", "", "x" * 60]
    return save_audio(
        tmp_path_factory.mktemp("odd") / "model",
        "wav2vec2",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )


def test_odd_labels(odd_labels: Path, clips: Path, tmp_path: Path) -> None:
    said = ask("classify", odd_labels, clips / "a" / "0.wav", "--top", 7)
    assert said.code == 0
    for name in ("[bold]cat[/bold]", "[/red]", "[link=x]y", "café", "a\\nb"):
        assert f"  {name}  class" in said.out
    assert "[bold]cat[/bold]" in ask("inspect", odd_labels).out
    assert ask("inspect", odd_labels, "--json").json["labels"][0] == "[bold]cat[/bold]"
    (tmp_path / "t.csv").write_text(f"path,[x]\n{clips / 'a' / '0.wav'},[/blue] [bold]\n")
    assert ask("embed", odd_labels, tmp_path / "t.csv", "--into", tmp_path / "c").code == 0
    assert "[/blue] [bold]" in ask("search", tmp_path / "c", clips / "a" / "0.wav").out


@pytest.mark.parametrize("columns", [40, 200])
def test_on_a_terminal(
    columns: int, filled: Path, tiny: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.stdout, "_width", columns)
    monkeypatch.setattr(output.stdout, "_height", 25)  # else rich asks TERM and COLUMNS
    monkeypatch.setattr(output.stdout, "_force_terminal", True)
    monkeypatch.setattr(output.stdout, "_color_system", None)
    for arguments in (
        ["inspect", tiny],
        ["classify", tiny, clips / "a"],
        ["search", filled, clips / "a" / "0.wav"],
        ["failures", filled],
        ["doctor"],
    ):
        said = ask(*arguments)
        assert said.code == 0
        if arguments[0] == "search":
            assert max(map(len, said.out.splitlines())) <= columns
            if columns == 200:
                assert f"{clips.name}/a/0.wav" in said.out


# ---- real processes


def shell(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([PENULT, *map(str, arguments)], **options)


def test_a_reader_that_stops_early(filled: Path, tmp_path: Path) -> None:
    """`penult … | head -1` ends without a word of complaint."""
    for arguments in (["search", filled, "nowhere", "--json"], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        process = shell(*arguments, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        _, err = process.communicate(timeout=120)
        assert b"Traceback" not in err and b"BrokenPipe" not in err, err


def test_a_terminal_without_utf8(filled: Path, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "ü音.wav").write_bytes((clips / "a" / "0.wav").read_bytes())
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    id = str(clips / "a" / "0.wav")
    out = subprocess.check_output(
        [PENULT, "search", filled, id, "--where", "site <> 'ü'", "--json"], env=env
    )
    assert len(json.loads(out)["hits"]) == 6
    done = subprocess.run([PENULT, "failures", "ü音"], env=env, capture_output=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(b"penult: there is no collection at \\x")


@pytest.mark.slow
def test_ctrl_c_on_a_terminal(tiny: Path, tmp_path: Path) -> None:
    """The progress bar is there, what is done stays, and the code says that it was stopped."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(800):
        soundfile.write(folder / f"{number:03}.wav", clip(1.0, number % 50), RATE)
    terminal, inside = pty.openpty()
    process = shell(
        "embed", tiny, folder, "--into", tmp_path / "c",
        stdout=subprocess.PIPE, stderr=inside, stdin=inside,
        # A job in the background of a script ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(inside)
    seen = b""
    deadline = time.monotonic() + 100
    while b"real time" not in seen and time.monotonic() < deadline:
        seen += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            more = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        seen += more
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 130, seen
    assert b"items/s" in seen and b"/800" in seen
    assert b"stopped. Committed rows are kept" in seen and b"Traceback" not in seen
    assert out == b""
    collection = Collection.open(tmp_path / "c")
    assert collection.runs()["status"].to_pylist() == ["stopped"]
    assert 0 < collection.count < 800


def test_a_collection_is_no_model(filled: Path, clips: Path) -> None:
    said = ask("classify", filled, clips / "a")
    assert said.code == 2 and "is a collection, not a model" in said.err
    said = ask("check", filled, clips / "a")  # by the embedder that made its rows
    assert said.code == 0 and "as the collection has it" in said.out


def test_dump_is_an_npz(tiny: Path, clips: Path, tmp_path: Path) -> None:
    said = ask("check", tiny, clips / "a", "--dump", tmp_path / "out.txt")
    assert said.code == 2 and ".npz" in said.err and not (tmp_path / "out.txt").exists()


def test_a_result_is_json(tiny: Path, clips: Path) -> None:
    emb = penult.Embedder.from_classifier(penult.load(tiny))
    result = emb.run([clips / "a" / "0.wav", clips / "nothing.wav"], on_error="skip")
    found = json.loads(json.dumps(result.to_dict()))
    assert [row["label"] for row in found["rows"]] == result.labels
    np.testing.assert_allclose(found["rows"][0]["vector"], result.vectors[0], rtol=1e-6)
    assert [one["id"] for one in found["failures"]] == [one.id for one in result.failures]
