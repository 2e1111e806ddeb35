"""The sections of bench.py on how fast items are embedded: engines side by side, in one run.

Weights are random at the real sizes, saved to a folder that is gone afterwards; clips are real
where they are there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from machine import has_amx, tops
from measuring import Bench, Section, Way, digits, ratios, tell
from page import Table

WAYS = (
    ("torch", "exact"),
    ("openvino", "exact"),
    ("torch", "fast"),
    ("openvino", "fast"),
)
SPEECH = Path(__file__).resolve().parents[2] / "shared" / "data" / "librispeech_speakers"
BATCH = 8  # of the batches by hand
MEAN = 3.875  # seconds of a clip: 24 clips are 93 s
Works = dict[str, Callable[[], object] | Way]
Inputs = Callable[[Any], dict[str, Any]]
Plain = Callable[[Sequence[Any]], object]  # runs items


def lengths_of(total: float) -> list[float]:
    """Seconds of clips that are so long together: of 1 to 15 s, most of them short, and in a mixed
    order that is the same every time."""
    count = max(1, round(total / MEAN))
    even = (np.arange(count) + 0.5) / count
    lengths = 1 + 14 * even**3.87
    order = np.random.default_rng(0).permutation(count)
    return [float(one) for one in (lengths * total / lengths.sum())[order]]


def mixed(folder: Path, total: float, clips: Path | None) -> list[Path]:
    """Clips of `lengths_of`, cut from recordings of speech one after another; where there are none,
    tones with noise."""
    ends = np.cumsum([round(16_000 * length) for length in lengths_of(total)])
    source, random = clips or SPEECH, np.random.default_rng(0)
    speech: list[Any] = []
    for file in random.permutation(sorted([*source.rglob("*.flac"), *source.rglob("*.wav")])):
        speech.append(soundfile.read(file, dtype="float32")[0])
        if sum(map(len, speech)) >= ends[-1]:
            break
    else:
        speech = [tones(random, int(ends[-1]))]
    paths = []
    for number, wave in enumerate(np.split(np.concatenate(speech), ends)[:-1]):
        paths.append(folder / f"{number:03d}.wav")
        soundfile.write(paths[-1], wave, 16_000)
    return paths


def tones(random: Any, samples: int) -> Any:
    """(samples,) float32 at 16 kHz: a tone whose height changes each second, with noise."""
    heights = np.repeat(random.uniform(80, 400, samples // 16_000 + 1), 16_000)[:samples]
    wave = 0.2 * np.sin(2 * np.pi * np.cumsum(heights) / 16_000)
    return (wave + 0.02 * random.standard_normal(samples)).astype(np.float32)


def flops(model: Any, inputs: dict[str, Any]) -> float:
    """GFLOP of one pass, counted by torch: two for each multiplication and addition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() / 1e9


@dataclass(frozen=True, slots=True)
class Bound:
    """What a way is to reach. times: as fast as the first, on a machine with AMX. share: of the
    peak in that arithmetic."""

    kind: str
    share: float
    times: float = 0.0

    @property
    def words(self) -> str:
        """In a cell."""
        times = f"{self.times:g} ×{'' if has_amx() else ' (of AMX)'} and " if self.times else ""
        return f"≥ {times}{self.share:.0%} of {self.kind}"


EXACT, FAST = Bound("f32", 0.85, 2.3), Bound("bf16", 0.60, 10)


@dataclass(frozen=True, slots=True)
class Case:
    """A model in a folder and its items. gflop: of one pass over each item. timed: there is a bound
    on how many times as fast as the first way."""

    title: str
    folder: Path
    items: Sequence[Any]
    gflop: float
    timed: bool = False


def report(bench: Bench, case: Case, times: dict[str, float], bounds: dict[str, Bound]) -> None:
    """A table: the ratio to the first, the share of this machine's own peaks, seconds."""
    best, first = tops(bench.peaks), next(iter(times.values()))
    columns = [
        f"{case.title}; {case.gflop:.0f} GFLOP",
        "× two passes",
        *(f"of {kind} peak" for kind in best),
    ]
    rows = []
    for name, value in times.items():
        shares = [f"{case.gflop / value / top:.0%}" for top in best.values()]
        bound = bounds[name].words if name in bounds and bounds[name].kind in best else ""
        rows.append([name, f"{first / value:.2f}", *shares, digits(value), bound])
    bench.show(Table([*columns, "seconds", "bound"], rows))


def engines(bench: Bench, folder: Path, items: Any) -> Works:
    """Penult with each engine and precision, settled and warm; what each was measured to give."""
    from penult.embedding.embedder import Embedder
    from penult.errors import PenultError
    from penult.models.specs import load

    works: Works = {}
    modes = set()
    for engine, precision in WAYS:
        try:
            embedder = Embedder.from_classifier(load(folder), engine=engine, precision=precision)
            embedder.run(items)
        except PenultError as error:
            bench.note(f"Not measured: {engine} {precision}: {str(error).splitlines()[0]}")
            continue
        runner = embedder.runner
        tell(f"Penult {engine} {precision}: {runner.choice.words if runner.choice else 'fp32'}")
        if runner.mode not in modes:  # where bfloat16 does not serve, fp32 is run
            modes.add(runner.mode)
            name = f"Penult, {runner.mode.words} ({precision})"
            works[name] = lambda one=embedder: one.run(items)
    return works


def chosen(folder: Path, items: Any) -> tuple[Works, dict[str, Bound]]:
    """Penult by default settings in exact and in fast: a fresh embedder that has kept nothing, and
    the same one once more."""
    from penult.embedding.embedder import Embedder
    from penult.models.specs import load

    works: Works = {}
    bounds: dict[str, Bound] = {}
    fresh: dict[str, Embedder] = {}
    for precision, bound in (("exact", EXACT), ("fast", FAST)):

        def opened(precision: str = precision) -> None:
            forget()
            classifier = load(folder)
            fresh[precision] = Embedder.from_classifier(
                classifier, engine="auto", precision=precision
            )

        def run(precision: str = precision) -> None:
            fresh[precision].run(items)

        name = f"Penult, auto ({precision})"
        works[f"{name}, first run"] = Way(run, opened)
        works[f"{name}, second run"] = run
        bounds |= {f"{name}, {run} run": bound for run in ("first", "second")}
    return works, bounds


def two_passes(model: Any, inputs: Inputs) -> Plain:
    """One item at a time: its label, and in a second pass its vector."""

    def run(items: Sequence[Any]) -> None:
        for item in items:
            tensors = inputs(item)
            model(**tensors).logits.argmax(-1)
            model.base_model(**tensors).last_hidden_state.mean(dim=1)

    return run


def one_pass(model: Any, inputs: Inputs) -> Plain:
    """One item at a time, its vector only."""

    def run(items: Sequence[Any]) -> None:
        for item in items:
            model.base_model(**inputs(item)).last_hidden_state.mean(dim=1)

    return run


def by_hand(model: Any, inputs: Inputs, mask_of: Callable[..., Any] | None = None) -> Plain:
    """Batches in the order of the items, the vectors only; averaged over a mask if there is one."""

    def run(items: Sequence[Any]) -> None:
        for first in range(0, len(items), BATCH):
            tensors = inputs(items[first : first + BATCH])
            hidden = model.base_model(**tensors).last_hidden_state
            if mask_of is None:
                hidden.mean(dim=1)
            else:
                mask = mask_of(hidden, tensors)
                (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    return run


def compared(bench: Bench, case: Case, plain: dict[str, Plain]) -> None:
    """Plain ways and Penult's in turns, without gradients, as one table. The others are measured
    by the first plain way."""
    import torch

    works: Works = {name: partial(way, case.items) for name, way in plain.items()}
    with torch.inference_mode():
        for way in plain.values():
            way(case.items[:2])  # what is set up in a first pass
        works |= engines(bench, case.folder, case.items)
        auto, bounds = chosen(case.folder, case.items)
        if not case.timed:
            bounds = {name: replace(bound, times=0.0) for name, bound in bounds.items()}
        times = bench.paired({**works, **auto}, warm=False)
    report(bench, case, times, bounds)


def saved(folder: Path, model: Any, processor: Any) -> Any:
    """A model with random weights, saved as classifiers are, and opened again."""
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def audio(bench: Bench) -> None:
    """wav2vec2-base: the notebook, batches by hand, a pipeline, and Penult in each engine."""
    import transformers

    with models() as work:
        config = transformers.Wav2Vec2Config(num_labels=4)
        extractor = transformers.Wav2Vec2FeatureExtractor()
        model = saved(
            work / "model", transformers.Wav2Vec2ForSequenceClassification(config), extractor
        )
        paths = mixed(work, bench.options.seconds, bench.options.clips)

        def inputs(clips: Any) -> dict[str, Any]:
            one = isinstance(clips, Path)
            waves = read(clips) if one else [read(path) for path in clips]
            more = {} if one else {"padding": True, "return_attention_mask": True}
            return dict(extractor(waves, sampling_rate=16_000, return_tensors="pt", **more))

        def mask_of(hidden: Any, tensors: dict[str, Any]) -> Any:
            mask = tensors["attention_mask"]
            return model._get_feature_vector_attention_mask(hidden.shape[1], mask)

        pipe = transformers.pipeline(
            "audio-classification", model=str(work / "model"), device="cpu"
        )

        def piped(clips: Sequence[Any]) -> object:
            return pipe([{"raw": read(path), "sampling_rate": 16_000} for path in clips])

        plain: dict[str, Plain] = {
            "the notebook: label, then vector (two passes)": two_passes(model, inputs),
            "the notebook: vector only (one pass)": one_pass(model, inputs),
            # Its group norm sees the padding, so that these vectors are off.
            f"padded batches of {BATCH} by hand, vector only": by_hand(model, inputs, mask_of),
            "transformers' pipeline, label only": piped,
        }
        total = sum(soundfile.info(path).duration for path in paths)
        whole = np.concatenate([read(path) for path in paths])[: 16_000 * 10]
        clip = dict(extractor(whole, sampling_rate=16_000, return_tensors="pt"))
        gflop = flops(model, clip) / (len(whole) / 16_000) * total
        title = f"wav2vec2-base size, {len(paths)} clips of 1 to 15 s, {total:.0f} s of sound"
        compared(bench, Case(title, work / "model", paths, gflop, timed=True), plain)


def read(path: Path) -> Any:
    """(samples,) float32."""
    return soundfile.read(path, dtype="float32")[0]


def spectrogram(bench: Bench) -> None:
    """AST: one clip at a time, sentence-transformers (which opens this one), and Penult."""
    import transformers
    from sentence_transformers import SentenceTransformer

    with models() as work:
        extractor = transformers.ASTFeatureExtractor()
        config = transformers.ASTConfig(num_labels=10)
        model = saved(work / "model", transformers.ASTForAudioClassification(config), extractor)
        paths = mixed(work, 4 * MEAN, bench.options.clips)

        def inputs(path: Path) -> dict[str, Any]:
            return dict(extractor(read(path), sampling_rate=16_000, return_tensors="pt"))

        other = SentenceTransformer(str(work / "model"), device="cpu")

        def encoded(clips: Sequence[Any]) -> object:
            sound = [{"array": read(path), "sampling_rate": 16_000} for path in clips]
            return other.encode(sound, batch_size=BATCH)

        plain: dict[str, Plain] = {
            "one at a time: label, then vector (two passes)": two_passes(model, inputs),
            "sentence-transformers, vector only": encoded,
        }
        gflop = flops(model, inputs(paths[0])) * len(paths)
        title = f"AST-base size, {len(paths)} clips of one length"
        compared(bench, Case(title, work / "model", paths, gflop), plain)


def image(bench: Bench) -> None:
    """ViT-base: one picture at a time, batches by hand, and Penult in each engine."""
    import transformers

    with models() as work:
        processor = transformers.ViTImageProcessor()
        config = transformers.ViTConfig(num_labels=10)
        model = saved(work / "model", transformers.ViTForImageClassification(config), processor)
        pictures = made_pictures(24)

        def inputs(some: Any) -> dict[str, Any]:
            return dict(processor(some, return_tensors="pt"))

        plain: dict[str, Plain] = {
            "one at a time: label, then vector (two passes)": two_passes(model, inputs),
            f"batches of {BATCH} by hand, vector only": by_hand(model, inputs),
        }
        gflop = flops(model, inputs(pictures[0])) * len(pictures)
        title = f"ViT-base size, {len(pictures)} pictures"
        compared(bench, Case(title, work / "model", pictures, gflop), plain)


def text(bench: Bench) -> None:
    """BERT-base: one text at a time, batches by hand, and Penult in each engine."""
    import transformers

    with models() as work:
        tokens = tokenizer()
        config = transformers.BertConfig(vocab_size=len(tokens), num_labels=10)
        model = saved(work / "model", transformers.BertForSequenceClassification(config), tokens)
        texts = made_texts(48)

        def inputs(some: Any) -> dict[str, Any]:
            return dict(tokens(some, return_tensors="pt", padding=True))

        plain: dict[str, Plain] = {
            "one at a time: label, then vector (two passes)": two_passes(model, inputs),
            f"padded batches of {BATCH} by hand, vector only": by_hand(
                model, inputs, lambda hidden, tensors: tensors["attention_mask"]
            ),
        }
        gflop = sum(flops(model, inputs(one)) for one in texts)
        title = f"BERT-base size, {len(texts)} texts of 4 to 120 words"
        compared(bench, Case(title, work / "model", texts, gflop), plain)


def early_exit(bench: Bench) -> None:
    """A pass that ends behind layer k of 12, where no logits are wanted."""
    import transformers

    from penult.embedding.embedder import Embedder
    from penult.models.specs import load

    with models() as work:
        config = transformers.ViTConfig(num_labels=10)
        vit = transformers.ViTForImageClassification(config)
        saved(work / "model", vit, transformers.ViTImageProcessor())
        pictures = made_pictures(16)
        classifier = load(work / "model")
        works: Works = {}
        for layer in (12, 6, 3):
            embedder = Embedder.from_classifier(classifier, tap=f"layer:{layer}")
            if not works:
                works["layer 12 of 12, with logits"] = lambda e=embedder: e.embed(pictures)
            name = f"layer {layer} of 12, without logits"
            works[name] = lambda e=embedder: e.embed(pictures, logits=False)
        times = bench.paired(works)
        bench.show(ratios("ViT-base size, 16 pictures, torch fp32", times, "× the whole pass"))


def made_pictures(count: int) -> list[Any]:
    """Noise, 224 × 224, the same every time."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(count)]


def made_texts(count: int) -> list[str]:
    """4 to 120 words of `tokenizer`, the same every time."""
    random = np.random.default_rng(0)
    return [
        " ".join(f"w{word}" for word in random.integers(0, 900, random.integers(4, 120)))
        for _ in range(count)
    ]


def tokenizer() -> Any:
    """Of 900 words, w0 to w899."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(900))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]"
    )


@contextmanager
def models() -> Iterator[Path]:
    """A folder for models, whose weights are the same every time; what Penult keeps is there too,
    and all of it is gone afterwards."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    before = os.environ.get("PENULT_CACHE")
    with tempfile.TemporaryDirectory(prefix="penult-bench-") as name:
        os.environ["PENULT_CACHE"] = f"{name}/cache"
        try:
            yield Path(name)
        finally:
            os.environ.pop("PENULT_CACHE")
            if before is not None:
                os.environ["PENULT_CACHE"] = before


def forget() -> None:
    """Let Penult keep things in an empty folder from here on, beside the one before."""
    before = Path(os.environ["PENULT_CACHE"])
    os.environ["PENULT_CACHE"] = tempfile.mkdtemp(dir=before.parent)


_MEASURED = (
    "Random weights at the real sizes; medians of rounds in which all ways take turns. A row of "
    'Penult has label, logits and vector. *auto* is `engine="auto"`; its first run begins with a '
    "fresh embedder and an empty cache, and has the choice of the engine in it. GFLOP: of one pass "
    "over each item; peaks: the best matrix product of any engine in this run. Bounds in × "
    "hold on a machine with AMX, those of peaks everywhere."
)
SECTIONS = {
    "audio": Section(
        "Sound: wav2vec2-base size", _MEASURED, audio, ("clips", "seconds", "rounds"), rounds=2
    ),
    "image": Section("Pictures: ViT-base size", _MEASURED, image, ("rounds",), rounds=2),
    "text": Section("Texts: BERT-base size", _MEASURED, text, ("rounds",), rounds=2),
    "spectrogram": Section(
        "Spectrograms: AST-base size", _MEASURED, spectrogram, ("clips", "rounds")
    ),
    "early-exit": Section(
        "A pass that ends early",
        "A pass that ends behind layer k of 12, where no logits are wanted.",
        early_exit,
        ("rounds",),
    ),
}
