"""What is in a checkpoint, whether its tail can be fixed, and what is missing to export it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..classes import ClassTable
from ..errors import CheckpointError
from ..preprocessing import Preprocessing
from .architectures import default_preprocessing
from .classifier import Classifier, assemble, describe, read_parts, resolve
from .head import Head
from .layouts import BALANCED_LOSSES, Parts
from .matching import guess_head
from .onnx_classifier import OnnxClassifier, load_onnx, missing_options
from .onnx_graph import read_onnx
from .options import LoadOptions

__all__ = ["HeadReport", "Inspection", "inspect_checkpoint", "rank_correlation"]

_CLEAR = 0.3


@dataclass(frozen=True)
class HeadReport:
    """The head in figures.

    Parameters
    ----------
    path : where it is in the network.
    kind, classes, features, bias, scale, foldable : as in :class:`~ltdeploy.models.head.Head`;
        None where the network is not known.
    norm_min, norm_median, norm_max : of the rows' Euclidean norms.
    norm_correlation : Spearman's rank correlation of the norms with the training counts, or None.
    bias_correlation : the same of the bias.
    """

    path: str
    classes: int
    features: int
    kind: str | None = None
    bias: bool | None = None
    scale: float | None = None
    foldable: bool | None = None
    norm_min: float | None = None
    norm_median: float | None = None
    norm_max: float | None = None
    norm_correlation: float | None = None
    bias_correlation: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What was recognised in a checkpoint.

    Parameters
    ----------
    path, layout, arch : the file, whose way of writing it is, the network.
    tensors : number of weights.
    head : the last linear map, or None where none was recognised.
    classes : names, counts and groups, or None.
    class_names : names, also where counts are missing.
    preprocessing : what turns a photograph into the input, or None.
    preprocessing_from : ``"file"``, ``"options"`` or ``"architecture"``.
    trained_with : the loss, or None.
    advice : sentences on which fix can help.
    notes : what was assumed.
    missing : options that export still needs, each with what it provides.
    """

    path: Path
    layout: str
    arch: str | None
    tensors: int | None
    head: HeadReport | None
    classes: ClassTable | None
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    preprocessing_from: str | None
    trained_with: str | None
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether ``ltdeploy export`` needs nothing more."""
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, with stable keys."""
        table = self.classes
        classes = None
        if table is not None:
            classes = {
                "count": len(table),
                "images": sum(table.counts),
                "imbalance": table.imbalance,
                "unseen": list(table.unseen),
                "groups": {name: len(table.members(name)) for name in table.rule.names},
                "names": list(table.names),
                "train_counts": list(table.counts),
            }
        return {
            "schema": 1,
            "path": str(self.path),
            "layout": self.layout,
            "arch": self.arch,
            "tensors": self.tensors,
            "head": None if self.head is None else asdict(self.head),
            "classes": classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_dict(),
            "preprocessing_text": (
                None if self.preprocessing is None else describe(self.preprocessing)
            ),
            "preprocessing_from": self.preprocessing_from,
            "trained_with": self.trained_with,
            "advice": list(self.advice),
            "notes": list(self.notes),
            "missing": list(self.missing),
        }


def inspect_checkpoint(
    path: str | os.PathLike[str], options: LoadOptions | None = None
) -> Inspection:
    """Recognise as much of a checkpoint as can be, also where the architecture is not known.

    Raises
    ------
    CheckpointError
        If the file cannot be read at all, contradicts itself, or contradicts the options.
    """
    options = options or LoadOptions()
    path = Path(path)
    if path.suffix == ".onnx" and path.is_file():
        return _inspect_onnx(path, options)
    parts = read_parts(path, options)
    try:
        found = resolve(path, parts, options)
    except CheckpointError:
        if options.arch is not None:
            raise
        return _partial(path, parts, options)
    try:
        model = assemble(path, parts, found, options)
    except CheckpointError:
        if _knows_preprocessing(parts, found.arch):
            raise
        return _partial(path, parts, options, found.arch)
    told = options.preprocessing is not None or bool(options.preprocessing_changes())
    in_file = parts.preprocessing is not None or bool(parts.changes)
    in_file = in_file or parts.layout == "Hugging Face folder"
    origin = "options" if told else "file" if in_file else "architecture"
    return _complete(model, len(parts.tensors), origin)


def _complete(
    model: Classifier | OnnxClassifier, tensors: int | None, preprocessing_from: str
) -> Inspection:
    report = head_report(model.head, model.head_path, model.classes)
    missing = () if model.classes is not None else (_missing_classes(),)
    return Inspection(
        path=model.source.path,
        layout=model.source.layout,
        arch=model.arch,
        tensors=tensors,
        head=report,
        classes=model.classes,
        class_names=model.source.class_names,
        preprocessing=model.preprocessing,
        preprocessing_from=preprocessing_from,
        trained_with=model.trained_with,
        advice=tuple(_advice(report, model.trained_with)),
        notes=model.source.notes,
        missing=missing,
    )


def _knows_preprocessing(parts: Parts, arch: str) -> bool:
    try:
        return parts.preprocessing is not None or default_preprocessing(arch) is not None
    except CheckpointError:
        return False


def _partial(path: Path, parts: Parts, options: LoadOptions, arch: str | None = None) -> Inspection:
    """Report what the weights alone tell; with ``arch`` known, its preprocessing is not."""
    guessed = guess_head(parts.tensors)
    head = None
    notes = list(parts.notes)
    if guessed is not None:
        stem, (classes, features) = guessed
        head = HeadReport(stem, classes, features, bias=f"{stem}.bias" in parts.tensors)
        notes.append(f"The head {stem!r} is a guess by name and shape.")
    if arch is None and parts.arch is not None:
        notes.append(f"The file records the architecture {parts.arch!r}, which its weights do not "
                     "fit in any supported family.")  # fmt: skip
    table = options.classes
    if table is None and parts.train_counts is not None:
        table = ClassTable.from_counts(parts.train_counts, parts.class_names)
    missing = ["--arch FAMILY:NAME (the network these weights belong to)"]
    if arch is not None:
        missing = ["--image-size PX and --resize PX (or squash): how images are prepared"]
    if table is None:
        missing.append(_missing_classes())
    return Inspection(
        path=path.resolve(),
        layout=parts.layout,
        arch=arch,
        tensors=len(parts.tensors),
        head=head,
        classes=table,
        class_names=parts.class_names,
        preprocessing=parts.preprocessing,
        preprocessing_from="file" if parts.preprocessing is not None else None,
        trained_with=parts.trained_with,
        advice=(),
        notes=tuple(notes),
        missing=tuple(missing),
    )


def _inspect_onnx(path: Path, options: LoadOptions) -> Inspection:
    graph = read_onnx(path)
    missing = missing_options(graph, options)
    if not missing:
        return _complete(load_onnx(path, options), len(graph.model.graph.initializer), "options")
    report = head_report(graph.head, graph.head_node, options.classes)
    if options.classes is None:
        missing.append(_missing_classes())
    return Inspection(
        path=path.resolve(),
        layout="ONNX",
        arch="onnx",
        tensors=len(graph.model.graph.initializer),
        head=report,
        classes=options.classes,
        class_names=None,
        preprocessing=None,
        preprocessing_from=None,
        trained_with=None,
        advice=tuple(_advice(report, None)),
        notes=graph.notes,
        missing=tuple(missing),
    )


def _missing_classes() -> str:
    return "--classes FILE (training images per class: a csv 'name,train_count', or the data)"


def head_report(head: Head, path: str, table: ClassTable | None) -> HeadReport:
    """Return the head in figures, with rank correlations where the counts are known."""
    norms = head.norms()
    counts = None if table is None else np.array(table.counts, dtype=np.float64)
    matches = counts is not None and len(counts) == head.classes
    return HeadReport(
        path=path,
        classes=head.classes,
        features=int(head.weight.shape[1]),
        kind=head.kind,
        bias=head.bias is not None,
        scale=head.scale if head.kind == "cosine" else None,
        foldable=head.foldable,
        norm_min=float(norms.min()),
        norm_median=float(np.median(norms)),
        norm_max=float(norms.max()),
        norm_correlation=rank_correlation(norms, counts) if matches else None,
        bias_correlation=(
            rank_correlation(head.bias, counts) if matches and head.bias is not None else None
        ),
    )


def rank_correlation(
    a: npt.NDArray[np.float64] | None, b: npt.NDArray[np.float64] | None
) -> float | None:
    """Return Spearman's ρ with ties given their mean rank; None where one side does not vary."""
    if a is None or b is None or len(a) < 2:
        return None
    ranks = [_ranks(values) for values in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    ranks: npt.NDArray[np.float64] = (ends - (sizes - 1) / 2.0)[place]
    return ranks


def _advice(head: HeadReport, trained_with: str | None) -> list[str]:
    said = []
    rho = head.norm_correlation
    if head.kind == "cosine":
        said.append("The head is a cosine head: its rows have no norms that τ-norm could level.")
    elif rho is not None and rho > _CLEAR:
        said.append(
            f"The head's row norms grow with the training counts (ρ = {rho:.2f}): τ-norm can help "
            "the tail."
        )
    elif rho is not None:
        shape = "fall with" if rho < -_CLEAR else "hardly follow"
        said.append(
            f"The head's row norms {shape} the training counts (ρ = {rho:.2f}): τ-norm has little "
            "to level; try logit adjustment."
        )
    if head.bias_correlation is not None and head.bias_correlation > _CLEAR:
        said.append(
            f"The bias grows with the counts too (ρ = {head.bias_correlation:.2f}); τ-norm's "
            "default scales it along."
        )
    if trained_with in BALANCED_LOSSES:
        said.append(
            f"It was trained with {trained_with}, which already corrects for the class prior: "
            "logit adjustment would correct twice."
        )
    return said
