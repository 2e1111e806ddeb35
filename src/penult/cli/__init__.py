"""The command line: `main` parses, calls, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import sys

import typer
from typer.exceptions import Exit, TyperException

from penult.cli import collections, models, tour
from penult.cli.output import complain
from penult.errors import ItemError, PenultError, UsageError

DONE, FAILED, WRONG_USAGE, SOME_FAILED, STOPPED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="penult",
    help="Turn any trained classifier into an embedding model, and make the vectors useful.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """Turn any trained classifier into an embedding model, and make the vectors useful.

    MODEL is a folder saved by transformers, an id on the Hugging Face hub (owner/name or
    owner/name@revision), a saved embedder, or demo: the bundled one.

    Exit codes: 0 done · 1 the work failed · 2 wrong usage · 3 done, but some items failed.
    """
    if version:
        from penult import __version__

        print(f"penult {__version__}")
        raise Exit(DONE)


for command in (*models.COMMANDS, *collections.COMMANDS, *tour.COMMANDS):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    as_json = "--json" in arguments
    try:
        code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except Exit as error:
        return int(error.exit_code)
    except TyperException as error:
        complain(error.format_message(), "UsageError", as_json)
        return WRONG_USAGE
    except UsageError as error:
        complain(str(error), type(error).__name__, as_json)
        return WRONG_USAGE
    except (PenultError, OSError) as error:
        complain(str(error), type(error).__name__, as_json)
        return SOME_FAILED if isinstance(error, ItemError) else FAILED
    except (KeyboardInterrupt, typer.Abort):
        complain(
            "stopped. What was committed stays; the same command goes on from there",
            "KeyboardInterrupt",
            as_json,
        )
        return STOPPED
