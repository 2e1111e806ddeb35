"""Bodies of the page's requests, checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_HITS = 10_000  # as many as the page asks for
_MOST_EXAMPLES = 2000
Number = Annotated[int, Field(ge=0, lt=1 << 32)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class _PageRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DrawnRegion(_PageRequest):
    """A part of the recording of a row."""

    row: Number
    start: Seconds
    end: Seconds


class SearchByExample(_PageRequest):
    """POST /api/search."""

    like: list[Number] = Field([], max_length=_MOST_EXAMPLES)
    unlike: list[Number] = Field([], max_length=_MOST_EXAMPLES)
    k: int = Field(50, ge=1, le=MOST_HITS)
    where: str | None = Field(None, max_length=4096)
    region: DrawnRegion | None = None


class NamedRows(_PageRequest):
    """POST /api/selections."""

    name: Name
    rows: list[Number]


class NamedSelection(_PageRequest):
    """POST /api/selections/remove."""

    name: Name


class ExportedRows(_PageRequest):
    """POST /api/export."""

    rows: list[Number]
    format: Literal["csv", "raven", "m3u", "ids"]


class RenamedCluster(_PageRequest):
    """POST /api/clusters/rename."""

    clustering: Name
    number: int
    name: Name
