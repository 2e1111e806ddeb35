"""Parse, call, and turn errors into one sentence and an exit code."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import Exit, TyperException
from typer.main import get_command

from penult.cli import (
    activity,
    archive,
    choose,
    clips,
    cluster_map,
    collection,
    comparison,
    demo,
    drift,
    duplicates,
    embed,
    explain,
    explore,
    inspect,
    migrate,
    models,
    novelty,
    predict,
    probe,
    publish,
    serve,
    suggest,
    suspects,
    teach,
    verify,
)
from penult.cli.options import add_plugins_to_help
from penult.cli.output import (
    DONE,
    FAILED,
    SOME_FAILED,
    STOPPED,
    WRONG_USAGE,
    Delivered,
    LogLevel,
    OutputLost,
    discard_stderr,
    discard_stdout,
    events_ended,
    logged,
    occupy_standard_descriptors,
    print_error,
    process_age,
    quiet_libraries,
    start_events,
    timed,
)
from penult.errors import ItemError, PenultError, UsageError, cause
from penult.locking import ENGINES
from penult.memory import starting

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
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
    log: LogLevel = typer.Option(
        LogLevel.WARNING,
        envvar="PENULT_LOG",
        help="Least level of log messages on stderr; info and debug: those of libraries too. json: "
        "all messages and progress as JSON, one event on each line.",
    ),
    offline: bool = typer.Option(
        False,
        "--offline",
        help="Ask no other machine for anything: models and weights are taken from what is here. "
        "Also behind the command, or PENULT_OFFLINE=1.",
    ),
) -> None:
    """Turn any trained classifier into an embedding model, and make the vectors useful.

    MODEL is a folder saved by transformers, an id on the Hugging Face hub (owner/name or
    owner/name@revision), timm:NAME, torchvision:NAME, package.module:factory (the last ones with
    --checkpoint), a saved embedder, or demo: the bundled one.

    Exit codes: 0 done · 1 the work failed · 2 wrong usage · 3 done, but some items failed.
    """
    logging.getLogger("penult").setLevel(log.level)
    if offline or os.environ.get("PENULT_OFFLINE"):
        from penult.models import hub

        if offline or hub.is_offline():
            context.with_resource(hub.offline())
    if log not in (LogLevel.DEBUG, LogLevel.INFO):
        context.with_resource(quiet_libraries())
    if log is LogLevel.JSON:
        start_events()
    if version:
        from penult import __version__

        print(f"penult {__version__}")
        raise Exit(DONE)


PANELS = {
    "Inspect and prove": (inspect.inspect, inspect.check, models.classify),
    "Embed": (models.convert, embed.embed),
    "Search and collections": (
        collection.search,
        clips.clips,
        collection.info,
        collection.failures,
        collection.export,
        collection.merge,
        collection.index,
        collection.repair,
        migrate.migrate,
        collection.relocate,
        collection.forget,
    ),
    "Classes from examples": (
        teach.teach,
        teach.classes,
        suggest.suggest,
        predict.predict,
        activity.activity,
        verify.verify,
        explain.explain,
    ),
    "Select and measure": (choose.choose, choose.evaluate, probe.probe),
    "Clusters and maps": (cluster_map.cluster, cluster_map.map_),
    "Archives": (
        archive.neighbours,
        duplicates.duplicates,
        suspects.suspects,
        novelty.novelty,
        drift.drift,
        comparison.compare,
        archive.select,
    ),
    "The Hugging Face hub": (publish.push, publish.pull),
    "Server and page": (serve.serve, explore.explore),
    "Demo and installation": (demo.demo, demo.doctor),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    occupy_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # print an escape where the terminal lacks a character
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.stdout = Delivered(sys.stdout)
    # These warnings address programmers; users read our own notes instead.
    warnings.filterwarnings("ignore", module=r"(torch|transformers)(\.|$)")
    with timed(process_age()):
        code = run(sys.argv[1:] if arguments is None else arguments)
    if _is_lost(sys.stdout.flush):
        code = code or FAILED
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        discard_stderr()
    others = [one for one in threading.enumerate() if one is not threading.main_thread()]
    endless = any(one.name.startswith(ENGINES) for one in others)  # a pass that does not end
    if not endless:
        if not all(one.daemon for one in others):
            sys.exit(code)  # which waits for them
        atexit._run_exitfuncs()
        _is_lost(sys.stdout.flush)
    # Python would look through the million objects of the libraries first, for a second or more.
    os._exit(code)


def _is_lost(writing: Callable[[], object]) -> bool:
    """Whether the reader of stdout has closed it, or it cannot be written, which is told."""
    try:
        writing()
    except BrokenPipeError:
        discard_stdout()
        return True
    except OutputLost as error:
        discard_stdout()
        message = f"the output cannot be written: {error}"
        print_error(message, OutputLost.__name__, as_json=False)
        return True
    return False


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    arguments = _with_offline_first(arguments)
    codes: list[int] = []
    with events_ended() as end, starting():
        lost = _is_lost(lambda: codes.append(_logged(_with_log_first(arguments))))
        code = FAILED if lost else codes[0]
        end(code)
    return code


def _logged(arguments: list[str]) -> int:
    try:
        with logged():
            return _run(arguments, "--json" in arguments)
    except SystemExit as error:  # raised by typer and rich when the reader of stdout has closed it
        return error.code if isinstance(error.code, int) else FAILED


def _with_log_first(arguments: list[str]) -> list[str]:
    """The option --log before the command's name, wherever it was typed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for place, argument in enumerate(arguments[:end]):
        width = 2 if argument == "--log" else int(argument.startswith("--log="))
        if width and place + width <= end:
            option = arguments[place : place + width]
            return [*option, *arguments[:place], *arguments[place + width :]]
    return arguments


def _with_offline_first(arguments: list[str]) -> list[str]:
    """`--offline` holds for every command, and may stand behind it as well."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--offline" not in arguments[:end]:
        return arguments
    rest = [argument for argument in arguments[:end] if argument != "--offline"]
    return ["--offline", *rest, *arguments[end:]]


@cache
def _command() -> Callable[..., Any]:
    """All commands with their options, made once."""
    return get_command(app)


def _run(arguments: list[str], as_json: bool) -> int:
    if not {"-h", "--help"}.isdisjoint(arguments):
        add_plugins_to_help()
        _command.cache_clear()
    try:
        code = _command()(arguments, prog_name="penult", standalone_mode=False)
        if code == STOPPED:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
        return code if isinstance(code, int) else DONE
    except Exit as error:
        return int(error.exit_code)
    except (BrokenPipeError, OutputLost):
        raise
    except (KeyboardInterrupt, typer.Abort):
        kept = ". Committed rows are kept; run the same command again to continue"
        message = "stopped" + (kept if "embed" in arguments[:3] else "")
        print_error(message, "KeyboardInterrupt", as_json)
        return STOPPED
    except TyperException as error:
        print_error(_with_hint(error, arguments), "UsageError", as_json)
        return WRONG_USAGE
    except Exception as error:
        if not isinstance(error, (PenultError, OSError)) and _has_log():
            raise
        print_error(_sentence(error), type(error).__name__, as_json)
        return _code(error)


def _has_log() -> bool:
    """Whether whoever calls wants to see where an error happens."""
    return logging.getLogger("penult").isEnabledFor(logging.INFO)


def _sentence(error: Exception) -> str:
    """An error of the work in words."""
    if isinstance(error, PenultError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else cause(error)
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r} is not UTF-8, and cannot be used here; use another name"
    return (
        f"{type(error).__name__}: {cause(error)}. Nobody foresaw this: it is a fault of Penult or "
        "of a library under it; penult --log info … shows where it happens"
    )


def _code(error: Exception) -> int:
    if isinstance(error, UsageError | UnicodeEncodeError):
        return WRONG_USAGE
    return SOME_FAILED if isinstance(error, ItemError) else FAILED


def _with_hint(error: TyperException, arguments: list[str]) -> str:
    """The error in the command line, and the help page that explains it."""
    message = error.format_message().rstrip(".")
    dashed = next((a for a in arguments if a.startswith("-") and Path(a).exists()), None)
    if dashed and len(dashed) > 1:
        return f"{message}; if {dashed!r} is a path, write ./{dashed}"
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "penult"
    return f"{message}; see {command} --help"
