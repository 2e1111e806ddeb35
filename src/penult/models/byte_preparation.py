"""A file's bytes as the input of a classifier of file types: the first and the last of them, as the
configuration beside the model says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penult.data.bytes import BLOCK, FileEnds
from penult.data.documents import of_others
from penult.errors import ModelError, TooShort, cause
from penult.models.class_names import keyed

CONFIG = "config.min.json"  # beside the model, as magika publishes it
_LARGEST = 1 << 20  # bytes of a configuration


@dataclass(frozen=True, slots=True)
class BytePreparation:
    """first, last: bytes of either end, white space at the end left off. padding: the number that
    stands for a byte that is not there. least: bytes behind white space from which a file is told
    at all. labels: class names."""

    first: int
    last: int
    padding: int
    least: int = 0
    labels: tuple[str, ...] = field(default=(), compare=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What tells it from another one."""
        return {
            "first": self.first, "last": self.last, "padding": self.padding, "least": self.least
        }  # fmt: skip

    def __call__(self, content: FileEnds) -> Any:
        """(first + last,) int32.

        Raises:
            TooShort: so little that the model was never asked about it.
        """
        from torch import from_numpy

        beginning = content.first.lstrip()[: self.first]
        if len(beginning) < self.least:
            raise TooShort(
                f"has {len(beginning)} bytes behind white space in its first {BLOCK:,}, and this "
                f"model tells files of {self.least} or more"
            )
        kept = content.last.rstrip()
        end = kept[max(0, len(kept) - self.last) :]
        found = np.full(self.first + self.last, self.padding, np.int32)
        found[: len(beginning)] = np.frombuffer(beginning, np.uint8)
        if end:
            found[-len(end) :] = np.frombuffer(end, np.uint8)
        return from_numpy(found)

    def example(self, seed: int) -> Any:
        """The input of a made-up file."""
        noise = np.random.default_rng(seed).integers(0, 256, BLOCK, np.uint8).tobytes()
        return self(FileEnds(noise, noise, BLOCK))


def preparation_beside(path: Path) -> BytePreparation | None:
    """What the configuration beside a model says; None where there is none.

    Raises:
        ModelError: it cannot be read, or asks for what is not done here.
    """
    file = path.with_name(CONFIG)
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        found = of_others(file.read_text("utf-8"))
        first, last, padding = (
            int(found[name]) for name in ("beg_size", "end_size", "padding_token")
        )
        least = int(found.get("min_file_size_for_dl", 0))
        block = int(found.get("block_size", BLOCK))
        labels = found.get("target_labels_space", [])
        names = [*keyed(labels, str(file)).values()] if labels else []
        middle = int(found.get("mid_size", 0)) or bool(found.get("use_inputs_at_offsets"))
        if block != BLOCK or not 0 <= least <= first:
            raise ValueError(f"it asks for blocks of {block} bytes, {least} of them at least")
        if middle or not 0 <= min(first, last) <= max(first, last) <= BLOCK or not first + last:
            raise ValueError(f"it asks for other bytes than the first and last {BLOCK}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} does not say which bytes are taken: {cause(error)}") from error
    return BytePreparation(first, last, padding, least, tuple(names))
