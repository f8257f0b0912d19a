"""From a checkpoint and data sets to evidence: each network pass is made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..cache import cached_logits
from ..classes import ClassTable
from ..datasets import Dataset, align_labels
from ..errors import DataError
from ..fixes import BiasCorrectedTemperature, FixContext, LabelShift, context_after
from ..inference import Logits
from ..progress import Tracker, silent
from .evidence import Evidence, check_context
from .objective import Aim, likelihood_weights

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..models.onnx_classifier import OnnxClassifier

__all__ = ["DataSources", "estimated_prior", "evidence_of_checkpoint", "prior_of_table"]

_MOST_SHARED = 0.01  # of the validation images
_FEWEST_TARGETS = 30


@dataclass(frozen=True, eq=False)
class DataSources:
    """The data sets that a choice may rest on.

    Parameters
    ----------
    validation : labelled images that neither trained the model nor will test it.
    training : the training images, for methods that look at their features.
    target : images from where the model will be used; their labels are not looked at.
    """

    validation: Dataset
    training: Dataset | None = None
    target: Dataset | None = None


def evidence_of_checkpoint(
    model: Classifier | OnnxClassifier,
    data: DataSources,
    *,
    trained_with: str | None = None,
    cache: Path | None = None,
    force: bool = False,
    track: Tracker = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> Evidence:
    """Run a model over its data sets, or find the results in the cache, and check them.

    Parameters
    ----------
    trained_with : the loss or sampler, where the file does not tell it.
    cache : folder of earlier passes; None keeps nothing.
    force : allow fixes that are refused as harmful.
    warn : is told of images and cache entries that could not be used.

    Raises
    ------
    CheckpointError
        If the model's class table is not known.
    DataError
        If more than one in a hundred validation images are among the training images, or the data
        do not fit.
    """
    table = model.require_complete()

    def logits_of(dataset: Dataset, labels: npt.NDArray[np.int64], name: str) -> Logits:
        found = cached_logits(
            model, dataset, labels, cache=cache, track=track, label=name, warn=warn
        )
        for image, reason in found.unreadable[:3]:
            warn(f"{image}: {reason}")
        if found.unreadable:
            warn(f"{len(found.unreadable)} images of {dataset.name} were left out")
        return found

    validation = logits_of(data.validation, align_labels(data.validation, table), "validation")
    names = data.validation.class_names
    if not table.is_named and names is not None and len(names) == len(table):
        # Labels of a model without names go by position, so the data's names are the model's.
        table = ClassTable(tuple(names), table.counts, table.rule)
    if model.train_hashes is not None:
        validation = _without_shared(
            data.validation, validation, model.train_hashes, "the checkpoint's own", warn
        )
    training = target = None
    if data.training is not None:
        labels = align_labels(data.training, table)
        training = logits_of(data.training, labels, "training")
        validation = _without_shared(
            data.validation, validation, training.hashes, f"{data.training.name}'s", warn
        )
        if training.features is None:
            warn("this model's head does not tell its features; --train changes nothing")
    if data.target is not None:
        nothing = np.zeros(len(data.target), dtype=np.int64)
        target = logits_of(data.target, nothing, "target")
    with_features = training is not None and training.features is not None
    context = FixContext(
        head=model.head,
        classes=table,
        logits=validation.logits,
        labels=validation.labels,
        features=validation.features,
        train_features=training.features if training is not None and with_features else None,
        train_labels=training.labels if training is not None and with_features else None,
        target_logits=None if target is None else target.logits,
        trained_with=trained_with if trained_with is not None else model.trained_with,
        force=force,
    )
    provenance = {
        "Checkpoint": model.source.path.name,
        "Checkpoint sha256": model.source.sha256,
        "Data": f"{data.validation.name}, {len(validation.labels):,} images",
    }
    if data.training is not None:
        provenance["Training data"] = data.training.name
    if data.target is not None:
        provenance["Target data"] = f"{data.target.name} (unlabelled)"
    return Evidence(
        check_context(context),
        data.validation.name,
        hashes=validation.hashes,
        checkpoint=(model.source.path.name, model.source.sha256),
        provenance=provenance,
    )


def prior_of_table(target: ClassTable, classes: ClassTable) -> npt.NDArray[np.float64]:
    """Return a target prior, shape (C,), from how often a table says that each class comes.

    Parameters
    ----------
    target : names and how often each will be seen; classes that it lacks count as never.
    classes : the model's, in whose order the prior is.

    Raises
    ------
    DataError
        If it names classes that the model does not know, or has another number without names.
    """
    if not target.is_named or not classes.is_named:
        if len(target) != len(classes):
            raise DataError(
                f"The target prior has {len(target)} classes and the model {len(classes)}; "
                "expected one row per class in label order, or names."
            )
        counts = np.array(target.counts, dtype=np.float64)
        return np.asarray(counts / counts.sum(), dtype=np.float64)
    places = {name: label for label, name in enumerate(classes.names)}
    unknown = [name for name in target.names if name not in places]
    if unknown:
        raise DataError(
            f"The target prior names {len(unknown)} classes that the model does not know, the "
            f"first is {unknown[0]!r}; expected the names of its class table."
        )
    prior = np.zeros(len(classes))
    for name, count in zip(target.names, target.counts, strict=True):
        prior[places[name]] = count
    return np.asarray(prior / prior.sum(), dtype=np.float64)


def estimated_prior(context: FixContext) -> npt.NDArray[np.float64]:
    """Return the prior of the target images, shape (C,), estimated without their labels.

    By bias-corrected temperature on the validation images, every class weighing the same, and
    expectation maximisation (Alexandari et al. 2020, arXiv 1901.06852), smoothed towards a prior
    along the training counts (:func:`~ltdeploy.fixes.estimate_prior_em`).

    Raises
    ------
    FixError
        If a class has no validation image, or nothing converges.
    """
    weighted = replace(context, weights=likelihood_weights(context, Aim()))
    calibrated = BiasCorrectedTemperature().fit(weighted)
    return LabelShift().target_prior(context_after(weighted, calibrated))


def aim_for(
    context: FixContext,
    objective: str | None = None,
    *,
    target_prior: npt.NDArray[np.float64] | None = None,
    max_head_loss: float | None = None,
) -> Aim:
    """Return what to choose for; unlabelled target images tell a prior where none is declared.

    Parameters
    ----------
    objective : None takes the class-averaged accuracy, and the share of right answers where a prior
        is known: who says how often classes will come wants to be right as often as possible there.
    target_prior : declared shares, shape (C,), or None.

    Raises
    ------
    DataError
        For fewer than 30 target images, unless forced.
    FixError
        As :func:`estimated_prior`.
    """
    estimated = target_prior is None and context.target_logits is not None
    if estimated and context.target_logits is not None and not context.force:
        images, classes = context.target_logits.shape
        if images < _FEWEST_TARGETS:
            raise DataError(
                f"{images} unlabelled images are too few to tell how often {classes} classes come; "
                "expected some hundred from the place of use, or leave them out. --force "
                "(force=True in Python) takes them all the same."
            )
    prior = estimated_prior(context) if estimated else target_prior
    chosen = objective or ("balanced" if prior is None else "overall")
    return Aim(chosen, prior, max_head_loss, estimated)  # type: ignore[arg-type]


def _without_shared(
    dataset: Dataset,
    validation: Logits,
    trained: npt.NDArray[np.uint64],
    whose: str,
    warn: Callable[[str], None],
) -> Logits:
    """Return the validation logits without images that are training images too.

    Large collections hold a few pictures twice (CIFAR-100 does, in training and test): these are
    left out. More than that is no accident, and refused.
    """
    shared = np.isin(validation.hashes, trained)
    if not shared.any():
        return validation
    first = dataset.identifier(int(validation.indices[np.flatnonzero(shared)[0]]))
    count, images = int(shared.sum()), len(shared)
    if count > _MOST_SHARED * images:
        raise DataError(
            f"{count} of the {images} validation images of {dataset.name} are among {whose} "
            f"training images, the first is {first}. The model knows them by heart, so a fix "
            "chosen on them means nothing; give images that it was not trained on."
        )
    warn(
        f"{count} of the {images} validation images of {dataset.name} stand among {whose} training "
        f"images too, the first is {first}; they were left out"
    )
    kept = ~shared
    return replace(
        validation,
        logits=validation.logits[kept],
        labels=validation.labels[kept],
        indices=validation.indices[kept],
        hashes=validation.hashes[kept],
        features=None if validation.features is None else validation.features[kept],
    )
