"""One RGB picture from a file, bytes, an array or a PIL image. Knows nothing of any model's size.

Colours are taken as stored: no colour profile is applied, as no image processor applies one.
Transparent pixels are laid on white. 16-bit values lose their lower byte; a 16-bit picture whose
values fill 12 bits or less, which is next to black everywhere, is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penult.data.files import file_size, is_passing, item_error, read_bytes
from penult.data.items import is_object
from penult.data.regions import Box
from penult.errors import DecodeError, EmptyItem, ItemError, RegionError, TooLong, cause

if TYPE_CHECKING:
    from PIL import Image


EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm"}
)
# Named, because Pillow would otherwise try all that it has, and EPS runs another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
_PAGED = ("TIFF", "GIF", "WEBP", "PNG", "AVIF")  # a camera's JPEG holds previews, an icon sizes
_ORIENTATION, _PHOTOMETRIC, _BITS, _SUBFILE = 0x0112, 262, 258, 254  # TIFF tags, as in EXIF
_WHITE_IS_ZERO, _REDUCED_OR_MASK = 0, 0b101
_DARK = 4096  # the least 16-bit value that is more than 15 of 255


def load(
    content: object,
    box: Box | None = None,
    page: int | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says.

    `content` is a Path, bytes, a PIL image or an array: (height, width), (height, width, 3) or
    (height, width, 4) of uint8, or of floats in 0..1. `box` (left, top, right, bottom) is cut out
    of the upright picture. `page` counts the pages of a TIFF and the frames of an animation from 1;
    without it the first one is taken. `max_pixels` bounds what is given, and without a box also
    what is decoded.

    Raises:
        DecodeError: not an image, truncated, larger than Pillow's limit against bombs, or grey
            values whose range does not tell how bright they are.
        EmptyItem: an array without pixels or with values that are not finite.
        RegionError: a box that does not lie in the picture, a page that it does not have.
        TooLong: more than `max_pixels`.
    """
    with _opened(content) as image:
        _seek(image, page)
        check_pixels(*_extent(box, image.size), max_pixels)
        return _cut(_upright(image, content), box)


def _extent(box: Box | None, size: tuple[int, int]) -> tuple[int, int]:
    return size if box is None else (box[2] - box[0], box[3] - box[1])


def check_pixels(width: int, height: int, limit: int | None) -> None:
    """Refuse what has more pixels than a limit.

    Raises:
        TooLong: it has.
    """
    if limit is not None and width * height > limit:
        raise TooLong(
            f"{width} x {height} are {width * height:,} pixels in one piece, more than the limit "
            f"of {limit:,}; cut it into tiles (--tile), or raise the limit (--max-pixels)"
        )


def load_many(
    content: object,
    boxes: Iterable[Box | None],
    pages: Iterable[int | None] | None = None,
    max_pixels: int | None = None,
) -> Iterator[Image.Image | ItemError]:
    """For each box, and its page, what `load` gives or raises; boxes of one page that come one
    after the other are cut out of one decoding."""
    picture: Image.Image | None = None
    shown: int | None = None
    for box, page in zip(boxes, repeat(None) if pages is None else pages, strict=False):
        try:
            if picture is None or page != shown:
                whole = max_pixels if box is None else None
                picture, shown = load(content, page=page, max_pixels=whole), page
            check_pixels(*_extent(box, picture.size), max_pixels)
            yield _cut(picture, box)
        except ItemError as error:
            yield error.with_traceback(None)


def size(content: object, page: int | None = None) -> tuple[int, int]:
    """Width and height of the upright picture, from its header where the format allows.

    Raises:
        DecodeError, EmptyItem, RegionError: as `load`, as far as the header can tell.
    """
    with _opened(content) as image:
        _seek(image, page)
        # Of a TIFF Pillow says the size after turning (tried: every format that has orientations).
        if image.format != "TIFF" and _orientation(image) in range(5, 9):
            return image.height, image.width
        return image.width, image.height


def count_pages(content: object) -> int:
    """Pages of a TIFF or frames of an animation; 1 for all else, and for what cannot be opened."""
    from PIL import Image

    if isinstance(content, Image.Image):
        return len(_frames(content))
    if not isinstance(content, (Path, bytes)):
        return 1
    try:
        with Image.open(_as_file(content), formats=_PAGED) as image:
            return len(_frames(image))
    except Exception:  # `load` names what is wrong
        return 1


def _frames(image: Image.Image) -> list[int]:
    """The frames that are pages: of a TIFF neither smaller copies of others nor their masks."""
    number = getattr(image, "n_frames", 1) if image.format in _PAGED else 1
    if number == 1 or image.format != "TIFF":
        return list(range(number))
    shown, frames = image.tell(), [0]
    for frame in range(1, number):
        image.seek(frame)
        if not int(_tag(image, _SUBFILE) or 0) & _REDUCED_OR_MASK:
            frames.append(frame)
    image.seek(shown)
    return frames


def _tag(image: Image.Image, tag: int) -> Any:
    """A TIFF's tag, its first value where it has several; None for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _seek(image: Image.Image, page: int | None) -> None:
    if page is None:
        return
    frames = _frames(image)
    if not 1 <= page <= len(frames):
        raise RegionError(f"page {page} is not there: it has {len(frames)}, counted from 1")
    if image.tell() != frames[page - 1]:
        image.seek(frames[page - 1])


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
    raw, file = _raw(content)
    if not raw:
        raise DecodeError("the file is empty (0 bytes)")
    try:
        with Image.open(_as_file(file or _bare(raw)), formats=_FORMATS) as image:
            yield image
    except (ItemError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        tiff = raw[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        kind = (
            "a TIFF of a kind that Pillow does not read; save it with 8 bits, or 16 bits of grey"
            if tiff
            else "not an image that Pillow knows"
        )
        raise DecodeError(f"{kind} ({file_size(file) if file else len(raw)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too many pixels to be opened safely: {cause(error)}") from error
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and more
        if file is not None and is_passing(error):
            raise item_error(error) from error
        raise DecodeError(f"not readable as an image: {cause(error)}") from error


def _as_file(content: Path | bytes) -> Any:
    """Content as Pillow takes it."""
    if isinstance(content, bytes):
        return io.BytesIO(content)
    return content.open("rb") if is_object(content) else content


_IN_MEMORY = 1 << 26  # bytes of a file; of a larger one no more is read than its decoder asks for


def _raw(content: Path | bytes) -> tuple[bytes, Path | None]:
    """The bytes of a picture; of a large file its first ones, and the file.

    Raises:
        TooLong: a PNG so large that it holds much else than a picture.
    """
    if isinstance(content, bytes) or (size := file_size(content)) <= _IN_MEMORY:
        return read_bytes(content), None
    try:
        with content.open("rb") as file:
            beginning = file.read(1024)
    except OSError as error:
        raise item_error(error, f"cannot be read: {content}") from error
    if not beginning.startswith(_PNG):
        return beginning, content
    if size > _LARGEST_PNG:  # it is read whole, see `_bare`
        raise TooLong(f"a PNG of {size:,} bytes, where no picture that is read takes as many")
    return read_bytes(content), None


_LARGEST_PNG = 1 << 30
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def _bare(raw: bytes) -> bytes:
    """A PNG without its colour profile and texts, which Pillow refuses where they are large; texts
    in which the orientation may stand are kept. Other files as they are."""
    if not raw.startswith(_PNG):
        return raw
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(raw):
        length, kind = int.from_bytes(raw[start : start + 4]), raw[start + 4 : start + 8]
        end = start + 12 + length
        name = raw[start + 8 : start + 48]
        turned = name.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp"))
        if kind != b"iCCP" and (kind not in _TEXTS or turned):
            kept.append(raw[start:end])
        start = end
    return b"".join([*kept, raw[start:]])


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


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if value in range(1, 9) else 1
    except Exception:  # it is only a note beside the picture, and written by anyone
        return 1


def _upright(image: Image.Image, content: object) -> Image.Image:
    from PIL.Image import Transpose

    rawmode = _rawmode(image)
    image.load()
    if rawmode.endswith((";16B", ";16L", ";16N")) and image.mode in ("RGB", "RGBA"):
        _check_depth(image, content, rawmode)
    picture = _rgb(image)
    turns = (
        *(None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM),
        *(Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    # Pillow turns a TIFF as it loads it. Nothing of the EXIF is written again: odd values stop it.
    turn = None if image.format == "TIFF" else turns[_orientation(image) - 1]
    return picture if turn is None else picture.transpose(turn)


def _rawmode(image: Image.Image) -> str:
    """How a file that is not decoded yet stores its pixels, in Pillow's words."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _check_depth(image: Image.Image, content: object, rawmode: str) -> None:
    """Refuses colours of 16 bits that fill 12 or less: of 8 bits nothing or next to nothing is
    left of them."""
    high = max(band[1] for band in _bands(image)[:3])
    if high * 256 >= _DARK or not (high or _low_bytes(content, rawmode)):
        return
    raise DecodeError(
        "16-bit colours that fill 12 bits or less (none is above 4095 of 65535), so that the "
        "picture is next to black; scale the values to 0..65535, or save it with 8 bits"
    )


def _low_bytes(content: object, rawmode: str) -> bool:
    """Whether a picture whose upper bytes are all zero is not black."""
    from PIL import Image

    swapped = rawmode[:-1] + {"B": "L", "L": "B"}.get(rawmode[-1], rawmode[-1])
    if swapped == rawmode or not isinstance(content, (Path, bytes)):
        return False
    with Image.open(io.BytesIO(_bare(read_bytes(content))), formats=_FORMATS) as image:
        image.tile = [
            tile._replace(args=(swapped, *tile[3][1:]) if isinstance(tile[3], tuple) else swapped)
            for tile in image.tile
        ]
        try:
            image.load()
        except (OSError, ValueError, SystemError):
            return False
        return any(band[1] for band in _bands(image)[:3])


def _bands(image: Image.Image) -> list[Any]:
    """The lowest and highest value of each band."""
    return [band.getextrema() for band in image.split()]


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB" and not _has_clear_colour(image):
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    if image.has_transparency_data:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _has_clear_colour(image: Image.Image) -> bool:
    """Whether one colour of an RGB picture stands for transparent pixels, as in a PNG of 8 bits."""
    colour = image.info.get("transparency")
    return isinstance(colour, tuple) and len(colour) == 3 and max(colour) <= 255


def _grey(image: Image.Image) -> np.ndarray:
    """(height, width) of more than 8 bits, as uint8; where TIFF says so, white is zero."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        grey = _bytes_of(values)
    elif image.mode == "I" and image.format != "PPM" and 0 <= values.min() <= values.max() <= 255:
        grey = values.astype(np.uint8)  # a table of small integers, written in 32 bits
    else:
        grey = _eight_bits(values, int(_tag(image, _BITS) or 16))
    if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return grey


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """(height, width) of integers of 16 bits, or of 12 in a TIFF that says so, as uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DecodeError(f"grey values {low}..{high} are neither 8-bit nor 16-bit; convert it")
    if bits == 12:
        return (values >> 4).astype(np.uint8)
    if 0 < high < _DARK:
        raise DecodeError(
            f"grey values {low}..{high} fill 12 bits or less of 16, so that the picture is next to "
            "black; scale them to 0..65535 (12 bits: by 16), or save it with 8 bits"
        )
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
