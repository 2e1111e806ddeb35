"""A checkpoint's own preprocessing: decoded content in, the model's keyword arguments out."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from penult.errors import ModelError, UsageError, cause
from penult.models.base import Inputs, InputSpec, Preparer, digest
from penult.models.hub import closed
from penult.models.preparation import audio_words, image_words
from penult.models.synthetic import content_of, noise


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own reports off the terminal: what matters is raised here."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, _progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            _progress_bars(True)


def _progress_bars(on: bool = False) -> bool:
    """Switch transformers' progress bars; returns how they were."""
    if "transformers.utils" not in sys.modules:  # other libraries' files are opened without it
        return False
    from transformers.utils import logging as hf_logging

    was = bool(hf_logging.is_progress_bar_enabled())
    switch: Any = hf_logging.enable_progress_bar if on else hf_logging.disable_progress_bar
    switch()
    return was


class AudioPreparer:
    """Samples (n,) at `rate` → input values or features, by a feature extractor."""

    def __init__(self, extractor: Any) -> None:
        self._extractor = extractor
        self.rate = int(extractor.sampling_rate)
        self._kept: float | bool | None = False  # seconds; None: everything; False: not yet known
        self._begins: bool | None = None  # None: not yet known

    @property
    def input(self) -> InputSpec:
        """Sound, at the extractor's rate and of the length that it keeps."""
        seconds = self.kept_seconds()
        return InputSpec("audio", self.rate, seconds=seconds, beginning=self._of_beginning())

    def __call__(self, content: Any) -> Inputs:
        """Prepare one clip; `truncated` is in seconds."""
        tensors = self._tensors(content)
        kept = self.kept_seconds()
        longer = kept is not None and len(content) > kept * self.rate
        return Inputs(tensors, kept if longer else None)

    def _tensors(self, samples: Any) -> dict[str, Tensor]:
        values = self._extractor(samples, sampling_rate=self.rate, return_tensors="pt")
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def example(self, seed: int) -> Inputs:
        """One second of noise, prepared."""
        return self(self._noise(seed, 1.0))

    def _noise(self, seed: int, seconds: float) -> Any:
        return noise(seed, seconds, self.rate)

    def kept_seconds(self) -> float | None:
        """How much of a long clip reaches the model; None if all of it does.

        Measured, not read off a setting: the shortest beginning of a long clip that still gives
        the same input, to the millisecond.
        """
        if self._kept is False:
            self._kept = self._measure_kept()
        return None if self._kept is None else float(self._kept)

    def _measure_kept(self) -> float | None:
        shapes = {
            tuple(sorted((name, tuple(value.shape)) for name, value in self._tensors(clip).items()))
            for clip in (self._noise(0, 1.0), self._noise(0, 2.5))
        }
        if len(shapes) > 1:
            return None
        low, high = 0.0, 1.0
        while self._differs(high) and high < 600:
            low, high = high, 2 * high
        while high - low > 0.001:
            middle = (low + high) / 2
            low, high = (middle, high) if self._differs(middle) else (low, middle)
        return round(high, 2)

    def _of_beginning(self) -> bool:
        """Whether nothing behind the seconds that are kept changes the input, however loud or
        long: measured, since an extractor may look at the whole clip for its level."""
        if self._begins is None:
            kept = self.kept_seconds()
            self._begins = kept is not None and kept <= _LONGEST_BEGINNING
            clip = self._noise(3, (kept or 0) + 1.0) if self._begins else None
            for seconds, level in ((0.5, 8.0), (kept or 0, 1.0)):
                if clip is None or not self._begins:
                    break
                longer = np.concatenate([clip, level * self._noise(4, seconds) + level / 4])
                one, other = self._tensors(clip), self._tensors(longer.astype(np.float32))
                self._begins = _equal(one, other)
        return self._begins

    def _differs(self, seconds: float) -> bool:
        """Whether the model's input changes if a clip goes on after `seconds`."""
        clip = self._noise(1, seconds)
        # The continuation is quieter, so that no peak level of the whole clip changes with it.
        longer = np.concatenate([clip, 0.5 * self._noise(2, seconds)])
        first, second = self._tensors(clip), self._tensors(longer)
        return any(not np.array_equal(first[name], second[name]) for name in first)

    def digest(self) -> str:
        """Hash of the extractor's settings and of which filter bank computes its features."""
        from transformers.utils.import_utils import is_speech_available

        return digest([type(self._extractor).__name__, self.settings(),
                       "kaldi" if is_speech_available() else "numpy"])  # fmt: skip

    def truncation(self) -> str:
        """`none`, or the seconds that are kept."""
        kept = self.kept_seconds()
        return "none" if kept is None else f"first {kept:g} s"

    def description(self) -> str:
        """Rate, features, normalising."""
        return audio_words(self._extractor.to_dict())

    def settings(self) -> dict[str, Any]:
        """The extractor's, with those of its class where its file names none."""
        return _settings(self._extractor)


class ImagePreparer:
    """A PIL image → pixel values, by an image processor."""

    input = InputSpec("image")

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, content: Any) -> Inputs:
        """Prepare one image."""
        return _inputs(self._processor(images=content, return_tensors="pt"))

    def example(self, seed: int) -> Inputs:
        """A noise image of 320 × 240 pixels, or as many frames of it, prepared."""
        return self(content_of(self.input.modality, seed, frames=self.input.frames))

    def digest(self) -> str:
        """Hash of the processor's settings and of the backend that resizes."""
        return digest([type(self._processor).__name__, self.settings()])

    def truncation(self) -> str:
        """Cropping is part of the processor's settings."""
        return "none"

    def description(self) -> str:
        """Size, crop, range, mean and deviation."""
        return image_words(self._processor.to_dict())

    def settings(self) -> dict[str, Any]:
        """The processor's, with those of its class where its file names none."""
        return _settings(self._processor)


class VideoPreparer(ImagePreparer):
    """Frames (T, H, W, 3) → pixel values, by a video processor or by an image processor that
    takes the frames of one clip as a list."""

    def __init__(self, processor: Any, frames: int) -> None:
        super().__init__(processor)
        self.input = InputSpec("video", frames=frames)

    def __call__(self, content: Any) -> Inputs:
        """Prepare one clip's frames."""
        if "VideoProcessor" in type(self._processor).__name__:
            return _inputs(self._processor(videos=content, return_tensors="pt"))
        return _inputs(self._processor(list(content), return_tensors="pt"))

    def truncation(self) -> str:
        """Frames are sampled over the whole clip."""
        return f"{self.input.frames} frames sampled evenly"


class TextPreparer:
    """A text → token ids, by a tokenizer, cut at what the model can take."""

    def __init__(self, tokenizer: Any, longest: int | None) -> None:
        self._tokenizer = tokenizer
        self._longest = longest
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._truncation = None if backend is None else backend.truncation

    @property
    def input(self) -> InputSpec:
        """Texts, whose windows the tokenizer counts."""
        return InputSpec("text", divide=self.windows, beginning=self._from_the_left)

    @property
    def _from_the_left(self) -> bool:
        """Whether the tokens that are kept are a text's first ones."""
        side = getattr(self._tokenizer, "truncation_side", "right")
        return self._longest is not None and side == "right"

    def __call__(self, content: Any) -> Inputs:
        """Prepare one text; `truncated` is in tokens."""
        limit = self._longest
        if limit is not None and self._from_the_left and isinstance(content, str):
            cut = self._of_beginning(content, limit)
            if cut is not None:
                return Inputs(cut, float(limit))
        values = self._tokenizer(content, return_tensors="pt")
        if limit is None or values["input_ids"].shape[1] <= limit:
            return Inputs(dict(values))
        return Inputs(self._truncated(content, limit), float(limit))

    def _truncated(self, content: str, limit: int) -> dict[str, Tensor]:
        return dict(
            self._tokenizer(content, truncation=True, max_length=limit, return_tensors="pt")
        )

    def _of_beginning(self, content: str, limit: int) -> dict[str, Tensor] | None:
        """What the whole text gives, from a beginning of it: one that is long enough for twice the
        tokens that are kept, where one of half its length keeps the same. None: none is."""
        size = _CHARACTERS * limit
        before: dict[str, Tensor] | None = None
        while size < len(content):
            part = content[:size]
            enough = len(self._tokenizer(part, verbose=False)["input_ids"]) > 2 * limit
            cut = self._truncated(part, limit) if enough else None
            if cut is not None and before is not None and _equal(cut, before):
                return cut
            before, size = cut, 2 * size
        return None

    def windows(self, content: str, window: int, hop: int | None) -> list[tuple[int, int]]:
        """The first character and the one behind the last of each window of at most `window`
        tokens, special ones included, one each `hop` tokens (default: without an overlap).

        A window begins and ends between words, where no word is longer than it; the last one is
        moved back so that it ends with the text. Prepared alone, each fits.

        Raises:
            UsageError: more tokens than the model takes, fewer than one of the text's own.
        """
        limit, special = self._longest, self._tokenizer.num_special_tokens_to_add()
        if limit is not None and window > limit:
            raise UsageError(
                f"a window of {window} tokens is longer than what the model takes; give {limit} "
                "or less"
            )
        if window <= special:
            raise UsageError(
                f"a window of {window} tokens has no room for a text: {special} of them are "
                "special ones; give more"
            )
        if not getattr(self._tokenizer, "is_fast", False):
            raise UsageError(
                "this model's tokenizer does not tell where in a text its tokens stand; cut the "
                "texts, one in each row of a table"
            )
        size = window - special
        words = self._words(content, size)
        return _spans(words, size, hop or size, lambda a, b: self._count(content[a:b]))

    def _words(self, content: str, size: int) -> list[_Word]:
        """The words of a text in its tokens; one of more than `size` of them as its tokens."""
        values = self._tokenizer(
            content, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        pieces = zip(values.word_ids(0), values["offset_mapping"], strict=True)
        words: list[_Word] = []
        for _, group in groupby(enumerate(pieces), key=lambda one: (one[1][0], one[1][0] is None)):
            spans = [tuple(span) for _, (_, span) in group]
            parts = [spans] if len(spans) <= size else [[span] for span in spans]
            words += [_Word(p[0][0], max(end for _, end in p), len(p)) for p in parts]
        return words

    def _count(self, content: str) -> int:
        values = self._tokenizer(content, add_special_tokens=False, verbose=False)
        return len(values["input_ids"])

    def example(self, seed: int) -> Inputs:
        """A short text, prepared; other seeds, other words."""
        return self(content_of("text", seed))

    def digest(self) -> str:
        """Hash of the vocabulary, the rules and the special tokens."""
        own = self._tokenizer
        rules = self.rules() or own.get_vocab()
        return digest([type(own).__name__, rules, own.padding_side, str(own.special_tokens_map)])

    def rules(self) -> str | None:
        """The tokenizer's, as tokenizer.json holds them, with what its other files add to it; None
        where they are in Python."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        backend.no_truncation()  # a text that was cut leaves its limit there
        if self._truncation is not None:
            backend.enable_truncation(**self._truncation)
        return str(backend.to_str())

    def truncation(self) -> str:
        """`none`, or the tokens that are kept."""
        return "none" if self._longest is None else f"first {self._longest} tokens"

    def description(self) -> str:
        """Tokenizer, vocabulary and longest text."""
        own = self._tokenizer
        longest = "" if self._longest is None else f", the first {self._longest} of them"
        return f"tokens of {type(own).__name__}, {len(own):,} in the vocabulary{longest}"


_LONGEST_BEGINNING = 120.0  # seconds; a model that keeps more has no fixed length
_CHARACTERS = 16  # for each token that is kept, of the first beginning that is looked at


class _Word(NamedTuple):
    """Where a word stands in a text, and how many tokens it is."""

    start: int
    end: int
    tokens: int


def _spans(
    words: list[_Word], size: int, step: int, count: Callable[[int, int], int]
) -> list[tuple[int, int]]:
    """Characters of each window. count: tokens of a part of the text, taken alone."""
    places = [0, *accumulate(word.tokens for word in words)]  # in tokens, of each word's start
    last = bisect_left(places, places[-1] - size)  # where the last one would begin
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(words):
        end = max(start + 1, bisect_right(places, places[start] + size) - 1)
        if end >= len(words) and found:  # the last one is moved back, where it still fits
            back = min(start, last)
            start = back if count(words[back].start, words[-1].end) <= size else start
        first = words[start].start
        while count(first, words[end - 1].end) > size and end > start + 1:
            end -= 1
        if words[end - 1].end > first:
            found.append((first, words[end - 1].end))
        if end >= len(words):
            break
        goal = places[start] + step
        if step <= size:  # no word between two windows is left out
            goal = min(goal, places[end])
        start = max(start + 1, min(bisect_right(places, goal) - 1, last))
    return found


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _inputs(values: Any) -> Inputs:
    """The tensors that a processor gave."""
    return Inputs({name: value for name, value in values.items() if isinstance(value, Tensor)})


def _settings(processor: Any) -> dict[str, Any]:
    settings = {
        name: value
        for name, value in processor.to_dict().items()
        if name
        not in {"processor_class", "_processor_class", "transformers_version", "name_or_path"}
    }
    text = json.dumps(settings, default=_exactly, sort_keys=True)
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _exactly(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return str(value)


_FILES = {
    "text": ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json",
             "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    "audio": ("preprocessor_config.json", "processor_config.json"),
    "image": ("preprocessor_config.json", "processor_config.json"),
    "video": ("preprocessor_config.json", "processor_config.json",
              "video_preprocessor_config.json"),
}  # fmt: skip


def is_timm(config: Any) -> bool:
    """Whether a configuration is of timm, which names the preprocessing itself."""
    return getattr(config, "model_type", "") == "timm_wrapper"


def require_files(folder: Path, modality: str, config: Any) -> None:
    """Check that the folder says how its model's input is prepared.

    Raises:
        ModelError: it does not; the message names the file that is missing.
    """
    files = _FILES[modality]
    if not is_timm(config) and not any((folder / name).is_file() for name in files):
        raise ModelError(
            f"{folder} has no {files[0]}: without it nothing says how {modality} is prepared for "
            "this model. Copy that file from the checkpoint that it was fine-tuned from, save the "
            "preprocessing that it was trained with there, or name your own with --preprocess"
        )


def open_preparer(
    folder: Path, modality: str, config: Any, module: nn.Module, trust: bool
) -> Preparer:
    """The checkpoint's own feature extractor, image or video processor, or tokenizer.

    Raises:
        ModelError: it cannot be opened.
    """
    import transformers

    auto = {"audio": "AutoFeatureExtractor", "text": "AutoTokenizer"}.get(
        modality, "AutoImageProcessor"
    )
    if modality == "video" and (folder / "video_preprocessor_config.json").is_file():
        auto = "AutoVideoProcessor"
    try:
        with quiet(), closed(trust):
            opened = (
                transformers.TimmWrapperImageProcessor(config.pretrained_cfg, config.architecture)
                if is_timm(config)
                else getattr(transformers, auto).from_pretrained(
                    folder, trust_remote_code=trust, local_files_only=True
                )
            )
    except Exception as error:  # whatever a broken file makes of transformers and its tokenizers
        name = "config.json" if is_timm(config) else _FILES[modality][0]
        raise ModelError(f"{folder}: its {name} cannot be used: {cause(error)}") from error
    if modality == "audio":
        return _audio(opened, folder)
    if modality == "text":
        return TextPreparer(opened, _longest_text(opened, config, module))
    if modality == "video":
        return VideoPreparer(opened, _frames_of(config))
    return ImagePreparer(opened)


_HIGHEST_RATE = 1_000_000  # samples a second that a folder's own word is taken for


def _audio(extractor: Any, folder: Path) -> AudioPreparer:
    rate = getattr(extractor, "sampling_rate", None)
    if not rate:
        raise ModelError(
            f"{folder}: its preprocessor_config.json names no sampling_rate, so it does not "
            "prepare audio. Write the rate that the model was trained at there "
            '("sampling_rate": 16000), or name your own preprocessing with --preprocess and '
            "--sample-rate"
        )
    if not isinstance(rate, int | float) or not 0 < rate <= _HIGHEST_RATE:
        raise ModelError(
            f"{folder}: its preprocessor_config.json has the sampling_rate {rate!r}, and a model "
            f"hears 1 to {_HIGHEST_RATE:,} samples a second"
        )
    return AudioPreparer(extractor)


def _frames_of(config: Any) -> int:
    """Frames per clip that a video model takes."""
    for name in ("num_frames", "frames_per_clip"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 16


def _longest_text(tokenizer: Any, config: Any, module: nn.Module) -> int | None:
    """Tokens that the model has positions for; None if nothing limits them."""
    limits = []
    if tokenizer.model_max_length < 1_000_000:
        limits.append(int(tokenizer.model_max_length))
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _first_position(module))
    return min(limits) if limits else None


def _first_position(module: nn.Module) -> int:
    """Where a model's positions begin: RoBERTa and its kin count from padding_idx + 1."""
    for name, child in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(child, nn.Embedding):
            return 0 if child.padding_idx is None else child.padding_idx + 1
    return 0
