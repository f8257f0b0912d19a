"""Fit the fixes that are asked for, and take those that were fitted already as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ltdeploy.datasets import Dataset, align_labels
from ltdeploy.engines import Engine
from ltdeploy.engines.torch_reference import require_suits
from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FittedFix, FixContext, FixFile, FixSpec, fit_fixes
from ltdeploy.fixes.chain import context_after
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import compose
from ltdeploy.inference import Logits, collect_logits
from ltdeploy.manifest import MethodEntry, SelectionEntry
from ltdeploy.progress import Tracker, silent

if TYPE_CHECKING:
    from ltdeploy.models.classifier import Classifier
    from ltdeploy.models.onnx_classifier import OnnxClassifier

__all__ = ["Fitted", "fit_requested"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """The one map of all fixes, and where it comes from.

    Attributes
    ----------
    fixes : those fitted just now; what a fix file brought is in ``methods`` alone.
    methods : every fix that was applied, in order.
    selection, hashes : the images that chose or fitted any of them, and their fingerprints (M,).
    unreadable : validation images that could not be used, and why.
    """

    fix: LogitMap
    fixes: tuple[FittedFix, ...]
    methods: tuple[MethodEntry, ...]
    selection: SelectionEntry | None
    hashes: npt.NDArray[np.uint64]
    unreadable: tuple[tuple[str, str], ...]


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
    force : apply fixes even where they are refused, or were fitted on another checkpoint.

    Raises
    ------
    FixError
        If a fix cannot be fitted, is named twice, or comes from a file for another model.
    DataError, EngineError
        As :func:`~ltdeploy.inference.collect_logits`.
    """
    _require_distinct(requested)
    table = model.require_complete()
    context = FixContext(
        head=model.head, classes=table, trained_with=model.trained_with, force=force
    )
    seen: Logits | None = None
    if validation is not None and any(
        isinstance(one, FixSpec) and one.needs_validation for one in requested
    ):
        labels = align_labels(validation, table)
        seen = collect_logits(
            engine, validation, labels, model.preprocessing, track=track, label="validation"
        )
        context = replace(context, logits=seen.logits, labels=seen.labels, features=seen.features)
    total: LogitMap = AffineMap.identity(model.head.classes)
    fixes: list[FittedFix] = []
    methods: list[MethodEntry] = []
    for one in requested:
        if isinstance(one, FixFile):
            made, entries = _from_file(one, model, force=force), one.methods
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
    chosen = [one for one in requested if isinstance(one, FixFile)]
    selections = [one.selected_on.entry() for one in chosen if one.selected_on is not None]
    hashes = [one.hashes() for one in chosen]
    if validation is not None and seen is not None:
        selections.append(_selection(validation, len(seen.hashes), fixes))
        hashes.append(seen.hashes)
    return Fitted(
        total,
        tuple(fixes),
        tuple(methods),
        _joined(selections),
        np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes])),
        seen.unreadable if seen is not None else (),
    )


def _require_distinct(requested: Sequence[FixSpec | FixFile]) -> None:
    named: list[str] = []
    for one in requested:
        own = [one.method] if isinstance(one, FixSpec) else [m.method for m in one.methods]
        twice = sorted(set(own) & set(named))
        if twice:
            raise FixError(
                f"{twice[0]} is asked for more than once; one of them is enough. Give the "
                "strength that you want in all, or leave it to the fix file."
            )
        named.extend(own)


def _from_file(file: FixFile, model: Classifier | OnnxClassifier, *, force: bool) -> LogitMap:
    """Return a fix file's map if it was made for this model."""
    fix, made_for, source = file.logit_map(), file.checkpoint, model.source
    if fix is None:
        raise FixError(
            "The fix file holds methods that are still to be fitted; give them as FixFile.specs()."
        )
    if made_for is not None and made_for.sha256 != source.sha256 and not force:
        raise FixError(
            f"The fix file was fitted on {made_for.name} (sha256 {made_for.sha256[:12]}…), and "
            f"{source.path.name} is another file ({source.sha256[:12]}…). Fit the fix on this one "
            "with 'ltdeploy calibrate', or add --force if the two hold the same weights."
        )
    require_suits(fix, model)
    return fix


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
