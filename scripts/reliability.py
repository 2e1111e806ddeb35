"""Try to break Penult, and write down what came of it: mutated files, kills, power cuts, attacks.

python scripts/reliability.py [--only TRIAL]… [--files 10000] [--documents 2000] [--kills 100]
    [--cuts 20] [--seed 0]

Each trial prints its figures and puts them into docs/reliability.md, with its date and command;
the exit code is 1 where one of them found a fault. For a night, not for CI: `make test-hard`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mutated_documents
import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PAGE = ROOT / "docs" / "reliability.md"
FILES_IN_A_RUN = 500
TOLERANCE = 1e-5  # relative, of a vector


@dataclass(frozen=True, slots=True)
class Finding:
    """What a trial came to. faults: what must not be, each in words."""

    figures: str
    faults: tuple[str, ...] = ()


# ---- mutated files


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A file with one to four things done to it: bits turned, parts taken out, doubled, set to
    zeros or ones, cut off, or taken from another file. Never the same as before."""
    if not data:
        return chance.randbytes(8)
    raw = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        size = max(1, len(raw))
        # Half of the time near the beginning, where headers lie.
        place = chance.randrange(min(size, 200) if chance.random() < 0.5 else size)
        end = place + min(chance.choice([1, 2, 4, 8, 64, 1000]), size)
        part, begin = raw[place:end], chance.randrange(max(1, len(other)))
        raw[place:end] = chance.choice(
            [
                _turned(part, chance),
                chance.choice([b"\xff", b"\0", b"\x7f"]) * len(part),
                b"",
                part * chance.choice([2, 3, 50]),
                other[begin : begin + len(part)],
                part + chance.randbytes(len(part)),
                chance.randbytes(len(part)),
            ]
        )
        if chance.random() < 0.1:
            del raw[place:]
    return bytes(raw) if raw != data else mutated(data, other, chance)


def _turned(part: bytes, chance: random.Random) -> bytes:
    """With a bit turned in about every fourth byte."""
    return bytes(b ^ (1 << chance.randrange(8) if chance.random() < 0.25 else 0) for b in part)


def sounds() -> dict[str, bytes]:
    """A short recording in each format that can be written here, by suffix."""
    import sound_formats
    from penult.data.audio import EXTENSIONS

    found = {}
    for number, one in enumerate(sound_formats.FORMATS):
        try:
            data = sound_formats.written(one, sound_formats.samples(one.rate // 4, one.rate))
        except Exception as error:  # this build has no such encoder
            print(f"  no {one.name}: {error}")
            continue
        suffix = {"ipod": "m4a", "matroska": "mka", "adts": "aac", "vorbis": "ogg"}.get(
            one.container, one.container.lower()
        )
        suffix = {"wavex": "wav", "nist": "wav", "rf64": "wav", "mov": "m4a"}.get(suffix, suffix)
        if f".{suffix}" in EXTENSIONS:
            found[f"{number}.{suffix}"] = data
    return found


def pictures() -> dict[str, bytes]:
    """A small picture in each format that Pillow writes here, and in odd ones of its modes."""
    import io

    from PIL import Image

    values = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    values[10:30, 10:40] = 90
    plain = Image.fromarray(values)
    pages = {"save_all": True, "append_images": [plain.rotate(90), plain.rotate(180)]}
    turned = Image.Exif()
    turned[0x0112] = 6  # on its side
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    found = {}
    for name, kind, image, more in (
        ("plain.jpg", "JPEG", plain, {"quality": 90}), ("plain.png", "PNG", plain, {}),
        ("plain.webp", "WEBP", plain, {}), ("plain.gif", "GIF", plain, {}),
        ("plain.bmp", "BMP", plain, {}), ("plain.tif", "TIFF", plain, {}),
        ("plain.ppm", "PPM", plain, {}), ("plain.jp2", "JPEG2000", plain, {}),
        ("plain.avif", "AVIF", plain, {}), ("lzw.tiff", "TIFF", plain, {"compression": "tiff_lzw"}),
        ("progressive.jpg", "JPEG", plain, {"progressive": True, "exif": turned}),
        ("print.jpg", "JPEG", plain.convert("CMYK"), {}),
        ("grey.jpg", "JPEG", plain.convert("L"), {}),
        ("palette.png", "PNG", plain.quantize(16), {}), ("deep.png", "PNG", deep, {}),
        ("clear.png", "PNG", plain.convert("RGBA"), {}), ("moving.png", "PNG", plain, pages),
        ("moving.gif", "GIF", plain, pages), ("moving.webp", "WEBP", plain, pages),
        ("lossless.webp", "WEBP", plain.convert("RGBA"), {"lossless": True}),
        ("pages.tif", "TIFF", plain, {**pages, "compression": "tiff_adobe_deflate"}),
        ("photo.tif", "TIFF", plain, {"compression": "jpeg"}), ("deep.tif", "TIFF", deep, {}),
        ("fax.tif", "TIFF", plain.convert("1"), {"compression": "group4"}),
    ):  # fmt: skip
        file = io.BytesIO()
        try:
            image.save(file, kind, **more)
        except (OSError, KeyError) as error:
            print(f"  no {name}: {error}")
            continue
        found[name] = file.getvalue()
    return found


def videos() -> dict[str, bytes]:
    """Half a second of video in each container that PyAV writes here."""
    import io

    import av

    found = {}
    for name, container, codec in (
        ("clip.mp4", "mp4", "mpeg4"), ("clip.mkv", "matroska", "mpeg4"),
        ("clip.avi", "avi", "mpeg4"), ("clip.webm", "webm", "libvpx"),
        ("clip.mpg", "mpeg", "mpeg2video"), ("clip.mov", "mov", "mjpeg"),
        ("phone.mp4", "mp4", "libx264"), ("new.mp4", "mp4", "libx265"),
        ("nine.webm", "webm", "libvpx-vp9"), ("one.mkv", "matroska", "libsvtav1"),
        ("clip.ts", "mpegts", "mpeg2video"), ("clip.flv", "flv", "flv"),
        ("clip.wmv", "asf", "wmv2"), ("clip.ogv", "ogg", "libtheora"),
        ("exact.mkv", "matroska", "ffv1"),
    ):  # fmt: skip
        file = io.BytesIO()
        try:
            with av.open(file, "w", format=container) as out:
                stream: Any = out.add_stream(codec, rate=24)
                stream.width, stream.height = 64, 48
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                for number in range(12):
                    values = np.full((48, 64, 3), 20 * number, np.uint8)
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
                out.mux(stream.encode(None))
        except Exception as error:  # this build has no such encoder
            print(f"  no {name}: {error}")
            continue
        found[name] = file.getvalue()
    return found


def texts() -> dict[str, bytes]:
    """Texts in several encodings."""
    words = "the quick brown fox jumps over the lazy dog while seven grey whales sing — «ja» 日本\n"
    return {
        "plain.txt": words.encode() * 5,
        "marked.txt": b"\xef\xbb\xbf" + words.encode(),
        "wide.txt": words.encode("utf-16"),
        "page.md": b"# " + words.encode() * 30,
    }


def models(folder: Path) -> dict[str, tuple[str, dict[str, bytes]]]:
    """For each modality a model, and its files."""
    import zoo

    return {
        "sound": ("demo", sounds()),
        "picture": (str(zoo.save_image(folder / "image")), pictures()),
        "video": (str(zoo.save_video(folder / "video")), videos()),
        "text": (str(zoo.save_text(folder / "text")), texts()),
    }


@dataclass(slots=True)
class Ran:
    """How a command ended. peak: bytes of all its processes together."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int


def penult(*arguments: object, limit: float = 3600) -> Ran:
    """Run the command in a process of its own, and watch its memory."""
    command = [sys.executable, "-m", "penult", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began, peak = time.monotonic(), 0
        process = psutil.Popen(command, stdout=out, stderr=err, start_new_session=True)
        while process.poll() is None:
            peak = max(peak, _memory(process))
            if time.monotonic() - began > limit:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        out.seek(0)
        err.seek(0)
        took = time.monotonic() - began
        return Ran(process.returncode, out.read(), err.read(), took, peak)


def _memory(process: psutil.Popen) -> int:
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:
        pass
    return total


def vectors_of(store: Path) -> dict[str, Any]:
    """The vectors of a collection by the name of the file."""
    import penult as library

    table, vectors = library.Collection.open(store).vectors()
    names = [Path(id).name for id in table["id"].to_pylist()]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise RuntimeError(f"{store}: {len(twice)} rows are there twice, such as {twice[0]}")
    return dict(zip(names, vectors, strict=True))


NOT_READ = "wide.txt"  # of all intact files; its words are named as no UTF-8
SHARES = {"sound": 0.5, "picture": 0.3, "video": 0.1, "text": 0.1}


def fuzzing(options: argparse.Namespace) -> Finding:
    """Runs over mutated files, with innocent ones among them."""
    chance = random.Random(options.seed)
    count: Counter[str] = Counter()
    faults: list[str] = []
    peak = formats = 0
    contents: set[bytes] = set()
    with tempfile.TemporaryDirectory(prefix="penult-fuzz-") as name:
        root = Path(name)
        for kind, (model, seeds) in models(root).items():
            formats += len(seeds)
            whole, unread = _intact(root, kind, model, seeds)
            faults += unread
            left = round(options.files * SHARES[kind])
            while left > 0:
                number = min(left, FILES_IN_A_RUN)
                left -= number
                files = _mutants(seeds, number, chance)
                contents.update(hashlib.sha256(data).digest() for data in files.values())
                ran, faulty = _one_run(root, model, seeds, whole, files, chance, count)
                faults += faulty
                peak = max(peak, ran.peak)
                print(f"  {kind}: {count.total():,} files, {len(faults)} faults", flush=True)
    done = count["row"] + count["failure"]
    if not (count["row"] and count["failure"] and count["innocent"]):
        faults.append(f"a trial that tries nothing: {dict(count)}")
    return Finding(
        f"{done:,} mutated files of {formats} formats ({len(contents):,} different ones): "
        f"{count['failure']:,} named as failures, {count['row']:,} still readable; "
        f"{count['innocent']:,} innocent files among them, all with the vector that they have "
        f"alone (≤ {TOLERANCE:g}); at most {peak / 1e9:.2f} GB over all processes of a run "
        "(the sum of their resident sets)",
        tuple(faults),
    )


def _intact(
    root: Path, kind: str, model: str, seeds: dict[str, bytes]
) -> tuple[dict[str, Any], list[str]]:
    """The vectors of the files as they were before, and which of them have none."""
    clean, store = root / f"clean-{kind}", root / f"{kind}.lance"
    clean.mkdir()
    for file, data in seeds.items():
        (clean / file).write_bytes(data)
    penult("embed", model, clean, "--into", store, "--workers", 1)
    whole = vectors_of(store)
    unread = seeds.keys() - whole.keys() - {NOT_READ}
    return whole, [f"{file}: an intact file has no vector" for file in unread]


def _mutants(seeds: dict[str, bytes], number: int, chance: random.Random) -> dict[str, bytes]:
    """Mutated files, of each format about as many, by name."""
    names = list(seeds)
    files = {}
    for at in range(number):
        name = names[at % len(names)]
        files[f"{at:05}-{name}"] = mutated(seeds[name], seeds[chance.choice(names)], chance)
    return files


def _one_run(
    root: Path,
    model: str,
    seeds: dict[str, bytes],
    whole: dict[str, Any],
    files: dict[str, bytes],
    chance: random.Random,
    count: Counter[str],
) -> tuple[Ran, list[str]]:
    folder, store = root / "files", root / "files.lance"
    for place in (folder, store):
        shutil.rmtree(place, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for name in whole:
        at = chance.randrange(len(files))
        (folder / f"{at:05}-innocent-{name}").write_bytes(seeds[name])
    ran = penult("embed", model, folder, "--into", store, "--workers", 1, "--time-limit", 20)
    faults = []
    if ran.code not in (0, 3) or "Traceback" in ran.err:
        kept = Path(tempfile.mkdtemp(prefix="penult-kept-")) / "files"
        shutil.copytree(folder, kept)
        return ran, [f"a run ended with {ran.code} ({kept}): {ran.err[-300:]}"]
    found = vectors_of(store)
    failed = json.loads(penult("failures", store, "--json").out)["failures"]
    names_of_failures = {Path(one["id"]).name for one in failed}
    for path in folder.iterdir():
        if "innocent" in path.name:
            expected, vector = whole[path.name.partition("innocent-")[2]], found.get(path.name)
            far = vector is None or np.abs(vector - expected).max() > TOLERANCE * max(
                1e-9, np.abs(expected).max()
            )
            faults += [f"{path.name}: an innocent file has another vector"] if far else []
            count["innocent"] += 1
        elif path.name in found:
            count["row"] += 1
            if not np.isfinite(found[path.name]).all():
                faults.append(f"{path.name}: a vector that is not finite")
        elif path.name in names_of_failures:
            count["failure"] += 1
        else:
            faults.append(f"{path.name}: neither a row nor a failure")
    return ran, faults


# ---- mutated documents


def documents(options: argparse.Namespace) -> Finding:
    """Files of Penult's own, of models, of tables and of the cache, each opened by a command."""
    chance = random.Random(options.seed)
    count: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="penult-documents-") as name:
        root = Path(name)
        os.environ["PENULT_CACHE"] = str(root / "cache")
        kinds = mutated_documents.kinds(root)
        served = mutated_documents.Served(root)
        try:
            for title, kind in kinds.items():
                trial = _Documents(root, served, kind, chance, title)
                share = round(options.documents * DOCUMENTS.get(title, 1) / _shares(kinds))
                for _ in range(share):
                    code, found = trial.one()
                    codes[code] += 1
                    count[title] += 1
                    faults += found
                    for words in found:
                        print(f"    {words}", flush=True)
                faults += trial.unread()
                print(f"  {title}: {count[title]} files, {len(faults)} faults", flush=True)
        finally:
            served.close()
    ends = ", ".join(f"{number:,} with {code}" for code, number in sorted(codes.items()))
    return Finding(
        f"{count.total():,} mutated files, of {len(kinds)} kinds ({', '.join(kinds)}): the command "
        f"that opened one ended {ends}; no traceback, no code that ran, no name looked up; a saved "
        "embedder, classes and a cache gave the same vectors as before, or a refusal",
        tuple(faults),
    )


DOCUMENTS = {"collection": 6, "embedder": 4, "classes": 3, "folder": 3, "model.onnx": 2}


def _shares(kinds: Iterable[str]) -> int:
    return sum(DOCUMENTS.get(title, 1) for title in kinds)


class _Documents:
    """Mutants of one kind, and what they come to."""

    def __init__(
        self,
        root: Path,
        served: mutated_documents.Served,
        kind: mutated_documents.Kind,
        chance: random.Random,
        title: str,
    ) -> None:
        self.root, self.served, self.kind, self.chance, self.title = (
            root, served, kind, chance, title,
        )  # fmt: skip
        self.whole = root / "whole"
        shutil.rmtree(self.whole, ignore_errors=True)
        _copied(kind.place, self.whole / kind.place.name)
        self.expected = {}
        for command in kind.commands:
            self.expected[command] = self._asked(command, self._fresh())

    def unread(self) -> list[str]:
        """What an intact file should do and does not, unless it is one of a stranger."""
        if self.title in STRANGERS:
            return [
                f"{self.title}: {command[0]} takes a file that carries code"
                for command, answer in self.expected.items()
                if answer.code != 2 and answer.code != 1
            ]
        return [
            f"{self.title}: {command[0]} of an intact one ends with {answer.code}: {answer.err}"
            for command, answer in self.expected.items()
            if answer.code
        ]

    def one(self) -> tuple[int, list[str]]:
        """The exit code of a command about one mutant, and its faults."""
        place = self._fresh()
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        written = [p for p in files if p.suffix in (".json", ".jsonl") or "SUMS" in p.name]
        path = self.chance.choice(written if written and self.chance.random() < 0.5 else files)
        before, other = path.read_bytes(), self.chance.choice(files).read_bytes()
        after = before
        while after == before:
            after = mutated_documents.changed(before, other, self.chance, mutated)
        path.write_bytes(after)
        command = self.chance.choice(list(self.expected))
        answer = self._asked(command, place)
        found = mutated_documents.faults(self.kind, answer, self.expected[command])
        if (self.root / "mark").exists():
            (self.root / "mark").unlink()
            found.append("code of the file ran")
        if found:
            kept = Path(tempfile.mkdtemp(prefix="penult-kept-"))
            _copied(place, kept / place.name)
            shown = path.relative_to(place) if path != place else path.name
            found = [f"{self.title} {shown} ({kept}): {command[0]}: {words}" for words in found]
        return answer.code, found

    def _fresh(self) -> Path:
        place = self.kind.place if self.kind.is_kept else self.root / "try" / self.kind.place.name
        for old in {place, self.root / "try"}:
            shutil.rmtree(old, ignore_errors=True)
        (self.root / "try").mkdir()
        _copied(self.whole / self.kind.place.name, place)
        for beside in self.kind.place.parent.glob("*.wav"):  # what annotations are called after
            shutil.copy(beside, place.parent)
        return place

    def _asked(self, command: Sequence[str], place: Path) -> mutated_documents.Answer:
        out = self.root / "try" / "out.lance"
        return mutated_documents.asked(self.served, self.kind, command, place, out)


STRANGERS = ("stranger", "payload.pt", "pickled.pt", "lambda.keras")


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


# ---- kills


def kills(options: argparse.Namespace) -> Finding:
    """SIGKILL to all processes of a run at random moments, until it is whole; again and again."""
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="penult-kills-") as name:
        root = Path(name)
        folder = root / "clips"
        _noises(folder, 3_000)
        penult("embed", "demo", folder, "--into", root / "whole.lance", "--workers", 1)
        expected = vectors_of(root / "whole.lance")
        landed, between, faults = 0, 0, []
        store = root / "killed.lance"
        while landed < options.kills:
            process = subprocess.Popen(
                [sys.executable, "-m", "penult", "embed", "demo", str(folder), "--into",
                 str(store), "--workers", "1"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                _wait_for_rows(process, store, chance)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                landed += 1
                rows = len(vectors_of(store)) if (store / "collection.json").exists() else 0
                print(f"  {landed} kills, {rows} rows", flush=True)
                between += 0 < rows < len(expected)
                if rows < len(expected):
                    continue
            if process.returncode > 0:
                faults.append(f"a run ended with {process.returncode}")
            faults += _compared(expected, vectors_of(store))
            shutil.rmtree(store)
            print(f"  {landed} kills, {between} of them between rows", flush=True)
        ended = penult("embed", "demo", folder, "--into", store, "--workers", 1)
        faults += _compared(expected, vectors_of(store))
        faults += [f"the last run ended with {ended.code}"] if ended.code else []
    if between < landed / 2:
        faults.append(f"a trial that tries little: {between} of {landed} kills between rows")
    return Finding(
        f"{landed} kills of all processes of embed, {between} of them with some rows committed: "
        f"each time the next run gave the {len(expected)} rows of an uninterrupted one (≤ "
        f"{TOLERANCE:g})",
        tuple(faults),
    )


# What else writes: the collection {store}, or {out} beside it.
WRITERS = (
    ("teach", "{store}", "a", "{clips}/0001.wav", "{clips}/0002.wav"),
    ("teach", "{store}", "b", "{clips}/0003.wav"),
    ("classes", "{store}", "--save", "{out}.npz", "--overwrite"),
    ("search", "{store}", "{clips}/0000.wav", "--space", "centre+l2"),
    ("index", "{store}"),
    ("cluster", "{store}"),
    ("export", "{store}", "{out}.parquet", "--overwrite"),
    ("export", "{store}", "{out}.csv", "--overwrite"),
    ("repair", "{store}"),
    ("merge", "{store}", "--into", "{out}.lance"),
    ("embed", "demo", "{clips}", "--into", "{store}", "--workers", "1", "--retry-failed"),
    ("embed", "demo", "{clips}", "--into", "{store}", "--workers", "1", "--prune"),
    ("convert", "demo", "{out}-embedder"),
)


def commands(options: argparse.Namespace) -> Finding:
    """SIGKILL to other commands that write, then the same one again: both it and the collection
    are whole, and rows are what they were."""
    with tempfile.TemporaryDirectory(prefix="penult-commands-") as name:
        root = Path(name)
        clips, source = root / "clips", root / "whole.lance"
        _noises(clips, 1_100)  # an index needs a thousand
        began = penult("embed", "demo", clips, "--into", source, "--workers", 1)
        faults = [f"embed ended with {began.code}: {began.err}"] if began.code else []
        landed, found = _kills_of_commands(root, options.commands, random.Random(options.seed))
    names = ", ".join(dict.fromkeys(one[0] for one in WRITERS))
    return Finding(
        f"{landed} kills of other commands that write ({names}): each was whole when it "
        "was given again, and the collection with its rows as before",
        (*faults, *found),
    )


def _noises(folder: Path, number: int) -> None:
    import soundfile

    folder.mkdir()
    for at in range(number):
        values = np.random.default_rng(at).standard_normal(4000) * 0.1
        soundfile.write(folder / f"{at:04}.wav", values.astype(np.float32), 8000)


def _kills_of_commands(root: Path, times: int, chance: random.Random) -> tuple[int, list[str]]:
    """How many of the kills met a command that was still running, and what was wrong after."""
    clips, source = root / "clips", root / "whole.lance"
    expected, faults, landed = vectors_of(source), [], 0
    for number in range(times):
        command = WRITERS[number % len(WRITERS)]
        store, out = root / "written.lance", root / "out"
        for old in root.glob("out*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(source, store)
        values = {"store": store, "out": out, "clips": clips}
        arguments = [part.format(**values) for part in command]
        landed += _killed(arguments, root, chance)
        again = penult(*arguments)
        print(f"  {number + 1}: {command[0]}, {landed} killed, {len(faults)} faults", flush=True)
        if again.code or "Traceback" in again.err:
            faults.append(f"{command[0]} after a kill ended with {again.code}: {again.err[-300:]}")
        for one in {store, Path(f"{out}.lance")}:
            if one.exists():
                state = penult("repair", one)
                faults += [f"{command[0]}: {state.err[-300:]}"] if state.code else []
                faults += [
                    f"{command[0]}: {words}" for words in _compared(expected, vectors_of(one))
                ]
    if times and not landed:
        faults.append("no other command was killed")
    return landed, faults


def _killed(arguments: Sequence[str], root: Path, chance: random.Random) -> bool:
    """Kill a command a moment after the first file changed under `root`, if it runs for as long."""
    before = _written(root)
    process = subprocess.Popen(
        [sys.executable, "-m", "penult", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and _written(root) == before:
        time.sleep(0.005)
    time.sleep(chance.choice([0.0, 0.01, 0.1, 0.5]) * chance.random())
    lives = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return lives


def _written(root: Path) -> list[tuple[str, int]]:
    """What lies under a folder, but for its recordings."""
    found = []
    for place in [*root.glob("written.lance"), *root.glob("out*"), *root.glob(".out*")]:
        for path in [place, *place.rglob("*")]:
            with contextlib.suppress(OSError):
                found.append((str(path), path.stat().st_mtime_ns))
    return sorted(found)


def _wait_for_rows(process: subprocess.Popen[bytes], store: Path, chance: random.Random) -> None:
    """Wait until a run has committed, and a moment longer; now and then, until before that."""
    data, early = store / "items.lance" / "data", chance.random() < 0.2
    before = len(list(data.glob("*"))) if data.is_dir() else 0
    while process.poll() is None:
        now = len(list(data.glob("*"))) if data.is_dir() else 0
        if now > before or (early and chance.random() < 0.005):
            break
        time.sleep(0.02)
    process.wait(chance.uniform(0.0, 0.5))


def _compared(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    if expected.keys() != found.keys():
        return [f"{len(found)} rows in the place of {len(expected)}"]
    far = [n for n, v in expected.items() if np.abs(v - found[n]).max() > TOLERANCE * abs(v).max()]
    return [f"{far[0]}: another vector after a kill"] if far else []


# ---- power cuts


def cuts(options: argparse.Namespace) -> Finding:
    """The device of a run copied as it is at a random moment, and opened."""
    import power_cut

    words, faults = [], []
    for kind in power_cut.MEGABYTES:
        if reason := power_cut.unavailable(kind):
            words.append(f"{kind}: not tried, {reason}")
            continue
        found: list[power_cut.Cut] = []
        while len(found) < options.cuts:
            with tempfile.TemporaryDirectory(prefix="penult-cut-") as name:
                found += power_cut.trial(Path(name), kind, seed=options.seed + len(found))
        faults += [
            f"{kind}: {one.rows} of {one.promised} rows: {one.error}"
            for one in found
            if not one.is_kept
        ]
        stepped, real = sum(bool(one.said) for one in found), sum(one.is_cut for one in found)
        words.append(
            f"{kind}: {len(found)} cuts, each opened with all rows that were committed before "
            f"the last step, to the bit; {stepped} of them by a step back over a torn version; "
            f"after {real} of them a file that nobody had flushed was gone"
        )
        if real < len(found) / 2:
            faults.append(
                f"{kind}: {len(found) - real} of {len(found)} cuts lose nothing unflushed"
            )
    return Finding("; ".join(words), tuple(faults))


# ---- attacks, as tests


# What each is about, and the files and tests in them that try it.
ATTACKS = {
    "code that nobody asked for": "trust programs model_files keras_code onnx_paths formulas",
    "workers that were taken over": "workers sandbox headers",
    "networks": "reports engines::test_nothing_is_reported_to_the_network",
    "power cuts, kills, full disks and clocks": "durable kills slow_reading bad_input merge export",
    "what is kept and was changed": "kept kept_state migrate pruning class_files",
    "memory, time and proofs": "memory proof_cost",
    "faults of the world and signals": "failures signals",
    "files that are wrong about themselves": "documents messages search onnx_files",
}


def attacks(options: argparse.Namespace) -> Finding:
    """The tests that attack, slow ones too. A test that was skipped has held nothing: each reason
    is told, and a file or a test that is no longer there is a fault."""
    words, faults = [], []
    reasons: Counter[str] = Counter()
    for title, names in ATTACKS.items():
        tests = [_test(name) for name in names.split()]
        with tempfile.TemporaryDirectory(prefix="penult-attacks-") as name:
            report = Path(name) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m",
                       "slow or not slow", f"--junitxml={report}", *tests]  # fmt: skip
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            held, skipped, failed = _results(report)
        reasons.update(skipped)
        words.append(f"{title}: {held} held" + (f", {len(skipped)} skipped" if skipped else ""))
        print(f"  {words[-1]}", *failed, sep="\n    ", flush=True)
        faults += [f"{title}: {line}" for line in failed]
        if (done.returncode and not failed) or not held:
            last = (done.stdout + done.stderr).strip().splitlines()[-3:]
            faults.append(f"{title}: pytest ended with {done.returncode}: {' '.join(last)}")
    if reasons:
        why = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
        words.append(f"what was skipped is not tried on this machine ({why})")
    return Finding("; ".join(words), tuple(faults))


def _test(name: str) -> str:
    """trust → tests/test_trust.py"""
    file, *member = name.split("::")
    return "::".join([f"tests/test_{file}.py", *member])


def _results(report: Path) -> tuple[int, list[str], list[str]]:
    """How many tests held, why others were skipped, and which failed, from a JUnit file."""
    held, skipped, failed = 0, [], []
    if not report.exists():
        return 0, [], []
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = {child.tag: child.get("message") or "" for child in case}
        name = f"{case.get('classname')}::{case.get('name')}"
        if "failure" in outcome or "error" in outcome:
            why = outcome.get("failure", outcome.get("error", ""))
            failed.append(f"{name}: {' '.join(why.split())[:300]}")
        elif "skipped" in outcome:
            skipped.append(outcome["skipped"])
        else:
            held += 1
    return held, skipped, failed


TRIALS: dict[str, Callable[[argparse.Namespace], Finding]] = {
    "fuzzing": fuzzing,
    "documents": documents,
    "kills": kills,
    "commands": commands,
    "cuts": cuts,
    "attacks": attacks,
}


# ---- the page


def command_of(name: str, options: argparse.Namespace) -> str:
    """What repeats a trial."""
    sizes = {"fuzzing": f" --files {options.files}",
             "documents": f" --documents {options.documents}", "kills": f" --kills {options.kills}",
             "commands": f" --commands {options.commands}",
             "cuts": f" --cuts {options.cuts}"}.get(name, "")  # fmt: skip
    return f"python scripts/reliability.py --only {name}{sizes} --seed {options.seed}"


def record(name: str, found: Finding, options: argparse.Namespace, seconds: float) -> None:
    """Put the figures of a trial into their place in the page."""
    text = PAGE.read_text("utf-8")
    faults = "".join(f"\n  - FAULT: {words}" for words in found.faults[:10])
    entry = (
        f"<!-- {name} -->\n{date.today().isoformat()}, {os.cpu_count()} cores, "
        f"{platform.system()}, {seconds / 60:.0f} min: `{command_of(name, options)}`\n\n"
        f"{found.figures}.{faults}\n<!-- end -->"
    )
    pattern = re.compile(rf"<!-- {name} -->.*?<!-- end -->", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: entry, text), "utf-8")


def main() -> int:
    """Each trial, or those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=TRIALS, help="a trial; repeatable")
    parser.add_argument("--files", type=int, default=10_000, help="mutated files")
    parser.add_argument("--documents", type=int, default=2_000, help="mutated files of our own")
    parser.add_argument("--kills", type=int, default=100, help="kills of embed")
    parser.add_argument("--commands", type=int, default=52, help="kills of other commands")
    parser.add_argument("--cuts", type=int, default=20, help="power cuts on each file system")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults = 0
    for name in options.only or TRIALS:
        print(name, flush=True)
        began = time.monotonic()
        found = TRIALS[name](options)
        record(name, found, options, time.monotonic() - began)
        print(f"  {found.figures}", *found.faults, sep="\n  FAULT ", flush=True)
        faults += len(found.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
