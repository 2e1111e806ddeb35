"""The sections of bench.py on memory: whole runs of the command by default settings, and the most
that all of their processes have at once.

Weights are random, in models of the real architectures and input sizes; files are made from a
fixed seed. A run that takes more than the bound, or loses a file, ends the bench with code 1.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from measuring import Bench, Fault, Section, tell
from page import Table

WHOLE = 10_000  # files of the full mix; with fewer all of its parts shrink
RATE = 16_000
PHOTO = (4000, 3000)
BOUND = "2GB"  # by default settings, libraries and weights included
STEP = 0.05  # seconds between two samples


# ---- processes


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and all below it, what they share counted once (PSS); resident bytes,
    which are more, where the system does not tell."""
    total = 0
    with suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += _proportional(one)
    return total


def _proportional(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return int(process.memory_info().rss)
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended. peak: bytes of all of its processes at once. first: seconds until its
    first row was committed; None: there is none."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int
    first: float | None = None


def watched(command: list[str], store: Path | None = None, limit: float = 7200) -> Ran:
    """Run a command, and sample the memory of its processes. store: the collection whose first
    rows are waited for."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began, most, first = time.monotonic(), 0, None
        process = psutil.Popen(command, stdout=out, stderr=err)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        try:
            while process.poll() is None:
                most = max(most, memory_of(process))
                if store is not None and first is None and any(store.glob("items.lance/data/*")):
                    first = time.monotonic() - began
                time.sleep(STEP)
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()
        took = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        return Ran(process.returncode, out.read(), err.read(), took, most, first)


# ---- files


def noise(random: np.random.Generator, width: int, height: int) -> Any:
    """A picture as a camera's: smooth, with some noise."""
    from PIL import Image

    coarse = random.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), np.int16)
    grain = random.integers(-6, 7, smooth.shape, dtype=np.int16)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def photos(count: int, random: np.random.Generator) -> Iterator[bytes]:
    """JPEGs of 12 megapixels: a few pictures, each file with a comment of its own, so that no two
    are the same file."""
    shots = []
    for _ in range(min(count, 8)):
        file = io.BytesIO()
        noise(random, *PHOTO).save(file, "JPEG", quality=85)
        shots.append(file.getvalue())
    for number in range(count):
        data, words = shots[number % len(shots)], f"shot {number}".encode()
        yield data[:2] + b"\xff\xfe" + (len(words) + 2).to_bytes(2, "big") + words + data[2:]


def pictures(count: int, random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Small pictures in several formats, and their endings."""
    for number in range(count):
        width, height = (int(one) for one in random.integers(48, 400, 2))
        kind = ("jpeg", "png", "webp", "bmp")[number % 4]
        file = io.BytesIO()
        noise(random, width, height).save(file, kind)
        yield kind, file.getvalue()


def words(random: np.random.Generator, characters: int) -> str:
    """A text of about so many characters."""
    some = " ".join(f"w{word}" for word in random.integers(0, 900, min(2_000, characters // 4 + 1)))
    return (f"{some}\n" * (characters // len(some) + 1))[:characters]


def clip(random: np.random.Generator, seconds: float) -> Any:
    """(samples,) of int16: a tone with noise."""
    axis = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * random.uniform(80, 900) * axis)
    wave += 0.02 * random.standard_normal(len(wave))
    return (32_000 * wave).astype(np.int16)


def write_long(path: Path, seconds: int) -> None:
    """A recording that is next to silent, and so takes few bytes as FLAC: 26 a second."""
    second = np.zeros(RATE, np.int16)
    second[0] = 1
    with soundfile.SoundFile(path, "w", RATE, 1, format="FLAC") as file:
        for _ in range(seconds):
            file.write(second)


@dataclass(frozen=True, slots=True)
class Mix:
    """Numbers of files: 12-megapixel photos, small pictures, texts and clips; and how long the long
    ones are, in characters and seconds."""

    photos: int
    pictures: int
    texts: int
    clips: int
    long_text: int
    long_sound: int

    @classmethod
    def of(cls, files: int) -> Mix:
        """Four parts of pictures, four of texts and two of sounds. In a small mix the longest
        ones are as much shorter."""
        share = min(1.0, files / WHOLE)
        large, sounds = max(1, round(301 * share)), max(2, round(0.2 * files))
        few = max(1, round(0.4 * files) - large)
        texts = files - large - few - sounds
        return cls(large, few, texts, sounds, int(1e8 * share), max(2, int(7200 * share)))

    @property
    def counts(self) -> dict[str, int]:
        """Files of each modality."""
        return {
            "image": self.photos + self.pictures,
            "text": self.texts,
            "audio": self.clips,
        }


def write_mix(folder: Path, mix: Mix) -> None:
    """The files, in folders by hundreds as an archive has them, large and small among one another
    in the order of their names."""
    random = np.random.default_rng(0)

    def place(name: str, number: int, ending: str) -> Path:
        path = folder / f"{number // 100:03d}" / f"{number:05d}-{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    for number, data in enumerate(photos(mix.photos, random)):
        between = number * mix.pictures // mix.photos
        place("photo", between, "jpg").write_bytes(data)
    for number, (ending, data) in enumerate(pictures(mix.pictures, random)):
        place("picture", number, ending).write_bytes(data)
    for number in range(mix.texts):
        # One of all, and some beside it, are long.
        size = mix.long_text if number == mix.texts // 2 else int(random.integers(20, 3_000))
        size = mix.long_text // 50 if number % 500 == 7 else size
        place("text", number, "txt").write_text(words(random, max(20, size)))
    write_long(place("hours", 0, "flac"), mix.long_sound)
    for number in range(1, mix.clips):
        length = 45.0 if number % 200 == 50 else float(random.uniform(0.3, 2.0))
        soundfile.write(place("clip", number, "wav"), clip(random, length), RATE)


# ---- models


def vit(folder: Path) -> Any:
    """Pictures of 224 × 224."""
    import transformers

    config = transformers.ViTConfig(**_SMALL, num_labels=10)
    transformers.ViTImageProcessor().save_pretrained(folder)
    return transformers.ViTForImageClassification(config)


def bert(folder: Path) -> Any:
    """Texts of up to 512 tokens."""
    import speed
    import transformers

    tokenizer = speed.tokenizer()
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(**_SMALL, vocab_size=len(tokenizer), num_labels=10)
    return transformers.BertForSequenceClassification(config)


def wav2vec2(folder: Path) -> Any:
    """Sound of any length."""
    import transformers

    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    config = transformers.Wav2Vec2Config(**_SMALL, num_labels=10)
    return transformers.Wav2Vec2ForSequenceClassification(config)


def ast(folder: Path) -> Any:
    """Sound of one length, 10.24 s, as spectrograms of 1024 × 128."""
    import transformers

    transformers.ASTFeatureExtractor().save_pretrained(folder)
    config = transformers.ASTConfig(**_SMALL, num_labels=10)
    return transformers.ASTForAudioClassification(config)


_SMALL = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 384,
}
MODELS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "ViT": ("image", vit),
    "BERT": ("text", bert),
    "AST": ("audio", ast),
    "wav2vec2": ("audio", wav2vec2),
}


def written(name: str, folder: Path) -> Path:
    """A folder with the model of that name, weights roused so that its head can be proved."""
    import torch
    from proofs import roused

    torch.manual_seed(0)
    path = folder / name
    roused(MODELS[name][1](path)).save_pretrained(path)
    return path


# ---- runs


@dataclass(frozen=True, slots=True)
class Case:
    """One run: files in a folder, a model, how many rows and failures are to come of it."""

    title: str
    model: str
    files: Path
    rows: int
    failures: int


def embedded(case: Case, folder: Path, memory: str | None = None) -> tuple[Ran, list[str]]:
    """The run of a case, and what is wrong with its result."""
    model = folder / case.model
    if not model.is_dir():
        written(case.model, folder)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        store = Path(name) / "store"
        more = ["--memory", memory] if memory else []
        command = [sys.executable, "-m", "penult", "embed", str(model), str(case.files)]
        os.environ["PENULT_CACHE"] = f"{name}/cache"  # each run locates and proves its head
        ran = watched([*command, "--into", str(store), "--json", *more], store)
    return ran, _wrong(case, ran)


def _wrong(case: Case, ran: Ran) -> list[str]:
    expected = {"done": case.rows, "failed": case.failures}
    if ran.code != (3 if case.failures else 0):
        return [f"{case.title}: ended with {ran.code}: {ran.err.strip()[-500:]}"]
    summary = json.loads(ran.out)
    return [
        f"{case.title}: {summary.get(name)} {name}, not {number}"
        for name, number in expected.items()
        if summary.get(name) != number
    ]


def run_cases(bench: Bench, title: str, cases: list[Case], folder: Path) -> None:
    """Each case, as one table.

    Raises:
        Fault: what is wrong with them, a peak above the bound included.
    """
    from penult.memory import in_words, parse_size

    bound, faults = parse_size(bench.options.bound), []
    columns = (f"{title}; bound {in_words(bound)}", "rows", "failed", "seconds", "first row after")
    rows = []
    for case in cases:
        ran, wrong = bench.once(lambda case=case: embedded(case, folder, bench.options.memory))
        faults += wrong
        if ran.peak > bound:
            faults.append(f"{case.title}: {in_words(ran.peak)}, more than {in_words(bound)}")
        first = "" if ran.first is None else f"{ran.first:.0f} s"
        numbers = (str(case.rows), str(case.failures), f"{ran.seconds:.0f}", first)
        rows.append([case.title, *numbers, in_words(ran.peak)])
        tell(f"{case.title}: {in_words(ran.peak)} in {ran.seconds:.0f} s")
    bench.show(Table([*columns, "peak of all"], rows))
    if faults:
        raise Fault("\n".join(faults))


def memory(bench: Bench) -> None:
    """A folder of mixed photos, texts and sounds, embedded whole by each model."""
    with tempfile.TemporaryDirectory(prefix="penult-bench-") as name:
        files = bench.options.files
        folder, mix = Path(name), Mix.of(files)
        write_mix(folder / "files", mix)
        small = folder / "small"  # what the libraries, the weights and the proof take
        write_mix(small, Mix(0, 2, 2, 2, 100, 2))
        cases = []
        for model in bench.options.models or ("ViT", "BERT", "AST"):
            count = mix.counts[MODELS[model][0]]
            cases.append(Case(f"{model}, two files", model, small, 2, 0))
            cases.append(Case(f"{model}, {count:,} files", model, folder / "files", count, 0))
        run_cases(bench, f"{files:,} mixed files", cases, folder)


def memory_cases(bench: Bench) -> None:
    """Folders of what takes most: large photos, a long recording, long texts, huge pictures."""
    with tempfile.TemporaryDirectory(prefix="penult-bench-") as name:
        folder, random = Path(name), np.random.default_rng(0)
        places = {one: folder / one for one in ("photos", "sounds", "texts", "huge")}
        for place in places.values():
            place.mkdir()
        for number, data in enumerate(photos(301, random)):
            (places["photos"] / f"{number:03d}.jpg").write_bytes(data)
        write_long(places["sounds"] / "000.flac", 7200)
        for number in range(1, 21):
            soundfile.write(places["sounds"] / f"{number:03d}.wav", clip(random, 2.0), RATE)
            (places["texts"] / f"{number:03d}.txt").write_text(words(random, 50 * number))
        for number in range(3):
            (places["texts"] / f"long{number}.txt").write_text(words(random, 100_000_000))
        _write_huge(places["huge"], random)
        cases = [
            Case("301 photos of 12 megapixels, ViT", "ViT", places["photos"], 301, 0),
            Case("two hours among 20 clips, AST", "AST", places["sounds"], 21, 0),
            Case("two hours among 20 clips, wav2vec2", "wav2vec2", places["sounds"], 20, 1),
            Case("3 texts of 100 MB among 20, BERT", "BERT", places["texts"], 23, 0),
            Case("24 PNGs of 178 megapixels among 10, ViT", "ViT", places["huge"], 10, 24),
        ]
        run_cases(bench, "large files, by default settings", cases, folder)


def _write_huge(folder: Path, random: np.random.Generator) -> None:
    from PIL import Image, PngImagePlugin

    for number, (_, data) in enumerate(pictures(10, random)):
        Image.open(io.BytesIO(data)).convert("RGB").save(folder / f"small{number}.png")
    plain = Image.new("RGB", (13_400, 13_300), (20, 120, 200))
    for number in range(24):
        note = PngImagePlugin.PngInfo()
        note.add_text("number", str(number))  # no two are the same file
        if number == 0:
            plain.save(folder / "huge00.png", pnginfo=note, compress_level=1)
            first = (folder / "huge00.png").read_bytes()
        else:
            changed = _png_text(f"number\0{number}".encode())
            (folder / f"huge{number:02d}.png").write_bytes(first[:33] + changed + first[33:])


def _png_text(data: bytes) -> bytes:
    import zlib

    body = b"tEXt" + data
    return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


_MEASURED = (
    "`penult embed` by default settings, with models of the usual input sizes and small random "
    "weights. Peak: the largest sum of PSS over all processes of the run, sampled each 50 ms. The "
    "bound has libraries, weights and proof in it; the bench ends with code 1 where a run takes "
    "more, or has not exactly the rows that it is to have."
)
SECTIONS = {
    "memory": Section(
        "Memory of whole runs",
        "A folder of 10,000 files from a fixed seed: JPEGs of 12 megapixels among small pictures "
        "of four formats, texts (one of 100 MB, eight of 2 MB), recordings (one FLAC of two hours "
        f"in 190 kB, ten of 45 s). {_MEASURED}",
        memory,
        ("files", "bound", "memory", "models"),
    ),
    "memory-cases": Section("Memory of large files", _MEASURED, memory_cases, ("bound", "memory")),
}
