"""NumPy arrays out of pickles, rebuilt from numbers and text only.

A pickle restores a dtype by setting its flags and an array by setting its raw bytes. Set freely,
the two make NumPy take bytes of the file for pointers to objects. These stand-ins take the same
calls and keep nothing but a dtype's name and byte order.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsafeCheckpointError

__all__ = ["CheckedArray", "CheckedDtype", "checked_scalar", "empty_bytes"]

# Booleans, whole, real and complex numbers, bytes and text.
_PLAIN_KINDS = "biufcSU"


class CheckedDtype:
    """Take the place of ``numpy.dtype`` while a pickle is read.

    Parameters
    ----------
    name : ``"f4"``, ``"U12"``, …
    _flags : ``align`` and ``copy``, which change nothing for plain types.

    Raises
    ------
    UnsafeCheckpointError
        For types beyond numbers and text.
    """

    def __init__(self, name: str, *_flags: object) -> None:
        if not isinstance(name, str):
            raise _not_plain(f"of {name!r}")
        self.dtype = np.dtype(name)
        if self.dtype.kind not in _PLAIN_KINDS:
            raise _not_plain(f"of the type {self.dtype.name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order from (version, order, …); the name has told everything else."""
        order = state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class CheckedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array that takes only bytes of a :class:`CheckedDtype` from a pickle."""

    def __new__(cls, *_: object) -> CheckedArray:
        """Return an empty array; the pickle's next step sets shape, type and content."""
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Set (version, shape, dtype, is_fortran, content)."""
        version, shape, dtype, is_fortran, content = state
        plain, raw = _plain(dtype, content)
        super().__setstate__((version, shape, plain, is_fortran, raw))


def checked_scalar(dtype: object, content: object) -> Any:
    """Return the NumPy scalar whose bytes are `content`."""
    plain, raw = _plain(dtype, content)
    return np.ndarray((), plain, raw)[()]


def empty_bytes(*content: object) -> bytes:
    """Take the place of ``bytes``, which pickles call without arguments for an empty array."""
    if content:
        raise CheckpointError("it builds bytes in a way that no array is saved")
    return b""


def _plain(dtype: object, content: object) -> tuple[np.dtype[Any], bytes]:
    """Return the dtype behind a stand-in and its content, once known to be fit for it."""
    if not isinstance(dtype, CheckedDtype) or not isinstance(content, bytes):
        raise CheckpointError(
            f"a NumPy array has a {type(dtype).__name__} for its type and a "
            f"{type(content).__name__} for its content; expected a dtype and bytes"
        )
    plain = dtype.dtype
    if plain.kind == "U":
        # Python strings are made of these numbers unchecked.
        letters = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(plain.byteorder))
        if letters.size and letters.max() > sys.maxunicode:
            raise CheckpointError("a NumPy array of text holds numbers that are no characters")
    return plain, content


def _not_plain(what: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"holds a NumPy array or scalar {what}; only numbers and text are read safely, so nothing "
        "was loaded. Where it was made, save it as a plain list (array.tolist()) or leave it out. "
        "If you trust its author as you would trust a program, --trust-pickle loads it anyway: it "
        "runs whatever code the file names, with your rights."
    )
