"""The sections of bench.py on how fast items are embedded: engines side by side, in one run.

Weights are random at the real sizes, saved to a folder that is gone afterwards; clips are real
where they are there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

WAYS = (
    ("torch", "exact"),
    ("onnxruntime", "exact"),
    ("openvino", "exact"),
    ("torch", "fast"),
    ("openvino", "fast"),
    ("openvino", "turbo"),
)
SPEECH = Path(__file__).resolve().parents[2] / "shared" / "data" / "librispeech_speakers"
BATCH = 8  # of the batches by hand
Works = dict[str, Callable[[], object]]
Inputs = Callable[[Any], dict[str, Any]]


def mixed(folder: Path, total: float, clips: Path | None) -> list[Path]:
    """Clips of 1 to 15 s until `total` seconds, cut from recordings of speech one after another."""
    random = np.random.default_rng(0)
    source = clips or SPEECH
    files = sorted([*source.rglob("*.flac"), *source.rglob("*.wav")])
    if not files:
        from bench import made_clips

        return made_clips(folder, total)
    lengths: list[float] = []
    while sum(lengths) < total:
        lengths.append(float(random.uniform(1, 15)))
    speech: list[Any] = []
    for file in random.permutation(files):
        speech.append(soundfile.read(file, dtype="float32")[0])
        if sum(map(len, speech)) > 16_000 * sum(lengths):
            break
    whole = np.concatenate(speech)
    ends = np.cumsum([round(16_000 * length) for length in lengths])
    paths = []
    for number, (wave, _) in enumerate(zip(np.split(whole, ends), lengths, strict=False)):
        paths.append(folder / f"{number:03d}.wav")
        soundfile.write(paths[-1], wave, 16_000)
    return paths


def peaks() -> dict[str, float]:
    """GFLOP/s of a large matrix product in each engine, in fp32 and, where the processor has it, in
    bfloat16: the best of some."""
    import openvino
    import torch
    from openvino import opset13 as ops

    from penult.engines.openvino import multiplies_bf16 as openvino_does
    from penult.engines.torch import multiplies_bf16 as torch_does

    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    works: dict[str, Callable[[], object]] = {"torch f32": lambda: a @ b}
    if torch_does("cpu"):
        works["torch bf16"] = lambda x=a.bfloat16(), y=b.bfloat16(): x @ y
    for numbers in ("f32", "bf16") if openvino_does() else ("f32",):
        entry = ops.parameter([n, n], np.float32)
        product = ops.matmul(entry, ops.constant(b.numpy()), False, False)
        # Several in a row, so that copies in and out count for less.
        for _ in range(3):
            product = ops.matmul(product, ops.constant(b.numpy() / n), False, False)
        settings = {
            "INFERENCE_PRECISION_HINT": numbers,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        run = openvino.Core().compile_model(openvino.Model([product], [entry]), "CPU", settings)
        works[f"openvino {numbers}"] = lambda run=run: run([a.numpy()])
    found = {}
    for name, work in works.items():
        work()
        times = []
        for _ in range(6):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        found[name] = 2e-9 * n**3 * (4 if "openvino" in name else 1) / min(times)
    return found


def flops(model: Any, inputs: dict[str, Any]) -> float:
    """GFLOP of one pass, counted by torch: two for each multiplication and addition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() / 1e9


def report(title: str, times: dict[str, float], work: float) -> None:
    """A table: seconds, the ratio to the first, and the share of this machine's own peak."""
    from bench import console
    from rich.table import Table

    best = peaks()
    kinds = {name.split()[1] for name in best}
    tops = {n: max(v for k, v in best.items() if k.endswith(n)) for n in sorted(kinds)[::-1]}
    table = Table(title=f"{title}; {work:.0f} GFLOP", title_justify="left")
    peak_columns = [f"of {numbers} peak" for numbers in tops]
    for column in ("what", "median seconds", "× the first", "GFLOP/s", *peak_columns):
        table.add_column(column, justify="left" if column == "what" else "right")
    first = next(iter(times.values()))
    for name, value in times.items():
        rate = work / value
        shares = [f"{rate / top:.0%}" for top in tops.values()]
        table.add_row(name, f"{value:.2f}", f"{first / value:.2f}", f"{rate:.0f}", *shares)
    console.print(table)
    said = ", ".join(f"{name} {value:.0f}" for name, value in best.items())
    console.print(f"matrix product of this machine just now, GFLOP/s: {said}\n")


def ours(folder: Path, items: Any) -> Works:
    """Penult with each engine and precision, settled and warm; what each was measured to give."""
    from bench import console

    from penult.embedding.embedder import Embedder
    from penult.errors import PenultError
    from penult.models.specs import load

    works: Works = {}
    taken = set()
    for engine, precision in WAYS:
        embedder = Embedder.from_classifier(load(folder), engine=engine, precision=precision)
        try:
            embedder.run(items)
        except PenultError as error:
            console.print(f"{engine} {precision}: {error}")
            continue
        choice = embedder.runner.choice
        console.print(f"[dim]Penult {engine} {precision}: {choice.words if choice else 'fp32'}[/]")
        if (
            embedder.runner.mode not in taken
        ):  # where bfloat16 or eight bits do not serve, fp32 is run
            taken.add(embedder.runner.mode)
            works[f"Penult, {embedder.runner.mode.words} ({precision})"] = lambda e=embedder: e.run(
                items
            )
    return works


def two_passes(model: Any, inputs: Inputs, items: Sequence[Any]) -> Callable[[], None]:
    """One item at a time: its label, and in a second pass its vector."""

    def run() -> None:
        for item in items:
            tensors = inputs(item)
            model(**tensors).logits.argmax(-1)
            model.base_model(**tensors).last_hidden_state.mean(dim=1)

    return run


def one_pass(model: Any, inputs: Inputs, items: Sequence[Any]) -> Callable[[], None]:
    """One item at a time, its vector only."""

    def run() -> None:
        for item in items:
            model.base_model(**inputs(item)).last_hidden_state.mean(dim=1)

    return run


def by_hand(
    model: Any, inputs: Inputs, items: Sequence[Any], mask_of: Callable[..., Any] | None = None
) -> Callable[[], None]:
    """Batches in the order of the items, the vectors only; averaged over a mask if there is one."""

    def run() -> None:
        for first in range(0, len(items), BATCH):
            tensors = inputs(items[first : first + BATCH])
            hidden = model.base_model(**tensors).last_hidden_state
            if mask_of is None:
                hidden.mean(dim=1)
            else:
                mask = mask_of(hidden, tensors)
                (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    return run


def compared(title: str, works: Works, gflop: float, options: argparse.Namespace) -> None:
    """Everything in turns, without gradients, as one table."""
    import torch
    from bench import paired

    with torch.inference_mode():
        times = paired(works, rounds=options.rounds)
    report(title, times, gflop)


def saved(folder: Path, model: Any, processor: Any) -> Any:
    """A model with random weights, saved as classifiers are, and opened again."""
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def audio(options: argparse.Namespace) -> None:
    """wav2vec2-base: the notebook, batches by hand, a pipeline, and Penult in each engine."""
    import transformers

    with _models() as work:
        config = transformers.Wav2Vec2Config(num_labels=4)
        extractor = transformers.Wav2Vec2FeatureExtractor()
        model = saved(
            work / "model", transformers.Wav2Vec2ForSequenceClassification(config), extractor
        )
        paths = mixed(work, options.seconds, options.clips)
        total = sum(soundfile.info(path).duration for path in paths)

        def read(path: Path) -> Any:
            return soundfile.read(path, dtype="float32")[0]

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
        works: Works = {
            "the notebook: label, then vector (two passes)": two_passes(model, inputs, paths),
            "the notebook: vector only (one pass)": one_pass(model, inputs, paths),
            # Its group norm sees the padding, so that these vectors are off.
            f"padded batches of {BATCH} by hand, vector only": by_hand(
                model, inputs, paths, mask_of
            ),
            "transformers' pipeline, label only": lambda: pipe(
                [{"raw": read(path), "sampling_rate": 16_000} for path in paths]
            ),
            **ours(work / "model", paths),
        }
        whole = np.concatenate([read(path) for path in paths])[: 16_000 * 10]
        clip = dict(extractor(whole, sampling_rate=16_000, return_tensors="pt"))
        each = flops(model, clip) / (len(whole) / 16_000)
        title = f"wav2vec2-base size, {len(paths)} clips of 1–15 s, {total:.0f} s of audio"
        compared(title, works, each * total, options)


def spectrogram(options: argparse.Namespace) -> None:
    """AST: one clip at a time, sentence-transformers (which opens this one), and Penult."""
    import transformers
    from sentence_transformers import SentenceTransformer

    with _models() as work:
        extractor = transformers.ASTFeatureExtractor()
        config = transformers.ASTConfig(num_labels=10)
        model = saved(work / "model", transformers.ASTForAudioClassification(config), extractor)
        paths = mixed(work, 40, options.clips)[:6]
        waves = [soundfile.read(path, dtype="float32")[0] for path in paths]

        def inputs(wave: Any) -> dict[str, Any]:
            return dict(extractor(wave, sampling_rate=16_000, return_tensors="pt"))

        other = SentenceTransformer(str(work / "model"), device="cpu")
        sound = [{"array": wave, "sampling_rate": 16_000} for wave in waves]
        works: Works = {
            "one at a time: label, then vector (two passes)": two_passes(model, inputs, waves),
            "sentence-transformers, vector only": lambda: other.encode(sound, batch_size=BATCH),
            **ours(work / "model", paths),
        }
        work_of_all = flops(model, inputs(waves[0])) * len(paths)
        compared(f"AST-base size, {len(paths)} clips", works, work_of_all, options)


def image(options: argparse.Namespace) -> None:
    """ViT-base: one picture at a time, batches by hand, and Penult in each engine."""
    import transformers

    with _models() as work:
        processor = transformers.ViTImageProcessor()
        config = transformers.ViTConfig(num_labels=10)
        model = saved(work / "model", transformers.ViTForImageClassification(config), processor)
        pictures = made_pictures(24)

        def inputs(some: Any) -> dict[str, Any]:
            return dict(processor(some, return_tensors="pt"))

        works = {
            "one at a time: label, then vector (two passes)": two_passes(model, inputs, pictures),
            f"batches of {BATCH} by hand, vector only": by_hand(model, inputs, pictures),
            **ours(work / "model", pictures),
        }
        work_of_all = flops(model, inputs(pictures[0])) * len(pictures)
        compared(f"ViT-base size, {len(pictures)} pictures", works, work_of_all, options)


def text(options: argparse.Namespace) -> None:
    """BERT-base: one text at a time, batches by hand, and Penult in each engine."""
    import transformers

    with _models() as work:
        tokenizer = _tokenizer()
        config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=10)
        model = saved(work / "model", transformers.BertForSequenceClassification(config), tokenizer)
        random = np.random.default_rng(0)
        texts = [
            " ".join(f"w{word}" for word in random.integers(0, 900, random.integers(4, 120)))
            for _ in range(48)
        ]

        def inputs(some: Any) -> dict[str, Any]:
            return dict(tokenizer(some, return_tensors="pt", padding=True))

        works = {
            "one at a time: label, then vector (two passes)": two_passes(model, inputs, texts),
            f"padded batches of {BATCH} by hand, vector only": by_hand(
                model, inputs, texts, lambda hidden, tensors: tensors["attention_mask"]
            ),
            **ours(work / "model", texts),
        }
        total = sum(flops(model, inputs(one)) for one in texts)
        compared(f"BERT-base size, {len(texts)} texts of 4 to 120 words", works, total, options)


def early_exit(options: argparse.Namespace) -> None:
    """A pass that ends behind layer k of 12, where no logits are wanted."""
    import transformers
    from bench import paired, show

    from penult.embedding.embedder import Embedder
    from penult.models.specs import load

    with _models() as work:
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
        show("ViT-base size, 16 pictures, torch fp32", paired(works, rounds=options.rounds))


def made_pictures(count: int) -> list[Any]:
    """Noise, 224 × 224, the same every time."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(count)]


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(900))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]"
    )


class _models:  # noqa: N801  # a context, like a function
    """A folder for models, whose weights are the same every time; recorded graphs are kept there
    too, and all of it is gone afterwards."""

    def __enter__(self) -> Path:
        import os

        import torch

        torch.manual_seed(0)
        self._folder = tempfile.TemporaryDirectory()
        os.environ["PENULT_CACHE"] = f"{self._folder.name}/cache"
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        import os

        os.environ.pop("PENULT_CACHE")
        self._folder.cleanup()


SECTIONS = {
    "audio": audio,
    "spectrogram": spectrogram,
    "image": image,
    "text": text,
    "early-exit": early_exit,
}
