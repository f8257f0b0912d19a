"""Architectures by name: ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER``, ``cifar:resnetN``.

Nothing here downloads anything: weights come from the checkpoint, and the preprocessing that goes
with an architecture is read from the tables that the installed libraries carry.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from .._optional import require
from ..errors import CheckpointError, UsageError, did_you_mean
from ..preprocessing import Interpolation, Preprocessing
from .reading import read_json

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FAMILIES",
    "LDAM_SCALE",
    "build",
    "canonical_name",
    "check_arch",
    "default_preprocessing",
    "known_names",
]

FAMILIES = ("timm", "torchvision", "hf", "cifar", "bbn")
HeadChoice = Literal["linear", "cosine"]
# The s of Cao et al. 2019 (arXiv 1906.07413, §3.2 and their released training settings).
LDAM_SCALE = 30.0
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
_BBN_TRUNKS = {"cifar-resnet32": "cifar:resnet32", "resnet50": "torchvision:resnet50"}

CIFAR_PREPROCESSING = Preprocessing(
    height_px=32,
    width_px=32,
    resize_mode="none",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)


def known_names(family: str) -> list[str]:
    """Return the architecture names of a family that is not a folder."""
    if family == "timm":
        return list(_timm().list_models())
    if family == "torchvision":
        models = _torchvision_models()
        return list(models.list_models(module=models))
    if family == "bbn":
        return list(_BBN_TRUNKS)
    return [f"resnet{depth}" for depth in CIFAR_DEPTHS]


def check_arch(arch: str) -> tuple[str, str]:
    """Split ``family:name`` and check that it exists.

    Beside the four families there is ``bbn:cifar-resnet32|resnet50``, BBN's two-branch networks,
    which its checkpoints are recognised as.

    Raises
    ------
    UsageError
        For an unknown family or name, with the nearest known one.
    """
    family, colon, name = arch.partition(":")
    if not colon or family not in FAMILIES or not name:
        hint = did_you_mean(family, FAMILIES) if colon else _families_knowing(arch)
        raise UsageError(
            f"The architecture {arch!r} is not of the form FAMILY:NAME; expected timm:NAME, "
            f"torchvision:NAME, hf:FOLDER or cifar:resnet20|32|44|56|110.{hint}"
        )
    if family == "hf":
        if not (Path(name) / "config.json").is_file():
            raise UsageError(
                f"The architecture {arch!r} needs a local Hugging Face model folder with a "
                f"config.json; there is none at {name!r}. Nothing is downloaded: give the path of "
                "a folder saved with save_pretrained()."
            )
        return family, name
    known = known_names(family)
    # A timm name may carry the tag of a set of weights, which decides its preprocessing.
    plain = name.partition(".")[0] if family == "timm" else name
    if plain not in known:
        raise UsageError(
            f"{family} has no classification model called {name!r}."
            f"{did_you_mean(plain, known)}{_families_knowing(plain, but=family)}"
        )
    return family, name


def canonical_name(arch: str) -> str:
    """Return the name for manifests: a Hugging Face folder goes by its model type, not its path."""
    family, name = check_arch(arch)
    if family != "hf":
        return arch
    return f"hf:{read_json(Path(name) / 'config.json').get('model_type', 'unknown')}"


def build(
    arch: str,
    classes: int,
    *,
    head: HeadChoice = "linear",
    scale: float = LDAM_SCALE,
    image_size_px: int | None = None,
) -> nn.Module:
    """Build an untrained network that maps normalised float32 images [N, 3, H, W] to logits [N, C].

    Parameters
    ----------
    arch : for example ``"timm:resnet50"``, ``"cifar:resnet32"``.
    classes : number of classes C.
    head : ``"cosine"`` replaces the last linear layer by a :class:`CosineHead`.
    scale : factor of a cosine head.
    image_size_px : side of the images for architectures that depend on it (vision transformers);
        None for the architecture's own, other architectures do not need it.

    Raises
    ------
    UsageError
        For an unknown architecture or fewer than one class.
    """
    require("torch", extra="torch", purpose="build networks")
    family, name = check_arch(arch)
    if classes < 1:
        raise UsageError(f"A model of {classes} classes was asked for; expected at least 1.")
    if family == "cifar":
        module: nn.Module = require(
            "ltdeploy.models.cifar_resnet", extra="torch", purpose="build networks"
        ).CifarResNet(int(name.removeprefix("resnet")), classes, head, scale)
        return module
    if family == "bbn":
        trunk = build(_BBN_TRUNKS[name], classes)
        bbn = require("ltdeploy.models.bbn", extra="torch", purpose="build networks")
        two_branches: nn.Module = bbn.BbnNetwork(trunk, classes, head, scale)
        return two_branches
    if family == "timm":
        module = _build_timm(name, classes, image_size_px)
    elif family == "torchvision":
        module = _build_torchvision(name, classes, image_size_px)
    else:
        module = require(
            "ltdeploy.models.huggingface", extra="hf", purpose="build Hugging Face models"
        ).build_from_config(Path(name), classes)
    if head == "cosine":
        _replace_last_linear(module, scale)
    return module


def _build_timm(name: str, classes: int, image_size_px: int | None) -> nn.Module:
    sized = {} if image_size_px is None else {"img_size": image_size_px}
    create = _timm().create_model
    try:
        module: nn.Module = create(name, pretrained=False, num_classes=classes, **sized)
    except TypeError:
        if not sized:
            raise
        # Convolutional networks take no img_size, and need none.
        module = create(name, pretrained=False, num_classes=classes)
    return module


def _build_torchvision(name: str, classes: int, image_size_px: int | None) -> nn.Module:
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        # Auxiliary classifiers take part in training only.
        options |= {"aux_logits": False, "init_weights": True}
    if image_size_px is not None and name.startswith("vit_"):
        options["image_size"] = image_size_px
    module: nn.Module = _torchvision_models().get_model(name, **options)
    return module


def _replace_last_linear(module: nn.Module, scale: float) -> None:
    """Replace the last linear layer in definition order by a cosine head of the same size."""
    import torch

    from .cosine_head import CosineHead

    linear = [
        (path, part) for path, part in module.named_modules() if type(part) is torch.nn.Linear
    ]
    if not linear:
        raise UsageError(
            "This architecture has no linear layer that a cosine head could replace; use a linear "
            "head with it."
        )
    path, last = linear[-1]
    module.set_submodule(path, CosineHead(last.in_features, last.out_features, scale))


def default_preprocessing(arch: str) -> Preprocessing:
    """Return the evaluation preprocessing that goes with an architecture.

    timm: the pretrained configuration of the name (crop percentage, interpolation, mean, std).
    torchvision: the transforms of its default weights. hf: ``preprocessor_config.json``. cifar:
    32×32 images as they are, with the mean and std common in CIFAR training codes.

    Raises
    ------
    CheckpointError
        If the library's own preprocessing cannot be reproduced here (padding to a square, say).
    """
    family, name = check_arch(arch)
    if family == "cifar":
        return CIFAR_PREPROCESSING
    if family == "timm":
        return _timm_preprocessing(name)
    if family == "torchvision":
        return _torchvision_preprocessing(name)
    if family == "bbn":
        return default_preprocessing(_BBN_TRUNKS[name])
    huggingface = require("ltdeploy.models.huggingface", extra="torch", purpose="read the folder")
    told: Preprocessing = huggingface.folder_preprocessing(Path(name))
    return told


def _timm_preprocessing(name: str) -> Preprocessing:
    configured = _timm().get_pretrained_cfg(name, allow_unregistered=True)
    resolve = require(
        "timm.data", extra="torch", purpose="read timm's settings"
    ).resolve_data_config
    config = resolve(pretrained_cfg=configured.to_dict() if configured is not None else {})
    channels, height, width = config["input_size"]
    if channels != 3 or config["crop_mode"] not in ("center", "squash") or len(config["mean"]) != 3:
        raise CheckpointError(
            f"timm evaluates {name!r} with crop mode {config['crop_mode']!r} and input "
            f"{tuple(config['input_size'])}, which ltdeploy does not reproduce to the pixel. "
            "Say which preprocessing to use: --image-size and --resize (then also "
            "--interpolation, --mean, --std where they are not timm's defaults)."
        )
    return Preprocessing.from_crop_pct(
        height,
        width,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=_interpolation(config["interpolation"], name),
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def _torchvision_preprocessing(name: str) -> Preprocessing:
    weights = _torchvision_models().get_model_weights(name)
    transforms = weights.DEFAULT.transforms()
    return Preprocessing(
        height_px=transforms.crop_size[0],
        width_px=transforms.crop_size[0],
        resize_mode="shorter",
        resize_px=transforms.resize_size[0],
        interpolation=_interpolation(transforms.interpolation.value, name),
        mean=_triple(transforms.mean),
        std=_triple(transforms.std),
    )


def _interpolation(name: str, arch: str) -> Interpolation:
    for known in get_args(Interpolation):
        if name == known:
            interpolation: Interpolation = known
            return interpolation
    raise CheckpointError(
        f"The preprocessing of {arch!r} resizes with {name!r}, which ltdeploy does not have; "
        f"choose one of {', '.join(get_args(Interpolation))} with --interpolation."
    )


def _triple(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _families_knowing(name: str, but: str = "") -> str:
    """Return a hint naming the families that have exactly this model, or an empty string."""
    knowing = [f for f in ("torchvision", "timm", "cifar") if f != but and name in known_names(f)]
    if not knowing:
        return ""
    return " Did you mean " + " or ".join(f"'{family}:{name}'" for family in knowing) + "?"


def _timm() -> Any:
    return require("timm", extra="torch", purpose="build timm's architectures")


def _torchvision_models() -> Any:
    return require("torchvision.models", extra="torch", purpose="build torchvision's architectures")
