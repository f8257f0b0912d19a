"""How every command ends: exit codes, error texts, no traceback unless asked for."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum

import typer
from typer.exceptions import Abort, Exit, TyperException

from ..errors import LtdeployError, did_you_mean
from .output import silence_stdout

__all__ = ["ExitCode", "run"]


class ExitCode(IntEnum):
    """What a command's exit code says."""

    OK = 0
    GATE_FAILED = 1
    BAD_INPUT = 2
    UNDECIDED = 3
    INTERNAL = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_INTERRUPTED = "Interrupted; nothing was half-written."


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; print one clear text for any error."""
    debug = "--debug" in arguments
    try:
        code = app(args=list(arguments), prog_name="ltdeploy", standalone_mode=False)
        if code == ExitCode.INTERRUPTED:  # Typer swallows Ctrl-C and returns its code
            return _report(debug, ExitCode.INTERRUPTED, _INTERRUPTED)
        return int(code or 0)
    except Exit as end:
        return end.exit_code
    except (Abort, KeyboardInterrupt):
        return _report(debug, ExitCode.INTERRUPTED, _INTERRUPTED)
    except TyperException as error:
        return _report(debug, ExitCode.BAD_INPUT, _usage_text(error))
    except LtdeployError as error:
        return _report(debug, ExitCode.BAD_INPUT, str(error))
    except SystemExit as end:
        # Typer turns a broken pipe into exit code 1, which here is a verdict.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        silence_stdout()  # the reader of our output (head, less) has gone: nobody to tell
        return ExitCode.BROKEN_PIPE
    except MemoryError:
        return _report(debug, ExitCode.BAD_INPUT, "Out of memory; try fewer or smaller images.")
    except Exception as error:
        text = (
            f"Internal error ({type(error).__name__}: {error}). This is a defect of ltdeploy; run "
            "the command again with --debug and report what it prints."
        )
        return _report(debug, ExitCode.INTERNAL, text)


def _usage_text(error: TyperException) -> str:
    text = error.format_message()
    # Typer lists what is near in brackets, by the alphabet; name the nearest, as every text here.
    near = re.search(r"(--\S+) \(Possible options: ([^)]+)\)", text)
    if near:
        hint = did_you_mean(near.group(1), near.group(2).split(", "))
        text = text.replace(near.group(0), f"{near.group(1)}.{hint}")
    text = text if text.endswith((".", "?", "!")) else f"{text}."
    return f"{text} See 'ltdeploy {_command(error)}--help'." if text.strip(".") else ""


def _command(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    name = getattr(context, "info_name", None)
    return f"{name} " if name and name != "ltdeploy" else ""


def _report(debug: bool, code: ExitCode, text: str) -> int:
    if debug:
        traceback.print_exc()
    if text:
        print(f"ltdeploy: {text}", file=sys.stderr)
    return code
