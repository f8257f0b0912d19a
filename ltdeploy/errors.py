"""The errors a user can meet, as one tree.

::

    LtdeployError                 anything ltdeploy refuses, with a text made for people
    ├── UsageError                an option or argument is wrong
    │   └── MissingExtraError     an optional package is not installed
    ├── DataError                 a data set or class table is wrong
    │   └── ImageError            one image cannot be used
    │       ├── UnknownFormatError its bytes are of no known image format
    │       └── ImageTooLargeError it is over a limit of bytes or pixels
    ├── CheckpointError           a checkpoint cannot be read or does not fit
    │   └── UnsafeCheckpointError a checkpoint would run code
    ├── FixError                  a fix does not apply to this head
    ├── ExportError               an exported graph failed a check
    ├── BundleError               a bundle is damaged, unsafe or too new
    └── EngineError               an engine is missing, fails, or gives non-finite numbers

Every text says what was wrong (with the value), what was expected, and what to do instead. The
command line prints the text and exits with 2; a Python caller catches the class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "EngineError",
    "ExportError",
    "FixError",
    "ImageError",
    "ImageTooLargeError",
    "LtdeployError",
    "MissingExtraError",
    "UnknownFormatError",
    "UnsafeCheckpointError",
    "UsageError",
    "did_you_mean",
    "numbered",
]


class LtdeployError(Exception):
    """Anything ltdeploy refuses. Catch this one to catch them all."""


class UsageError(LtdeployError):
    """An option or argument is wrong."""


class MissingExtraError(UsageError):
    """An optional package is not installed; the text names the extra that brings it."""


class DataError(LtdeployError):
    """A data set or a class table cannot be used as it is."""


class ImageError(DataError):
    """One image cannot be decoded or is larger than the limits allow."""


class UnknownFormatError(ImageError):
    """The bytes are of no image format that is read here."""


class ImageTooLargeError(ImageError):
    """An image has more bytes or pixels than the limits allow."""


class CheckpointError(LtdeployError):
    """A checkpoint cannot be read, is not recognised, or does not fit its architecture."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds objects whose loading would run code."""


class FixError(LtdeployError):
    """A fix does not apply to this head, or its parameters are out of range."""


class ExportError(LtdeployError):
    """A model cannot be exported, or its exported graph failed a check."""


class BundleError(LtdeployError):
    """A bundle is damaged, incomplete, unsafe, or newer than this version reads."""


class EngineError(LtdeployError):
    """An engine is not available, is not the one asked for, or gave non-finite numbers."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with a leading space, or an empty string when nothing is close.

    It is a sentence: what stands before it ends with a full stop, and nothing but one follows.

    >>> did_you_mean("tua", ["tau", "bias"])
    " Did you mean 'tau'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def numbered(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number and what it counts.

    >>> numbered(1, "image"), numbered(1200, "image"), numbered(0, "class", "classes")
    ('1 image', '1,200 images', '0 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
