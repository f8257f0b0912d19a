"""Options that several commands share, each defined once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..classes import ClassTable
    from ..models.detectors.onnx_mapping import OutputMapping
    from ..models.options import LoadOptions

__all__ = [
    "Arch",
    "CanvasSize",
    "Classes",
    "CropPct",
    "Debug",
    "Engine",
    "HeadScale",
    "ImageSize",
    "Interpolation",
    "JpegScaling",
    "Json",
    "Mean",
    "Outputs",
    "Quiet",
    "Resize",
    "Root",
    "Std",
    "TrustPickle",
    "canvas_size",
    "load_options",
    "read_outputs",
]

Json = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH", help="Write the result as JSON; - is stdout."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Root = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Where the paths of a .txt list, or the file names of a .json, begin."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="NAME[:K=V,…]",
        help="What runs the bundle: auto, openvino, onnxruntime, onnxruntime-cuda, "
        "onnxruntime-tensorrt or tensorrt; 'ltdeploy doctor' says which work here.",
    ),
]

_CKPT = "Checkpoint"
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="A",
        help="timm:NAME, torchvision:NAME, hf:FOLDER or cifar:resnet20, where the file is silent.",
        rich_help_panel=_CKPT,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="csv 'name,train_count' in label order, or any DATA whose labels are counted.",
        rich_help_panel=_CKPT,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load a checkpoint that may RUN CODE. Only for files whose author you trust.",
        rich_help_panel=_CKPT,
    ),
]
HeadScale = Annotated[
    float | None,
    typer.Option(metavar="S", help="Scale of a cosine head (LDAM: 30).", rich_help_panel=_CKPT),
]
Outputs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="What the outputs of an ONNX detector hold; 'ltdeploy inspect' proposes it.",
        rich_help_panel=_CKPT,
    ),
]
_PRE = "Preprocessing, where the file does not tell"
ImageSize = Annotated[
    int | None,
    typer.Option(
        metavar="PX", help="Side of the square that the model sees.", rich_help_panel=_PRE
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="PX", help="Shorter side before the crop, or squash, or none.", rich_help_panel=_PRE
    ),
]
CropPct = Annotated[
    float | None,
    typer.Option(metavar="F", help="timm's way to say --resize.", rich_help_panel=_PRE),
]
Interpolation = Annotated[
    str | None, typer.Option(metavar="NAME", help="bicubic, bilinear, …", rich_help_panel=_PRE)
]
Mean = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="On values in 0..1.", rich_help_panel=_PRE)
]
JpegScaling = Annotated[
    bool,
    typer.Option(
        "--jpeg-scaling",
        help="Decode large JPEGs at 1/2, 1/4 or 1/8; with --val, gated.",
        rich_help_panel=_PRE,
    ),
]
CanvasSize = Annotated[
    str | None,
    typer.Option(
        "--canvas",
        metavar="HxW",
        help="Height and width that a detector sees.",
        rich_help_panel=_PRE,
    ),
]
Std = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="On values in 0..1.", rich_help_panel=_PRE)
]


def load_options(
    *,
    arch: str | None = None,
    classes: ClassTable | None = None,
    image_size: int | None = None,
    resize: str | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    head_scale: float | None = None,
    trust_pickle: bool = False,
) -> LoadOptions:
    """Turn the options' texts into :class:`~ltdeploy.models.options.LoadOptions`."""
    from ..models.options import LoadOptions

    return LoadOptions(
        arch=arch,
        classes=classes,
        image_size=image_size,
        resize=int(resize) if resize is not None and resize.isdecimal() else resize,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        head_scale=head_scale,
        trust_pickle=trust_pickle,
    )


def read_outputs(path: str | None) -> OutputMapping | None:
    """Read the file of ``--outputs``; None where it is not given.

    Raises
    ------
    UsageError
        As :func:`~ltdeploy.models.detectors.onnx_mapping.read_mapping`.
    """
    if path is None:
        return None
    from ..models.detectors.onnx_mapping import read_mapping

    return read_mapping(path)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} is {text!r}; expected three numbers with commas, like 0.485,0.456,0.406."
        ) from None


def canvas_size(text: str) -> tuple[int, int]:
    """Return height and width in pixels that ``--canvas HxW`` says.

    Raises
    ------
    UsageError
        For anything but two lengths.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UsageError(f"--canvas is {text!r}; expected HEIGHTxWIDTH in pixels, like 320x448.")
    return int(height), int(width)
