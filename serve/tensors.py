"""Tensors of the Open Inference Protocol: datatypes, checks, and bytes or numbers to arrays.

Nothing here allocates by what a client claims: a shape is compared with the model's and with the
data that came before an array is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from ltdeploy.engines import TensorSpec

from .failures import BadRequest

__all__ = [
    "MOST_INT64",
    "datatype_of",
    "feed_from_bytes",
    "feed_from_values",
    "metadata_shape",
    "output_bytes",
    "shown",
]

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
_KNOWN_DATATYPES = {*_DATATYPES.values(), "BF16"}
# What JSON and protobuf have for the kinds of dtypes.
_NUMBERS: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}
_LONGEST_SHOWN = 60
_MOST_AXES = 32
MOST_INT64 = 2**63 - 1


def shown(text: str) -> str:
    """Return a client's text for an error: quoted, of bounded length, ASCII only."""
    short = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
    return ascii(short)


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a dtype of numpy: ``FP32`` for ``float32``.

    Raises
    ------
    KeyError
        For a dtype that no graph of ours has.
    """
    return _DATATYPES[np.dtype(dtype).name]


def metadata_shape(spec: TensorSpec) -> list[int]:
    """Return a shape as metadata has it: -1 for an axis of any length."""
    return [-1 if axis is None else axis for axis in spec.shape]


def feed_from_bytes(
    spec: TensorSpec, datatype: object, shape: object, data: bytes | memoryview
) -> npt.NDArray[Any]:
    """Return an input that came as bytes, little-endian and row-major, without copying them.

    Parameters
    ----------
    spec : what the model takes.
    datatype, shape : what the request says; anything that JSON may hold.
    data : all bytes of the tensor.

    Raises
    ------
    BadRequest
        Causes ``unknown_datatype``, ``wrong_datatype``, ``wrong_shape``, ``wrong_size``,
        ``wrong_value``.
    """
    checked = _checked_shape(spec, datatype, shape)
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    expected = math.prod(checked) * dtype.itemsize
    if len(data) != expected:
        raise BadRequest(
            f"The input {spec.name} of shape {list(checked)} has {len(data)} bytes; expected "
            f"{expected}.",
            "wrong_size",
        )
    if dtype == np.bool_ and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise BadRequest(f"The input {spec.name} is BOOL; expected bytes 0 and 1.", "wrong_value")
    return np.frombuffer(data, dtype).reshape(checked)


def feed_from_values(
    spec: TensorSpec, datatype: object, shape: object, data: object
) -> npt.NDArray[Any]:
    """Return an input that came as numbers: row-major, flat or nested as its shape is.

    Parameters
    ----------
    spec, datatype, shape : as of :func:`feed_from_bytes`.
    data : lists of numbers.

    Raises
    ------
    BadRequest
        As :func:`feed_from_bytes`.
    """
    checked = _checked_shape(spec, datatype, shape)
    flat = _flattened(spec.name, checked, data)
    dtype = np.dtype(spec.dtype)
    if not set(map(type, flat)) <= _NUMBERS[dtype.kind]:
        raise BadRequest(
            f"The input {spec.name} holds values that are no numbers of {datatype_of(spec.dtype)}.",
            "wrong_value",
        )
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        if min(flat) < limits.min or max(flat) > limits.max:
            raise BadRequest(
                f"The input {spec.name} holds values outside of {limits.min} to {limits.max}.",
                "wrong_value",
            )
    try:
        with np.errstate(over="ignore"):
            array: npt.NDArray[Any] = np.array(flat, dtype).reshape(checked)
    except OverflowError:
        array = np.array(np.inf)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(
            f"The input {spec.name} holds values that {datatype_of(spec.dtype)} cannot; expected "
            "finite numbers within its range.",
            "wrong_value",
        )
    return array


def output_bytes(array: npt.NDArray[Any]) -> bytes | memoryview:
    """Return an output's bytes, little-endian and row-major; texts have their length before them.

    Numbers are not copied where they already lie so.
    """
    if array.dtype == np.object_:
        texts = [str(text).encode() for text in array.ravel()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def _checked_shape(spec: TensorSpec, datatype: object, shape: object) -> tuple[int, ...]:
    """Return a request's shape, or raise where it or the datatype is not the model's."""
    expected = datatype_of(spec.dtype)
    if not isinstance(datatype, str) or datatype not in _KNOWN_DATATYPES:
        raise BadRequest(
            f"The input {spec.name} has a datatype that the protocol does not know; expected "
            f"{expected}.",
            "unknown_datatype",
        )
    if datatype != expected:
        raise BadRequest(
            f"The input {spec.name} is sent as {datatype}; expected {expected}.", "wrong_datatype"
        )
    if (
        not isinstance(shape, Sequence)
        or len(shape) > _MOST_AXES
        or any(type(axis) is not int or not 0 <= axis <= MOST_INT64 for axis in shape)
    ):
        raise BadRequest(
            f"The input {spec.name} has no shape; expected a list of whole numbers.", "wrong_shape"
        )
    # An empty batch has no answer: an axis of any length has at least one entry.
    fits = len(shape) == len(spec.shape) and all(
        length == wanted if wanted is not None else length >= 1
        for wanted, length in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if axis is None else str(axis) for axis in spec.shape)
        raise BadRequest(
            f"The input {spec.name} has the shape {list(shape)}; expected [{wanted}].",
            "wrong_shape",
        )
    return tuple(shape)


def _flattened(name: str, shape: tuple[int, ...], data: object) -> list[Any]:
    """Return all values of flat or nested lists whose sizes are those of ``shape``."""
    if not isinstance(data, list):
        raise BadRequest(f"The input {name} has no data; expected a list.", "wrong_value")
    if len(data) == math.prod(shape) and not isinstance(data[0], list):
        return data
    flat = data
    for depth, length in enumerate(shape):
        rows = [flat] if depth == 0 else flat
        if any(type(row) is not list or len(row) != length for row in rows):
            raise BadRequest(
                f"The data of the input {name} is neither {math.prod(shape)} values in a flat list "
                f"nor nested as its shape {list(shape)}.",
                "wrong_size",
            )
        flat = list(chain.from_iterable(rows))
    return flat
