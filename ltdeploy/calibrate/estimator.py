"""Fixes in scikit-learn's habit, on plain arrays: ``fit``, ``transform``, ``predict``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, sigmoid, softmax
from ..classes import ClassTable
from ..errors import DataError, UsageError, did_you_mean
from ..fixes import Fix, FixContext, LogitMap, fit_chain
from ..models.head import Activation, Head
from ..models.trained_with import resolve_trained_with
from .candidates import parse_candidate
from .evidence import Evidence, check_context, check_finite
from .plausible import refuse_probabilities
from .result import Calibration
from .run import calibrate
from .sources import aim_for

__all__ = ["FixEstimator"]

_AUTO = "auto"


class FixEstimator:
    """A post-hoc fix that is fitted on logits and labels and then transforms logits.

    It follows scikit-learn's habit (parameters are stored as given, what is learnt ends in an
    underscore, ``fit`` returns the estimator) without needing scikit-learn.

    Parameters
    ----------
    fix : ``"auto"`` chooses among all that apply; a name like ``"vector"``,
        ``"logit_adjustment:tau=1.0"`` or ``"tau_norm"`` (its strength is then chosen); a
        :class:`~ltdeploy.fixes.Fix`.
    objective : what a choice maximises, see :class:`~ltdeploy.calibrate.Aim`; None takes
        ``"balanced"``, and ``"overall"`` where target logits tell a prior.
    max_head_loss : points that the most frequent group may lose; None for any.
    folds : for choices.
    seed : for choices.
    force : try what is refused as useless or harmful.

    Attributes
    ----------
    map_ : the fitted :class:`~ltdeploy.fixes.LogitMap`.
    calibration_ : what the choice rests on; None where nothing was chosen.
    classes_ : the labels 0..C−1.

    Examples
    --------
    >>> import numpy as np
    >>> from ltdeploy.calibrate import FixEstimator
    >>> logits = np.array([[2.0, 1.0], [1.0, 0.5]])
    >>> estimator = FixEstimator("logit_adjustment:tau=1.0").fit(logits, counts=[90, 10])
    >>> estimator.transform(logits).round(2)
    array([[2.11, 3.3 ],
           [1.11, 2.8 ]])
    """

    def __init__(
        self,
        fix: str | Fix = _AUTO,
        *,
        objective: str | None = None,
        max_head_loss: float | None = None,
        folds: int = 5,
        seed: int = 0,
        force: bool = False,
    ) -> None:
        self.fix = fix
        self.objective = objective
        self.max_head_loss = max_head_loss
        self.folds = folds
        self.seed = seed
        self.force = force

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments, as scikit-learn's tools ask for them."""
        names = ("fix", "objective", "max_head_loss", "folds", "seed", "force")
        return {name: getattr(self, name) for name in names}

    def set_params(self, **parameters: Any) -> FixEstimator:
        """Change constructor arguments."""
        for name, value in parameters.items():
            if name not in self.get_params():
                raise UsageError(
                    f"FixEstimator has no parameter {name!r}; expected one of "
                    f"{', '.join(self.get_params())}."
                )
            setattr(self, name, value)
        return self

    def fit(
        self,
        logits: npt.ArrayLike,
        labels: npt.ArrayLike | None = None,
        *,
        counts: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        weight: npt.ArrayLike | None = None,
        bias: npt.ArrayLike | None = None,
        features: npt.ArrayLike | None = None,
        train_features: npt.ArrayLike | None = None,
        train_labels: npt.ArrayLike | None = None,
        target_logits: npt.ArrayLike | None = None,
        trained_with: str | None = None,
        activation: str = "softmax",
    ) -> FixEstimator:
        """Fit the fix; each one looks at what it needs and says what is missing.

        Parameters
        ----------
        logits : validation logits, array of shape (N, C).
        labels : validation labels, array of shape (N,), 0..C−1.
        counts : training images per class, array of shape (C,); needed by ``auto`` and by what
            corrects for the prior.
        sample_weight : how much each image counts in likelihoods, array of shape (N,); for a fix
            that leaves nothing to choose, as a choice weighs images by what it is for.
        weight, bias : of the head, arrays of shape (C, D) and (C,).
        features : what the head was given for the validation images, array of shape (N, D).
        train_features, train_labels : of training images, arrays of shape (M, D) and (M,).
        target_logits : of unlabelled images from the place of use, array of shape (T, C).
        trained_with : the loss or sampler, where known.
        activation : ``"softmax"`` or ``"sigmoid"``.

        Raises
        ------
        DataError
            If arrays do not fit together.
        FixError
            If the fix cannot be fitted.
        UsageError
            If the fix is none, or what a choice rests on is missing.
        """
        given = _floating(logits)
        refuse_probabilities("logits", given, force=self.force)
        table = None if counts is None else _table(counts, given.shape[1])
        context = FixContext(
            head=_head(given, weight, bias, activation),
            classes=table,
            logits=given,
            labels=None if labels is None else np.asarray(labels),
            features=None if features is None else np.asarray(features),
            weights=None if sample_weight is None else np.asarray(sample_weight, np.float64),
            train_features=None if train_features is None else np.asarray(train_features),
            train_labels=None if train_labels is None else np.asarray(train_labels),
            target_logits=None if target_logits is None else np.asarray(target_logits),
            trained_with=resolve_trained_with(trained_with, "'trained_with'"),
            force=self.force,
        )
        self.calibration_: Calibration | None = None
        self.classes_ = np.arange(given.shape[1])
        self._activation = activation
        ready = self._ready()
        if context.weights is not None and context.weights.shape != (len(given),):
            raise DataError(
                f"'sample_weight' has the shape {context.weights.shape}; expected one number per "
                f"image, ({len(given)},)."
            )
        if ready is not None:
            if labels is not None:
                context = _checked(context)
            self.map_: LogitMap = fit_chain(ready, context)
            return self
        if labels is None or (table is None and self._needs_counts()):
            needed, given_as = "labelled validation logits", "labels"
            if self._needs_counts():
                needed, given_as = f"{needed} and training counts", f"{given_as}, counts=…"
            raise UsageError(
                f"FixEstimator({self.fix!r}) chooses on {needed}; give fit(logits, {given_as}), "
                "or a fix with all its parameters."
            )
        if table is None:
            self._refuse_groups(context)
            context = replace(context, classes=_table_without_counts(context))
        if sample_weight is not None:
            raise UsageError(
                f"FixEstimator({self.fix!r}) chooses, and a choice weighs images by what it is "
                "for; give 'sample_weight' with a fix that has all its parameters."
            )
        names = None if self.fix == _AUTO else [str(self.fix)]
        context = check_context(context)
        self.calibration_ = calibrate(
            Evidence(context, "arrays"),
            methods=names,
            aim=aim_for(context, self.objective, max_head_loss=self.max_head_loss),
            folds=self.folds,
            seed=self.seed,
        )
        self.map_ = self.calibration_.fix
        return self

    def transform(
        self, logits: npt.ArrayLike, features: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.floating[Any]]:
        """Return fixed logits, array of shape (N, C), in the logits' own floating type."""
        if not hasattr(self, "map_"):
            raise UsageError("This FixEstimator is not fitted; call fit(logits, …) first.")
        given = _floating(logits)
        if given.shape[1] != len(self.classes_):
            raise DataError(
                f"'logits' has {given.shape[1]} columns and the fix was fitted on "
                f"{len(self.classes_)} classes; expected one column per class, in the same order."
            )
        return self.map_.apply(given, None if features is None else np.asarray(features))

    def fit_transform(
        self, logits: npt.ArrayLike, labels: npt.ArrayLike | None = None, **known: Any
    ) -> npt.NDArray[np.floating[Any]]:
        """Fit and return the same logits fixed."""
        return self.fit(logits, labels, **known).transform(logits, known.get("features"))

    def predict(
        self, logits: npt.ArrayLike, features: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the label of each row after the fix, array of shape (N,)."""
        best: npt.NDArray[np.int64] = self.transform(logits, features).argmax(axis=1)
        return best

    def score(
        self,
        logits: npt.ArrayLike,
        labels: npt.ArrayLike,
        features: npt.ArrayLike | None = None,
    ) -> float:
        """Return the share of right answers after the fix, in 0…1, as scikit-learn's score."""
        truth = np.asarray(labels)
        answers = self.predict(logits, features)
        if truth.shape != answers.shape:
            raise DataError(
                f"'labels' has the shape {truth.shape}; expected one label per row of logits, "
                f"{answers.shape}."
            )
        return float((answers == truth).mean())

    def predict_proba(
        self, logits: npt.ArrayLike, features: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.floating[Any]]:
        """Return probabilities after the fix, array of shape (N, C); rows of a softmax add to 1."""
        fixed = self.transform(logits, features)
        return sigmoid(fixed) if self._activation == "sigmoid" else softmax(fixed)

    def _refuse_groups(self, context: FixContext) -> None:
        """Refuse aims about groups of classes where no training count makes groups."""
        asked = [name for name in ("few", "harmonic") if self.objective == name]
        if context.train_labels is None and (asked or self.max_head_loss is not None):
            what = f"objective={asked[0]!r}" if asked else "max_head_loss"
            raise UsageError(
                f"{what} is about many, medium and few classes, which training counts tell apart; "
                "give fit(logits, labels, counts=…)."
            )

    def _needs_counts(self) -> bool:
        if self.fix == _AUTO:
            return True
        chains = parse_candidate(str(self.fix)).chains
        return any("counts" in fix.needs for chain in chains for fix in chain)

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"FixEstimator({listed})"

    def _ready(self) -> list[Fix] | None:
        """Return the fixes to fit as they are; None where something must be chosen first."""
        if isinstance(self.fix, Fix):
            return [self.fix]
        if not isinstance(self.fix, str):
            raise UsageError(
                f"'fix' is {self.fix!r}; expected 'auto', a name like 'vector', or a Fix object."
            )
        if self.fix == _AUTO:
            return None
        candidate = parse_candidate(self.fix)
        only = candidate.chains[0]
        return list(only) if only and candidate.parameter is None else None


def _floating(logits: npt.ArrayLike) -> FloatArray:
    """Return logits as an array of shape (N, C); whole numbers as float64, halves as float32."""
    given = np.asarray(logits)
    if given.ndim != 2 or not np.issubdtype(given.dtype, np.number):
        raise DataError(
            f"'logits' has the shape {given.shape} and the type {given.dtype}; expected numbers of "
            "shape (images, classes)."
        )
    check_finite("logits", given)
    if given.dtype == np.float16:
        return given.astype(np.float32)
    return given if np.issubdtype(given.dtype, np.floating) else given.astype(np.float64)


def _table(counts: npt.ArrayLike, classes: int) -> ClassTable:
    given = np.asarray(counts)
    whole = np.issubdtype(given.dtype, np.number) and np.array_equal(given, np.floor(given))
    if given.shape != (classes,) or not whole or not (np.abs(given) < 2**53).all():
        raise DataError(
            f"'counts' has the shape {given.shape} and the type {given.dtype}; expected {classes} "
            "whole numbers, the training images of each class."
        )
    return ClassTable.from_counts([int(count) for count in given])


def _checked(context: FixContext) -> FixContext:
    """Return the context checked; without counts, against those of the training labels."""
    if context.classes is not None:
        return check_context(context)
    table = _table_without_counts(context)
    return replace(check_context(replace(context, classes=table)), classes=None)


def _table_without_counts(context: FixContext) -> ClassTable:
    """Return the counts of the training labels, or else as many for every class."""
    assert context.logits is not None
    classes = context.logits.shape[1]
    counts = np.ones(classes, dtype=np.int64)
    if context.train_labels is not None and np.issubdtype(context.train_labels.dtype, np.integer):
        known = context.train_labels[context.train_labels >= 0]
        counts = np.bincount(known, minlength=classes)[:classes]
    return ClassTable.from_counts([int(count) for count in counts])


def _head(
    logits: npt.NDArray[Any],
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    activation: str,
) -> Head | None:
    known = get_args(Activation)
    if activation not in known:
        raise UsageError(
            f"'activation' is {activation!r}; expected one of {', '.join(known)}."
            f"{did_you_mean(activation, known)}"
        )
    if weight is None:
        if activation == "softmax":
            return None
        empty = np.zeros((logits.shape[-1], 0))
        return Head("linear", empty, activation="sigmoid", foldable=False)
    rows = np.asarray(weight, dtype=np.float64)
    shift = None if bias is None else np.asarray(bias, dtype=np.float64)
    return Head("linear", rows, shift, activation=activation)  # type: ignore[arg-type]
