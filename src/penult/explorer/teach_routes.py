"""Routes of the page: marks, suggestions, classes."""

from __future__ import annotations

from fastapi import FastAPI

from penult.explorer.session import Explorer


def add(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes."""
