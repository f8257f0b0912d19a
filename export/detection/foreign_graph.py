"""Somebody's ONNX detector to the bundle's graph: fix in the class rows, decoding as nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap
from ltdeploy.models.detectors.onnx_rows import fold_rows
from ltdeploy.models.onnx_head import free_name, names_in

from ..fold import Folding
from ..foreign import prepend_normalisation, rename
from ..to_onnx import INPUT
from .foreign_batch import for_one_image, freed, takes_batches
from .foreign_decode import OUTPUTS, append_decoding

if TYPE_CHECKING:
    import onnx

    from ltdeploy.fixes.logit_map import LogitMap
    from ltdeploy.models.detectors.onnx_detector import OnnxDetector

__all__ = ["onnx_from_foreign_detector"]

_OLDEST_OPSET = 11  # whose Slice and Where are as they are now


def onnx_from_foreign_detector(
    model: OnnxDetector, fix: LogitMap, metadata: dict[str, str]
) -> tuple[onnx.ModelProto, Folding, tuple[str, ...]]:
    """Return the graph ``images`` uint8 (N, H, W, 3) → ``boxes``, ``logits``, ``quality``.

    The activation of classes and objectness is taken off, the fix goes into the rows of the
    classes, and cast, transpose and normalisation are put in front. A graph that was exported for
    one image is made to take any number where its nodes let it.

    Returns
    -------
    The graph, how the fix was folded, and notes for the manifest.

    Raises
    ------
    FixError
        If the fix is no affine map of the logits.
    ExportError
        If the graph's opset is older than 11 and cannot be converted.
    """
    from ..precision.cast import at_least_opset

    if not isinstance(fix, AffineMap):
        raise FixError(
            "A detector's class layer takes affine maps of the logits alone, and this fix is none: "
            "use norcal, logn, odds, group_odds or logit_adjustment."
        )
    changed = model.bare()
    if not fix.is_identity:
        fold_rows(changed, model.layers, np.asarray(fix.scale), np.asarray(fix.shift))
    changed = at_least_opset(changed, _OLDEST_OPSET)
    del changed.graph.value_info[:]
    taken = set(names_in(changed))
    names, entry = dict(model.names), model.input_name
    for name in (INPUT, *OUTPUTS):  # the bundle's own names
        if name in taken or name == entry:
            other = free_name(f"{name}.file", taken)
            rename(changed, name, other)
            names = {key: other if held == name else held for key, held in names.items()}
            entry = other if entry == name else entry
    append_decoding(changed, model, names)
    inner = free_name("ltdeploy_normalised", taken)
    rename(changed, entry, inner)
    prepend_normalisation(
        changed,
        inner,
        model.canvas.as_preprocessing(),
        bgr=model.mapping.canvas.channels == "bgr",
    )
    for key, value in metadata.items():
        changed.metadata_props.add(key=key, value=value)
    folding: Folding = "none" if fix.is_identity else "weights"
    any_number = freed(changed, model.shapes) if model.has_fixed_batch else changed
    if takes_batches(any_number):
        return any_number, folding, ()
    return (
        for_one_image(changed),
        folding,
        (
            "The file's network takes one photograph at a time: so does the graph, and batches are "
            "run photograph by photograph.",
        ),
    )
