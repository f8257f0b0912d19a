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


def load_plain_pickle(path: Path, *, trust: bool = False) -> Any:
    """Return what a pickle holds, arrays as tensors.

    Parameters
    ----------
    path : the file.
    trust : run whatever the pickle asks for.

    Raises
    ------
    UnsafeCheckpointError
        If it names anything but NumPy's arrays and plain containers; nothing of it has run.
    CheckpointError
        If it is damaged, its arrays are larger than itself, or it names a module that is not
        installed.
    """
    with path.open("rb") as file:
        try:
            if trust:
                return _tensors(pickle.load(file, encoding="latin1"), {})
            reader = _Reader(file, encoding="latin1", size=path.stat().st_size)
            return _tensors(reader.load(), {})
        except OSError:
            raise
        except ModuleNotFoundError as error:
            raise CheckpointError(
                f"{path} names the module {error.name}, which is not installed here. Install it, "
                "or save plain values and weights only where the file was made."
            ) from error
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

    def __init__(self, file: IO[bytes], *, encoding: str, size: int) -> None:
        super().__init__(file, encoding=encoding)
        self._known = _functions(size)

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


def _functions(size: int) -> dict[str, Callable[..., Any]]:
    """Return what a pickle of `size` bytes may call.

    A pickle can set attributes of these, of nothing shared.
    """
    spent = {"arrays": 0, "text": 0, "entries": 0}

    def spend(on: str, amount: int) -> None:
        # What is used over and over is in the file once, and would fill the memory.
        spent[on] += amount
        if spent[on] > size:
            raise CheckpointError(f"its {on} are larger than the file")

    class Array(CheckedArray):
        def __setstate__(self, state: tuple[Any, ...]) -> None:
            super().__setstate__(state)
            spend("arrays", self.nbytes)

    def array(*_: object) -> Any:
        return Array()

    def dtype(name: str, *_flags: object) -> Any:
        return CheckedDtype(name)

    def scalar(kind: object, content: object) -> Any:
        found = checked_scalar(kind, content)
        spend("arrays", found.nbytes)
        return found

    def from_buffer(content: object, kind: object, shape: tuple[int, ...], order: str) -> Any:
        if not isinstance(content, bytes | bytearray):
            raise CheckpointError(f"an array has a {type(content).__name__} for its content")
        made = Array()
        made.__setstate__((1, shape, kind, order == "F", bytes(content)))
        return made

    def ordered(*items: Any) -> Any:
        spend("entries", sum(map(len, items)))
        return OrderedDict(*items)

    def encode(text: str, *_encoding: object) -> bytes:
        spend("text", len(text))
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


def _tensors(value: Any, done: dict[int, Any]) -> Any:
    """Return nested dictionaries with tensors for arrays of numbers, each made once.

    Parameters
    ----------
    done : what was made of which object, by its id.
    """
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Mapping):
        made: dict[Any, Any] = {}
        done[id(value)] = made
        made |= {key: _tensors(one, done) for key, one in value.items()}
        return made
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        done[id(value)] = _tensor(value)
        return done[id(value)]
    return value


def _tensor(array: np.ndarray[Any, np.dtype[Any]]) -> torch.Tensor:
    import torch

    native = np.asarray(array).astype(array.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(native)
