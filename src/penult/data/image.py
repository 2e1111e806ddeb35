"""One RGB picture from a file, bytes, an array or a PIL image. Knows nothing of any model's size.

Colours are taken as stored: no colour profile is applied, as no image processor applies one.
Transparent pixels are laid on white. 16-bit values lose their lower byte.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penult.data.files import read_bytes
from penult.data.regions import Box
from penult.errors import DecodeError, EmptyItem, ItemError, RegionError

if TYPE_CHECKING:
    from PIL import Image


EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm"}
)
# Named, because Pillow would otherwise try all that it has, and EPS runs another program.
_ORIENTATION = 0x0112
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")


def load(content: object, box: Box | None = None) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says; of an animation the first frame.

    `content` is a Path, bytes, a PIL image or an array: (height, width), (height, width, 3) or
    (height, width, 4) of uint8, or of floats in 0..1. `box` (left, top, right, bottom) is cut out
    of the upright picture.

    Raises:
        DecodeError: not an image, truncated, larger than Pillow's limit against bombs.
        EmptyItem: an array without pixels or with values that are not finite.
        RegionError: a box that does not lie in the picture.
    """
    with _opened(content) as image:
        return _cut(_upright(image), box)


def load_many(content: object, boxes: Iterable[Box | None]) -> Iterator[Image.Image | ItemError]:
    """For each box what `load` gives or raises; the picture is decoded once."""
    picture: Image.Image | None = None
    for box in boxes:
        try:
            picture = picture or load(content)
            yield _cut(picture, box)
        except ItemError as error:
            yield error.with_traceback(None)


def size(content: object) -> tuple[int, int]:
    """Width and height of the upright picture, from its header where the format allows.

    Raises:
        DecodeError, EmptyItem: as `load`, as far as the header can tell.
    """
    with _opened(content) as image:
        # Of a TIFF Pillow says the size after turning (tried: every format that has orientations).
        if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in range(5, 9):
            return image.height, image.width
        return image.width, image.height


@contextmanager
def _opened(content: object) -> Iterator[Image.Image]:
    """The picture, not decoded yet; what goes wrong inside the `with` is a DecodeError too."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(content, np.ndarray):
        yield Image.fromarray(_bytes_of(content))
        return
    if isinstance(content, Image.Image):
        yield content
        return
    if not isinstance(content, (Path, bytes)):
        raise DecodeError(
            f"a {type(content).__name__} is no image; give a Path, bytes, an array or a PIL image"
        )
    raw = read_bytes(content)
    if not raw:
        raise DecodeError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            yield image
    except ItemError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(f"not an image that Pillow knows ({len(raw)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too many pixels to be opened safely: {error}") from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and more
        raise DecodeError(f"not readable as an image: {error}") from error


def _cut(image: Image.Image, box: Box | None) -> Image.Image:
    if box is None:
        return image
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise RegionError(
            f"box {left},{top},{right},{bottom} does not lie in the picture, which is "
            f"{image.width} pixels wide and {image.height} high (left, top, right, bottom)"
        )
    return image.crop(box)


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
