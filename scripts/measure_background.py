"""Measure predictions of a recording that is mostly something else, with and without a background.

    python scripts/measure_background.py field.wav --make DATA
    penult embed kwt1.onnx field.wav --sample-rate 16000 --seconds 1 --window 1s --hop 500ms \\
        --tap layer:11 --pooling first --into field.lance
    python scripts/measure_background.py field.wav field.lance

DATA holds fsdd, kws_words and librispeech_speakers. The recording: 20 minutes of read speech and
noises, with 60 spoken digits (0, 3, 7) in it, which field.csv lists. Five windows of each digit are
taught, and all others predicted. A window that covers four fifths of a call is of its class; one
that covers less of one is not counted.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile
import soxr

from penult.analysis.space import fit
from penult.collection.collection import Collection
from penult.fewshot.examples import EVERY, Examples
from penult.fewshot.fitted import FittedClasses

RATE, SECONDS, CALLS, DIGITS = 16_000, 1200, 60, "037"
TAUGHT, SEEDS = 5, 5


def sound(path: Path) -> np.ndarray:
    """Mono samples at RATE."""
    samples, rate = soundfile.read(path, always_2d=True)
    return np.asarray(soxr.resample(samples.mean(axis=1), rate, RATE))


def make(path: Path, data: Path) -> None:
    """Write the recording, and the calls in it beside it."""
    random = np.random.default_rng(0)
    speech = [sound(one) for one in sorted((data / "librispeech_speakers").glob("*/*.flac"))]
    random.shuffle(speech)
    talk, at = np.concatenate(speech), 0
    noises = [sound(one) for one in sorted((data / "kws_words" / "noises").glob("*"))]
    whole, filled, number = np.zeros(SECONDS * RATE), 0, 0
    while filled < len(whole):
        length = min(int(random.uniform(5, 20) * RATE), len(whole) - filled)
        if random.random() < 0.4:
            part, loud = np.take(talk, range(at, at + length), mode="wrap"), 0.05
            at += length
        else:
            part, loud = np.resize(noises[number % len(noises)], length), 0.03
            number += 1
        whole[filled : filled + length] += loud * part / (part.std() + 1e-9)
        filled += length
    calls = []
    for place, start in enumerate(random.permutation(np.arange(5, SECONDS - 5, 5))[:CALLS]):
        digit = DIGITS[place % len(DIGITS)]
        files = sorted((data / "fsdd" / "recordings").glob(f"{digit}_*.wav"))
        call = sound(files[random.integers(len(files))])[:RATE]
        first = int((start + random.uniform(0, 3)) * RATE)
        whole[first : first + len(call)] += 0.12 * call / (call.std() + 1e-9)
        calls.append((digit, first / RATE, (first + len(call)) / RATE))
    soundfile.write(path, (0.9 * whole / np.abs(whole).max()).astype(np.float32), RATE)
    with path.with_suffix(".csv").open("w") as file:
        csv.writer(file).writerows(calls)


def truth(calls: Path, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m,) the digit of each window, empty for none, and whether it is to be counted."""
    names, covered = np.full(len(start), "", object), np.zeros(len(start))
    with calls.open() as file:
        for digit, first, last in csv.reader(file):
            begin, stop = float(first), float(last)
            share = (np.minimum(end, stop) - np.maximum(start, begin)) / (stop - begin)
            names[share >= 0.8] = digit
            covered = np.maximum(covered, share)
    return names, (names != "") | (covered <= 0)


def main() -> None:
    """Make the recording, or print a line for each space and background."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("collections", nargs="*")
    parser.add_argument("--make", type=Path, metavar="DATA")
    asked = parser.parse_args()
    if asked.make is not None:
        make(asked.recording, asked.make)
    for path in asked.collections:
        reader = Collection.open(path, must_exist=True).reader
        table, vectors = reader.vectors(None, ["id", "region", "start", "end"])
        times = (np.array(table[name].to_pylist()) for name in ("start", "end"))
        names, counted = truth(asked.recording.with_suffix(".csv"), *times)
        for recipe in ("centre", "shrink"):
            space = fit(recipe, vectors)
            for number in (0, 20, 50, 100):
                lines = [one(vectors, names, counted, space, number, seed)
                         for seed in range(SEEDS)]  # fmt: skip
                (precision, recall, said), worst = np.mean(lines, 0), np.min(lines, 0)
                print(f"{path} {recipe} background {number:3}: precision {precision:.3f} (worst "
                      f"{worst[0]:.3f}), recall {recall:.3f} ({worst[1]:.3f}), {said:.0f} windows "
                      "are of a class", flush=True)  # fmt: skip


def one(vectors, names, counted, space, number, seed) -> tuple[float, float, float]:  # type: ignore[no-untyped-def]
    """(precision, recall, windows that are given a class) of one draw."""
    random = np.random.default_rng(seed)
    examples, used = Examples.empty(vectors.shape[1]), list[int]()
    for digit in DIGITS:
        rows = random.permutation(np.flatnonzero(names == digit))[:TAUGHT]
        used += rows.tolist()
        examples = examples.with_marks(digit, [(str(i), "whole") for i in rows], vectors[rows])
    rest = np.setdiff1d(np.arange(len(vectors)), used)
    drawn = random.permutation(rest)[:number]
    examples = examples.with_marks(EVERY, [(str(i), "whole") for i in drawn], vectors[drawn], "no")
    fitted = FittedClasses(examples, space, background=lambda: vectors[rest])
    asked = np.setdiff1d(rest, drawn)
    asked = asked[counted[asked]]
    label = fitted.judge(vectors[asked], 0.05).label
    said = np.array([fitted.names[k] if k >= 0 else "" for k in label], object)
    right = ((said == names[asked]) & (said != "")).sum()
    positive = (said != "").sum()
    return right / max(1, positive), right / (names[asked] != "").sum(), float(positive)


if __name__ == "__main__":
    main()
