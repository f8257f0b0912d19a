"""From a checkpoint to a classifier: network, head, preprocessing, classes and their sources."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .._optional import require
from ..classes import ClassTable
from ..errors import CheckpointError, DataError
from ..preprocessing import Preprocessing
from .architecture_search import find_architecture
from .architectures import LDAM_SCALE, canonical_name, default_preprocessing
from .head import Head
from .layouts import Parts, recognise
from .matching import Fit, fit, guess_head, load_weights
from .options import LoadOptions, adjust_preprocessing
from .reading import Content, read_content, source_sha256

if TYPE_CHECKING:
    from torch import nn

    from .onnx_classifier import OnnxClassifier

__all__ = ["Classifier", "LoadOptions", "Source", "load_checkpoint"]


@dataclass(frozen=True)
class Source:
    """Where a model came from and what was made of it.

    Parameters
    ----------
    path : the checkpoint, absolute.
    sha256 : of the file; of config and weights together for a folder.
    layout : whose way of writing it is.
    notes : what was recognised or assumed, in sentences.
    class_names : names in the file, also where counts are missing for a class table.
    settings : digest of what else decides on how it computes: a config in the file or beside it.
    """

    path: Path
    sha256: str
    layout: str
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    settings: str | None = None


@dataclass(eq=False)
class Classifier:
    """A network that is ready to be fixed, run and exported.

    Parameters
    ----------
    module : in evaluation mode, float32; normalised images [N, 3, H, W] to logits [N, C].
    arch : canonical name, ``"timm:resnet50"``, ``"cifar:resnet20"``.
    head : the last linear map, as arrays.
    head_path : dotted path of the head's layer in `module`.
    preprocessing : what turns a photograph into its input.
    classes : names and training counts; None where neither the file nor the caller tells.
    trained_with : the loss, ``"cross_entropy"``, ``"ldam"``, …; None where unknown.
    source : the file.
    train_hashes : fingerprints of the images it was trained on, array of shape (M,), uint64; None
        where the file does not hold them.
    """

    module: nn.Module
    arch: str
    head: Head
    head_path: str
    preprocessing: Preprocessing
    classes: ClassTable | None
    trained_with: str | None
    source: Source
    train_hashes: npt.NDArray[np.uint64] | None = None

    def require_complete(self) -> ClassTable:
        """Return the class table that export and verification need.

        Raises
        ------
        CheckpointError
            If it is missing; with what was recognised and the option that provides it.
        """
        return complete_table(self)


def load_checkpoint(
    path: str | os.PathLike[str], *, options: LoadOptions | None = None
) -> Classifier | OnnxClassifier:
    """Load a checkpoint of any supported layout.

    Parameters
    ----------
    path : a ``.pt/.pth/.pth.tar/.th/.ckpt/.bin/.safetensors`` file, a Hugging Face folder, or an
        ``.onnx`` file.
    options : what the file does not tell.

    Raises
    ------
    CheckpointError
        If the file cannot be read, does not fit, or more must be said; the text lists what was
        recognised and which options are missing.
    UnsafeCheckpointError
        If loading it would run code.
    """
    options = options or LoadOptions()
    path = Path(path)
    if path.suffix == ".onnx":
        from .onnx_classifier import load_onnx

        return load_onnx(path, options)
    parts = read_parts(path, options)
    found = resolve(path, parts, options)
    return assemble(path, parts, found, options)


def read_parts(path: Path, options: LoadOptions) -> Parts:
    """Read a checkpoint, other than ONNX, into normal form."""
    require("torch", extra="torch", purpose="load checkpoints")
    content = read_content(path, trust_pickle=options.trust_pickle)
    parts = recognise(content, str(path))
    if content.kind == "hf":
        _read_folder(path, content, parts)
    return parts


def resolve(path: Path, parts: Parts, options: LoadOptions) -> Fit:
    """Return the exact fit of the weights in the architecture told or found.

    Raises
    ------
    CheckpointError
        If no architecture fits; with what was recognised and what to say.
    """
    size = options.network_size_px or parts.changes.get("image_size")
    if size is None and parts.preprocessing is not None:
        size = parts.preprocessing.height_px
    cosine = options.head_scale is not None
    if options.arch is not None:
        found = fit(options.arch, parts, image_size_px=size, cosine=cosine)
        if not found.is_exact:
            raise CheckpointError(
                f"{path} does not fit the architecture {options.arch}: {found.complaint()}. "
                f"Recognised: {_summary(parts)}. {_advice(found)}"
            )
        return found
    best, tried = find_architecture(parts, image_size_px=size, cosine=cosine)
    if best is not None:
        return best
    headless = guess_head(parts.tensors) is None
    missing = [] if headless and parts.arch else ["--arch FAMILY:NAME"]
    if headless:
        missing.append("the weights of a head (this file may hold only a feature model)")
    if options.classes is None and parts.train_counts is None:
        missing.append("--classes FILE")
    recorded = f"; the file records the architecture {parts.arch!r}" if parts.arch else ""
    relevant = [text for text in tried if parts.arch is not None or "alike" in text]
    detail = f" Tried {'; '.join(relevant[:3])}." if relevant else ""
    raise CheckpointError(
        f"{path} does not tell enough to build its network. Recognised: {_summary(parts)}"
        f"{recorded}.{detail} Missing: {', '.join(missing)}."
    )


def _advice(found: Fit) -> str:
    if set(found.missing) & set(found.head_keys):
        return "The head is missing: this file may hold only a feature model."
    return "Name the architecture that it was trained with, --arch FAMILY:NAME."


def _summary(parts: Parts) -> str:
    """Return what is known without an architecture: layout, tensors, probable head."""
    head = guess_head(parts.tensors)
    shown = f", head {head[0]!r} {head[1][0]} × {head[1][1]}" if head else ", no head"
    return f"{parts.layout}, state dict of {len(parts.tensors)} tensors{shown}"


def assemble(path: Path, parts: Parts, found: Fit, options: LoadOptions) -> Classifier:
    """Build the network of an exact fit, find its head, and gather what is known about it."""
    from .heads import find_head, fold_batch_norm, scale_head

    notes = list(parts.notes)
    scale = options.head_scale or parts.head_scale
    module = load_weights(found, scale=scale)
    preprocessing = _preprocessing(parts, found, options, notes)
    height, width = preprocessing.height_px, preprocessing.width_px
    folded = fold_batch_norm(module, height, width)
    if folded is not None:
        notes.append(f"The batch normalisation {folded!r} behind the head was folded into it.")
    head, head_path = find_head(module, height, width)
    if parts.logit_scale is not None:
        scale_head(module, head_path, parts.logit_scale)
        head, head_path = find_head(module, height, width)
    if head.kind == "cosine" and scale is None:
        notes.append(
            f"The head is a cosine head, whose scale is not in the file; assumed is LDAM's "
            f"s = {LDAM_SCALE:g}. Say --head-scale if the loss had another."
        )
    if head.kind == "linear" and options.head_scale is not None:
        notes.append("--head-scale has no effect: the head is linear, with a bias.")
    if found.dropped:
        notes.append(
            f"Left out {len(found.dropped)} entries that only training uses, first "
            f"{found.dropped[0]!r}."
        )
    if not head.foldable:
        notes.append("The head's outputs pass through more than one map: a fix is not folded.")
    classes = class_table(path, parts, options, head.classes, notes)
    source = Source(
        path.resolve(), source_sha256(path), parts.layout, tuple(notes), parts.class_names
    )
    return Classifier(
        module,
        canonical_name(found.arch),
        head,
        head_path,
        preprocessing,
        classes,
        parts.trained_with,
        source,
        parts.train_hashes,
    )


def _preprocessing(
    parts: Parts, found: Fit, options: LoadOptions, notes: list[str]
) -> Preprocessing:
    """Return the file's preprocessing, else the architecture's, with the caller's changes."""
    if options.preprocessing is not None:
        return options.preprocessing
    told = options.preprocessing_changes()
    base = parts.preprocessing
    if base is None:
        try:
            base = default_preprocessing(found.arch)
        except CheckpointError:
            if "image_size" not in told or not {"resize", "crop_pct"} & set(told):
                raise
            base = Preprocessing(height_px=told["image_size"], width_px=told["image_size"])
        if not parts.changes and not told and parts.layout != "Hugging Face folder":
            notes.append(
                f"The file does not tell its preprocessing; assumed is that of {found.arch}: "
                f"{describe(base)}."
            )
        if found.image_size_px is not None and found.image_size_px != base.height_px:
            base = adjust_preprocessing(base, {"image_size": found.image_size_px})
    return adjust_preprocessing(base, parts.changes | told)


def describe(preprocessing: Preprocessing) -> str:
    """Return a preprocessing in words, for notes and ``inspect``."""
    p = preprocessing
    size = f"{p.height_px}×{p.width_px}"
    if p.resize_mode == "none":
        resize = f"{size} as it is"
    elif p.resize_mode == "squash":
        resize = f"both sides to {p.resize_box_px}, {size} from the centre, {p.interpolation}"
    else:
        resize = f"shorter side to {p.resize_box_px[0]}, {size} from the centre, {p.interpolation}"
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (p.mean, p.std))
    return f"{resize}, mean {mean}, std {std}"


def class_table(
    path: Path, parts: Parts, options: LoadOptions, outputs: int, notes: list[str]
) -> ClassTable | None:
    """Return the class table of caller or file, checked against the head and each other.

    Raises
    ------
    CheckpointError
        For tables of another length than the head, or names in another order than the file's.
    """
    table = options.classes
    names, counts = parts.class_names, parts.train_counts
    for what, told in (("class names", names), ("training counts", counts)):
        if told is not None and len(told) != outputs:
            if table is not None:
                continue
            raise CheckpointError(
                f"{path} holds {len(told)} {what} and a head of {outputs} classes. Say the right "
                "ones with --classes FILE (a csv 'name,train_count' in label order)."
            )
    if table is None:
        if counts is None:
            return None
        try:
            return ClassTable.from_counts(counts, names)
        except DataError as error:
            raise CheckpointError(
                f"The class table in {path} is wrong: {error} Say the right one with --classes."
            ) from error
    if len(table) != outputs:
        raise CheckpointError(
            f"The class table has {len(table)} classes and the head of {path} has {outputs}; "
            "expected the same number, in the order of the model's labels."
        )
    if names is not None and table.is_named and table.names != names:
        if sorted(table.names) == sorted(names):
            label = next(i for i, name in enumerate(names) if table.names[i] != name)
            raise CheckpointError(
                f"--classes has the model's classes in another order: label {label} is "
                f"{names[label]!r} in {path} and {table.names[label]!r} in the table. Sort the "
                "table by the model's labels."
            )
        notes.append("The class names given differ from those in the file; given ones count.")
    if names is not None and not table.is_named and len(names) == outputs:
        return ClassTable(names, table.counts, table.rule)
    return table


def _read_folder(path: Path, content: Content, parts: Parts) -> None:
    from .huggingface import current_weights, folder_class_names

    parts.arch = f"hf:{path}"
    parts.class_names = folder_class_names(content.metadata)
    parts.tensors = parts.raw_tensors = current_weights(path, content.data)
    parts.notes = [f"transformers model type {content.metadata.get('model_type')!r}."]


def complete_table(model: Classifier | OnnxClassifier) -> ClassTable:
    """Return the model's class table, or raise with the option that provides it."""
    if model.classes is not None:
        return model.classes
    names = model.source.class_names
    known = f"{len(names)} class names" if names else "no class names"
    raise CheckpointError(
        f"{model.source.path} does not tell how many training images each class had, and without "
        f"that there is no tail to speak of. Recognised: {model.source.layout}, {model.arch}, head "
        f"{model.head_path!r} {model.head.classes} × {model.head.weight.shape[1]}, {known}. "
        "Missing: --classes FILE (a csv 'name,train_count' in label order, or the training data "
        "itself, whose labels are counted)."
    )
