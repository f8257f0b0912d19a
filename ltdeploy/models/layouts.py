"""What training codes write, brought into one form: weights by plain keys, and what they tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ..preprocessing import Preprocessing
from .reading import Content
from .trained_with import BALANCED_LOSSES, loss_name, sampler_name

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BALANCED_LOSSES", "PREFIXES", "Parts", "recognise", "strip_prefixes"]

PREFIXES = ("module", "_orig_mod", "model", "net", "backbone")
SCHEMA = 1
# The best weights first. Training codes that keep an average of the weights report its accuracy.
_WEIGHT_KEYS = (
    "state_dict_best",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "weights",
)
_ARCH_KEYS = ("arch", "model_name", "architecture", "model", "net_type", "backbone")
_COUNT_KEYS = ("train_counts", "cls_num_list", "class_counts", "num_class_list", "img_num_list")
_NAME_KEYS = ("class_names", "classes", "CLASSES", "class_to_idx", "idx_to_class", "names")
_LOSS_KEYS = ("trained_with", "loss_type", "loss")
_NESTED_KEYS = ("args", "hyper_parameters", "hparams", "config", "opt", "cfg", "meta")
_SAMPLER_KEYS = ("train_rule", "sampler", "sampler_type", "train_sampler", "sampling")


@dataclass
class Parts:
    """A checkpoint in normal form.

    Parameters
    ----------
    layout : whose way of writing it is, in words.
    tensors : weights by key, wrappers' prefixes removed.
    raw_tensors : the same under the keys of the file.
    arch : the architecture as the file records it; with or without a family.
    family : the family to try first for an architecture recorded without one.
    cosine : True when this layout's bias-free head is a cosine head.
    head_scale : factor of a cosine head, where known.
    logit_scale : array of shape (C,) by which a second stage multiplies the logits.
    changes : preprocessing that the file records, as :class:`LoadOptions` fields.
    train_hashes : fingerprints of the training images, shape (M,), where the file holds them.
    task : ``"classification"`` or ``"detection"``, where the file tells.
    canvas : a detector's canvas, as :meth:`ltdeploy.canvas.Canvas.to_dict` wrote it.
    config : the text of mmdetection's config, where the file holds it.
    notes : what was recognised or assumed, for people.
    """

    layout: str
    tensors: dict[str, Tensor]
    raw_tensors: dict[str, Tensor] = field(default_factory=dict)
    arch: str | None = None
    family: str = "torchvision"
    cosine: bool = False
    head_scale: float | None = None
    logit_scale: np.ndarray[Any, np.dtype[np.float64]] | None = None
    class_names: tuple[str, ...] | None = None
    train_counts: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    trained_with: str | None = None
    train_hashes: np.ndarray[Any, np.dtype[np.uint64]] | None = None
    task: str | None = None
    canvas: Mapping[str, Any] | None = None
    config: str | None = None
    notes: list[str] = field(default_factory=list)


def recognise(content: Content, where: str) -> Parts:
    """Bring what was read into normal form.

    Parameters
    ----------
    content : from :func:`ltdeploy.models.reading.read_content`.
    where : the path, for messages.

    Raises
    ------
    CheckpointError
        If no weights are found in it, or two networks are and nothing tells which is meant.
    """
    from .research_layouts import RESEARCH_LAYOUTS

    data = content.data
    if content.kind in ("safetensors", "hf"):
        layout = "Hugging Face folder" if content.kind == "hf" else "safetensors"
        parts = _bare(data, layout)
        _read_told(parts, content.metadata if content.kind == "safetensors" else {})
        return parts
    if hasattr(data, "state_dict") and callable(data.state_dict):
        parts = _bare(dict(data.state_dict()), "pickled module")
        parts.notes.append("The file held a whole pickled network; only its weights are used.")
        return parts
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"{where} holds a {type(data).__name__}, not weights; expected a state dict or a "
            "dictionary with one under 'state_dict' or 'model'."
        )
    if isinstance(data.get("ltdeploy"), Mapping):
        return _own(data, where)
    for layout_of in RESEARCH_LAYOUTS:
        found: Parts | None = layout_of(data)
        if found is not None:
            _read_told(found, data)
            return found
    if is_state_dict(data):
        return _bare(data, "bare state dict")
    return _container(data, where)


def is_state_dict(value: object) -> bool:
    """Whether `value` is a non-empty mapping from strings to tensors."""
    import torch

    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under keys without the prefixes of wrappers, however they are nested.

    Raises
    ------
    CheckpointError
        If two keys become the same: then the file holds two networks.
    """
    stripped: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        while len(parts) > 1 and parts[0] in PREFIXES:
            parts = parts[1:]
        plain = ".".join(parts)
        if plain in stripped:
            raise CheckpointError(
                f"The weights hold two networks: {origin[plain]!r} and {key!r} differ only in "
                "their prefix. Save the one to deploy alone and load that file."
            )
        stripped[plain] = tensor
        origin[plain] = key
    return stripped


def _bare(tensors: Mapping[str, Tensor], layout: str) -> Parts:
    kept = {k: v for k, v in tensors.items() if k != "n_averaged"}
    parts = Parts(layout, strip_prefixes(kept), dict(kept))
    removed = sorted({key.split(".")[0] for key in kept if key not in parts.tensors})
    if removed:
        parts.notes.append(
            "Removed the prefix " + ", ".join(f"'{p}.'" for p in removed) + " from the weights."
        )
    return parts


def _container(data: Mapping[str, Any], where: str) -> Parts:
    """Read a dictionary that holds weights beside other things."""
    found = []
    for key in _WEIGHT_KEYS:
        value: Any = data.get(key)
        if hasattr(value, "state_dict") and callable(value.state_dict):
            value = value.state_dict()
        if is_state_dict(value):
            found.append((key, value))
    if not found:
        keys = ", ".join(repr(str(key)) for key in list(data)[:12]) or "nothing"
        raise CheckpointError(
            f"{where} holds no weights that were recognised. Its keys are {keys}; expected a state "
            f"dict, or one under {', '.join(_WEIGHT_KEYS[:5])} or 'model'."
        )
    key, tensors = found[0]
    layout = "PyTorch Lightning" if "pytorch-lightning_version" in data else f"{key!r} in a dict"
    family = "torchvision"
    args = as_mapping(data.get("args"))
    if _is_timm(data, args):
        layout, family = "timm training checkpoint", "timm"
    parts = _bare(tensors, layout)
    parts.family = family
    if len(found) > 1:
        others = ", ".join(repr(other) for other, _ in found[1:])
        parts.notes.append(
            f"The file holds several sets of weights; {key!r} is used, before {others}"
            + (", as the averaged weights are what such runs report." if "ema" in key else ".")
        )
    _read_told(parts, data)
    if family == "timm":
        parts.arch = args.get("model") or parts.arch
        _read_timm_args(parts, args)
    elif "val_crop_size" in args:
        parts.changes |= {
            "image_size": args["val_crop_size"],
            "resize": args.get("val_resize_size"),
            "interpolation": args.get("interpolation"),
        }
    parts.changes = {k: v for k, v in parts.changes.items() if v is not None}
    return parts


def _own(data: Mapping[str, Any], where: str) -> Parts:
    """Read ltdeploy's own layout: ``{"ltdeploy": {schema, arch, …}, "state_dict": …}``."""
    told = data["ltdeploy"]
    if told.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{where} was written in ltdeploy's checkpoint schema {told.get('schema')!r}; this "
            f"version reads {SCHEMA}. Use the ltdeploy that wrote it, or a newer one."
        )
    if not is_state_dict(data.get("state_dict")):
        raise CheckpointError(f"{where} says it is ltdeploy's and holds no 'state_dict'.")
    parts = Parts("ltdeploy", dict(data["state_dict"]), dict(data["state_dict"]))
    parts.arch = told.get("arch")
    head = as_mapping(told.get("head"))
    parts.cosine = head.get("kind") == "cosine"
    parts.head_scale = head.get("scale") if parts.cosine else None
    _read_told(parts, told)
    parts.task = told.get("task", "classification")
    if parts.task == "detection":
        parts.canvas = as_mapping(told.get("canvas"))
    if told.get("preprocessing") is not None:
        parts.preprocessing = Preprocessing.from_dict(told["preprocessing"])
    hashes = as_mapping(told.get("train_data")).get("hashes")
    if hashes is not None and hasattr(hashes, "numpy"):
        parts.train_hashes = hashes.numpy().astype(np.int64).view(np.uint64)
    return parts


def _is_timm(data: Mapping[str, Any], args: Mapping[str, Any]) -> bool:
    return ("metric" in data and "version" in data) or ("model" in args and "drop_path" in args)


def _read_timm_args(parts: Parts, args: Mapping[str, Any]) -> None:
    size = args.get("img_size")
    if size is None and isinstance(args.get("input_size"), Sequence):
        size = args["input_size"][-1]
    parts.changes |= {"image_size": size}
    for name in ("crop_pct", "interpolation", "mean", "std"):
        value = args.get(name)
        parts.changes[name] = None if value in ("", "random") else value


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a dictionary or a Namespace as a mapping; an empty one for anything else."""
    if isinstance(value, Mapping):
        return value
    told: dict[str, Any] = getattr(value, "__dict__", {}) if not isinstance(value, type) else {}
    return told


def _read_told(parts: Parts, data: Mapping[str, Any]) -> None:
    """Fill in architecture, names, counts and loss from wherever training codes put them."""
    places = [data, *(as_mapping(data.get(key)) for key in _NESTED_KEYS)]
    meta = as_mapping(data.get("meta"))  # of mmengine
    places.append(as_mapping(meta.get("dataset_meta")))
    parts.config = meta["cfg"] if isinstance(meta.get("cfg"), str) else None
    if parts.arch is None:
        parts.arch = _first(places, _ARCH_KEYS, lambda v: v if isinstance(v, str) else None)
    if parts.train_counts is None:
        parts.train_counts = _first(places, _COUNT_KEYS, _counts)
    if parts.class_names is None:
        parts.class_names = _first(places, _NAME_KEYS, _names)
    if parts.trained_with is None:
        parts.trained_with = _first(places, _LOSS_KEYS, loss_name)
    rule = _first(places, _SAMPLER_KEYS, sampler_name)
    if rule is not None and parts.trained_with not in BALANCED_LOSSES:
        parts.notes.append(
            f"The file records {rule.replace('_', ' ')}, with the loss "
            f"{parts.trained_with or 'not told'}."
        )
        parts.trained_with = rule


def _first(
    places: Sequence[Mapping[str, Any]], keys: Sequence[str], read: Callable[[Any], Any]
) -> Any:
    for place in places:
        for key in keys:
            value = read(place[key]) if key in place else None
            if value is not None:
                return value
    return None


def _counts(value: Any) -> tuple[int, ...] | None:
    """Return counts from a list, array or tensor of whole numbers, one per class."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple) or not value:
        return None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in value):
        return None
    if any(n != n or n in (float("inf"), float("-inf")) or n != int(n) for n in value):
        return None
    return tuple(int(n) for n in value)


def _names(value: Any) -> tuple[str, ...] | None:
    """Return class names from a list, an array, ``{name: label}`` or ``{label: name}``."""
    if isinstance(value, np.ndarray):
        texts = value.astype(np.str_) if value.dtype.kind == "S" else value
        value = texts.tolist()
    if isinstance(value, list | tuple) and value and all(isinstance(n, str) for n in value):
        return tuple(value)
    if not isinstance(value, Mapping) or not value:
        return None
    if all(isinstance(label, int) for label in value.values()):
        value = {label: name for name, label in value.items()}
    try:
        by_label = {int(label): str(name) for label, name in value.items()}
    except (TypeError, ValueError):
        return None
    if sorted(by_label) != list(range(len(by_label))):
        return None
    return tuple(by_label[label] for label in range(len(by_label)))
