"""Maps of the logits as JSON: one form for the manifest and for fix files; never a pickle."""

from __future__ import annotations

import base64
import math
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import FixError
from .affine import AffineMap
from .logit_map import LogitMap
from .maps import Blend, LogSoftmax, NewHead, compose, steps_of

__all__ = [
    "AffineStep",
    "ArrayEntry",
    "BlendStep",
    "LogSoftmaxStep",
    "MatrixEntry",
    "MethodEntry",
    "NewHeadStep",
    "SelectionEntry",
    "Step",
    "Strict",
    "decode",
    "encode",
]

_LARGEST_ARRAY_BYTES = 160 << 20  # 213 MiB as text: a manifest may have 256
_LARGEST_VECTOR = 1 << 20

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Size = Annotated[int, Field(strict=True, ge=0, le=1 << 32)]
Vector = Annotated[tuple[Number, ...], Field(min_length=1, max_length=_LARGEST_VECTOR)]


class Strict(BaseModel):
    """What all entries of manifests and fix files are: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayEntry(Strict):
    """An array as base64 of its little-endian, row-major bytes.

    Attributes
    ----------
    dtype : ``<f4``, ``<f8`` or ``<u8``.
    shape : one or two sizes.
    """

    dtype: Literal["<f4", "<f8", "<u8"]
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=2)]
    base64: str

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> ArrayEntry:
        """Return the entry of an array; float64 that float32 holds exactly is stored as that."""
        dtype = array.dtype.newbyteorder("<").str
        with np.errstate(over="ignore"):
            if dtype == "<f8" and np.array_equal(array, array.astype("<f4").astype("<f8")):
                dtype = "<f4"
        content = np.ascontiguousarray(array, dtype=dtype).tobytes()
        text = base64.b64encode(content).decode("ascii")
        return cls.model_validate({"dtype": dtype, "shape": array.shape, "base64": text})

    @model_validator(mode="after")
    def _whole(self) -> ArrayEntry:
        expected = math.prod(self.shape) * int(self.dtype[-1])
        if expected > _LARGEST_ARRAY_BYTES:
            raise ValueError(
                f"an array of shape {self.shape} takes {expected >> 20} MiB; at most "
                f"{_LARGEST_ARRAY_BYTES >> 20} are read"
            )
        if len(self.base64) != 4 * -(-expected // 3):
            raise ValueError(
                f"base64 of {len(self.base64)} characters cannot hold shape {self.shape} of "
                f"{self.dtype}, which takes {4 * -(-expected // 3)}"
            )
        array = self.array()  # decoded once here, so that what is not base64 is found early
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("the array holds NaN or infinity; expected finite numbers")
        return self

    def array(self) -> npt.NDArray[Any]:
        """Return the array; floats as float64, whole numbers as uint64, in native byte order."""
        content = base64.b64decode(self.base64, validate=True)
        wide = np.float64 if self.dtype[1] == "f" else np.uint64
        return np.frombuffer(content, dtype=self.dtype).reshape(self.shape).astype(wide)


class MatrixEntry(ArrayEntry):
    """A matrix of floats."""

    dtype: Literal["<f4", "<f8"]
    shape: tuple[Size, Size]


class AffineStep(Strict):
    """:class:`AffineMap`: A as its diagonal or in full, and c."""

    kind: Literal["affine"] = "affine"
    scale: Vector | MatrixEntry
    shift: Vector


class NewHeadStep(Strict):
    """:class:`NewHead`."""

    kind: Literal["new_head"] = "new_head"
    weight: MatrixEntry
    bias: Vector
    centre: Vector | None = None
    normalise: Annotated[bool, Field(strict=True)] = False


class LogSoftmaxStep(Strict):
    """:class:`LogSoftmax`; it alone says nowhere else for how many classes it is."""

    kind: Literal["log_softmax"] = "log_softmax"
    classes: Annotated[int, Field(strict=True, ge=1, le=_LARGEST_VECTOR)]


class BlendStep(Strict):
    """:class:`Blend`."""

    kind: Literal["blend"] = "blend"
    scale: Vector
    shift: Vector
    gate_weight: Vector
    gate_bias: Number


Step = Annotated[AffineStep | NewHeadStep | LogSoftmaxStep | BlendStep, Field(discriminator="kind")]


class MethodEntry(Strict):
    """One fix, by name and parameters."""

    method: str
    parameters: dict[str, Number | str | tuple[Number, ...]]

    def shown(self) -> dict[str, str]:
        """Return the parameters as short texts: of a list only its length."""
        return {
            name: f"[{len(value)} values]"
            if isinstance(value, tuple)
            else (f"{value:g}" if isinstance(value, float) else value)
            for name, value in self.parameters.items()
        }


class SelectionEntry(Strict):
    """The images on which a fix was chosen or fitted, and what held-out ones said of it.

    Attributes
    ----------
    objective : what was maximised; None where nothing was chosen.
    balanced_before, balanced_after : class-averaged accuracy on held-out images, in percent; of a
        detector its mean average precision.
    """

    name: str
    images: Annotated[int, Field(ge=0)]
    objective: str | None = None
    balanced_before: Number | None
    balanced_after: Number | None
    notes: tuple[str, ...] = ()


def encode(fix: LogitMap) -> tuple[Step, ...]:
    """Return a map's steps; :func:`decode` gives exactly the same map back."""
    return tuple(_encoded(step) for step in steps_of(fix))


def _encoded(step: LogitMap) -> Step:
    match step:
        case AffineMap():
            scale = _vector(step.scale) if step.is_diagonal else _matrix(step.scale)
            return AffineStep(scale=scale, shift=_vector(step.shift))
        case NewHead():
            return NewHeadStep(
                weight=_matrix(step.weight),
                bias=_vector(step.bias),
                centre=None if step.centre is None else _vector(step.centre),
                normalise=step.normalise,
            )
        case LogSoftmax():
            return LogSoftmaxStep(classes=step.size)
        case Blend():
            return BlendStep(
                scale=_vector(step.scale),
                shift=_vector(step.shift),
                gate_weight=_vector(step.gate_weight),
                gate_bias=float(step.gate_bias),
            )
    raise FixError(f"A {type(step).__name__} cannot be written to a file; compose it of others.")


def decode(steps: tuple[Step, ...]) -> LogitMap:
    """Return the map of the steps in order.

    Raises
    ------
    FixError
        For no steps, or arrays or steps that do not belong together.
    """
    return compose(*(_decoded(step) for step in steps))


def _decoded(step: Step) -> LogitMap:
    match step:
        case AffineStep():
            scale = step.scale.array() if isinstance(step.scale, ArrayEntry) else step.scale
            return AffineMap(np.asarray(scale, dtype=np.float64), _array(step.shift))
        case NewHeadStep():
            centre = None if step.centre is None else _array(step.centre)
            return NewHead(step.weight.array(), _array(step.bias), centre, step.normalise)
        case LogSoftmaxStep():
            return LogSoftmax(step.classes)
        case BlendStep():
            return Blend(
                _array(step.scale), _array(step.shift), _array(step.gate_weight), step.gate_bias
            )


def _vector(array: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.asarray(array, dtype=np.float64).tolist())


def _matrix(array: npt.NDArray[np.float64]) -> MatrixEntry:
    entry = MatrixEntry.of(np.asarray(array, dtype=np.float64))
    assert isinstance(entry, MatrixEntry)
    return entry


def _array(numbers: Vector) -> npt.NDArray[np.float64]:
    return np.array(numbers, dtype=np.float64)
