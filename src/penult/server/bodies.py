"""Bodies of requests: what a client may ask for, checked; and the media in data URIs."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field

from penult.collection.row_layout import RowLayout
from penult.data.windows import Layout
from penult.errors import UsageError

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_EXAMPLE = {
    "audio": "data:audio/flac;base64,…",
    "image": "data:image/png;base64,…",
    "video": "data:video/mp4;base64,…",
    "array": "data:application/octet-stream;base64,…, a .npy file",
    "bytes": "data:application/octet-stream;base64,…",
}
_ANY_MEDIA = ("application/octet-stream", "binary/octet-stream")
Seconds = Annotated[float, Field(gt=0, le=1e6)]
Item = bytes | str


class Body(BaseModel):
    """What all requests with items have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="The embedder's name, as /v1/models has it.")
    input: Any = Field(
        None,
        description="One item or a list of items: texts, of sound, pictures and videos data URIs "
        "(data:audio/flac;base64,…). No path and no URL is opened.",
    )
    window: Seconds | None = Field(
        None, description="Cut recordings into windows of so many seconds, texts of so many tokens."
    )
    hop: Seconds | None = Field(None, description="Step from one window to the next.")
    tile: int | None = Field(None, ge=1, description="Cut pictures into square tiles, pixels.")
    overlap: int = Field(0, ge=0, description="Overlap of tiles in pixels.")
    pages: Literal["each"] | None = Field(None, description="Each page of a picture is a region.")
    channel: int | Literal["each", "mix"] | None = Field(
        None, description="Of sound: a number from 0, each, or mix."
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="skip: an item that fails has an `error` and the others an answer."
    )


def rows_asked(body: Body, usual: RowLayout = RowLayout()) -> RowLayout:
    """How items are divided; where the body does not tell, as usual.

    Raises:
        UsageError: this cannot be.
    """
    given = (body.window, body.hop, body.tile, body.overlap, body.pages)
    return usual.chosen(body.channel, Layout(*given) if any(given) else None)


class EmbeddingsBody(Body):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        None, description="The length of a vector; vectors are not shortened."
    )
    user: str | None = Field(None, description="Not used.")
    logits: bool = Field(False, description="With the logits of each region.")


class ClassifyBody(Body):
    """POST /v1/classify."""


class SearchBody(Body):
    """POST /v1/search: by items, or by raw vectors."""

    vectors: list[list[float]] | None = Field(
        None, max_length=2048, description="Raw vectors, in place of `input`."
    )
    k: int = Field(10, ge=1, le=10_000, description="Rows that are found for each item.")
    where: str | None = Field(
        None, max_length=4096, description="A filter over the collection's columns."
    )
    space: str = Field("raw", max_length=64, description="raw, or a space that is stored.")


class PredictBody(Body):
    """POST /v1/predict."""

    unknown: float | None = Field(
        None, ge=0, lt=1, description="Largest share of known items that is called unknown."
    )
    nearest: int = Field(0, ge=0, le=100, description="Nearest examples to list.")


class TeachBody(Body):
    """POST /v1/classes: examples of a class, items or rows of the collection."""

    name: str = Field(min_length=1, max_length=256, description="The class.")
    mark: Literal["yes", "no", "unsure"] = "yes"
    rows_of_collection: list[tuple[str, str]] | None = Field(
        None, alias="rows", max_length=2048, description="(id, region) of rows, in place of input."
    )


class RenameBody(BaseModel):
    """PATCH /v1/classes."""

    model_config = ConfigDict(extra="forbid")

    old: str = Field(min_length=1, max_length=256)
    new: str = Field(min_length=1, max_length=256)


class RemoveBody(BaseModel):
    """DELETE /v1/classes."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=256)


def items_in(body: Body, modality: str, most: int) -> list[Item]:
    """The items of a body: texts, or the bytes of data URIs.

    Raises:
        UsageError: nothing, something else, or too many; with the place of the item.
    """
    given = body.input
    if isinstance(given, (str, bytes)):
        given = [given]
    if given is None or not isinstance(given, list) or not given:
        what = "text" if modality == "text" else _EXAMPLE[modality]
        raise UsageError(
            f"`input` is {_words(given)}; give {'a' if modality == 'text' else 'one'} {what}, or a "
            "list of them"
        )
    if len(given) > most:
        raise UsageError(f"`input` has {len(given):,} items; a request may have {most:,}")
    return [_item(one, modality, at) for at, one in enumerate(given)]


def _item(one: Any, modality: str, at: int) -> Item:
    if isinstance(one, bytes):  # a file of a form
        return _decoded(one, at) if modality == "text" else one
    if not isinstance(one, str):
        tokens = isinstance(one, (int, list))
        hint = "; token ids are not taken: send the text itself" if tokens else ""
        raise UsageError(f"input[{at}] is {_words(one)}; give a string{hint}")
    return one if modality == "text" else _media(one, modality, at)


def _decoded(content: bytes, at: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"input[{at}] is no text in UTF-8") from error


def _media(uri: str, modality: str, at: int) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None:
        raise UsageError(
            f"input[{at}] is no data URI, which is what this {modality} model takes: "
            f"{_EXAMPLE[modality]}; paths and URLs are not opened"
        )
    kind = (match[1] or _ANY_MEDIA[0]).lower()
    own = modality == "bytes" or kind.partition("/")[0] == modality
    other = not own and kind not in _ANY_MEDIA
    if other and not (modality == "audio" and kind.startswith(("video/", "application/ogg"))):
        raise UsageError(f"input[{at}] is {kind}, and the model takes {modality}")
    data = uri[match.end() :]
    if not match[3]:
        return unquote_to_bytes(data)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"input[{at}] has base64 that cannot be read: {error}") from error


def _words(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, (list, str)) and not value:
        return "empty"
    return {"int": "a number", "float": "a number", "dict": "an object", "bool": "true or false",
            "list": "a list"}.get(type(value).__name__, f"a {type(value).__name__}")  # fmt: skip
