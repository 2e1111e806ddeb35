"""Routes of the page: marks, suggestions, classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from penult.explorer.session import Explorer
from penult.fewshot.marks import user

_MOST = 10_000  # rows in one request
Name = Annotated[str, Field(min_length=1, max_length=500)]
Who = Annotated[str | None, Field(max_length=200, description="None is the account's name.")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RowMark(_Strict):
    """A row and its mark."""

    row: int = Field(ge=0, strict=True)
    mark: Literal["yes", "no", "unsure", "none"]


class MarksBody(_Strict):
    """Marks of rows for a class; of one row the last one counts."""

    name: Name = Field(alias="class")
    marks: list[RowMark] = Field(min_length=1, max_length=_MOST)
    who: Who = None


class WhoBody(_Strict):
    """Whose last step is meant."""

    who: Who = None


class RenameClassBody(_Strict):
    """A class by another name."""

    old: Name
    new: Name
    who: Who = None


class RemoveClassBody(_Strict):
    """A class to forget."""

    name: Name
    who: Who = None


def add(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes."""
    _add_changes(app, explorer)

    @app.get("/api/suggest")
    def suggest(
        name: Annotated[str, Query(alias="class", max_length=500)],
        order: Literal["likely", "uncertain", "different", "mixed"] = "mixed",
        k: Annotated[int, Query(ge=1, le=1000)] = 20,
        who: str | None = None,
    ) -> dict[str, Any]:
        """Rows to be marked next."""
        teaching = explorer.teaching
        return teaching.suggest(name, None if order == "mixed" else order, k, who or user())

    @app.get("/api/taught")
    def taught(
        name: Annotated[str | None, Query(alias="class", max_length=500)] = None,
        who: str | None = None,
    ) -> dict[str, Any]:
        """What is known of a class, worked out to the end."""
        return explorer.teaching.taught(name, who or user())

    @app.get("/api/marks")
    def marks(
        name: Annotated[str, Query(alias="class", max_length=500)], who: str | None = None
    ) -> dict[str, Any]:
        """What one person marked for a class."""
        found = explorer.teaching.marks_of(name, who or user())
        return {"rows": [*found], "marks": [*found.values()]}

    @app.get("/api/disagreements")
    def disagreements() -> dict[str, Any]:
        """Rows that people marked differently."""
        return {"rows": explorer.teaching.disagreements()}


def _add_changes(app: FastAPI, explorer: Explorer) -> None:
    @app.post("/api/marks")
    def mark(body: MarksBody) -> dict[str, Any]:
        """Mark rows."""
        given = {one.row: one.mark for one in body.marks}
        return explorer.teaching.mark(body.name, given, body.who or user())

    @app.post("/api/undo")
    def undo(body: WhoBody) -> dict[str, Any]:
        """Take the last step back."""
        return explorer.teaching.undo(body.who or user())

    @app.post("/api/redo")
    def redo(body: WhoBody) -> dict[str, Any]:
        """Do it again."""
        return explorer.teaching.redo(body.who or user())

    @app.post("/api/classes/rename")
    def rename(body: RenameClassBody) -> dict[str, Any]:
        """Rename a class."""
        return explorer.teaching.rename(body.old, body.new, body.who or user())

    @app.post("/api/classes/remove")
    def remove(body: RemoveClassBody) -> dict[str, Any]:
        """Forget a class."""
        return explorer.teaching.remove(body.name, body.who or user())
