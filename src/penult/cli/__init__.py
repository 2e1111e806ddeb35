"""The command line: `main` parses, calls, and turns errors into one sentence and an exit code."""

from penult.cli.main import app, main, run

__all__ = ["app", "main", "run"]
