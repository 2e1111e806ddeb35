"""Routes of the page: rows, points, searches and selections."""

from __future__ import annotations

from fastapi import FastAPI

from penult.explorer.session import Explorer


def add(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes."""
