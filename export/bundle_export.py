"""Checkpoint and fixes to a bundle: fit, fold, export, check, write."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy import __version__
from ltdeploy._optional import installed_version
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
    ClassEntry,
    FixEntry,
    GraphEntry,
    GroupEntry,
    HeadEntry,
    Manifest,
    MethodEntry,
    SourceEntry,
    TensorEntry,
)
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.progress import Tracker, silent

from .checks import LOW_TOLERANCE, Checks, check_graph
from .clean_up import clean_up
from .fitting import fit_requested
from .fold import Folding, folded
from .foreign import onnx_from_foreign
from .precision import Lowered, PrecisionRequest, graph_opener, lower
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
    unreadable : images that could not be used, and why.
    golden_from : data of which a few images are in the bundle, as golden samples; None: drawn ones.
    """

    bundle: Bundle
    fixes: tuple[FittedFix, ...]
    checks: Checks
    lowered: Lowered | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    golden_from: str | None = None


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
        does not, so that ``verify`` shows what that costs.
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
    lowered: Lowered | None = None
    if precision is not None and precision.precision != "fp32":
        open_graph = graph_opener(precision.engine, precision.precision)
        lowered = lower(
            graph,
            precision,
            table,
            model.preprocessing,
            open_graph,
            images,
            jpeg_scaling=jpeg_scaling,
            track=track,
        )
        graph = lowered.model
        candidate = open_graph(graph)
        checks = check_graph(candidate, images, expected, **LOW_TOLERANCE)
        candidate.close()
    content = graph.SerializeToString()

    files = {"model.onnx": content, GOLDEN: _npz(images=images, logits=expected)}
    chose = fitted.hashes if lowered is None else np.union1d(fitted.hashes, lowered.seen)
    if fitted.selection is not None or len(chose):
        files[SELECTION] = _npz(hashes=chose)
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        task="classification",
        name=out.name.removesuffix(".ltd"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        arch=_shown_arch(model.arch),
        classes=_class_entries(table),
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
        preprocessing=replace(model.preprocessing, jpeg_scaling=jpeg_scaling).to_dict(),
        graphs=(_graph_entry(graph, precision, lowered, checks),),
        source=SourceEntry(
            path=os.path.relpath(model.source.path, out.parent),
            sha256=model.source.sha256,
            layout=model.source.layout,
            trained_with=model.trained_with,
            notes=tuple(model.source.notes),
        ),
        versions=_versions(),
        files={name: file_entry(content) for name, content in files.items()},
    )
    bundle = write_bundle(out, manifest, files)
    unreadable = (*fitted.unreadable, *(lowered.unreadable if lowered is not None else ()))
    return Exported(
        bundle,
        fitted.fixes,
        checks,
        lowered,
        tuple(dict.fromkeys(unreadable)),
        None if given is None else given.name,
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


def _class_entries(table: ClassTable) -> tuple[ClassEntry, ...]:
    rows = zip(table.names, table.counts, table.groups, strict=True)
    return tuple(ClassEntry(name=n, train_count=c, group=g) for n, c, g in rows)


def _graph_entry(
    graph: onnx.ModelProto,
    precision: PrecisionRequest | None,
    lowered: Lowered | None,
    checks: Checks,
) -> GraphEntry:
    import onnx

    def entry(value: Any) -> TensorEntry:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        return TensorEntry(name=value.name, dtype=str(dtype), shape=shape)

    return GraphEntry(
        file="model.onnx",
        precision=precision.precision if precision is not None else "fp32",
        opset=next(o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")),
        nodes=len(graph.graph.node),
        inputs=tuple(entry(value) for value in graph.graph.input),
        outputs=tuple(entry(value) for value in graph.graph.output),
        golden_difference=checks.reference_difference,
        lowering=lowered.entry if lowered is not None else None,
    )


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


def _npz(**arrays: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _versions() -> dict[str, str]:
    packages = ("numpy", "onnx", "onnxruntime", "onnxscript", "PIL", "torch")
    found = {package: installed_version(package) for package in packages}
    return {"ltdeploy": __version__, **{k: v for k, v in found.items() if v is not None}}
