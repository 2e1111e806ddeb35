"""Parse, call, and turn errors into one sentence and an exit code."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from pathlib import Path

import typer
from typer.exceptions import Exit, TyperException

from penult.cli import (
    check,
    choose,
    cluster_map,
    collection,
    demo,
    embed,
    inspect,
    models,
    predict,
    probe,
    teach,
)
from penult.cli.output import (
    DONE,
    FAILED,
    SOME_FAILED,
    STOPPED,
    WRONG_USAGE,
    LogLevel,
    discard_stdout,
    logged,
    print_error,
)
from penult.errors import ItemError, PenultError, UsageError

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
    log: LogLevel = typer.Option(
        LogLevel.WARNING, envvar="PENULT_LOG", help="What to show of what happens, on stderr."
    ),
) -> None:
    """Turn any trained classifier into an embedding model, and make the vectors useful.

    MODEL is a folder saved by transformers, an id on the Hugging Face hub (owner/name or
    owner/name@revision), timm:NAME, torchvision:NAME, package.module:factory (the last ones with
    --checkpoint), a saved embedder, or demo: the bundled one.

    Exit codes: 0 done · 1 the work failed · 2 wrong usage · 3 done, but some items failed.
    """
    logging.getLogger("penult").setLevel(log.upper())
    if version:
        from penult import __version__

        print(f"penult {__version__}")
        raise Exit(DONE)


for module in (
    inspect,
    models,
    embed,
    check,
    collection,
    choose,
    teach,
    predict,
    teach,
    cluster_map,
    cluster_map,
    probe,
    collection,
    demo,
):
    for command in module.COMMANDS:
        app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that a terminal cannot show is no error
            stream.reconfigure(errors="backslashreplace")
    # Libraries warn their callers' programmers; what a user should know is told in our own words.
    warnings.filterwarnings("ignore", module=r"(torch|transformers)(\.|$)")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        with logged():
            return _run(arguments, "--json" in arguments)
    except SystemExit as error:  # typer's and rich's answer to a reader that has stopped
        return error.code if isinstance(error.code, int) else FAILED
    except BrokenPipeError:
        discard_stdout()
        return FAILED


def _run(arguments: list[str], as_json: bool) -> int:
    try:
        code = app(arguments, prog_name="penult", standalone_mode=False)
        if code == STOPPED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else DONE
    except Exit as error:
        return int(error.exit_code)
    except TyperException as error:
        print_error(_with_hint(error, arguments), "UsageError", as_json)
        return WRONG_USAGE
    except UsageError as error:
        print_error(str(error), type(error).__name__, as_json)
        return WRONG_USAGE
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print_error(f"{place}{error.strerror or error}", type(error).__name__, as_json)
        return FAILED
    except PenultError as error:
        print_error(str(error), type(error).__name__, as_json)
        return SOME_FAILED if isinstance(error, ItemError) else FAILED
    except (KeyboardInterrupt, typer.Abort):
        kept = ". What was committed stays; the same command goes on from there"
        message = "stopped" + (kept if arguments[:1] == ["embed"] else "")
        print_error(message, "KeyboardInterrupt", as_json)
        return STOPPED


def _with_hint(error: TyperException, arguments: list[str]) -> str:
    """What was wrong with the command line, and where to read what is right."""
    message = error.format_message().rstrip(".")
    dashed = next((a for a in arguments if a.startswith("-") and Path(a).exists()), None)
    if dashed and len(dashed) > 1:
        return f"{message}; if {dashed!r} is a path, write ./{dashed}"
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "penult"
    return f"{message}; see {command} --help"
