"""Rows on disk as soon as they are answered, in a folder beside the output until all are there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from ..errors import DataError, UsageError
from ..files import write_whole
from .inputs import Inputs
from .table import write_table

__all__ = ["Journal", "Run"]

_RUN = "run.json"
_ROWS = "rows.jsonl"
_LOCK = "lock"  # never renamed: a lock on the rows would go with them into the output's place
_SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """What must be the same for rows to belong to one output.

    Parameters
    ----------
    bundle : sha256 of the bundle's manifest, which seals every file of it.
    images : how many inputs there are.
    inputs : fingerprint of where they stand, their sizes and times of change.
    top_k : classes, or boxes, per row.
    engine : the engine asked for.
    """

    bundle: str
    images: int
    inputs: str
    top_k: int
    engine: str

    def differences(self, other: Mapping[str, Any]) -> str:
        """Return in words what ``other``, as read from a file, has otherwise; or an empty text."""
        told = []
        if other.get("bundle") != self.bundle:
            told.append("another bundle")
        if other.get("images") != self.images:
            told.append(f"other inputs ({other.get('images')} images then, {self.images} now)")
        elif other.get("inputs") != self.inputs:
            told.append(
                f"other inputs ({self.images} images then and now, but their paths, their order or "
                "the files changed since)"
            )
        for name in ("top_k", "engine"):
            if other.get(name) != getattr(self, name):
                option = "--" + name.replace("_", "-")
                told.append(f"{option} {other.get(name)} (now {getattr(self, name)})")
        return ", ".join(told)


class Journal:
    """The rows of an output that is not finished, in ``OUT.partial/``; a context manager.

    Every row is handed to the operating system before the next is computed: a killed process loses
    none. What was begun by the same run is continued, and what was killed in the last step is only
    finished; :meth:`finish` puts the output in its place.

    Parameters
    ----------
    out : ``FILE.jsonl`` or ``FILE.parquet``.
    run : what this run is.
    inputs : names what each row must be about.
    restart : drop what an earlier run left instead of continuing it.

    Attributes
    ----------
    rows, errors : how many are written, earlier runs included.
    continued : how many of them an earlier run wrote.
    engine : the name of what answered them, as :meth:`answered_by` was told; None before.

    Raises
    ------
    UsageError
        If another run left a part of this output, another process is writing it now, or it cannot
        be written.
    DataError
        If the rows there are not this run's.
    """

    def __init__(self, out: Path, run: Run, inputs: Inputs, *, restart: bool = False) -> None:
        self._out = Path(os.path.realpath(out))  # the target of a link, not the link
        self._run = run
        self._inputs = inputs
        self.folder = self._out.with_name(f"{self._out.name}.partial")
        self.rows = self.errors = self.continued = 0
        self.engine: str | None = None
        self._dropped = False
        if self._out.exists() and not self._out.is_file():
            raise UsageError(f"--out {out} is not a regular file; expected one, or a new name.")
        if not self._out.parent.is_dir():
            raise UsageError(f"--out is {str(out)!r}, and there is no folder {self._out.parent}.")
        with _writing(self.folder), contextlib.ExitStack() as opened:
            opened.enter_context(self._locked())
            try:
                self._begin(restart)
                self._file: BinaryIO = opened.enter_context((self.folder / _ROWS).open("a+b"))
                self._take_up()
            except BaseException:
                if not (self.folder / _RUN).exists():
                    self._drop()
                raise
            self._held = opened.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.rows:  # nothing worth keeping
            self._drop()
        with contextlib.suppress(OSError):  # of a full disk: said when the row was written
            self._held.close()

    def answered_by(self, engine: str) -> None:
        """Note what answers the rows that follow, by the name of the engine that runs.

        Raises
        ------
        UsageError
            If the rows before were answered by another.
        """
        if self.engine == engine:
            return
        if self.engine is not None:
            raise UsageError(
                f"The {self.rows} rows in {self.folder} were answered by {self.engine}, and "
                f"--engine {self._run.engine} is {engine} now: see 'ltdeploy doctor'. Give "
                "--restart to drop them and begin again, or another name with --out."
            )
        self.engine = engine
        with _writing(self.folder):
            self._note()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; when this returns, killing the process does not lose it.

        Raises
        ------
        UsageError
            If the disk is full or gone.
        """
        line = json.dumps(row, ensure_ascii=False) + "\n"
        try:
            # File names need not be UTF-8; JSON can carry what they are.
            self._file.write(line.encode("utf-8", "backslashreplace"))
            self._file.flush()
        except OSError as error:
            raise UsageError(
                f"Cannot write {self._out}: {error.strerror or error}. The {self.rows} rows before "
                f"are kept in {self.folder}; free some space, and the same command goes on."
            ) from error
        self.rows += 1
        self.errors += "error" in row

    def finish(self, *, boxes: bool = False) -> None:
        """Put the output where it belongs, whole, and drop the folder beside it.

        Parameters
        ----------
        boxes : whether the rows are a detector's.

        Raises
        ------
        UsageError
            If it cannot be written; the rows stay.
        """
        with _writing(self._out):
            os.fsync(self._file.fileno())
            if self._out.suffix == ".parquet":
                write_table(self.folder / _ROWS, self._out, boxes=boxes)
            else:
                (self.folder / _ROWS).replace(self._out)
            self._drop()

    def _begin(self, restart: bool) -> None:
        """Note what this run is, or check that what is there is the same."""
        file, rows = self.folder / _RUN, self.folder / _ROWS
        if not restart and not file.exists() and self._out.exists():
            raise UsageError(
                f"{self._out} is there already, from a run that ended. Give --restart to replace "
                "it, or another name with --out."
            )
        if restart or not file.exists():
            rows.write_bytes(b"")
            self._note()
            return
        try:
            told = json.loads(file.read_bytes())
            different = self._run.differences(told)
            same_schema = told["schema"] == _SCHEMA
            self.engine = told.get("answered_by")
        except (ValueError, TypeError, KeyError, AttributeError):
            different, same_schema = "", False
        if different or not same_schema:
            raise UsageError(
                f"{self.folder} holds the beginning of another run, with "
                f"{different or 'another version of ltdeploy'}. Give --restart to drop it and "
                "begin again, or another name with --out."
            )
        if self._out.suffix == ".jsonl" and self._out.exists() and not rows.exists():
            self._out.replace(rows)  # it was killed after they had become the output

    def _note(self) -> None:
        told = {"schema": _SCHEMA, **asdict(self._run), "answered_by": self.engine}
        write_whole(self.folder / _RUN, json.dumps(told).encode())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder for this process alone."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / _LOCK
        try:
            lock = path.open("ab")
        except FileNotFoundError:  # whoever held the folder has just removed it
            self._refuse()
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._refuse()
            except OSError:
                pass  # a file system without locks
            if not _is_at(lock, path):  # its holder finished before it was ours
                self._refuse()
            yield

    def _refuse(self) -> NoReturn:
        raise UsageError(
            f"Another process is writing {self._out} at this moment; wait for it, or choose "
            "another name with --out."
        )

    def _drop(self) -> None:
        """Remove the folder, once: from then on it can be another's.

        What this run is goes first, since rows without it are no beginning; the lock last, since
        whoever sees none takes the folder for its own.
        """
        if self._dropped:
            return
        self._dropped = True
        with contextlib.suppress(OSError):
            (self.folder / _RUN).unlink(missing_ok=True)
            for path in self.folder.iterdir():
                if path.name != _LOCK:
                    path.unlink()
            (self.folder / _LOCK).unlink(missing_ok=True)
            self.folder.rmdir()

    def _take_up(self) -> None:
        """Count the whole rows, check that they are this run's, and cut a half one off."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                expected = self._inputs.identifier(self.rows)
                if row["input"] != expected:
                    raise ValueError
            except (ValueError, TypeError, KeyError, IndexError):
                raise DataError(
                    f"Row {self.rows + 1} of {self.folder / _ROWS} is not this run's; the file was "
                    "changed or damaged. Give --restart to begin again."
                ) from None
            self.rows += 1
            self.errors += "error" in row
            end += len(line)
        self._file.truncate(end)
        self.continued = self.rows


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error
