"""A detector's checkpoint and fix to a bundle: fold, export with fixed sizes, check, write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy import __version__
from ltdeploy.bundle import (
    GOLDEN,
    SELECTION,
    Bundle,
    GoldenDetections,
    file_entry,
    write_bundle,
)
from ltdeploy.canvas import Canvas, load_on_canvas
from ltdeploy.datasets.species import SpeciesDataset
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime
from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FixFile, FixSpec
from ltdeploy.fixes.encoding import encode
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.manifest import (
    SCHEMA_VERSION,
    DetectionEntry,
    FixEntry,
    GroupEntry,
    HeadEntry,
    Manifest,
    SourceEntry,
)
from ltdeploy.models.detectors.architectures import QUERY_KINDS
from ltdeploy.models.detectors.class_rows import fold_into

from ..clean_up import clean_up
from ..entries import class_entries, graph_entry, npz, package_versions
from ..fitting import fit_for_detector
from ..fold import Folding
from ..to_onnx import onnx_from_module
from .detector_checks import DetectorChecks, check_detector_graph, detections_of
from .static_one_stage import StaticFcos, StaticRetinaNet
from .static_queries import StaticDetr, StaticQueries
from .static_rcnn import StaticRcnn

if TYPE_CHECKING:
    from torch import nn

    from ltdeploy.datasets.boxes import BoxDataset
    from ltdeploy.models.detectors.architectures import Kind
    from ltdeploy.models.detectors.detector import Detector

__all__ = ["ExportedDetector", "export_detector"]

_GOLDEN_IMAGES = 6


@dataclass(frozen=True, eq=False)
class ExportedDetector:
    """A written bundle, and what its checks found."""

    bundle: Bundle
    checks: DetectorChecks


def export_detector(
    model: Detector,
    fixes: Sequence[FixSpec | FixFile],
    out: Path,
    *,
    images: BoxDataset | None = None,
    force: bool = False,
) -> ExportedDetector:
    """Fold the fixes into the class layer, export to ONNX, check the graph and write ``out``.

    Parameters
    ----------
    fixes : with fixed parameters, or from a fix file that ``calibrate`` wrote; applied in order.
    images : photographs to check the graph with, a few of which become golden samples; drawn ones
        where there are none.
    force : apply a fix even where it is refused as harmful, or was fitted on another checkpoint.

    Raises
    ------
    ExportError, FixError, CheckpointError, BundleError
        With the cause; nothing is written then, and an older bundle at ``out`` stays.
    """
    import_onnxruntime()
    fitted = fit_for_detector(model, fixes, force=force)
    fix, table = fitted.fix, fitted.classes
    canvases = _canvases(model, images)
    reference = DetectorReference(model)
    raw = reference.run({"images": canvases})
    reference.close()
    raw["logits"] = fix.apply(raw["logits"])
    expected = detections_of(raw, model.score_rule, model.keep_rule, model.canvas)

    metadata = {"ltdeploy.version": __version__, "ltdeploy.arch": model.arch}
    module, folding = _folded(model, fix)
    static = static_module(module, model.architecture.kind, model.canvas)
    outputs = ["boxes", "logits", *(["quality"] if "quality" in raw else [])]
    traced = onnx_from_module(
        static,
        model.canvas.as_preprocessing(),
        metadata,
        outputs,
        strict=model.architecture.kind in QUERY_KINDS,  # their code asks for the batch's length
    )
    graph = clean_up(traced)
    content = graph.SerializeToString()
    engine = OnnxRuntimeEngine(content)
    try:
        checks = check_detector_graph(
            engine, canvases, expected, model.score_rule, model.keep_rule, model.canvas
        )
    finally:
        engine.close()
    golden = GoldenDetections(canvases, tuple(expected))
    files = {"model.onnx": content, GOLDEN: npz(**golden.arrays())}
    if fitted.selection is not None or len(fitted.hashes):
        files[SELECTION] = npz(hashes=fitted.hashes)
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        task="detection",
        name=out.name.removesuffix(".ltd"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        arch=model.arch,
        classes=class_entries(table),
        groups=GroupEntry(names=table.rule.names, above=table.rule.above),
        head=HeadEntry(
            kind="linear",
            path=model.head_paths[0],
            features=model.head.weight.shape[1],
            bias=model.head.bias is not None,
            scale=1.0,
            background=model.head.background,
            activation=model.head.activation,
        ),
        fix=FixEntry(
            methods=fitted.methods,
            steps=encode(fix),
            folded=folding,
            selected_on=fitted.selection,
            notes=fitted.notes,
        ),
        preprocessing=model.canvas.to_dict(),
        detection=DetectionEntry(scores=asdict(model.score_rule), keep=asdict(model.keep_rule)),
        graphs=(graph_entry(graph, None, None, checks.score_difference),),
        source=SourceEntry(
            path=os.path.relpath(model.source.path, out.parent),
            sha256=model.source.sha256,
            layout=model.source.layout,
            trained_with=model.trained_with,
            notes=tuple(model.source.notes),
        ),
        versions=package_versions(),
        files={name: file_entry(held) for name, held in files.items()},
    )
    return ExportedDetector(write_bundle(out, manifest, files), checks)


def _folded(model: Detector, fix: LogitMap) -> tuple[nn.Module, Folding]:
    """Return the detector with the fix in its class layer; the model stays as it is."""
    if fix.is_identity:
        return model.module, "none"
    if not isinstance(fix, AffineMap):
        raise FixError(
            "A detector's class layer takes affine maps of the logits alone, and this fix is none: "
            "use norcal, logn, odds, group_odds or logit_adjustment."
        )
    return fold_into(model.module, model.architecture.kind, fix.scale, fix.shift), "weights"


def static_module(module: nn.Module, kind: Kind, canvas: Canvas) -> nn.Module:
    """Return the formulation of a detector with fixed sizes, for the graph."""
    size = canvas.height_px, canvas.width_px
    if kind == "retinanet":
        return StaticRetinaNet(module, *size).eval()
    if kind == "fcos":
        return StaticFcos(module, *size).eval()
    if kind == "detr":
        return StaticDetr(module, *size).eval()
    if kind in QUERY_KINDS:
        return StaticQueries(module, *size).eval()
    return StaticRcnn(module, *size).eval()


def _canvases(model: Detector, images: BoxDataset | None) -> npt.NDArray[np.uint8]:
    """Return a few ready canvases, uint8 (K, H, W, 3), evenly over the data."""
    source: Any = SpeciesDataset(split="val") if images is None else images
    places = np.unique(np.linspace(0, len(source) - 1, _GOLDEN_IMAGES).astype(int))
    return np.stack([load_on_canvas(source.source(int(i)), model.canvas)[0] for i in places])
