"""The maps that are not affine in the logits, and maps in sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, log_softmax, sigmoid
from ..errors import FixError
from .affine import AffineMap
from .logit_map import LogitMap

__all__ = ["Blend", "Chain", "LogSoftmax", "NewHead", "compose", "steps_of"]

Float64 = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class NewHead(LogitMap):
    """A head that takes the old one's place: ``z' = W n(x) + b``; the old logits are not looked at.

    Parameters
    ----------
    weight : array of shape (C, D).
    bias : array of shape (C,).
    centre : array of shape (D,) subtracted from the features first, or None.
    normalise : divide the (centred) features by their Euclidean norm: n(x) = (x − m) / ‖x − m‖.
    """

    weight: Float64
    bias: Float64
    centre: Float64 | None = None
    normalise: bool = False

    def __post_init__(self) -> None:
        classes, features = self.weight.shape if self.weight.ndim == 2 else (-1, -1)
        centred = self.centre is None or self.centre.shape == (features,)
        if self.bias.shape != (classes,) or not centred:
            raise FixError(
                f"A new head needs W of shape (C, D), b of shape (C,) and a centre of shape (D,); "
                f"got {self.weight.shape}, {self.bias.shape} and "
                f"{None if self.centre is None else self.centre.shape}."
            )
        arrays = [self.weight, self.bias] + ([] if self.centre is None else [self.centre])
        if not all(np.isfinite(array).all() for array in arrays):
            raise FixError("The new head is not finite; its training features are at fault.")

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return int(self.weight.shape[0])

    @property
    def is_linear(self) -> bool:
        """Whether the features go in as they are, so that weights can simply be exchanged."""
        return self.centre is None and not self.normalise

    @property
    def needs_features(self) -> bool:
        """Always: the old logits do not matter."""
        return True

    def apply(self, logits: FloatArray, features: FloatArray | None = None) -> FloatArray:
        """Return the new head's logits, shape (N, C); see :meth:`LogitMap.apply`."""
        inputs = self.prepared(_required(features, self))
        result: FloatArray = (inputs @ self.weight.T + self.bias).astype(logits.dtype, copy=False)
        return result

    def prepared(self, features: FloatArray) -> Float64:
        """Return n(x) of features (N, D), float64; a zero vector stays zero."""
        inputs = np.asarray(features, dtype=np.float64)
        if self.centre is not None:
            inputs = inputs - self.centre
        if self.normalise:
            inputs = inputs / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-12)
        return inputs

    def mapped(self, after: AffineMap) -> NewHead:
        """Return the head with an affine map of its logits folded in."""
        weight, bias = after.fold(self.weight, self.bias)
        assert bias is not None
        return NewHead(weight, bias, self.centre, self.normalise)


@final
@dataclass(frozen=True, eq=False)
class LogSoftmax(LogitMap):
    """``z' = z − log Σ exp z``: changes no probability, but what an affine map makes of them."""

    size: int

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.size

    def apply(self, logits: FloatArray, features: FloatArray | None = None) -> FloatArray:
        """Return log-probabilities, shape (N, C)."""
        wide = log_softmax(np.asarray(logits, dtype=np.float64))
        result: FloatArray = wide.astype(logits.dtype, copy=False)
        return result


@final
@dataclass(frozen=True, eq=False)
class Blend(LogitMap):
    """DisAlign's map: ``z' = z + σ(v·x + u) (α ⊙ z + β − z)``, input-dependent.

    Zhang et al. 2021, *Distribution alignment*, arXiv 2103.16370, eq. 6 and 7.

    Parameters
    ----------
    scale, shift : α and β, arrays of shape (C,).
    gate_weight : v, array of shape (D,).
    gate_bias : u.
    """

    scale: Float64
    shift: Float64
    gate_weight: Float64
    gate_bias: float

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.ndim != 1:
            raise FixError(
                f"A blend needs α and β of shape (C,); got {self.scale.shape} and "
                f"{self.shift.shape}."
            )
        numbers = np.concatenate([self.scale, self.shift, self.gate_weight, [self.gate_bias]])
        if not np.isfinite(numbers).all():
            raise FixError("The blend is not finite; its training features are at fault.")

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return int(self.scale.shape[0])

    @property
    def needs_features(self) -> bool:
        """Always: the gate looks at them."""
        return True

    def apply(self, logits: FloatArray, features: FloatArray | None = None) -> FloatArray:
        """Return the blended logits, shape (N, C); see :meth:`LogitMap.apply`."""
        wide: Float64 = np.asarray(logits, dtype=np.float64)
        inputs = np.asarray(_required(features, self), dtype=np.float64)
        gate = sigmoid(inputs @ self.gate_weight + self.gate_bias)
        aligned = wide * self.scale + self.shift
        result: FloatArray = (wide + gate[:, None] * (aligned - wide)).astype(
            logits.dtype, copy=False
        )
        return result


@final
@dataclass(frozen=True, eq=False)
class Chain(LogitMap):
    """Several maps, the first one first; made by :func:`compose`, which joins what can be joined.

    Features are those of the model throughout: no map changes them.
    """

    steps: tuple[LogitMap, ...]

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.steps[0].classes

    @property
    def needs_features(self) -> bool:
        """Whether any step looks at features."""
        return any(step.needs_features for step in self.steps)

    def apply(self, logits: FloatArray, features: FloatArray | None = None) -> FloatArray:
        """Return the mapped logits, shape (N, C); float64 between the steps."""
        mapped: FloatArray = np.asarray(logits, dtype=np.float64)
        for step in self.steps:
            mapped = step.apply(mapped, features)
        result: FloatArray = mapped.astype(logits.dtype, copy=False)
        return result


def compose(*maps: LogitMap) -> LogitMap:
    """Return one map that does ``maps`` in order, with neighbours joined where they can be.

    Affine maps become one; an affine map behind a new head is folded into it; what stands before a
    new head is dropped, since a new head does not look at logits.

    Raises
    ------
    FixError
        For maps of different numbers of classes, or none.
    """
    joined: list[LogitMap] = []
    for following in (step for one in maps for step in steps_of(one)):
        if joined and joined[-1].classes != following.classes:
            raise FixError(
                f"Cannot compose maps of {joined[-1].classes} and {following.classes} classes; "
                "they belong to different models."
            )
        if isinstance(following, NewHead):
            joined = [following]
            continue
        before = joined[-1] if joined else None
        if isinstance(following, AffineMap) and isinstance(before, AffineMap):
            joined[-1] = before.then(following)
        elif isinstance(following, AffineMap) and isinstance(before, NewHead):
            joined[-1] = before.mapped(following)
        elif not joined or not following.is_identity:
            if isinstance(before, AffineMap) and before.is_identity:
                joined.pop()
            joined.append(following)
    if not joined:
        raise FixError("There is no map to compose; give at least one.")
    return joined[0] if len(joined) == 1 else Chain(tuple(joined))


def steps_of(one: LogitMap) -> tuple[LogitMap, ...]:
    """Return the steps of a chain, or the map itself as the only one."""
    return one.steps if isinstance(one, Chain) else (one,)


def _required(features: FloatArray | None, map_: LogitMap) -> FloatArray:
    if features is None:
        raise FixError(
            f"This fix ({type(map_).__name__}) looks at the features that the head is given, and "
            "there are only logits; give the checkpoint, or an .npz that holds 'features' too."
        )
    return features
