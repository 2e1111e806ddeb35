"""Where the command line writes: results to stdout, the rest to stderr; or one JSON document."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
from rich.console import Console

stdout = Console(highlight=False, soft_wrap=False)
stderr = Console(stderr=True, highlight=False)


def emit(document: Any) -> None:
    """Write one JSON document to stdout. Values that JSON has no word for (NaN) become null."""
    json.dump(_plain(document), sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")


def complain(message: str, kind: str, as_json: bool) -> None:
    """Say in one sentence what went wrong."""
    if as_json:
        emit({"error": {"type": kind, "message": message}})
    stderr.print("[bold red]penult:[/]", end=" ")
    stderr.print(message, markup=False, soft_wrap=True)


def say(message: str, as_json: bool = False) -> None:
    """A line about what is being done: to stderr."""
    stderr.print(message, soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
