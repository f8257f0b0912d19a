"""Pickles of NumPy arrays that ``torch.save`` did not write, read without running their code.

detectron2's model zoo has such: ``{"model": {name: array}, "__author__": …}``. Python's unpickler
calls what a pickle names; here every name is looked up in a short list of functions that were made
for this one file and build arrays of numbers and text only, so that nothing else can be named,
called or changed.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, UnsafeCheckpointError
from .safe_arrays import CheckedArray, CheckedDtype, checked_scalar

if TYPE_CHECKING:
    import torch

__all__ = ["is_plain_pickle", "load_plain_pickle"]

# What torch.save's old format starts with: a pickle of one number and nothing else.
_TORCH = b"\x80\x02\x8a\x0a"


def is_plain_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle and not as ``torch.save`` starts one."""
    with path.open("rb") as file:
        head = file.read(4)
    return head[:1] == b"\x80" and head[1:2] <= b"\x05" and not head.startswith(_TORCH)


def load_plain_pickle(path: Path) -> Any:
    """Return what a pickle holds, arrays as tensors.

    Parameters
    ----------
    path : the file.

    Raises
    ------
    UnsafeCheckpointError
        If it names anything but NumPy's arrays and plain containers; nothing of it has run.
    CheckpointError
        If it is damaged.
    """
    with path.open("rb") as file:
        try:
            return _tensors(_Reader(file, encoding="latin1").load())
        except UnsafeCheckpointError as error:
            raise UnsafeCheckpointError(f"{path} {error}") from None
        except Exception as error:
            # A damaged or hostile pickle can raise anything in the unpickler.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"{path} cannot be read as a checkpoint: {reason[0].rstrip('.')}. It is "
                "damaged or cut short; copy or download it again and compare its size with the "
                "original."
            ) from error


class _Reader(pickle.Unpickler):
    """An unpickler that knows a few functions, made anew for each file, and no classes."""

    def __init__(self, file: IO[bytes], *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._known = _functions()

    def find_class(self, module: str, name: str) -> Any:
        """Return the function that takes the place of what the pickle names."""
        found = self._known.get(f"{module}.{name}")
        if found is None:
            raise UnsafeCheckpointError(
                f"wants more than arrays and plain values: it names {module}.{name}. Loading it "
                "could run code from the file, so nothing was loaded. Where it was made, save "
                "plain values and weights only: torch.save({'model': model.state_dict()}, …). If "
                "you trust its author as you would trust a program, --trust-pickle loads it "
                "anyway: it runs whatever code the file names, with your rights."
            )
        return found


def _functions() -> dict[str, Callable[..., Any]]:
    """Return what a pickle may call. A pickle can set attributes of these, of nothing shared."""

    def array(*_: object) -> Any:
        return CheckedArray()

    def dtype(name: str, *_flags: object) -> Any:
        return CheckedDtype(name)

    def scalar(kind: object, content: object) -> Any:
        return checked_scalar(kind, content)

    def from_buffer(content: bytes, kind: object, shape: tuple[int, ...], order: str) -> Any:
        made = CheckedArray()
        made.__setstate__((1, shape, kind, order == "F", bytes(content)))
        return made

    def ordered(*items: Any) -> Any:
        return OrderedDict(*items)

    def encode(text: str, *_encoding: object) -> bytes:
        return text.encode("latin1")

    known: dict[str, Callable[..., Any]] = {
        "numpy.ndarray": array,
        "numpy.dtype": dtype,
        "collections.OrderedDict": ordered,
        "_codecs.encode": encode,
    }
    for core in ("numpy.core", "numpy._core"):
        known |= {
            f"{core}.multiarray._reconstruct": array,
            f"{core}.multiarray.scalar": scalar,
            f"{core}.numeric._frombuffer": from_buffer,
        }
    return known


def _tensors(value: Any) -> Any:
    """Return nested dictionaries with tensors for arrays of numbers."""
    if isinstance(value, Mapping):
        return {key: _tensors(one) for key, one in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _tensor(value)
    return value


def _tensor(array: np.ndarray[Any, np.dtype[Any]]) -> torch.Tensor:
    import torch

    native = np.asarray(array).astype(array.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(native)
