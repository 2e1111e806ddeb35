"""Makes the demo's clips: everyday words spoken by eight synthetic voices of espeak-ng.

Half of the words are known to the bundled classifier, half are new to it. `train_demo.py`
imports the lists and the speech function below, so that no voice and no new word of the demo
can enter the training by mistake.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 8000
"""The rate of fsdd, hence of the classifier."""

KNOWN_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
NEW_WORDS = ("eight", "nine", "yes", "no", "left", "right", "apple", "banana")


@dataclass(frozen=True)
class Voice:
    """One espeak-ng voice: an accent, a timbre ("variant"), a pitch and a speed."""

    name: str
    accent: str
    variant: str
    pitch: int = 50
    speed: int = 150

    @property
    def spec(self) -> str:
        """What espeak-ng's option -v takes."""
        return f"{self.accent}+{self.variant}"


# Britain is "en" and not "en-gb": espeak-ng 1.51 silently ignores a variant after "en-gb".
DEMO_VOICES = (
    Voice("american-woman", "en-us", "f2"),
    Voice("british-man", "en", "m3"),
    Voice("scottish-man", "en-gb-scotland", "m7", pitch=40),
    Voice("caribbean-woman", "en-029", "f5"),
    Voice("new-york-man", "en-us-nyc", "m5"),
    Voice("lancashire-woman", "en-gb-x-gbclan", "f3", pitch=60),
    Voice("midlands-man", "en-gb-x-gbcwmd", "m1", speed=135),
    Voice("oxford-woman", "en-gb-x-rp", "f4", speed=165),
)


def trim_silence(wave: np.ndarray, keep_s: float = 0.05, floor_db: float = -40.0) -> np.ndarray:
    """Cut leading and trailing silence down to `keep_s` seconds.

    Silence is what lies more than `-floor_db` below the loudest 10 ms of the clip.
    """
    hop = SAMPLE_RATE // 100
    frames = wave[: len(wave) // hop * hop].reshape(-1, hop)
    level = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (floor_db / 20))
    keep = int(keep_s * SAMPLE_RATE)
    start, end = int(loud[0]) * hop - keep, (int(loud[-1]) + 1) * hop + keep
    padded = np.pad(wave, (max(0, -start), max(0, end - len(wave))))
    return padded[max(0, start) : end + max(0, -start)]


def speak(text: str, voice: Voice) -> np.ndarray:
    """Let espeak-ng say `text`: mono float32 at 8 kHz, silence trimmed, peak at 0.9."""
    command = ["espeak-ng", "-v", voice.spec, "-p", str(voice.pitch), "-s", str(voice.speed)]
    done = subprocess.run([*command, "--stdout", text], capture_output=True, check=True)
    wave, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    wave = trim_silence(soxr.resample(wave, rate, SAMPLE_RATE))
    return (0.9 / np.abs(wave).max() * wave).astype(np.float32)


def write_clips(out: Path) -> int:
    """Write every word of every voice, and clips.csv beside them; return how many clips."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for voice in DEMO_VOICES:
        for word in (*KNOWN_WORDS, *NEW_WORDS):
            path = out / f"{word}_{voice.name}.flac"
            wave = speak(word, voice)
            # Level 1.0 is FLAC's strongest compression; it is lossless at every level.
            soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16", compression_level=1.0)
            known = "true" if word in KNOWN_WORDS else "false"
            rows.append({"path": path.name, "word": word, "voice": voice.name, "known": known})
    with (out / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "word", "voice", "known"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    default = Path(__file__).parent.parent / "src" / "penult" / "demo" / "clips"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default, help="folder for clips, clips.csv")
    return parser.parse_args()


def main() -> None:
    """Make the clips and say what they weigh."""
    arguments = parse_arguments()
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng was not found; install it (apt install espeak-ng) first.")
    count = write_clips(arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{count} clips of {len(DEMO_VOICES)} voices, {size / 1e6:.2f} MB, in {arguments.out}")


if __name__ == "__main__":
    main()
