"""Trains the demo's classifier of spoken digits from scratch and measures it.

It learns eight digits from four speakers of fsdd and from synthetic voices; two digits and two
speakers are left out entirely, so that the demo can show what the embedding does with words and
people that it never met. A second, temporary head learns further everyday words, which makes the
pooled vector useful for words in general; it is thrown away at the end.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_demo_clips import DEMO_VOICES, KNOWN_WORDS, NEW_WORDS, SAMPLE_RATE, Voice, speak
from soundfile import read
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

DIGITS = (*KNOWN_WORDS, "eight", "nine")
HELD_OUT_SPEAKERS = ("lucas", "theo")
TEST_INDICES = range(5)
"""fsdd's official split: recordings 0 to 4 of every digit and speaker are the test clips."""

EXTRA_WORDS = tuple(
    """
    about action animal answer autumn baby balcony ball basket bath beach bed bicycle big bird
    black blue boat body bottle box boy bread bridge brother brown bucket butter button cake
    camera candle car carpet castle cat chair cheese cherry chicken child church circle city
    clean clock cloud coat coffee cold color corner country cow cup dance danger daughter day
    desk dinner doctor dog door down dragon dream drink duck early east elephant empty evening
    eye family farmer father feather finger fire fish flower follow food foot forest forward
    fox friend frog garden ghost girl glass go gold grass green guitar hair hammer hand happy
    heart hello hill honey horse hospital hotel house ice island jacket jelly juice jump
    kitchen knife ladder lake lamp laugh leaf learn lemon letter library lion listen lucky
    machine market melon milk mirror money monkey month moon morning mother mountain mouse
    mouth music nature needle never number ocean off office oil on onion orange out oven
    paper park pencil people pepper piano picture pilot pizza planet play pocket potato
    president purple quick quiet rabbit radio rain red river road robot rocket sad salad salt
    school science sea shadow sheep ship shoe silver sister sky sleep slow smile snow soap sofa
    song soup south spoon star stop story strawberry street sugar summer sun table tea teacher
    telephone tiger today tomato train travel tree turtle ugly umbrella uncle under up vase
    video village visual voice wall water weather wheel white wind window winter wolf woman
    world yard yellow young zebra
    """.split()
)
"""Words of the temporary head; the demo's new words are not among them."""

TRAIN_ACCENTS = ("en", "en-us", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
TRAIN_VARIANTS = tuple(
    """
    f1 m2 m4 m6 m8 adam Alex Alicia Andrea Andy Annie AnxiousAndy antonio anika aunty belinda
    benjamin boris caleb david Denis Diogo ed edward edward2 Gene Gene2 grandma grandpa gustave
    Henrique Hugo iven iven2 iven3 Jacky john kaukovalta klatt2 klatt3 klatt4 Lee linda marcelo
    Marco Mario max Michael michel miguel Mike norbert pablo paul pedro quincy rob robert
    sandro shelby steph steph2 steph3 Storm travis Tweaky victor zac
    """.split()
)


@dataclass(frozen=True)
class Settings:
    """What the training is made of; the defaults are those of the published weights."""

    seed: int = 0
    steps: int = 2400
    warmup: int = 100
    sorted_batches: int = 4
    real_clips: int = 96
    synthetic_clips: int = 160
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    word_scale: float = 16.0
    word_margin: float = 0.1
    word_weight: float = 1.0
    clips_per_extra_word: int = 30
    clips_per_digit: int = 150


@dataclass(frozen=True)
class Clip:
    """One spoken word: its wave, what is said, who says it, and fsdd's index (-1: synthetic)."""

    wave: np.ndarray
    word: str
    speaker: str
    index: int = -1


@dataclass(frozen=True)
class Figure:
    """One measured accuracy."""

    name: str
    correct: int
    total: int
    chance: float
    untrained: float | None = None

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.total


# ---------------------------------------------------------------------------------------- data


def load_fsdd(folder: Path) -> list[Clip]:
    """Read every recording; the folder may be the repository or its recordings/."""
    inner = folder / "recordings"
    clips = []
    for path in sorted((inner if inner.is_dir() else folder).glob("*.wav")):
        digit, speaker, index = path.stem.split("_")
        wave, rate = read(path, dtype="float32")
        if rate != SAMPLE_RATE:
            raise ValueError(f"{path} has {rate} Hz; {SAMPLE_RATE} Hz expected.")
        clips.append(Clip(wave, DIGITS[int(digit)], speaker, int(index)))
    if not clips:
        raise FileNotFoundError(f"No fsdd recordings (*.wav) in {folder}.")
    return clips


def split_fsdd(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Sort the recordings into training, test and held-out speakers; known digits only."""
    known = [clip for clip in clips if clip.word in KNOWN_WORDS]
    trained = [clip for clip in known if clip.speaker not in HELD_OUT_SPEAKERS]
    return {
        "train": [clip for clip in trained if clip.index not in TEST_INDICES],
        "test": [clip for clip in trained if clip.index in TEST_INDICES],
        "held_out": [clip for clip in known if clip.speaker in HELD_OUT_SPEAKERS],
    }


def random_voice(rng: np.random.Generator) -> Voice:
    """Draw one of the training voices, with a random pitch and speed."""
    accent, variant = rng.choice(TRAIN_ACCENTS), rng.choice(TRAIN_VARIANTS)
    pitch, speed = int(rng.integers(25, 80)), int(rng.integers(115, 195))
    return Voice("training", str(accent), str(variant), pitch, speed)


def speak_training_words(settings: Settings) -> list[Clip]:
    """Let random training voices say the known digits and the extra words."""
    reserved = {voice.variant for voice in DEMO_VOICES}
    if reserved & set(TRAIN_VARIANTS) or set(NEW_WORDS) & set(EXTRA_WORDS):
        raise ValueError("A voice or a new word of the demo would enter the training.")
    rng = np.random.default_rng(settings.seed)
    tasks = [(word, random_voice(rng)) for word in EXTRA_WORDS * settings.clips_per_extra_word]
    tasks += [(word, random_voice(rng)) for word in KNOWN_WORDS * settings.clips_per_digit]
    with ThreadPoolExecutor(2) as pool:
        waves = list(pool.map(lambda task: speak(*task), tasks))
    return [Clip(wave, word, voice.spec) for wave, (word, voice) in zip(waves, tasks, strict=True)]


# -------------------------------------------------------------------------------- augmentation


def random_spectrum(rng: np.random.Generator, length: int, decibels: float) -> np.ndarray:
    """Draw a smooth gain over frequency, as of another microphone or room."""
    points = rng.normal(0.0, decibels, 8)
    return 10 ** (np.interp(np.linspace(0, 7, length), np.arange(8), points) / 20)


def random_room(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw the spectrum of a short echo: a click followed by fading noise."""
    decay = np.exp(-np.arange(size) / (SAMPLE_RATE * rng.uniform(0.01, 0.06)))
    response = 0.15 * rng.uniform(0.2, 1.0) * decay * rng.normal(size=size)
    response[0] = 1.0
    return np.fft.rfft(response)


def augment(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change speed and pitch, position, microphone, room and noise of one clip at random."""
    factor = math.exp(rng.uniform(-0.2, 0.2))
    wave = np.interp(np.arange(0, len(wave) - 1, factor), np.arange(len(wave)), wave)
    start, end = rng.integers(-240, 480, 2)  # up to 30 ms cut off, up to 60 ms put on
    wave = wave[max(0, -start) : len(wave) - max(0, -end)]
    wave = np.pad(wave, (max(0, start), max(0, end)))[:SAMPLE_RATE]
    size = 400 * math.ceil(max(len(wave), SAMPLE_RATE // 4) / 400)  # a size that FFTs are fast at
    spectrum = np.fft.rfft(wave, size)
    spectrum *= random_spectrum(rng, len(spectrum), 5.0)
    if rng.random() < 0.4:
        spectrum *= random_room(rng, size)
    noise = rng.normal(size=len(spectrum)) + 1j * rng.normal(size=len(spectrum))
    noise *= random_spectrum(rng, len(spectrum), 8.0)
    noise_db = rng.uniform(5.0, 50.0)
    loudness = np.linalg.norm(spectrum) / np.linalg.norm(noise) * 10 ** (-noise_db / 20)
    return np.fft.irfft(spectrum + loudness * noise, size)


def collate(waves: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Normalise each wave as the feature extractor does, and pad them into one batch."""
    longest = max(len(wave) for wave in waves)
    values = np.zeros((len(waves), longest), dtype=np.float32)
    mask = np.zeros((len(waves), longest), dtype=np.int64)
    for row, wave in enumerate(waves):
        values[row, : len(wave)] = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        mask[row, : len(wave)] = 1
    return torch.from_numpy(values), torch.from_numpy(mask)


def batches(
    real: Sequence[Clip], synthetic: Sequence[Clip], words: Sequence[str], settings: Settings
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield values, mask and word numbers of `settings.steps` augmented batches."""
    rng = np.random.default_rng(settings.seed + 1)
    numbers = {word: number for number, word in enumerate(words)}
    for _ in range(settings.steps // settings.sorted_batches):
        chosen = [real[i] for i in rng.integers(len(real), size=settings.real_clips)]
        picks = rng.integers(len(synthetic), size=settings.synthetic_clips)
        chosen += [synthetic[i] for i in picks]
        pairs = [(augment(clip.wave, rng), numbers[clip.word]) for clip in chosen]
        # Clips of like length share a batch, for less padding and so less time.
        pairs.sort(key=lambda pair: len(pair[0]))
        for part in rng.permutation(settings.sorted_batches):
            size = len(pairs) // settings.sorted_batches
            waves, labels = zip(*pairs[part * size : (part + 1) * size], strict=True)
            yield *collate(waves), torch.tensor(labels)


def prepare_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items while the next one is prepared in a second thread."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


# --------------------------------------------------------------------------------------- model


def build_model() -> Wav2Vec2ForSequenceClassification:
    """Build the small network with random weights; 32 ms per frame, 128 numbers per frame."""
    config = Wav2Vec2Config(
        vocab_size=len(KNOWN_WORDS),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        conv_dim=(128, 128, 128),
        conv_kernel=(128, 5, 3),
        conv_stride=(64, 2, 2),
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=11,
        num_conv_pos_embedding_groups=8,
        classifier_proj_size=64,
        layerdrop=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        hidden_dropout=0.03,
        mask_time_prob=0.05,
        mask_time_length=2,
        mask_time_min_masks=0,
        id2label=dict(enumerate(KNOWN_WORDS)),
        label2id={word: number for number, word in enumerate(KNOWN_WORDS)},
    )
    model = Wav2Vec2ForSequenceClassification(config)
    with torch.no_grad():
        model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.copy_(tone_filters(128, 128))
    return model


def tone_filters(count: int, size: int) -> Tensor:
    """Make windowed tones at mel-spaced pitches, four phases each: where the first layer starts.

    Starting as a spectrogram does lets so few recordings suffice; training may change it.
    """
    mels = torch.linspace(80.0, 2100.0, count // 4)  # 52 Hz to 3.8 kHz
    hertz = 700 * (10 ** (mels / 2595) - 1)
    time_s = torch.arange(size) / SAMPLE_RATE
    phases = torch.arange(4) * math.pi / 2
    angle = 2 * math.pi * hertz[:, None, None] * time_s + phases[:, None]
    filters = torch.cos(angle) * torch.hann_window(size)
    return (filters / filters.norm(dim=-1, keepdim=True)).reshape(count, 1, size)


def pool(model: Wav2Vec2ForSequenceClassification, values: Tensor, mask: Tensor) -> Tensor:
    """Embed a batch: the mean over time of the last hidden states, without the padding."""
    hidden = model.wav2vec2(values, attention_mask=mask).last_hidden_state
    frames = model._get_feature_vector_attention_mask(hidden.shape[1], mask)[..., None]
    return (hidden * frames).sum(dim=1) / frames.sum(dim=1)


class WordHead(nn.Module):
    """The temporary head: cosine similarity to one learned vector per word.

    Cosines, because the demo compares by cosine; the margin draws a word's clips together.
    """

    def __init__(self, size: int, words: int, scale: float, margin: float) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(words, size))
        self.scale, self.margin = scale, margin

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of these vectors."""
        cosines = functional.normalize(vectors) @ functional.normalize(self.prototypes).T
        handicap = self.margin * functional.one_hot(labels, len(self.prototypes))
        return functional.cross_entropy(self.scale * (cosines - handicap), labels)


def train(
    real: Sequence[Clip], synthetic: Sequence[Clip], settings: Settings
) -> Wav2Vec2ForSequenceClassification:
    """Train model and temporary head together; return the model alone."""
    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed)  # transformers draws its masks from numpy's global generator
    words = (*KNOWN_WORDS, *sorted({clip.word for clip in synthetic} - set(KNOWN_WORDS)))
    model = build_model().train()
    head = WordHead(model.config.hidden_size, len(words), settings.word_scale, settings.word_margin)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=settings.steps,
        pct_start=settings.warmup / settings.steps,
    )
    start = time.perf_counter()
    supply = prepare_ahead(batches(real, synthetic, words, settings))
    for step, (values, mask, labels) in enumerate(supply, 1):
        vectors = pool(model, values, mask)
        is_digit = labels < len(KNOWN_WORDS)
        logits = model.classifier(model.projector(vectors[is_digit]))
        digit_loss = functional.cross_entropy(logits, labels[is_digit])
        word_loss = head(vectors, labels)
        optimizer.zero_grad()
        (digit_loss + settings.word_weight * word_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"step {step:5d}  digits {digit_loss.item():.3f}  words {word_loss.item():.3f}"
                f"  {time.perf_counter() - start:4.0f} s",
                flush=True,
            )
    return model.eval()


# ----------------------------------------------------------------------------------- measuring


def load_demo_clips(folder: Path) -> list[Clip]:
    """Read the demo's clips by their clips.csv."""
    with (folder / "clips.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Clip(read(folder / row["path"], dtype="float32")[0], row["word"], row["voice"])
        for row in rows
    ]


@torch.inference_mode()
def infer(model: Wav2Vec2ForSequenceClassification, clips: Sequence[Clip]) -> tuple[Tensor, list]:
    """Embed and classify clips: one vector of length 1 and one word for each."""
    extractor = make_extractor()
    vectors, words = [], []
    for start in range(0, len(clips), 50):
        waves = [clip.wave for clip in clips[start : start + 50]]
        batch = extractor(waves, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
        vectors.append(pool(model, batch["input_values"], batch["attention_mask"]))
        words += [model.config.id2label[i] for i in model(**batch).logits.argmax(-1).tolist()]
    return functional.normalize(torch.cat(vectors)), words


def classify(model: Wav2Vec2ForSequenceClassification, name: str, clips: Sequence[Clip]) -> Figure:
    """Measure the classifier itself."""
    _, words = infer(model, clips)
    correct = sum(word == clip.word for word, clip in zip(words, clips, strict=True))
    return Figure(name, correct, len(clips), 1 / len(KNOWN_WORDS))


def one_shot_by_speaker(
    vectors: Tensor, clips: Sequence[Clip], asked: Sequence[str], classes: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Let each speaker in turn give one example per class; the others' clips are classified.

    Returns for each speaker how many answers were right, and of how many.
    """
    result = {}
    for speaker in dict.fromkeys(clip.speaker for clip in clips):
        own = [i for i, c in enumerate(clips) if c.speaker == speaker and c.word in classes]
        first = {clips[i].word: i for i in reversed(own)}  # fsdd: the clip of the lowest index
        others = [i for i, c in enumerate(clips) if c.speaker != speaker and c.word in asked]
        nearest = (vectors[others] @ vectors[list(first.values())].T).argmax(dim=1).tolist()
        names = list(first)
        right = sum(names[n] == clips[i].word for n, i in zip(nearest, others, strict=True))
        result[speaker] = (right, len(others))
    return result


def one_shot_tables(fsdd: Sequence[Clip], demo: Sequence[Clip]) -> Iterator[tuple]:
    """Yield name, clips, words asked for and classes of every one-shot measurement."""
    everything = (*KNOWN_WORDS, *NEW_WORDS)
    tests = [clip for clip in fsdd if clip.index in TEST_INDICES]
    held_out_digits = [digit for digit in DIGITS if digit not in KNOWN_WORDS]
    yield "demo clips: new words, among the 8 new words", demo, NEW_WORDS, NEW_WORDS
    yield "demo clips: new words, among all 16 words", demo, NEW_WORDS, everything
    yield "demo clips: all words, among all 16 words", demo, everything, everything
    yield "fsdd test clips: eight and nine, among 10 digits", tests, held_out_digits, DIGITS


def measure(
    model: Wav2Vec2ForSequenceClassification, fsdd: Sequence[Clip], demo: Sequence[Clip], seed: int
) -> list[Figure]:
    """Measure everything that the model card reports."""
    split = split_fsdd(fsdd)
    known = [clip for clip in demo if clip.word in KNOWN_WORDS]
    speakers = " and ".join(HELD_OUT_SPEAKERS)
    figures = [
        classify(model, "fsdd, unseen clips of the four trained speakers", split["test"]),
        classify(model, f"fsdd, the held-out speakers {speakers}", split["held_out"]),
        classify(model, "demo clips (synthetic voices never heard), known words", known),
    ]
    torch.manual_seed(seed)
    untrained = build_model().eval()
    for name, clips, asked, classes in one_shot_tables(fsdd, demo):
        counts = one_shot_by_speaker(infer(model, clips)[0], clips, asked, classes)
        plain = one_shot_by_speaker(infer(untrained, clips)[0], clips, asked, classes)
        right, total = (sum(column) for column in zip(*counts.values(), strict=True))
        floor = sum(count for count, _ in plain.values()) / total
        figures.append(Figure(f"one-shot, {name}", right, total, 1 / len(classes), floor))
        each = ", ".join(f"{who} {100 * a / b:.0f} %" for who, (a, b) in counts.items())
        print(f"{name}, by who gives the examples: {each}")
    return figures


def table(figures: Sequence[Figure]) -> str:
    """Lay the figures out as a Markdown table."""
    lines = [
        "| measured | right | N | accuracy | same network, untrained | chance |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for figure in figures:
        floor = "" if figure.untrained is None else f"{100 * figure.untrained:.1f} %"
        lines.append(
            f"| {figure.name} | {figure.correct} | {figure.total} | {100 * figure.accuracy:.1f} %"
            f" | {floor} | {100 * figure.chance:.1f} % |"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------- writing


def make_extractor() -> Wav2Vec2FeatureExtractor:
    """Make what turns waves into the model's input."""
    return Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=True
    )


CARD = """\
---
license: cc-by-sa-4.0
language: en
library_name: transformers
pipeline_tag: audio-classification
tags:
- audio-classification
- audio-embeddings
- wav2vec2
- spoken-digits
---

# Penult's demo classifier: spoken digits, zero to seven

A small Wav2Vec2 classifier ({parameters:,} parameters, 8 kHz audio) that comes with Penult so that
its demo runs at once and without a download. It tells eight spoken English digits apart. The demo
takes its head off and shows that the vectors underneath also tell words apart that the classifier
has no class for.

## Measured

{table}

"One-shot": the embedding is the mean over time of the last hidden states. One voice gives one
example clip per class; every clip of the other voices gets the class of the example with the
highest cosine similarity. Each voice gives the examples once, and the table adds up these rounds;
so one clip counts several times in N. "Untrained" is the same network with the random weights that
the training starts from. The settings of the training were chosen on other synthetic voices and
other words than the demo's; the figures for fsdd were in view meanwhile, so take those as slightly
flattering.

`scripts/train_demo.py` wrote this file and measured these figures, with the saved weights.

## Training

- Data: {real} recordings of the [Free Spoken Digit Dataset](https://github.com/Jakobovski/free-spoken-digit-dataset)
  (fsdd): zero to seven, four of its six speakers, indices 5 to 49.
- Held out entirely: the digits {digits}, and the speakers {speakers}. Indices 0 to 4 of the trained
  speakers are test clips, as fsdd has it.
- Synthetic speech beside it: {synthetic} clips made with {espeak}, the same eight
  digits and {extra} everyday words. The demo's eight voices are not among them, nor are
  the demo's new words ({new}).
  Of the demo's accents, the Scottish, Caribbean and New York ones are not in training at all; the
  other five are, with other timbres.
- The everyday words belong to a second, temporary head (cosine to one vector per word), which
  shapes the embedding in training and is not in this folder.
- Augmentation: speed with pitch, time shift, frequency response, echo, noise, masking of time.
- {steps} steps of {batch} clips, {minutes:.0f} minutes on one CPU thread, seed {seed}. The seeds
  are fixed; on other processors or with other versions of PyTorch or espeak-ng the figures will
  differ a little.

## Intended use

A demonstration, not a product: it shows what Penult does with a classifier, within seconds and on
any machine. Feed it single words of roughly a quarter of a second to a second, at 8 kHz mono.

## Limits

- Four men's voices of one data set and synthetic voices are all that it ever heard. Expect it to be
  worse with women's and children's voices, other accents, other microphones and noise; the row of
  the held-out speakers shows how much other speakers of the same data set cost already.
- It has no class for "none of these": every sound gets one of the eight digits.
- The one-shot figures on demo clips compare synthetic voices with each other; the last row of the
  table has the figure for recordings of people.

## Licence

The weights are trained on fsdd by Zohar Jackson and others, CC BY-SA 4.0, and are published under
[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/) themselves. Penult's code is
Apache-2.0.
"""


def write_card(out: Path, settings: Settings, facts: dict, figures: Sequence[Figure]) -> None:
    """Write README.md beside the weights, with the measured figures."""
    version = subprocess.run(["espeak-ng", "--version"], capture_output=True, check=True, text=True)
    text = CARD.format(
        table=table(figures),
        digits=" and ".join(digit for digit in DIGITS if digit not in KNOWN_WORDS),
        speakers=" and ".join(HELD_OUT_SPEAKERS),
        espeak="espeak-ng " + version.stdout.split(":")[1].split()[0],
        extra=len(EXTRA_WORDS),
        new=", ".join(NEW_WORDS),
        steps=settings.steps,
        batch=(settings.real_clips + settings.synthetic_clips) // settings.sorted_batches,
        seed=settings.seed,
        **facts,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    demo = Path(__file__).parent.parent / "src" / "penult" / "demo"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fsdd", type=Path, required=True, help="folder of fsdd's recordings")
    parser.add_argument("--clips", type=Path, default=demo / "clips", help="the demo's clips")
    parser.add_argument("--out", type=Path, default=demo / "classifier", help="model folder")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="fewer for a quick try")
    return parser.parse_args()


def main() -> None:
    """Train, save, load again, measure and write the card."""
    arguments = parse_arguments()
    torch.set_num_threads(1)  # the figures depend on it a little
    torch.use_deterministic_algorithms(True)
    settings = Settings(seed=arguments.seed, steps=arguments.steps)
    fsdd, demo = load_fsdd(arguments.fsdd), load_demo_clips(arguments.clips)
    real, synthetic = split_fsdd(fsdd)["train"], speak_training_words(settings)
    print(f"{len(real)} recordings, {len(synthetic)} synthetic clips")
    start = time.perf_counter()
    model = train(real, synthetic, settings)
    minutes = (time.perf_counter() - start) / 60
    model.save_pretrained(arguments.out)
    make_extractor().save_pretrained(arguments.out)
    model = AutoModelForAudioClassification.from_pretrained(arguments.out).eval()
    figures = measure(model, fsdd, demo, settings.seed)
    facts = {
        "parameters": model.num_parameters(),
        "real": len(real),
        "synthetic": len(synthetic),
        "minutes": minutes,
    }
    write_card(arguments.out, settings, facts, figures)
    print(table(figures))


if __name__ == "__main__":
    main()
