"""What a fix is: something that learns a map of the logits from what is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable
from ..errors import FixError
from ..models.head import Head
from ..models.trained_with import BALANCED_LOSSES
from .logit_map import LogitMap

__all__ = ["BALANCED_LOSSES", "Evidence", "Fix", "FixContext", "Parameter"]

Evidence = Literal["head", "counts", "validation", "logits", "training", "target"]
Parameter = float | str | tuple[float, ...]

_HOW_TO_GIVE: dict[Evidence, str] = {
    "head": "the head's weights (a checkpoint whose head was recognised, or 'weight' in the .npz)",
    "counts": "training counts (--classes FILE, or 'counts' in the .npz)",
    "validation": "validation images (--val DATA, or 'logits' and 'labels' in the .npz)",
    "logits": (
        "logits of some images, whose labels are not looked at (--val DATA, or 'logits' in the "
        ".npz)"
    ),
    "training": (
        "features of training images (calibrate --train DATA, or 'train_features' and "
        "'train_labels' in the .npz)"
    ),
    "target": (
        "unlabelled images from where the model will be used (calibrate --target DATA, or "
        "'target_logits' in the .npz)"
    ),
}


@dataclass(frozen=True, eq=False)
class FixContext:
    """What a fix may learn from; whatever is not known stays None.

    Parameters
    ----------
    head : the model's last linear map.
    classes : class table with training counts.
    logits : validation logits *before* this fix, array of shape (N, C).
    labels : validation labels, array of shape (N,).
    features : what the head is given for the validation images, array of shape (N, D).
    weights : how much each validation image counts where a fix maximises a likelihood, array of
        shape (N,), not negative; None counts all alike. ``1 / n_c`` makes every class count alike.
    train_features, train_labels : of training images, arrays of shape (M, D) and (M,).
    target_logits : of unlabelled images from where the model will be used, *before* this fix,
        array of shape (T, C).
    trained_with : the loss or sampler the model was trained with, where known.
    force : apply the fix even where it is refused as useless or harmful.
    """

    head: Head | None = None
    classes: ClassTable | None = None
    logits: FloatArray | None = None
    labels: IntArray | None = None
    features: FloatArray | None = None
    weights: npt.NDArray[np.float64] | None = None
    train_features: FloatArray | None = None
    train_labels: IntArray | None = None
    target_logits: FloatArray | None = None
    trained_with: str | None = None
    force: bool = False

    def evidence(self) -> frozenset[Evidence]:
        """Return which kinds of evidence are there."""
        present: dict[Evidence, bool] = {
            "head": self.head is not None and self.head.weight.size > 0,
            "counts": self.classes is not None,
            "validation": self.logits is not None and self.labels is not None,
            "logits": self.logits is not None or self.target_logits is not None,
            "training": self.train_features is not None and self.train_labels is not None,
            "target": self.target_logits is not None,
        }
        return frozenset(kind for kind, there in present.items() if there)

    def class_count(self) -> int:
        """Return the number of classes C, from whatever tells it.

        Raises
        ------
        FixError
            If nothing does.
        """
        if self.head is not None:
            return self.head.classes
        if self.classes is not None:
            return len(self.classes)
        for logits in (self.logits, self.target_logits):
            if logits is not None:
                return int(logits.shape[1])
        raise FixError("Nothing tells the number of classes; give a head, counts or logits.")


class Fix(ABC):
    """A post-hoc method. Subclasses are final frozen dataclasses whose fields are its parameters.

    :meth:`fit` checks that the evidence is there and returns the map; a subclass computes the map
    in ``_map`` and states in class variables what it looks at and how it is chosen.

    Attributes
    ----------
    method : name in the command line, in fix files and in manifests.
    needs : evidence without which it cannot be fitted.
    tunable : the parameter that ``auto`` chooses on validation images; None where there is none.
    grid : its values that ``auto`` tries, from the mildest to the strongest.
    calibrates : whether fitting it sets the confidence too, so that no temperature need follow.
    of_detectors : whether it is defined for detectors' heads alone, and refuses a classifier's.
    """

    method: ClassVar[str]
    needs: ClassVar[frozenset[Evidence]]
    tunable: ClassVar[str | None] = None
    grid: ClassVar[tuple[float, ...]] = ()
    calibrates: ClassVar[bool] = False
    of_detectors: ClassVar[bool] = False

    @abstractmethod
    def _map(self, context: FixContext) -> LogitMap: ...

    @property
    def learns_from_validation(self) -> bool:
        """Whether fitting looks at validation images."""
        return not self.needs.isdisjoint(("validation", "logits"))

    @classmethod
    def takes_prior_off(cls, parameters: Mapping[str, object]) -> bool:
        """Whether a fix with these parameters divides by the training prior: once is right."""
        return False

    @abstractmethod
    def freedom(self, context: FixContext) -> int:
        """Return how many numbers are learnt from data: of two methods the simpler has fewer."""

    @final
    def fit(self, context: FixContext) -> LogitMap:
        """Return the fix's map of the logits.

        Raises
        ------
        FixError
            If evidence is missing, the parameters are out of range, the fix does not apply, or
            its optimiser does not converge.
        """
        self.require_evidence(context)
        return self._map(context)

    @final
    def require_evidence(self, context: FixContext) -> None:
        """Raise :class:`FixError` where evidence is missing, naming how to give it."""
        missing = sorted(self.needs - context.evidence())
        if missing:
            needed = " and ".join(_HOW_TO_GIVE[kind] for kind in missing)
            raise FixError(f"{self.method} needs {needed}.")

    def parameters(self) -> dict[str, Parameter]:
        """Return the parameters by name, as they are written to a manifest."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def describe(self) -> str:
        """Return the fix in the form the command line accepts, ``tau_norm:tau=0.7,bias=scale``."""
        listed = ",".join(f"{k}={_shown(v)}" for k, v in self.parameters().items())
        return f"{self.method}:{listed}" if listed else self.method


def _shown(value: Parameter) -> str:
    if isinstance(value, tuple):
        return f"[{len(value)} values]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def require_number(
    method: str, name: str, value: float, *, low: float, inclusive: bool, option: str
) -> None:
    """Raise :class:`FixError` unless ``value`` is finite and above ``low``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = number and (value >= low if inclusive else value > low)
    if not (inside and np.isfinite(value)):
        bound = f"{'at least' if inclusive else 'above'} {low:g}"
        raise FixError(
            f"{method}: {name} is {value!r}; expected a number {bound}, e.g. {option}, or 'auto' "
            "where validation images may choose it."
        )


def require_numbers(
    method: str, name: str, values: object, *, per: str = "class in label order"
) -> npt.NDArray[np.float64]:
    """Return one number per class, or per what is said, as an array, or raise :class:`FixError`."""
    array = None if values is None else np.asarray(values)
    if array is None or array.ndim != 1 or array.dtype.kind not in "iuf":
        shown = "not given" if values is None else repr(values)
        raise FixError(
            f"{method}: {name} is {shown}; expected a list of numbers, one per {per}, "
            f'which a file holds: {{"schema": 1, "methods": [{{"method": "{method}", '
            f'"parameters": {{"{name}": [1, 1, 10]}}}}]}}, used as --fix FILE.json.'
        )
    return array.astype(np.float64)


def require_uncorrected(
    method: str, trained_with: str | None, *, force: bool, instead: str = ""
) -> None:
    """Refuse to take the training prior off a model whose training corrected for it already.

    Parameters
    ----------
    instead : what else to do, ending in a comma.
    """
    if trained_with in BALANCED_LOSSES and not force:
        raise FixError(
            f"The model was trained with {trained_with}, which already corrects for the training "
            f"prior; {method} would correct twice. Leave it out,{instead} or insist with --force "
            "(force=True in Python) if that record is wrong."
        )


def require_softmax(context: FixContext, method: str) -> None:
    """Refuse heads whose scores are not a softmax over classes; a missing head is taken as one."""
    if context.head is not None and context.head.activation != "softmax":
        raise FixError(
            f"{method} is defined for softmax heads; this head's activation is "
            f"{context.head.activation}."
        )


def zeros(classes: int) -> npt.NDArray[np.float64]:
    """Return a zero shift."""
    return np.zeros(classes, dtype=np.float64)
