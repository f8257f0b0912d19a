"""What a fix is: something that learns an affine map of the logits from what is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable
from ..errors import FixError
from ..models.head import Head
from ..models.layouts import BALANCED_LOSSES
from .affine import AffineMap

__all__ = ["BALANCED_LOSSES", "Evidence", "Fix", "FixContext"]

Evidence = Literal["head", "counts", "validation"]


@dataclass(frozen=True, eq=False)
class FixContext:
    """What a fix may learn from; whatever is not known stays None.

    Parameters
    ----------
    head : the model's last linear map.
    classes : class table with training counts.
    logits : validation logits *before* this fix, array of shape (N, C).
    labels : validation labels, array of shape (N,).
    trained_with : the loss or sampler the model was trained with, where known.
    force : apply the fix even where it is refused as useless or harmful.
    """

    head: Head | None = None
    classes: ClassTable | None = None
    logits: FloatArray | None = None
    labels: IntArray | None = None
    trained_with: str | None = None
    force: bool = False


class Fix(ABC):
    """A post-hoc method. Subclasses are final frozen dataclasses whose fields are its parameters.

    :meth:`fit` checks that the evidence is there and returns the affine map; a subclass computes
    the map in ``_map`` and states in ``needs`` what it looks at.
    """

    method: ClassVar[str]
    needs: ClassVar[frozenset[Evidence]]

    @abstractmethod
    def _map(self, context: FixContext) -> AffineMap: ...

    @final
    def fit(self, context: FixContext) -> AffineMap:
        """Return the fix's affine map ``z' = A z + c``.

        Raises
        ------
        FixError
            If evidence is missing, the parameters are out of range, or the fix does not apply.
        """
        present: dict[Evidence, bool] = {
            "head": context.head is not None,
            "counts": context.classes is not None,
            "validation": context.logits is not None and context.labels is not None,
        }
        missing = [evidence for evidence in sorted(self.needs) if not present[evidence]]
        if missing:
            how = {
                "head": "a checkpoint whose head was recognised",
                "counts": "training counts (--classes FILE)",
                "validation": "validation images (--val DATA)",
            }
            raise FixError(f"{self.method} needs {' and '.join(how[m] for m in missing)}.")
        return self._map(context)

    def parameters(self) -> dict[str, float | str]:
        """Return the parameters by name, as they are written to a manifest."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def describe(self) -> str:
        """Return the fix in the form the command line accepts, ``tau_norm:tau=0.7,bias=scale``."""
        listed = ",".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in self.parameters().items()
        )
        return f"{self.method}:{listed}"


def require_number(
    method: str, name: str, value: float, *, low: float, inclusive: bool, option: str
) -> None:
    """Raise :class:`FixError` unless ``value`` is finite and above ``low``."""
    inside = value >= low if inclusive else value > low
    if not (isinstance(value, (int, float)) and np.isfinite(value) and inside):
        bound = f"{'at least' if inclusive else 'above'} {low:g}"
        raise FixError(f"{method}: {name} is {value!r}; expected a number {bound}, e.g. {option}.")


def softmax_head(context: FixContext, method: str) -> Head:
    """Return the context's head, or refuse heads whose scores are not a softmax over classes."""
    assert context.head is not None
    if context.head.activation != "softmax":
        raise FixError(
            f"{method} is defined for softmax heads; this head's activation is "
            f"{context.head.activation}."
        )
    return context.head


def zeros(classes: int) -> npt.NDArray[np.float64]:
    """Return a zero shift."""
    return np.zeros(classes, dtype=np.float64)
