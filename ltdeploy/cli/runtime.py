"""How every command ends: exit codes, error texts, no traceback unless asked for."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from enum import IntEnum
from types import FrameType

import typer
from typer.exceptions import Abort, Exit, TyperException

from ..errors import LtdeployError, did_you_mean
from ..files import cancellable
from .output import program, silence_stdout

__all__ = ["ExitCode", "interrupt_is_handled", "interrupted", "run", "typed_with"]


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


class _Interrupts:
    """Turns Ctrl-C into :exc:`KeyboardInterrupt`, and keeps note of it.

    An exception that a signal raises inside a weak reference's callback, a ``__del__`` or a
    ``hasattr`` of a library written in C is lost, and the command would go on to its end. With the
    note, the next step of a progress bar, or the next file that is to take its place, ends it.
    """

    def __init__(self) -> None:
        self.noted = False
        self.text = _INTERRUPTED
        self.typed: tuple[str, ...] = ()

    @contextlib.contextmanager
    def heard(self, typed: Sequence[str]) -> Iterator[None]:
        """Listen while the block runs, unless somebody else listens or the shell said not to."""
        self.noted = False
        self.text = _INTERRUPTED
        self.typed = tuple(typed)
        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if ours:
            signal.signal(signal.SIGINT, self._interrupt)
        try:
            with cancellable(self._check):
                yield
        finally:
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        raise KeyboardInterrupt

    def _check(self) -> None:
        if self.noted:
            raise KeyboardInterrupt


_INTERRUPTS = _Interrupts()  # one of them: so has a process one handler of a signal


def interrupt_is_handled() -> None:
    """Let a command go on that caught :exc:`KeyboardInterrupt` to write what it has."""
    _INTERRUPTS.noted = False


def interrupted(text: str) -> ExitCode:
    """Return what a command returns that was interrupted and left something, and say what."""
    _INTERRUPTS.text = text
    return ExitCode.INTERRUPTED


def typed_with(option: str) -> str:
    """Return what to type to run this command once more, with an option that it may have had."""
    typed = _INTERRUPTS.typed
    return shlex.join([program(), *typed, *([] if option in typed else [option])])


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; print one clear text for any error."""
    debug = "--debug" in arguments
    try:
        with _INTERRUPTS.heard(arguments):
            code, text = _outcome(app, arguments, debug)
    except KeyboardInterrupt:  # in the moment after the command's end
        code, text = ExitCode.INTERRUPTED, _INTERRUPTS.text
    if _INTERRUPTS.noted:  # and lost: whatever the command made of it, it was told to stop
        code, text = ExitCode.INTERRUPTED, _INTERRUPTS.text
    if text:
        print(f"ltdeploy: {text}", file=sys.stderr)
    return code


def _outcome(app: typer.Typer, arguments: Sequence[str], debug: bool) -> tuple[int, str]:
    """Run the command line and return its exit code and what is to be said of it."""
    try:
        code = app(args=list(arguments), prog_name="ltdeploy", standalone_mode=False)
        if code == ExitCode.INTERRUPTED:  # Typer swallows Ctrl-C and returns its code
            return code, _INTERRUPTS.text
        return int(code or 0), ""
    except Exit as end:
        return end.exit_code, ""
    except SystemExit as end:
        # Typer turns a broken pipe into exit code 1, which here is a verdict.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        silence_stdout()  # the reader of our output (head, less) has gone: nobody to tell
        return ExitCode.BROKEN_PIPE, ""
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _explained(error)


def _explained(error: BaseException) -> tuple[ExitCode, str]:
    """Return the exit code of an error and its text for people."""
    match error:
        case Abort() | KeyboardInterrupt():
            return ExitCode.INTERRUPTED, _INTERRUPTS.text
        case TyperException():
            return ExitCode.BAD_INPUT, _usage_text(error)
        case LtdeployError():
            return ExitCode.BAD_INPUT, str(error)
        case MemoryError():
            return ExitCode.BAD_INPUT, "Out of memory; try fewer or smaller images."
    return ExitCode.INTERNAL, (
        f"Internal error ({type(error).__name__}: {error}). This is a defect of ltdeploy; run "
        "the command again with --debug and report what it prints."
    )


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
