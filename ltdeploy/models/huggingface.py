"""Hugging Face image classification folders, offline: architecture, preprocessing and names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from .._optional import require
from ..errors import CheckpointError
from ..preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from .reading import read_json

__all__ = [
    "FILTERS",
    "HuggingFaceClassifier",
    "build_from_config",
    "current_weights",
    "folder_class_names",
    "folder_preprocessing",
    "load_strictly",
]

# Pillow's numbers for its filters, which image processor configurations store.
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_CONVNEXT_WARP_PX = 384


class HuggingFaceClassifier(nn.Module):
    """A transformers image classifier whose forward takes and returns plain tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (N, C) for normalised images of shape (N, 3, H, W)."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def build_from_config(folder: Path, classes: int) -> nn.Module:
    """Build the folder's architecture, untrained, with a head of `classes` outputs.

    Only architectures that transformers itself contains are built: code in the folder is not run.

    Raises
    ------
    CheckpointError
        If the configuration is not that of an image classifier of transformers.
    """
    config = _config(folder)
    config.num_labels = classes
    return HuggingFaceClassifier(_network(folder, config))


def _config(folder: Path) -> Any:
    transformers = require("transformers", extra="hf", purpose="read Hugging Face folders")
    try:
        return transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError) as error:
        raise _not_a_classifier(folder, error) from error


def _network(folder: Path, config: Any) -> Any:
    transformers = require("transformers", extra="hf", purpose="build Hugging Face models")
    try:
        return transformers.AutoModelForImageClassification.from_config(
            config, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError) as error:
        raise _not_a_classifier(folder, error) from error


def _not_a_classifier(folder: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0]
    return CheckpointError(
        f"{folder} is not an image classifier that transformers can build: {reason}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the terminal: errors are raised."""
    logging = require("transformers.utils.logging", extra="hf", purpose="read the folder")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def current_weights(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a folder's weights under the keys that its architecture has today.

    transformers renames parameters from version to version and converts files while it loads them;
    here it converts tensors that were read safely before.

    Raises
    ------
    CheckpointError
        If weights are missing, left over, or of another shape.
    """
    with _quiet(), torch.random.fork_rng(devices=[]):
        config = _config(folder)
        network = type(_network(folder, config))
    weights: dict[str, Tensor] = load_strictly(folder, network, config, tensors).state_dict()
    return weights


def load_strictly(
    folder: Path, network: Any, config: Any, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Return a network of transformers' class ``network`` with a folder's weights, all of them.

    Raises
    ------
    CheckpointError
        If weights are missing, left over, or of another shape.
    """
    with _quiet(), torch.random.fork_rng(devices=[]):
        loaded, told = network.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    problems = {
        "missing in the file": sorted(told["missing_keys"]),
        "not in the architecture": sorted(told["unexpected_keys"]),
        "of another shape": sorted(entry[0] for entry in told["mismatched_keys"]),
    }
    said = [
        f"{len(keys)} {what} ({', '.join(keys[:6])})" for what, keys in problems.items() if keys
    ]
    if said:
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json ({config.model_type} with "
            f"{config.num_labels} labels): {'; '.join(said)}. A folder without a trained "
            "classification head cannot be deployed."
        )
    module: nn.Module = loaded
    return module


def folder_class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return ``id2label`` in label order; None where it is absent or only transformers' filler."""
    told = config.get("id2label")
    if not isinstance(told, Mapping):
        return None
    try:
        by_label = {int(label): str(name) for label, name in told.items()}
    except ValueError:
        return None
    if sorted(by_label) != list(range(len(by_label))):
        return None
    names = tuple(by_label[label] for label in range(len(by_label)))
    return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def folder_preprocessing(folder: Path) -> Preprocessing:
    """Return what ``preprocessor_config.json`` describes.

    Raises
    ------
    CheckpointError
        If the file is missing or describes something that ltdeploy does not reproduce.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, so its preprocessing is not known; say it "
            "with --image-size and --resize (and --interpolation, --mean, --std)."
        )
    told = read_json(path)
    for key in ("do_flip_channel_order", "do_pad"):
        if told.get(key):
            raise _not_reproduced(path, key, told[key])
    if abs(float(told.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-3:
        raise _not_reproduced(path, "rescale_factor", told["rescale_factor"])
    if told.get("rescale_offset") or told.get("include_top"):
        raise _not_reproduced(path, "include_top/rescale_offset", True)
    normalises = told.get("do_normalize", True)
    fields = _sizes(path, told)
    filter_number = told.get("resample", 2)
    name = FILTERS.get(filter_number) if isinstance(filter_number, int) else None
    if name not in get_args(Interpolation):
        raise _not_reproduced(path, "resample", filter_number)
    return Preprocessing(
        **fields,
        interpolation=cast(Interpolation, name),
        mean=tuple(told.get("image_mean") or IMAGENET_MEAN) if normalises else (0.0, 0.0, 0.0),
        std=tuple(told.get("image_std") or IMAGENET_STD) if normalises else (1.0, 1.0, 1.0),
    )


def _sizes(path: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size fields of :class:`Preprocessing`."""
    size = told.get("size")
    resizes = told.get("do_resize", True)
    crops = told.get("do_center_crop", False) and told.get("crop_size") is not None
    crop = _height_width(told.get("crop_size")) if crops else None
    if not resizes:
        if crop is None:
            raise _not_reproduced(path, "do_resize", False)
        return {"height_px": crop[0], "width_px": crop[1], "resize_mode": "none"}
    edge = _shortest_edge(told, size)
    if edge is not None and "crop_pct" in told and crop is None:
        # ConvNeXt's rule: below 384 scale the shorter side and crop, from there on warp.
        if edge >= _CONVNEXT_WARP_PX:
            return {"height_px": edge, "width_px": edge, "resize_mode": "squash"}
        share = told["crop_pct"] or 224 / 256
        return {"height_px": edge, "width_px": edge, "resize_px": int(edge / share)}
    if edge is not None:
        if crop is None:
            raise _not_reproduced(path, "size without a centre crop", size)
        return {"height_px": crop[0], "width_px": crop[1], "resize_px": edge}
    box = _height_width(size)
    if box is None:
        raise _not_reproduced(path, "size", size)
    seen = crop or box
    resize = None if seen == box else box
    return {
        "height_px": seen[0],
        "width_px": seen[1],
        "resize_mode": "squash",
        "resize_px": resize,
    }


def _shortest_edge(told: Mapping[str, Any], size: object) -> int | None:
    if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
        return int(size["shortest_edge"])
    # Files from before transformers 4.22 hold a bare number: a shorter side only where they crop.
    if isinstance(size, int) and (told.get("do_center_crop") or "crop_pct" in told):
        return size
    return None


def _height_width(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None


def _not_reproduced(path: Path, key: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"{path} describes a preprocessing that ltdeploy does not reproduce to the pixel ({key}: "
        f"{value!r}). Say which to use with --image-size and --resize (and --interpolation, "
        "--mean, --std)."
    )
