"""Take out of a graph what need not be computed: constants, dead nodes, needless reshaping."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING, Any

from ltdeploy._optional import require
from ltdeploy.errors import ExportError
from ltdeploy.models.onnx_head import free_name

if TYPE_CHECKING:
    import onnx

__all__ = ["clean_up"]


def clean_up(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with constants folded, duplicates merged and every shape inferred.

    OnnxSlim does it. What it must not change are the answers: the checks after every export compare
    the graph with the reference.

    Raises
    ------
    ExportError
        If OnnxSlim cannot read the graph.
    """
    onnxslim: Any = require("onnxslim", extra="torch", purpose="clean up exported graphs")
    logger = logging.getLogger("ONNXSLIM")
    level = logger.level
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            slim: onnx.ModelProto = onnxslim.slim(model)
    except Exception as error:  # it raises whatever a malformed graph makes it trip over
        raise ExportError(
            f"The graph cannot be cleaned up ({type(error).__name__}: {error}). Check the file "
            "with onnx.checker; if it is valid, please report it."
        ) from error
    finally:
        logger.setLevel(level)
    taken: set[str] = set()
    named = {node.name for node in slim.graph.node}
    for place, node in enumerate(slim.graph.node):  # layers are told apart by name from here on
        if not node.name or node.name in taken:
            node.name = free_name(f"{node.name or node.op_type}_{place}", named)
        taken.add(node.name)
    return slim
