"""A PyTorch classifier to an ONNX graph: uint8 images in, logits out, normalisation inside."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltdeploy._optional import require
from ltdeploy.errors import ExportError
from ltdeploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

__all__ = [
    "INPUT",
    "OPSET",
    "OUTPUT",
    "drop_checks",
    "onnx_from_classifier",
    "onnx_from_module",
    "translated",
]

INPUT, OUTPUT = "images", "logits"
# The newest opset that TensorRT 10.13, ONNX Runtime 1.24 and OpenVINO 2025 all read.
OPSET = 20
_EXAMPLE_BATCH = 2  # an example batch of 1 is specialised: the exporter would freeze the axis
_LARGEST_BATCH = 1 << 16


def _wrap(module: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    import torch
    from torch import nn

    class WithNormalisation(nn.Module):
        """Cast, transpose, normalise, run; in this order, as TensorRT transposes no uint8."""

        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.module = module
            mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
            std = torch.tensor(preprocessing.std, dtype=torch.float64)
            self.register_buffer("scale", (1 / (255 * std)).float().reshape(1, 3, 1, 1))
            self.register_buffer("shift", (-mean / std).float().reshape(1, 3, 1, 1))

        def forward(self, images: torch.Tensor) -> Any:
            pixels = images.to(torch.float32).permute(0, 3, 1, 2)
            return self.module(pixels * self.scale + self.shift)

    return WithNormalisation().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice off the user's terminal; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _pool_by_mean(program: Any) -> None:
    """Let pooling to one pixel be a mean over both axes.

    The exporter turns adaptive pooling into a mean and a strided view, which becomes a Gather by
    indices computed from the batch size: no engine sees through it.
    """
    import torch

    pool, mean = torch.ops.aten.adaptive_avg_pool2d.default, torch.ops.aten.mean.dim
    for node in program.graph.nodes:
        if node.target is pool and tuple(node.args[1]) == (1, 1):
            node.target, node.args = mean, (node.args[0], [-2, -1], True)
    program.graph_module.recompile()


def drop_checks(program: Any) -> None:
    """Take out what only checks constants, in place: it has no translation to ONNX and no use.

    transformers' ``torch_compilable_check`` leaves such nodes in RT-DETR and D-FINE.
    """
    import torch

    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._is_all_true.default and not node.users:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _name_batch_axis(model: onnx.ModelProto) -> None:
    """Call the batch axis ``batch`` instead of the tracer's running number."""
    graph = model.graph
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_param"):
                axis.dim_param = re.sub(rf"\b{re.escape(traced)}\b", "batch", axis.dim_param)


def onnx_from_classifier(
    module: nn.Module, preprocessing: Preprocessing, metadata: dict[str, str]
) -> onnx.ModelProto:
    """Return the graph ``images`` uint8 (N, H, W, 3) → ``logits`` float32 (N, C).

    Parameters
    ----------
    module : classifier in evaluation mode that takes normalised float32 (N, 3, H, W).
    metadata : written into the file's ``metadata_props``.

    Raises
    ------
    ExportError
        As :func:`onnx_from_module`.
    """
    return onnx_from_module(module, preprocessing, metadata, [OUTPUT])


def onnx_from_module(
    module: nn.Module,
    preprocessing: Preprocessing,
    metadata: dict[str, str],
    outputs: Sequence[str],
    *,
    strict: bool = False,
) -> onnx.ModelProto:
    """Return the graph ``images`` uint8 (N, H, W, 3) → ``outputs``, normalisation inside.

    Parameters
    ----------
    module : in evaluation mode; takes normalised float32 (N, 3, H, W), gives a tensor or a tuple.
    preprocessing : size, mean and std of what the graph sees.
    outputs : names of what it gives; the first axis of each is the batch.
    strict : trace the Python code itself, which is slower: where it asks for ``len(tensor)``, the
        other way freezes the batch.
    metadata : written into the file's ``metadata_props``.

    Raises
    ------
    ExportError
        If ``torch.export`` or the ONNX translation fails; the text carries their reason.
    """
    torch: Any = require("torch", extra="torch", purpose="export a checkpoint")

    size = (preprocessing.height_px, preprocessing.width_px)
    example = torch.zeros((_EXAMPLE_BATCH, *size, 3), dtype=torch.uint8)
    wrapped = _wrap(module, preprocessing)
    model = translated(wrapped, {INPUT: example}, outputs, strict=strict)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model


def translated(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    *,
    opset: int = OPSET,
    strict: bool = False,
) -> onnx.ModelProto:
    """Return a module as an ONNX graph whose first axes are all the batch.

    Parameters
    ----------
    examples : inputs by name, in the module's order, batches of 2.
    outputs, strict : as for :func:`onnx_from_module`.

    Raises
    ------
    ExportError
        As :func:`onnx_from_module`.
    """
    torch: Any = require("torch", extra="torch", purpose="export a checkpoint")
    require("onnxscript", extra="torch", purpose="export a checkpoint")

    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    shapes = torch.export.ShapesCollection()
    for example in examples.values():
        shapes[example] = {0: batch}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                module,
                tuple(examples.values()),
                dynamic_shapes=shapes,
                strict=strict,
            )
            _pool_by_mean(program)
            drop_checks(program)
            exported: Any = torch.onnx.export(
                program,
                (),
                input_names=list(examples),
                output_names=list(outputs),
                opset_version=opset,
                dynamo=True,
                optimize=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises types of its own, several of them private
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"torch.export cannot trace this model ({type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}). Models whose computation depends on "
            "the values or on the batch size cannot be exported; run again with --debug for the "
            "exporter's full report."
        ) from error
    model: onnx.ModelProto = exported.model_proto
    _name_batch_axis(model)
    return model
