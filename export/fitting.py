"""Fit the fixes that are asked for, and take those that were fitted already as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ltdeploy.classes import ClassTable
from ltdeploy.datasets import Dataset, align_labels
from ltdeploy.engines import Engine
from ltdeploy.engines.torch_reference import require_suits
from ltdeploy.errors import FixError
from ltdeploy.fixes import FIXES, AffineMap, FittedFix, FixContext, FixFile, FixSpec, fit_fixes
from ltdeploy.fixes.base import require_uncorrected
from ltdeploy.fixes.chain import context_after, require_distinct
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import compose
from ltdeploy.inference import Logits, collect_logits
from ltdeploy.manifest import MethodEntry, SelectionEntry
from ltdeploy.progress import Tracker, silent

if TYPE_CHECKING:
    from ltdeploy.fixes import Fix
    from ltdeploy.models.classifier import Classifier
    from ltdeploy.models.detectors.detector import Detector
    from ltdeploy.models.detectors.onnx_detector import OnnxDetector
    from ltdeploy.models.onnx_classifier import OnnxClassifier

__all__ = ["Fitted", "fit_for_detector", "fit_requested"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """The one map of all fixes, and where it comes from.

    Attributes
    ----------
    classes : the model's table, with the names of a fix file where it has none itself.
    fixes : those fitted just now; what a fix file brought is in ``methods`` alone.
    methods : every fix that was applied, in order.
    selection, hashes : the images that chose or fitted any of them, and their fingerprints (M,).
    unreadable : validation images that could not be used, and why.
    notes : what nobody can check.
    """

    fix: LogitMap
    classes: ClassTable
    fixes: tuple[FittedFix, ...]
    methods: tuple[MethodEntry, ...]
    selection: SelectionEntry | None
    hashes: npt.NDArray[np.uint64]
    unreadable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


def fit_requested(
    model: Classifier | OnnxClassifier,
    engine: Engine,
    requested: Sequence[FixSpec | FixFile],
    *,
    validation: Dataset | None = None,
    force: bool = False,
    track: Tracker = silent,
) -> Fitted:
    """Return the map that ``requested`` makes, each fix on what the ones before it leave.

    Parameters
    ----------
    engine : gives the model's logits and features before any fix.
    validation : what ``auto`` parameters are chosen and fixes fitted on; not looked at without.
    force : apply fixes even where they are refused, or were fitted on another checkpoint or for
        other classes.

    Raises
    ------
    FixError
        If a fix cannot be fitted, is named twice, or comes from a file for another model.
    DataError, EngineError
        As :func:`~ltdeploy.inference.collect_logits`.
    """
    context = _checked_context(model, requested, force)
    table = context.classes
    assert table is not None
    seen: Logits | None = None
    if validation is not None and any(
        isinstance(one, FixSpec) and one.needs_validation for one in requested
    ):
        labels = align_labels(validation, table)
        seen = collect_logits(
            engine, validation, labels, model.preprocessing, track=track, label="validation"
        )
        context = replace(context, logits=seen.logits, labels=seen.labels, features=seen.features)
    return _fitted(requested, context, validation, seen)


def fit_for_detector(
    model: Detector | OnnxDetector, requested: Sequence[FixSpec | FixFile], *, force: bool = False
) -> Fitted:
    """Return the map that ``requested`` makes of a detector; nothing is chosen or learnt here.

    Parameters
    ----------
    force : as for :func:`fit_requested`.

    Raises
    ------
    FixError
        As :func:`fit_requested`, and for a fix that learns from images.
    """
    return _fitted(requested, _checked_context(model, requested, force), None, None)


def _checked_context(
    model: Classifier | OnnxClassifier | Detector | OnnxDetector,
    requested: Sequence[FixSpec | FixFile],
    force: bool,
) -> FixContext:
    """Return what is known of the model, with the names of a fix file where it has none."""
    require_distinct([_named(one) for one in requested], force=force)
    table = model.require_complete()
    for file in requested:
        if isinstance(file, FixFile):
            _require_made_for(file, model, table, force=force)
            if file.class_names is not None and not table.is_named:
                table = ClassTable(file.class_names, table.counts, table.rule)
    return FixContext(head=model.head, classes=table, trained_with=model.trained_with, force=force)


def _fitted(
    requested: Sequence[FixSpec | FixFile],
    context: FixContext,
    validation: Dataset | None,
    seen: Logits | None,
) -> Fitted:
    """Return the fixes fitted in order, each on what the ones before it leave."""
    assert context.classes is not None
    chosen = [one for one in requested if isinstance(one, FixFile)]
    total: LogitMap = AffineMap.identity(context.class_count())
    fixes: list[FittedFix] = []
    methods: list[MethodEntry] = []
    for one in requested:
        if isinstance(one, FixFile):
            made, entries = _map_of(one), one.methods
        else:
            made, fitted = fit_fixes([one], context_after(context, total))
            fixes.extend(fitted)
            entries = tuple(
                MethodEntry(method=each.method, parameters=each.fix.parameters())
                for each in fitted
                if each.fix is not None
            )
        total = compose(total, made)
        methods.extend(entries)
    selections = [one.selected_on.entry() for one in chosen if one.selected_on is not None]
    hashes = [one.hashes() for one in chosen]
    if validation is not None and seen is not None:
        selections.append(_selection(validation, len(seen.hashes), fixes))
        hashes.append(seen.hashes)
    return Fitted(
        total,
        context.classes,
        tuple(fixes),
        tuple(methods),
        _joined(selections),
        np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes])),
        seen.unreadable if seen is not None else (),
        tuple(dict.fromkeys(note for one in chosen for note in _uncheckable(one))),
    )


def _named(one: FixSpec | FixFile) -> list[tuple[type[Fix], Mapping[str, object]]]:
    if isinstance(one, FixSpec):
        return [(FIXES[one.method], one.parameters)]
    return [(FIXES[entry.method], entry.parameters) for entry in one.methods]


def _map_of(file: FixFile) -> LogitMap:
    fix = file.logit_map()
    if fix is None:
        raise FixError(
            "The fix file holds methods that are still to be fitted; give them as FixFile.specs()."
        )
    return fix


def _require_made_for(
    file: FixFile,
    model: Classifier | OnnxClassifier | Detector | OnnxDetector,
    table: ClassTable,
    *,
    force: bool,
) -> None:
    """Refuse a fix file that was made for another model, or that this one must not have."""
    made_for, source = file.checkpoint, model.source
    if made_for is not None and made_for.sha256 != source.sha256 and not force:
        raise FixError(
            f"The fix file was fitted on {made_for.name} (sha256 {made_for.sha256[:12]}…), and "
            f"{source.path.name} is another file ({source.sha256[:12]}…). Fit the fix on this one "
            "with 'ltdeploy calibrate', or add --force if the two hold the same weights."
        )
    require_suits(_map_of(file), model)
    for kind, parameters in _named(file):
        if kind.takes_prior_off(parameters):
            require_uncorrected(kind.method, model.trained_with, force=force)
    if not force:
        if table.is_named:
            _require_same("is called", file.class_names, table.names, source.path.name)
        _require_same("has the training count", file.train_counts, table.counts, source.path.name)


def _require_same(
    what: str, told: Sequence[object] | None, ours: Sequence[object], model: str
) -> None:
    """Refuse classes that a fix file describes otherwise than the model does."""
    if told is None or tuple(told) == tuple(ours):
        return
    if len(told) != len(ours):
        raise FixError(
            f"The fix file was fitted for {len(told)} classes, and {model} has {len(ours)}; they "
            "belong to different models. Fit the fix on this one."
        )
    label = next(place for place, one in enumerate(told) if one != ours[place])
    order = (
        "the same classes in another order"
        if sorted(map(repr, told)) == sorted(map(repr, ours))
        else "other classes, or in another order"
    )
    raise FixError(
        f"The fix file was fitted for {order}: label {label} {what} {told[label]!r} in it and "
        f"{ours[label]!r} in {model}. Fit the fix on logits in this model's order, or add --force "
        "if the labels mean the same all the same."
    )


def _uncheckable(file: FixFile) -> list[str]:
    """Return what cannot be known of a file whose fix was fitted on arrays."""
    if file.checkpoint is not None:
        return []
    notes = [
        "the fix file was fitted on arrays: that they came from this checkpoint, with classes in "
        "this order, cannot be checked; verify will show"
    ]
    if file.selected_on is not None and file.selected_on.images and not len(file.hashes()):
        notes.append(
            "the images that chose it left no fingerprints: verify will not know them again"
        )
    return notes


def _selection(validation: Dataset, images: int, fitted: Sequence[FittedFix]) -> SelectionEntry:
    made = [one.choice for one in fitted if one.choice is not None]
    return SelectionEntry(
        name=validation.name,
        images=images,
        objective="balanced" if made else None,
        balanced_before=made[0].before if made else None,
        balanced_after=made[-1].after if made else None,
        notes=tuple(choice.note for choice in made if choice.note),
    )


def _joined(selections: Sequence[SelectionEntry]) -> SelectionEntry | None:
    """Return one entry for all; figures and objective only where there is one selection."""
    if len(selections) < 2:
        return selections[0] if selections else None
    return SelectionEntry(
        name=" + ".join(one.name for one in selections),
        images=sum(one.images for one in selections),
        balanced_before=None,
        balanced_after=None,
        notes=tuple(note for one in selections for note in one.notes),
    )
