"""Checkpoint and fixes to a bundle: fit, fold, export, check, write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ltdeploy import __version__
from ltdeploy.arrays import FloatArray
from ltdeploy.bundle import GOLDEN, SELECTION, Bundle, file_entry, write_bundle
from ltdeploy.datasets import Dataset
from ltdeploy.datasets.species import SpeciesDataset
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.errors import ExportError, ImageError
from ltdeploy.fixes import FIXES, FittedFix, FixFile, FixSpec
from ltdeploy.fixes.encoding import encode
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.images import load_prepared
from ltdeploy.manifest import (
    SCHEMA_VERSION,
    FixEntry,
    GroupEntry,
    HeadEntry,
    Manifest,
    MethodEntry,
    SourceEntry,
)
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.progress import Tracker, silent

from .checks import LOW_TOLERANCE, Checks, check_graph
from .clean_up import clean_up
from .entries import class_entries, graph_entry, npz, package_versions
from .fitting import fit_requested
from .fold import Folding, folded
from .foreign import onnx_from_foreign
from .precision import (
    Lowered,
    PrecisionRequest,
    Scaling,
    graph_opener,
    judge_scaling,
    lower,
)
from .to_onnx import onnx_from_classifier

if TYPE_CHECKING:
    import onnx

    from ltdeploy.classes import ClassTable
    from ltdeploy.models.classifier import Classifier
    from ltdeploy.models.onnx_classifier import OnnxClassifier

__all__ = ["Exported", "export_bundle"]

_GOLDEN_IMAGES = 8
_LARGEST_ONNX_BYTES = (2 << 30) - (1 << 20)  # protobuf's limit, with room for its own overhead


@dataclass(frozen=True, eq=False)
class Exported:
    """A written bundle and what was found on the way.

    Attributes
    ----------
    fixes : those that were fitted, with what stands behind each that was ``auto``; what a fix file
        brought is in the manifest alone.
    checks : of the graph in the bundle.
    lowered : how its precision came about; None for float32.
    scaling : what scaled decoding of JPEG files costs alone; None where nothing measured it.
    unreadable : images that could not be used, and why.
    golden_from : data of which a few images are in the bundle, as golden samples; None: drawn ones.
    """

    bundle: Bundle
    fixes: tuple[FittedFix, ...]
    checks: Checks
    lowered: Lowered | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    golden_from: str | None = None
    scaling: Scaling | None = None


def export_bundle(
    model: Classifier | OnnxClassifier,
    fixes: Sequence[FixSpec | FixFile],
    out: Path,
    *,
    validation: Dataset | None = None,
    precision: PrecisionRequest | None = None,
    jpeg_scaling: bool = False,
    force: bool = False,
    track: Tracker = silent,
) -> Exported:
    """Fit the fixes, fold them, export to ONNX, check the graph and write the bundle ``out``.

    Parameters
    ----------
    fixes : applied in order; those with an ``auto`` parameter need ``validation``, fix files with
        a fitted map are used as they stand.
    validation : images the model was not trained on and nobody will report figures for.
    precision : None is float32.
    jpeg_scaling : let the bundle decode large JPEG files at a fraction of their size; its reference
        does not, so that ``verify`` shows what that costs. With a gate in ``precision`` it has to
        pass alone, in float32.
    force : apply a fix even where it is refused as harmful, or was fitted on another checkpoint or
        for other classes.

    Raises
    ------
    ExportError, FixError, CheckpointError, DataError, BundleError
        With the cause; nothing is written then, and an older bundle at ``out`` stays.
    """
    import_onnxruntime()  # the checks need it: better missed now than after the work
    engine = reference_engine(model, features=True)
    fitted = fit_requested(model, engine, fixes, validation=validation, force=force, track=track)
    fix, table = fitted.fix, fitted.classes

    given = next((data for data in _at_hand(validation, precision) if data is not None), None)
    images = golden_images(given, model.preprocessing)
    unfixed = engine.run({"images": images})
    engine.close()
    expected = fix.apply(unfixed["logits"], unfixed.get("features"))
    graph, folding = _graph(model, fix)
    checks = _checked(graph, images, expected)
    own = replace(model.preprocessing, jpeg_scaling=jpeg_scaling)
    scaling: Scaling | None = None
    if jpeg_scaling and precision is not None and precision.gate is not None:
        scaling = judge_scaling(
            graph, precision.gate, precision.margin, table, model.preprocessing, track=track
        )
    lowered: Lowered | None = None
    if precision is not None and precision.precision != "fp32":
        open_graph = graph_opener(precision.engine, precision.precision)
        lowered = lower(graph, precision, table, own, open_graph, images, track=track)
        graph = lowered.model
        candidate = open_graph(graph)
        checks = check_graph(candidate, images, expected, **LOW_TOLERANCE)
        candidate.close()
    content = graph.SerializeToString()

    files = {"model.onnx": content, GOLDEN: npz(images=images, logits=expected)}
    judged = [one for one in (scaling, lowered) if one is not None]
    chose = np.unique(np.concatenate([fitted.hashes, *(one.seen for one in judged)]))
    if fitted.selection is not None or len(chose):
        files[SELECTION] = npz(hashes=chose)
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        task="classification",
        name=out.name.removesuffix(".ltd"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        arch=_shown_arch(model.arch),
        classes=class_entries(table),
        groups=GroupEntry(names=table.rule.names, above=table.rule.above),
        head=HeadEntry(
            kind=model.head.kind,
            path=model.head_path,
            features=model.head.weight.shape[1],
            bias=model.head.bias is not None,
            scale=model.head.scale,
            background=model.head.background,
            activation=model.head.activation,
        ),
        fix=FixEntry(
            methods=fitted.methods,
            steps=encode(fix),
            folded=folding,
            selected_on=fitted.selection,
            notes=(*fitted.notes, *_fix_notes(table, fitted.methods, folding)),
        ),
        preprocessing=own.to_dict(),
        graphs=(graph_entry(graph, precision, lowered, checks.reference_difference),),
        source=SourceEntry(
            path=os.path.relpath(model.source.path, out.parent),
            sha256=model.source.sha256,
            layout=model.source.layout,
            trained_with=model.trained_with,
            notes=tuple(model.source.notes),
        ),
        versions=package_versions(),
        files={name: file_entry(content) for name, content in files.items()},
    )
    bundle = write_bundle(out, manifest, files)
    unreadable = (*fitted.unreadable, *(name for one in judged for name in one.unreadable))
    return Exported(
        bundle,
        fitted.fixes,
        checks,
        lowered,
        tuple(dict.fromkeys(unreadable)),
        None if given is None else given.name,
        scaling,
    )


def _checked(graph: onnx.ModelProto, images: npt.NDArray[np.uint8], expected: FloatArray) -> Checks:
    """Compare the float32 graph, whatever becomes of it later, with the reference."""
    content = graph.SerializeToString()
    if len(content) > _LARGEST_ONNX_BYTES:
        raise ExportError(
            f"The graph takes {len(content) / 2**30:.1f} GiB; ONNX files without external data "
            "end at 2 GiB, and this version writes no external data."
        )
    engine = OnnxRuntimeEngine(content)
    try:
        return check_graph(engine, images, expected)
    finally:
        engine.close()


def _at_hand(
    validation: Dataset | None, precision: PrecisionRequest | None
) -> tuple[Dataset | None, ...]:
    """Return the data that may be given, those that are most like what the model will see first."""
    if precision is None:
        return (validation,)
    return validation, precision.gate, precision.calibration


def golden_images(
    validation: Dataset | None, preprocessing: Preprocessing
) -> npt.NDArray[np.uint8]:
    """Return K ready inputs, uint8 (K, H, W, 3): of ``validation``, or drawn where it has too few.

    They are taken evenly over the data set, so that they are not all of one class.
    """
    drawn = SpeciesDataset(split="val")
    ready: list[npt.NDArray[np.uint8]] = []
    for dataset in [drawn] if validation is None else [validation, drawn]:
        places = np.unique(np.linspace(0, len(dataset) - 1, 4 * _GOLDEN_IMAGES).astype(int))
        for index in places[:: max(1, len(places) // _GOLDEN_IMAGES)]:
            with contextlib.suppress(ImageError):  # collect_logits names what is unreadable
                ready.append(load_prepared(dataset.source(int(index)), preprocessing))
            if len(ready) == _GOLDEN_IMAGES:
                return np.stack(ready)
    raise ExportError(f"No {_GOLDEN_IMAGES} images could be read to check the exported graph with.")


def _graph(model: Classifier | OnnxClassifier, fix: LogitMap) -> tuple[onnx.ModelProto, Folding]:
    from ltdeploy.models.onnx_classifier import OnnxClassifier

    metadata = {"ltdeploy.version": __version__, "ltdeploy.arch": _shown_arch(model.arch)}
    if isinstance(model, OnnxClassifier):
        graph, folding = onnx_from_foreign(model, fix, metadata)
    else:
        with folded(model, fix) as (module, folding):
            graph = onnx_from_classifier(module, model.preprocessing, metadata)
    return clean_up(graph), folding


def _shown_arch(arch: str) -> str:
    """Return the architecture's name; of a Hugging Face folder its own name, not where it was."""
    family, _, name = arch.partition(":")
    return f"hf:{Path(name).name}" if family == "hf" else arch


def _fix_notes(
    table: ClassTable, methods: Sequence[MethodEntry], folding: Folding
) -> tuple[str, ...]:
    notes = []
    if table.unseen and any("counts" in FIXES[one.method].needs for one in methods):
        notes.append(
            f"{len(table.unseen)} classes without a training image were counted as one image: "
            f"{', '.join(table.unseen[:10])}"
        )
    if folding == "nodes":
        notes.append("the head's weights cannot take the whole fix: explicit nodes do the rest")
    return tuple(notes)
