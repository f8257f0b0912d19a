"""Rows on disk as soon as they are answered, in a folder beside the output until all are there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import DataError, UsageError
from ..files import write_whole
from .inputs import Inputs
from .table import write_table

__all__ = ["Journal", "Run"]

_RUN = "run.json"
_ROWS = "rows.jsonl"
_SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """What must be the same for rows to belong to one output.

    Parameters
    ----------
    bundle : sha256 of the bundle's manifest, which seals every file of it.
    images : how many inputs there are.
    inputs : fingerprint of their names.
    top_k : classes per row.
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
        if (other.get("images"), other.get("inputs")) != (self.images, self.inputs):
            told.append(f"other inputs ({other.get('images')} images then, {self.images} now)")
        for name in ("top_k", "engine"):
            if other.get(name) != getattr(self, name):
                option = "--" + name.replace("_", "-")
                told.append(f"{option} {other.get(name)} (now {getattr(self, name)})")
        return ", ".join(told)


class Journal:
    """The rows of an output that is not finished, in ``OUT.partial/``; a context manager.

    Every row is handed to the operating system before the next is computed: a killed process loses
    none. What was begun by the same run is continued; :meth:`finish` puts the output in its place.

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
        if self._out.exists() and not self._out.is_file():
            raise UsageError(f"--out {out} is not a regular file; expected one, or a new name.")
        if self._out.exists() and not restart and not (self.folder / _RUN).exists():
            raise UsageError(
                f"{out} is there already, from a run that ended. Give --restart to replace it, or "
                "another name with --out."
            )
        if not self._out.parent.is_dir():
            raise UsageError(f"--out is {str(out)!r}, and there is no folder {self._out.parent}.")
        with _writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self._file: BinaryIO = (self.folder / _ROWS).open("a+b")
        try:
            self._lock()
            self._begin(restart)
            self._take_up()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.rows and self.folder.exists():  # nothing worth keeping
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # of a full disk: said when the row was written
            self._file.close()

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

    def finish(self) -> None:
        """Put the output where it belongs, whole, and drop the folder beside it.

        Raises
        ------
        UsageError
            If it cannot be written; the rows stay.
        """
        with _writing(self._out):
            os.fsync(self._file.fileno())
            if self._out.suffix == ".parquet":
                write_table(self.folder / _ROWS, self._out)
            else:
                (self.folder / _ROWS).replace(self._out)
            (self.folder / _RUN).unlink()  # first: what is left without it is no beginning
            shutil.rmtree(self.folder)

    def _begin(self, restart: bool) -> None:
        """Note what this run is, or check that what is there is the same."""
        file = self.folder / _RUN
        if restart or not file.exists():
            with _writing(self.folder):
                self._file.truncate(0)
                write_whole(file, json.dumps({"schema": _SCHEMA, **asdict(self._run)}).encode())
            return
        try:
            told = json.loads(file.read_bytes())
            different = self._run.differences(told)
            same_schema = told["schema"] == _SCHEMA
        except (ValueError, TypeError, KeyError, AttributeError):
            different, same_schema = "", False
        if different or not same_schema:
            raise UsageError(
                f"{self.folder} holds the beginning of another run, with "
                f"{different or 'another version of ltdeploy'}. Give --restart to drop it and "
                "begin again, or another name with --out."
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another process is writing {self._out} at this moment; wait for it, or choose "
                "another name with --out."
            ) from None
        except OSError:
            pass  # a file system without locks

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


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error
