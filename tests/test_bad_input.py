"""Bad input as users meet it, through the command line: one sentence, the right exit code, and
nothing else of the run is lost."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import penult
from conftest import RATE, assert_law, clip
from penult.collection.collection import Collection
from test_cli import PENULT, Said, ask
from zoo import save_audio

NAN = np.where(np.arange(8000) == 77, np.nan, clip(0.5)).astype(np.float32)


def wave(data: bytes, promised: int, rate: int = RATE, channels: int = 1) -> bytes:
    """A 16 bit WAV whose header promises `promised` bytes of sound."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    riff = b"RIFF" + struct.pack("<I", min(promised + 36, 2**32 - 1)) + b"WAVEfmt "
    return riff + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", promised) + data


SOUND = (clip(0.5) * 32767).astype("<i2").tobytes()
BAD: dict[str, tuple[bytes | tuple[np.ndarray, int], str]] = {
    "empty.wav": (b"", "the file is empty (0 bytes)"),
    "text.wav": (b"This is a letter, not a sound.", "not readable as audio"),
    "picture.mp3": (b"\x89PNG\r\n\x1a\n" + bytes(500), "not readable as audio"),
    "no-samples.wav": (wave(b"", 0), "holds no samples"),
    "nan.wav": ((NAN, RATE), "samples that are not finite (NaN or infinite)"),
    "silent.wav": ((np.zeros(8000, np.float32), RATE), "nothing but zeros (digital silence)"),
    "slow.wav": ((clip(2.0)[:400], 200), "a sample rate of 200 Hz holds nothing above 100 Hz"),
    "short.wav": ((clip(0.5)[:20], RATE), "0.001 s is shorter than what the model needs (0."),
    "liar.wav": (wave(SOUND, 10**9), "holds 8000 frames of the 500000000 it promises"),
    "cut.wav": (wave(SOUND[:8000], len(SOUND)), "holds 4000 frames of the 8000 it promises"),
    "no-rate.wav": (wave(SOUND, len(SOUND), rate=0), ""),
    "no-channel.wav": (wave(SOUND, len(SOUND), channels=0), ""),
    "cut.flac": (b"fLaC\x00\x00\x00\x22" + b"\x10" * 20, "not readable as audio"),
}
GOOD = ("a-first.wav", "eight-channels.wav", "z-last.wav")


def write(path: Path, content: bytes | tuple[np.ndarray, int]) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, *content, subtype="FLOAT")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good recordings among everything that can be wrong with one."""
    folder = tmp_path_factory.mktemp("mixed")
    for name, (content, _) in BAD.items():
        write(folder / name, content)
    write(folder / GOOD[0], (clip(0.5, 1), RATE))
    write(folder / GOOD[1], (np.stack([clip(0.5, i) for i in range(8)], axis=1), RATE))
    write(folder / GOOD[2], (clip(0.7, 3), RATE))
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    os.mkfifo(folder / "pipe.wav")
    return folder


def vectors(path: Path) -> dict[str, np.ndarray]:
    keys, rows = Collection.open(path).vectors(columns=["id"])
    return dict(zip((Path(id).name for id in keys["id"].to_pylist()), rows, strict=True))


def test_each_one_is_named_and_the_rest_is_kept(tiny: Path, mixed: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.lance"
    said = ask("embed", tiny, mixed, "--into", path)
    assert said.code == 3 and "Traceback" not in said.out + said.err
    assert said.out.startswith(f"3 embedded, {len(BAD) + 2} failed")
    rows = ask("failures", path, "--json").json["failures"]
    why = {Path(row["id"]).name: row["message"] for row in rows}
    assert set(why) == {*BAD, "gone.wav", "pipe.wav"}
    assert "is a pipe or a device" in why["pipe.wav"]
    for name, (_, says) in BAD.items():
        assert says in why[name], (name, why[name])
        assert "\n" not in why[name] and 5 < len(why[name]) < 250
    table = ask("failures", path).out
    assert all(f"{name}" in table and message in table for name, message in why.items())
    found = vectors(path)
    assert set(found) == set(GOOD)
    embedder = penult.Embedder.from_classifier(penult.load(tiny))
    for name in GOOD:
        assert_law(found[name], embedder.embed(mixed / name)[0])
    again = ask("embed", tiny, mixed, "--into", path, "--json").json
    assert (again["done"], again["skipped"], again["failed"]) == (0, 3, len(BAD) + 2)


def test_classify_names_them_too(tiny: Path, mixed: Path) -> None:
    said = ask("classify", tiny, mixed, "--json")
    assert said.code == 3 and "Traceback" not in said.err
    assert [Path(p["id"]).name for p in said.json["predictions"]] == list(GOOD)
    assert len(said.json["failures"]) == len(BAD) + 2


def test_a_clip_of_ten_milliseconds(tmp_path: Path) -> None:
    """Shorter than the receptive field of a full-size front end (25 ms)."""
    model = save_audio(
        tmp_path / "model", "wav2vec2", conv_dim=(8,) * 7, conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2), num_feat_extract_layers=7,
    )  # fmt: skip
    write(tmp_path / "click.wav", (clip(0.01), RATE))
    said = ask("classify", model, tmp_path / "click.wav")
    assert said.code == 3
    assert "0.010 s is shorter than what the model needs (0.025 s)" in said.err


def test_what_no_reader_foresaw_ends_no_run(
    tiny: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penult.data import audio

    load_many = audio.load_many

    def failing(content: Any, *rest: Any, **named: Any) -> Any:
        if content.name == GOOD[0]:
            raise OSError(5, "Input/output error")
        if content.name == GOOD[1]:
            raise MemoryError
        return load_many(content, *rest, **named)

    monkeypatch.setattr(audio, "load_many", failing)
    said = ask("classify", tiny, *(mixed / name for name in GOOD), "--workers", 0)
    assert said.code == 3 and GOOD[2] in said.out
    assert "Input/output error" in said.err and "does not fit into the memory" in said.err


# ---- paths and tables


def refused(said: Said, *words: str, code: int = 2) -> None:
    """One clear sentence, nothing on stdout."""
    assert said.code == code, said
    assert said.out == ""
    for word in words:
        assert word in said.error, said.error


def test_paths_that_give_nothing(tiny: Path, tmp_path: Path) -> None:
    into = ["--into", tmp_path / "c"]
    refused(ask("embed", tiny, "nowhere.wav", *into), "no such file or folder: nowhere.wav")
    (tmp_path / "folder").mkdir()
    refused(ask("embed", tiny, tmp_path / "folder", *into), ".flac", "it holds no files")
    for name in ("a.txt", "b.txt", "c.docx"):
        (tmp_path / "folder" / name).write_text("no sound")
    refused(ask("embed", tiny, tmp_path / "folder", *into), ".flac", "it holds 2 .txt, 1 .docx")
    refused(ask("embed", tiny, "https://example.org/a.wav", *into), "download it")
    refused(ask("embed", tiny, *into), "Missing argument 'paths'")
    refused(ask("classify", tiny), "Missing argument 'paths'")
    refused(ask("embed"), "Missing argument 'model'", "penult embed --help")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,site\na.wav,A\n", "has no column `path`; it has file, site"),
        ("", "is empty; a table's first line names its columns"),
        ("path,path\na.wav,b.wav\n", "path"),
        ('path\n"a.wav\n', "line"),
        ("path\n\xff\xc3\xa9\n", "is not UTF-8 (byte 0xff)"),
        ("path,a b,a-b\na.wav,1,2\n", "two columns would both be called a_b; rename"),
    ],
)
def test_tables_that_cannot_be_used(tiny: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    refused(ask("embed", tiny, tmp_path / "t.csv", "--into", tmp_path / "c"), "t.csv", says)


def test_rows_that_cannot_be_used(tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.wav", (clip(1.0), RATE))
    lines = {
        "a.wav,0,0.5,,ann": None,
        "a.wav,,,,bob": None,
        "a.wav,0,0.5,,eve": None,  # another annotation of the same span
        "gone.wav,,,,ann": "no such file",
        "a.wav,0.7,0.2,,ann": "end 0.2 s is not after start 0.7 s",
        "a.wav,0.5,99,,ann": "end 99 s lies beyond the end: it lasts 1 s",
        "a.wav,5,6,,ann": "start 5 s lies beyond the end",
        "a.wav,-1,0.4,,ann": "start -1.0 s lies before the beginning",
        "a.wav,soon,1,,ann": "start 'soon' is not a number",
        "a.wav,0.1,0.6,3,ann": "there is no channel 3: the sound has 1",
        ",0,1,,ann": "the path is empty",
        "a.wav,0,0.3,,ann,more,cells": "",
        "a.wav,0.25,1,,eve": None,
    }
    text = (
        "path,start,end,channel,speaker\n" + "\n".join(lines) + "\na.wav,,,,bob\n"
    )  # that row twice
    (tmp_path / "t.csv").write_text(text)
    path = tmp_path / "c.lance"
    document = ask("embed", tiny, tmp_path / "t.csv", "--into", path, "--json")
    assert document.code == 3, document
    why = [row["message"] for row in ask("failures", path, "--json").json["failures"]]
    bad = [says for says in lines.values() if says is not None]
    for says in bad:
        assert any(says in message for message in why), (says, why)
    assert (document.json["done"], len(why)) == (4, len(bad))
    assert Collection.open(path).reader.count_rows("speaker IN ('ann', 'bob', 'eve')") == 4


# ---- models


def test_models_that_do_not_open(tiny: Path, mixed: Path, tmp_path: Path) -> None:
    works = ("config.json", "owner/name@revision", "'demo'")
    for command in ("inspect", "classify", "convert"):
        rest = [] if command == "inspect" else [mixed if command == "classify" else tmp_path / "e"]
        refused(
            ask(command, "owner/nothing", *rest), "'owner/nothing'", "cannot be reached", *works
        )
        file = mixed / "text.wav"
        refused(ask(command, file, *rest), f"{str(file)!r} is a file", *works)
        for path in ("./no/such/folder", "~nobody-of-this-name/model"):
            refused(ask(command, path, *rest), f"{path!r}: there is no such folder", *works)
        refused(ask(command, mixed, *rest), "has no config.json")
    assert not (tmp_path / "e").exists()


class _Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_that_carries_code(tiny: Path, mixed: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    (model / "model.safetensors").unlink()
    with (model / "pytorch_model.bin").open("wb") as file:
        torch.save({"classifier.weight": _Code(tmp_path / "ran")}, file, pickle_module=pickle)
    for rest in (["embed", model, mixed, "--into", tmp_path / "c"], ["inspect", model]):
        words = "a pickle that asks for more than tensors (posix.system); nothing was run"
        refused(ask(*rest), words, "safetensors", "--trust")
    assert not (tmp_path / "ran").exists()
    assert ask("inspect", model, "--json").json["error"]["type"] == "UntrustedCode"


def test_another_embedders_collection(tiny: Path, mixed: Path, tmp_path: Path) -> None:
    path, good = tmp_path / "c.lance", mixed / GOOD[0]
    assert ask("embed", tiny, good, "--into", path).code == 0
    before = vectors(path)
    said = ask("embed", tiny, mixed / GOOD[2], "--into", path, "--pooling", "max")
    refused(said, "pooling: the collection has 'mean', this embedder 'max'", "--into another")
    said = ask("search", path, mixed / GOOD[2], "--model", "demo")
    refused(said, "weights: ", "Name the right one with --model")
    assert ask("embed", tiny, good, "--into", path, "--fp16").code == 2
    assert [*vectors(path)] == [*before]


# ---- places that cannot be written


def test_into_something_else(tiny: Path, mixed: Path, tmp_path: Path) -> None:
    good = mixed / GOOD[0]
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(ask("embed", tiny, good, "--into", tmp_path / "thesis.txt"), "is a file")
    said = ask("embed", tiny, good, "--into", tmp_path / "mine")
    refused(said, "is not a collection", "'thesis.txt'", "Give a new or empty folder")
    refused(ask("embed", tiny, good, "--into", tmp_path / "thesis.txt" / "c"), "is not a folder")
    refused(ask("convert", tiny, tmp_path / "thesis.txt"), "is a file")
    refused(ask("convert", tiny, tmp_path / "mine"), "exists and is not an embedder")
    refused(ask("convert", tiny, tmp_path / "thesis.txt" / "e"), "thesis.txt", code=1)
    for command in ("search", "export", "failures"):
        rest = {"search": [good], "export": [tmp_path / "v.npy"], "failures": []}[command]
        refused(ask(command, tmp_path / "none", *rest), "there is no collection at")
        refused(ask(command, tmp_path / "mine", *rest), "is not a collection")
        refused(ask(command, tmp_path / "thesis.txt", *rest), "is a file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "thesis.txt", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert ask("embed", tiny, good, "--into", tmp_path / "empty").code == 0
    assert ask("convert", tiny, tmp_path / "new" / "deep").code == 0


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A tmpfs; skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False) if shutil.which("mount") else 0
    if done == 0 or done.returncode:
        pytest.skip("file systems can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """A folder that nobody may write to, root neither."""
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    with mounted(folder, "ro,size=1m"):
        yield


def test_no_write_permission(tiny: Path, mixed: Path, tmp_path: Path) -> None:
    good = mixed / GOOD[0]
    torch = ("--engine", "torch")  # `auto` says first which one it takes, if it takes another
    assert ask("embed", tiny, good, "--into", tmp_path / "c").code == 0
    with closed(tmp_path / "shut"):
        place = tmp_path / "shut"
        reason = os.strerror(30 if os.geteuid() == 0 else 13)
        refused(ask("embed", tiny, good, "--into", place / "c", *torch), str(place), reason, code=1)
        refused(ask("embed", tiny, good, "--into", place, *torch), str(place), reason, code=1)
        refused(ask("convert", tiny, place / "e"), str(place), reason, code=1)
        for name in ("v.npy", "v.csv", "v.parquet"):
            refused(ask("export", tmp_path / "c", place / name), str(place), reason, code=1)


def test_full_disk(tiny: Path, tmp_path: Path) -> None:
    """What was committed before stays readable; room made, the same command goes on."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(30):
        write(clips / f"{number:02}.wav", (clip(0.3, number), RATE))
    disk = tmp_path / "disk"
    with mounted(disk, "size=2m"):
        path = disk / "c.lance"
        torch = ("--engine", "torch")  # `auto` says first which one it takes, if it takes another
        assert ask("embed", tiny, clips / "00.wav", "--into", path, *torch).code == 0
        before = vectors(path)
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        said = ask("embed", tiny, clips, "--into", path, *torch)
        refused(said, str(path), "No space left on device", code=1)
        assert [*vectors(path)] == [*before]
        refused(ask("convert", tiny, disk / "e"), "No space left on device", code=1)
        for name in ("v.npy", "v.csv", "v.parquet"):
            refused(ask("export", path, disk / name), "No space left on device", code=1)
        assert sorted(entry.name for entry in disk.iterdir()) == ["ballast", "c.lance"]
        ballast.unlink()
        assert ask("embed", tiny, clips, "--into", path, "--json").json["rows"] == 30


def test_a_killed_convert_leaves_no_half_embedder(tiny: Path, tmp_path: Path) -> None:
    """Killed when the first file has been copied; the same command then works."""
    target = tmp_path / "emb"
    child = os.fork()
    if child == 0:
        copy = shutil.copyfile

        def killed(*paths: Any) -> None:
            copy(*paths)
            os.kill(os.getpid(), signal.SIGKILL)

        shutil.copyfile = killed
        try:
            ask("convert", tiny, target)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not target.exists()
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith(".")  # no command takes it for an embedder
    assert not (aside / "penult.json").exists()
    assert ask("convert", tiny, target).code == 0
    assert ask("inspect", target).code == 0


def test_the_command_ends_with_the_code(tmp_path: Path) -> None:
    """The real command, not only `run`."""
    for arguments, code in ((["failures", tmp_path / "none"], 2), (["--version"], 0)):
        done = subprocess.run([PENULT, *arguments], capture_output=True, check=False)
        assert done.returncode == code and b"Traceback" not in done.stderr
