"""Keep transformers' own reports off the terminal: what matters is raised or told by Penult."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own reports off the terminal: what matters is raised or told by us."""
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
