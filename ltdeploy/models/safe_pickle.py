"""Reading what torch.save wrote without running the code that a pickle may carry.

A pickle is a program: loading one calls whatever functions it names. torch's restricted unpickler
builds tensors and plain containers only; the short list below adds what training codes commonly
store beside them. Everything else is named to the user and refused.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError, UnsafeCheckpointError
from .plain_pickle import is_plain_pickle, load_plain_pickle
from .safe_arrays import CheckedArray, CheckedDtype, checked_scalar, empty_bytes

__all__ = ["load_pickle"]

_LISTED = 12


class _Logged:
    """Take the place of mmengine's log of numbers, of which nothing is used."""


def _logged_method(owner: object, _name: object) -> None:
    """Take the place of ``getattr``, by which that log names its own methods, and find nothing."""
    if owner is not _Logged:
        raise CheckpointError("it asks for an attribute of something that is no log of mmengine")


def _allowed() -> list[Any]:
    """Return the classes and functions that a checkpoint may use beside torch's own list.

    NumPy 2 moved ``numpy.core`` to ``numpy._core``; files of both times are read.
    """
    return [
        argparse.Namespace,
        (_Logged, "mmengine.logging.history_buffer.HistoryBuffer"),
        *((_logged_method, f"{module}.getattr") for module in ("builtins", "__builtin__")),
        (CheckedDtype, "numpy.dtype"),
        (CheckedArray, "numpy.ndarray"),
        *((empty_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")),
        *((checked_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((CheckedArray, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((pathlib.PurePosixPath, f"pathlib{sub}.PosixPath") for sub in ("", "._local")),
        *((pathlib.PureWindowsPath, f"pathlib{sub}.WindowsPath") for sub in ("", "._local")),
    ]


def load_pickle(path: Path, *, trust: bool) -> Any:
    """Return the object in a file that ``torch.save`` wrote, tensors on the CPU.

    Files in the zip format are memory-mapped, so that optimizer states cost no memory. A plain
    pickle, as detectron2's model zoo has, is read by :mod:`ltdeploy.models.plain_pickle`.

    Parameters
    ----------
    path : the file.
    trust : run whatever the pickle asks for.

    Raises
    ------
    UnsafeCheckpointError
        If the file names functions or classes beyond the allow-list, or holds NumPy arrays of
        anything but numbers and text; nothing of it has run.
    CheckpointError
        If the file is truncated or not what ``torch.save`` writes.
    """
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and is_plain_pickle(path):
        try:
            return load_plain_pickle(path)
        except UnsafeCheckpointError:
            if not trust:
                raise
        return load_plain_pickle(path, trust=True)
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=is_zip)
    except OSError:
        raise
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f"{path} {error}") from None
    except Exception as error:
        # A damaged or hostile pickle can raise anything in the unpickler; a trusted one, anything
        # that its own classes raise.
        reason = error
    wanted = sorted(_unsafe_globals(path, is_zip)) if not trust else []
    if wanted:
        raise UnsafeCheckpointError(_refusal(path, wanted)) from reason
    raise CheckpointError(
        f"{path} cannot be read as a checkpoint: {_reason(reason)}. It is damaged or cut "
        "short, or was not written by torch.save; copy or download it again and compare its size "
        "with the original."
    ) from reason


def _refusal(path: Path, wanted: list[str]) -> str:
    shown = ", ".join(wanted[:_LISTED])
    more = f" and {len(wanted) - _LISTED} more" if len(wanted) > _LISTED else ""
    trust = (
        "If you trust its author as you would trust a program, --trust-pickle loads it anyway: "
        "it runs whatever code the file names, with your rights."
    )
    if any(name.startswith("torch.nn.modules.") for name in wanted):
        return (
            f"{path} holds a whole pickled network, not only its weights: it names {shown}{more}. "
            "Loading it would run code from the file, so nothing was loaded. Where it was made, "
            "save the weights instead: torch.save(model.state_dict(), 'weights.pt'). " + trust
        )
    return (
        f"{path} wants more than weights and plain values: it names {shown}{more}. Loading these "
        "could run code from the file, so nothing was loaded. Where it was made, save plain "
        "values and weights only: torch.save({'state_dict': model.state_dict()}, …). " + trust
    )


def _unsafe_globals(path: Path, is_zip: bool) -> set[str]:
    """Return every global that the pickle names and that is not allowed, without loading it."""
    if is_zip:
        try:
            with torch.serialization.safe_globals(_allowed()):
                return set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except (RuntimeError, ValueError, pickle.UnpicklingError, EOFError):
            return set()
    listed = {
        f"{item.__module__}.{item.__qualname__}" if not isinstance(item, tuple) else item[1]
        for item in _allowed()
    }
    with path.open("rb") as file:
        named = set(_named_globals(file))
    # The old format's tensors and containers; torch's own unpickler allows exactly these too.
    plain = re.compile(
        r"(torch\.(\w+Storage|Size|\w+\d+|bool|device)|torch\._utils\._rebuild_\w+)$"
    )
    known = {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    return {n for n in named if n not in listed and n not in known and not plain.match(n)}


def _named_globals(file: IO[bytes]) -> Iterator[str]:
    """Yield the globals of the pickles that the old format strings together, from their opcodes."""
    try:
        while True:
            strings: list[str] = []
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    yield ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, EOFError, pickle.UnpicklingError, UnicodeDecodeError):
        return  # the raw numbers after the last pickle are not opcodes


def _reason(error: Exception) -> str:
    """Return what went wrong in a line, without torch's advice to load the file unsafely."""
    if isinstance(error, pickle.UnpicklingError) and isinstance(error.__context__, Exception):
        error = error.__context__
    text = str(error).strip() or type(error).__name__
    if "weights_only" in text or "safe_globals" in text:
        return "its pickle builds objects beyond weights and plain values"
    return text.splitlines()[0].rstrip(".")
