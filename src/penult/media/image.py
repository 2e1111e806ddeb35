"""One RGB picture from a file, bytes, an array or a PIL image. Knows nothing of any model's size.

Colours are taken as stored: no colour profile is applied, as no image processor applies one.
Transparent pixels are laid on white. 16-bit values lose their lower byte.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penult.errors import DecodeError, EmptyItem
from penult.media import read_bytes

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm"}
)
# Named, because Pillow would otherwise try all that it has, and EPS runs another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")


def load(content: object) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says; of an animation the first frame.

    `content` is a Path, bytes, a PIL image or an array: (height, width), (height, width, 3) or
    (height, width, 4) of uint8, or of floats in 0..1.

    Raises:
        DecodeError: not an image, truncated, larger than Pillow's limit against bombs.
        EmptyItem: an array without pixels or with values that are not finite.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(content, np.ndarray):
        return _rgb(Image.fromarray(_bytes_of(content)))
    if isinstance(content, Image.Image):
        return _upright(content)
    if not isinstance(content, (Path, bytes)):
        raise DecodeError(
            f"a {type(content).__name__} is no image; give a Path, bytes, an array or a PIL image"
        )
    raw = read_bytes(content)
    if not raw:
        raise DecodeError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            return _upright(image)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(f"not an image that Pillow knows ({len(raw)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too many pixels to be opened safely: {error}") from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and more
        raise DecodeError(f"not readable as an image: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image.load()
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """(height, width) of 16-bit integers or of floats in 0..1, as uint8."""
    if values.dtype.kind == "f":
        return _bytes_of(values)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DecodeError(f"grey values {low}..{high} are neither 8-bit nor 16-bit; convert it")
    return (values >> 8).astype(np.uint8)


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """An array of pixels as uint8, checked for shape and range."""
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise DecodeError(
            f"an array of shape {values.shape} is no image; "
            "give (height, width), (height, width, 3) or (height, width, 4)"
        )
    if values.size == 0:
        raise EmptyItem(f"an array of shape {values.shape} has no pixels")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind != "f":
        raise DecodeError(f"pixels of type {values.dtype} are not known; give uint8 or floats 0..1")
    if not np.isfinite(values).all():
        raise EmptyItem("holds values that are not finite (NaN or infinite)")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise DecodeError(f"float pixels lie in {low:g}..{high:g}; give floats in 0..1, or uint8")
    scaled: np.ndarray = np.rint(values * 255).astype(np.uint8)
    return scaled
