"""Hugging Face object detection folders, offline: DETR, RT-DETR v2 and D-FINE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._optional import require
from ...canvas import Canvas
from ...classes import ClassTable
from ...errors import CheckpointError
from ..classifier import Source, class_table
from ..huggingface import folder_class_names, load_strictly
from ..layouts import Parts
from ..options import LoadOptions
from ..reading import read_content, read_json, source_sha256
from .architectures import Architecture
from .class_rows import class_paths
from .detector import Detector, class_head, require_finite
from .huggingface_canvas import folder_canvas

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["QUERY_ARCHITECTURES", "detector_from_folder", "is_detector_folder"]

# What save_pretrained() writes as the architecture. DETR's size is one for photographs of 4:3.
QUERY_ARCHITECTURES: dict[str, Architecture] = {
    "DetrForObjectDetection": Architecture("detr", 800, 1088),
    "RTDetrV2ForObjectDetection": Architecture("rt_detr_v2", 640, 640),
    "DFineForObjectDetection": Architecture("d_fine", 640, 640),
}
_TASK = "ForObjectDetection"
_LONGEST_REASON = 300
# Options of configurations from before transformers 5, which name a backbone instead of holding it.
_NAMED_BACKBONE = ("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone")


def is_detector_folder(folder: Path) -> bool:
    """Whether a folder's ``config.json`` says that it is an object detector."""
    path = folder / "config.json"
    return path.is_file() and any(name.endswith(_TASK) for name in _architectures(read_json(path)))


def detector_from_folder(
    folder: Path, options: LoadOptions, canvas: Canvas | None = None
) -> Detector:
    """Load a folder that ``save_pretrained()`` wrote.

    Its weights are read without running code, none of its own code is run, and nothing is
    downloaded.

    Parameters
    ----------
    options : of its fields ``classes`` and ``trust_pickle``; the folder tells its architecture.
    canvas : what photographs become; None takes what ``preprocessor_config.json`` says.

    Raises
    ------
    CheckpointError
        If it is no detector that is known, its weights do not fit, or more must be said.
    UnsafeCheckpointError
        If loading it would run code.
    """
    content = read_content(folder, trust_pickle=options.trust_pickle)
    told = content.metadata
    name = _known(folder, told)
    architecture = QUERY_ARCHITECTURES[name]
    arch = f"hf:{architecture.kind}"
    if options.arch not in (None, arch):
        raise CheckpointError(
            f"{folder} is {arch} by its config.json, and --arch says {options.arch}; leave it out."
        )
    notes = [f"transformers model type {architecture.kind!r}."]
    if canvas is None:
        canvas, said = folder_canvas(folder, architecture)
        notes += said
    module = _network(folder, name, told, content.data)
    require_finite(folder, module.state_dict())
    head = class_head(module, architecture)
    foreground = head.classes - (head.background is not None)
    names = folder_class_names(told)
    return Detector(
        module=module,
        arch=arch,
        architecture=architecture,
        head=head,
        head_paths=class_paths(module, architecture.kind),
        canvas=canvas,
        classes=_table(folder, names, options, foreground, notes),
        trained_with=None,
        source=Source(
            folder.resolve(), source_sha256(folder), "Hugging Face folder", tuple(notes), names
        ),
    )


def _architectures(told: Mapping[str, Any]) -> list[str]:
    names = told.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _known(folder: Path, told: Mapping[str, Any]) -> str:
    """Return the architecture that a ``config.json`` names."""
    names = _architectures(told)
    known = [name for name in names if name in QUERY_ARCHITECTURES]
    if not known:
        raise CheckpointError(
            f"{folder} says in its config.json that it is {' or '.join(names) or 'nothing'}; "
            f"detectors known from such folders are {', '.join(QUERY_ARCHITECTURES)}."
        )
    kind = QUERY_ARCHITECTURES[known[0]].kind
    if told.get("model_type") != kind:
        raise CheckpointError(
            f"{folder}/config.json names the architecture {known[0]} and the model type "
            f"{told.get('model_type')!r}; expected {kind!r}."
        )
    return known[0]


def _network(
    folder: Path, name: str, told: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Return the folder's network with its weights, float32, in evaluation mode."""
    transformers: Any = require(
        "transformers", extra="hf", purpose="build Hugging Face's detectors"
    )
    network = getattr(transformers, name)
    values = _without_lookups(folder, name, told)
    try:
        config = network.config_class.from_dict(values)
        module = load_strictly(folder, network, config, tensors)
    except CheckpointError:
        raise
    except Exception as error:  # a wrong value raises whatever the layer that it is for raises
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} is not a {name} that transformers can build: {reason[:_LONGEST_REASON]}"
        ) from error
    return module.float().eval().requires_grad_(False)


def _without_lookups(folder: Path, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose backbone is neither looked up nor downloaded.

    Without ``anchor_image_size``, anchors are made for the canvas at hand.
    """
    values = {key: value for key, value in told.items() if key not in _NAMED_BACKBONE}
    if "anchor_image_size" in values:
        values["anchor_image_size"] = None
    backbone = values.get("backbone_config")
    if isinstance(backbone, Mapping):
        if "use_pretrained_backbone" in backbone:
            values["backbone_config"] = {**backbone, "use_pretrained_backbone": False}
        return values
    called = told.get("backbone")
    if called is None and not told.get("use_timm_backbone"):
        return values
    if name != "DetrForObjectDetection" or not told.get("use_timm_backbone"):
        raise CheckpointError(
            f"{folder}/config.json names its backbone, {called!r}, instead of describing it, and "
            "names are not looked up. Load the folder with transformers once, where its backbone "
            "is known, and save it again with save_pretrained()."
        )
    kept = told.get("backbone_kwargs") or {}
    values["backbone_config"] = {
        "model_type": "timm_backbone",
        "backbone": called or "resnet50",
        "features_only": True,
        "use_pretrained_backbone": False,
        "num_channels": told.get("num_channels", 3),
        "out_indices": kept.get("out_indices", [1, 2, 3, 4]),
        **({"output_stride": kept.get("output_stride", 16)} if told.get("dilation") else {}),
    }
    return values


def _table(
    folder: Path,
    names: tuple[str, ...] | None,
    options: LoadOptions,
    foreground: int,
    notes: list[str],
) -> ClassTable | None:
    """Return the caller's table, its names checked; one of another length is refused later on."""
    if options.classes is None or len(options.classes) != foreground:
        return options.classes
    if names is not None and len(set(names)) != len(names):
        names = None  # COCO's files call the ten numbers that no class has 'N/A'
    parts = Parts("Hugging Face folder", {}, class_names=names)
    return class_table(folder, parts, options, foreground, notes)
