"""Reading somebody's ONNX classifier into one form: images NCHW in, logits out, head known."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._optional import require
from ..errors import CheckpointError
from .head import Head
from .onnx_head import free_name, head_nodes, names_in, producer, read_head
from .reading import check_path

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxGraph", "image_input", "read_model", "read_onnx", "transpose_input"]

Layout = Literal["NCHW", "NHWC"]
_FLOAT = 1  # onnx.TensorProto.FLOAT
_PASSED = ("Identity", "Softmax", "LogSoftmax")


@dataclass(frozen=True)
class OnnxGraph:
    """A classifier's graph brought into one form, and where its head is.

    Parameters
    ----------
    model : takes normalised float32 images [N, 3, H, W], returns logits [N, C]; a softmax at the
        end is taken off and an NHWC input gets a Transpose in front.
    input_name, output_name : of that graph.
    height_px, width_px : of the input; None where it takes any size.
    head : the last linear map.
    head_node : name of the node that multiplies by the head's weight.
    notes : what was changed.
    """

    model: onnx.ModelProto
    input_name: str
    output_name: str
    height_px: int | None
    width_px: int | None
    head: Head
    head_node: str
    notes: tuple[str, ...]


def read_onnx(path: Path) -> OnnxGraph:
    """Read an ONNX classifier and find its head.

    Raises
    ------
    CheckpointError
        If it is not ONNX, keeps data outside its folder, or is not a classifier of images that
        ends in a linear layer.
    """
    require("onnx", extra="torch", purpose="read .onnx files")
    check_path(path)
    model = read_model(path)
    graph = model.graph
    notes: list[str] = []
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise CheckpointError(
            f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; expected a "
            "classifier with one of each, images in and logits out."
        )
    layout, height, width = image_input(path, inputs[0])
    if len(graph.output[0].type.tensor_type.shape.dim) not in (0, 2):
        raise CheckpointError(
            f"{path} gives {graph.output[0].name!r} with "
            f"{len(graph.output[0].type.tensor_type.shape.dim)} axes; expected logits [N, C]."
        )
    output = _strip_softmax(model, notes)
    node, add = head_nodes(model, output, str(path))
    head = read_head(model, node, add, str(path))
    _set_output(model, output, head.classes)
    name = inputs[0].name
    if layout == "NHWC":
        transpose_input(model, inputs[0])
        notes.append("The graph takes images as [N, H, W, 3]; a Transpose was put in front.")
    batch = inputs[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        if batch.dim_value:
            notes.append(
                f"The graph was exported for batches of {batch.dim_value}; it is now asked to take "
                "any number, which the checks after export confirm or refuse."
            )
        batch.Clear()
        batch.dim_param = "batch"
    del graph.value_info[:]
    return OnnxGraph(
        model, name, output, height, width, head, node.name or node.output[0], tuple(notes)
    )


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its weights.

    Raises
    ------
    CheckpointError
        If it is not ONNX, or keeps data outside its folder.
    """
    library = require("onnx", extra="torch", purpose="read .onnx files")
    protobuf = require("google.protobuf.message", extra="torch", purpose="read .onnx files")
    try:
        model: onnx.ModelProto = library.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}. Check the file's permissions."
        ) from error
    except protobuf.DecodeError as error:
        raise CheckpointError(
            f"{path} cannot be read as ONNX ({error}); it is damaged, cut short or something else."
        ) from error
    if not model.graph.node:
        raise CheckpointError(f"{path} is not an ONNX model: it has no graph with nodes in it.")
    external = [t for t in model.graph.initializer if t.data_location == t.EXTERNAL]
    for tensor in external:
        told = {entry.key: entry.value for entry in tensor.external_data}
        file = path.parent / told.get("location", "")
        if (
            file.parent.resolve() != path.parent.resolve()
            or file.is_symlink()
            or not file.is_file()
        ):
            raise CheckpointError(
                f"{path} keeps the weight {tensor.name!r} in {told.get('location')!r}, which is "
                "not a plain file beside it. Put the data file next to the .onnx, or save the "
                "model as one file."
            )
    if external:
        library.external_data_helper.load_external_data_for_model(model, str(path.parent))
    return model


def image_input(path: Path, value: Any) -> tuple[Layout, int | None, int | None]:
    """Return the layout, height and width of the images that a graph takes.

    Raises
    ------
    CheckpointError
        If it takes no float32 images of three channels.
    """
    tensor = value.type.tensor_type
    sides = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    if tensor.elem_type != _FLOAT:
        kind = require("onnx", extra="torch", purpose="read .onnx files").TensorProto.DataType
        raise CheckpointError(
            f"{path} takes {kind.Name(tensor.elem_type).lower()} images; expected float32. If "
            "ltdeploy exported it, give the checkpoint it was made from instead; otherwise export "
            "the model in float32."
        )
    if len(sides) == 4 and sides[1] == 3:
        return "NCHW", sides[2] or None, sides[3] or None
    if len(sides) == 4 and sides[3] == 3:
        return "NHWC", sides[1] or None, sides[2] or None
    raise CheckpointError(
        f"{path} takes {value.name!r} of shape {sides}; expected images, [N, 3, H, W] or "
        "[N, H, W, 3] with the 3 written in the file."
    )


def _strip_softmax(model: onnx.ModelProto, notes: list[str]) -> str:
    """Take Identity, Softmax and LogSoftmax off the end; return the name of what comes before."""
    name: str = model.graph.output[0].name
    while (node := producer(model, name)) is not None and node.op_type in _PASSED:
        if node.op_type != "Identity":
            notes.append(f"The graph's final {node.op_type} was taken off, as fixes act on logits.")
        name = node.input[0]
        model.graph.node.remove(node)
    return name


def _set_output(model: onnx.ModelProto, name: str, classes: int) -> None:
    value = model.graph.output[0]
    value.name = name
    shape = value.type.tensor_type.shape
    shape.Clear()
    shape.dim.add().dim_param = "batch"
    shape.dim.add().dim_value = classes
    value.type.tensor_type.elem_type = _FLOAT


def transpose_input(model: onnx.ModelProto, value: Any) -> None:
    """Let a graph of images [N, H, W, 3] take [N, 3, H, W], by a Transpose in front, in place."""
    from onnx import helper

    inner = free_name(f"{value.name}_nhwc", set(names_in(model)))
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == value.name:
                node.input[i] = inner
    first = helper.make_node("Transpose", [value.name], [inner], perm=[0, 2, 3, 1])
    model.graph.node.insert(0, first)
    axes = value.type.tensor_type.shape.dim
    sides = [copy.deepcopy(axis) for axis in axes]
    for axis, side in zip(axes, [sides[0], sides[3], sides[1], sides[2]], strict=True):
        axis.CopyFrom(side)
