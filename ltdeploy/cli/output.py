"""What commands print: tables for people, JSON for machines, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UsageError, numbered
from ..files import check_cancelled, write_whole

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

__all__ = [
    "Output",
    "encode",
    "program",
    "quoted",
    "require_writable",
    "silence_stdout",
    "write_text",
]


class Output:
    """Where a command's words go.

    Tables and sentences go to stdout, or to stderr when stdout carries the JSON; progress goes to
    stderr and only on a terminal.

    Parameters
    ----------
    json_path : ``--json``: a path, ``-`` for stdout, or None.
    quiet : ``-q``: only JSON, errors and warnings.
    """

    def __init__(self, json_path: str | None = None, quiet: bool = False) -> None:
        self.json_path = json_path
        self.quiet = quiet

    @property
    def console(self) -> Console:
        """The console for people."""
        from rich.console import Console

        class QuietOnBrokenPipe(Console):
            """Goes on without output when its reader (head, less) has gone; rich would exit."""

            def on_broken_pipe(self) -> None:
                silence_stdout()
                self.quiet = True

        stream = sys.stderr if self.json_path == "-" else sys.stdout
        # A pipe gets one line per line: nothing that reads it should see our folding.
        width = None if stream.isatty() else 200
        return QuietOnBrokenPipe(file=stream, quiet=self.quiet, highlight=False, width=width)

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(encode(text).decode(), markup=False, soft_wrap=True)

    def left_out(self, unreadable: Sequence[tuple[str, str]]) -> None:
        """Name the images that could not be used, the first ten in full."""
        for identifier, reason in unreadable[:10]:
            self.warn(reason if identifier in reason else f"{identifier}: {reason}")
        if unreadable:
            were = "was" if len(unreadable) == 1 else "were"
            self.warn(
                f"{numbered(len(unreadable), 'image')} could not be read and {were} left out; the "
                "exit code says so too"
            )

    def warn(self, text: str) -> None:
        """Print a warning on stderr, quiet or not."""
        print(f"ltdeploy: warning: {text}", file=sys.stderr)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, figures: bool = True
    ) -> None:
        """Print a table whose first column is text and whose others are figures, or all text."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number and figures else "left")
        for row in rows:
            table.add_row(*(Text(encode(cell).decode()) for cell in row))
        self.console.print(table)

    def json(self, result: Mapping[str, Any]) -> None:
        """Write the machine-readable result where ``--json`` says."""
        if self.json_path is None:
            return
        text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        if self.json_path == "-":
            sys.stdout.buffer.write(encode(text))
            sys.stdout.flush()
        else:
            write_text(Path(self.json_path), text)

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show on a terminal that something is under way whose end is not in sight."""
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(what):
            yield

    def track(self, items: Iterable[T], *, total: int | None, label: str) -> Iterable[T]:
        """Yield the items behind a progress bar, for as long as nobody has pressed Ctrl-C."""
        for item in self._bar(items, total, label):
            check_cancelled()
            yield item

    def _bar(self, items: Iterable[T], total: int | None, label: str) -> Iterable[T]:
        if self.quiet or not sys.stderr.isatty():
            yield from items
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            yield from bar.track(items, total=total, description=label)


def encode(text: str) -> bytes:
    """Return UTF-8, with bytes of file names that are none written as ``\\udcxx``."""
    return text.encode("utf-8", "backslashreplace")


def program() -> str:
    """Return what to type for ``ltdeploy`` here: its path where a shell would not find it."""
    name = Path(sys.argv[0])
    if shutil.which("ltdeploy") is not None or name.name != "ltdeploy":
        return "ltdeploy"
    near = os.path.relpath(name)
    return str(name.absolute()) if near.startswith(os.pardir) else near


def quoted(path: object) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def require_writable(path: Path) -> None:
    """Refuse a place that cannot be written to, before the work instead of after it.

    Raises
    ------
    UsageError
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"Cannot write {path}: {folder} cannot be written to. Choose another place."
        )


def silence_stdout() -> None:
    """Send what is still to come to nowhere, so that a gone reader changes no exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    UsageError
        If it cannot be written.
    """
    try:
        write_whole(path, encode(text))
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error
