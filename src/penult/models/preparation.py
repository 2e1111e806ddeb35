"""How items are prepared, in words, from the settings of what prepares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penult.models.source_code import BUNDLED

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def image_words(settings: Mapping[str, Any]) -> str:
    """Of an image or video processor's settings: size, crop, range, mean and deviation."""
    if isinstance(settings.get("data_config"), Mapping):
        return timm_words(settings["data_config"])
    parts = []
    if settings.get("do_resize") and settings.get("size"):
        kind = _FILTERS.get(settings.get("resample"), "")  # type: ignore[arg-type]
        parts.append(f"resized to {_size(settings['size'])}" + (f", {kind}" if kind else ""))
    if settings.get("do_center_crop") and settings.get("crop_size"):
        parts.append(f"centre crop of {_size(settings['crop_size'])}")
    if settings.get("do_rescale") and settings.get("rescale_factor"):
        parts.append(f"values × {settings['rescale_factor']:.4g}")
    if settings.get("do_normalize"):
        parts += _normal(settings.get("image_mean"), settings.get("image_std"))
    return ", ".join(parts) or "as it is"


def timm_words(config: Mapping[str, Any]) -> str:
    """Of timm's data config."""
    size = " × ".join(str(side) for side in config.get("input_size", ())[1:])
    share = config.get("crop_pct") or 1.0
    parts = [
        f"{size} pixels, {config.get('interpolation', '')}",
        f"{config.get('crop_mode', 'center')} crop of {share:.4g} of the resized side",
        *_normal(config.get("mean"), config.get("std")),
    ]
    return ", ".join(parts)


def audio_words(settings: Mapping[str, Any]) -> str:
    """Of a feature extractor's settings: rate, features, normalising."""
    rate, bins = settings.get("sampling_rate"), settings.get("num_mel_bins")
    bins = bins or (
        settings.get("feature_size") if (settings.get("feature_size") or 1) > 1 else None
    )
    parts = [
        f"resampled to {rate:,} Hz" if rate else "",
        f"{bins} features a frame" if bins else "",
    ]
    if settings.get("do_normalize"):
        mean, deviation = settings.get("mean"), settings.get("std")
        fixed = isinstance(mean, int | float) and isinstance(deviation, int | float)
        parts.append(
            f"mean {mean:.4g}, deviation {deviation:.4g}" if fixed else "each clip normalised"
        )
    return ", ".join(filter(None, parts)) or "as it is"


def function_words(
    function: Callable[..., Any], settings: Mapping[str, Any], rate: int | None
) -> str:
    """Of a function from one item to tensors; those of a library by their settings."""
    if "timm" in settings:
        return timm_words(settings["timm"])
    if "keras" in settings:
        return str(settings["keras"])
    if "torchvision" in settings:
        return " ".join(str(settings["torchvision"]).split())
    if "samples" in settings:
        return f"raw samples at {settings['samples']:,} Hz"
    module = getattr(function, "__module__", None) or type(function).__module__
    if module.startswith(BUNDLED):  # it lies in a saved folder
        module = module.partition(".")[2]
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"by {module}:{name}" + (f", of sound at {rate:,} Hz" if rate else "")


def with_length(words: str, seconds: float | None) -> str:
    """With the fixed length, where there is one."""
    return words if seconds is None else f"{words}, padded or cut to {seconds:g} s"


def with_patches(words: str, patches: str | None) -> str:
    """With how patches become rows, where an item has several."""
    rows = {
        "mean": ", the mean of its patches",
        "max": ", the maximum of its patches",
        "rows": ", a row for each patch",
    }
    return words + rows.get(patches or "", "")


def _size(size: Any) -> str:
    if not isinstance(size, Mapping):
        return " × ".join(map(str, size)) if isinstance(size, Sequence) else str(size)
    if "height" in size and "width" in size:
        return f"{size['height']} × {size['width']}"
    return ", ".join(f"{name.replace('_', ' ')} {side}" for name, side in size.items() if side)


def _normal(mean: Any, deviation: Any) -> list[str]:
    if mean is None or deviation is None:
        return []
    return [f"mean {_numbers(mean)}", f"deviation {_numbers(deviation)}"]


def _numbers(values: Any) -> str:
    several = [*values] if isinstance(values, Sequence) else [values]
    figures = [f"{value:.4g}" for value in several]
    return figures[0] if len(set(figures)) == 1 else f"({', '.join(figures)})"
