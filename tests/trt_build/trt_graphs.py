"""Every graph that ltdeploy exports, small enough to be made and built in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from ltdeploy.export.clean_up import clean_up
from ltdeploy.export.fold import folded
from ltdeploy.export.foreign import onnx_from_foreign
from ltdeploy.export.precision.cast import to_low_precision
from ltdeploy.export.precision.quantise import measure_ranges, quantise
from ltdeploy.export.to_onnx import onnx_from_classifier
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.models.architectures import build, default_preprocessing
from ltdeploy.models.classifier import Classifier
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.preprocessing import Preprocessing

sys.path.append(str(Path(__file__).resolve().parents[1] / "export"))
from fix_samples import maps_by_kind, onnx_model, small_model

__all__ = ["ARCHITECTURES", "FULL_SIZE", "PRECISIONS", "STEPS", "architecture", "at", "stepped"]

CLASSES = 7
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

# Architecture, size to build it for (None: its own), head. timm's test models are the smallest of
# their families: the code is the same.
ARCHITECTURES: dict[str, tuple[str, int | None, str]] = {
    "cifar resnet20": ("cifar:resnet20", None, "linear"),
    "cifar resnet20, cosine head": ("cifar:resnet20", None, "cosine"),
    "torchvision resnet18": ("torchvision:resnet18", 64, "linear"),
    "torchvision mobilenet_v3_small": ("torchvision:mobilenet_v3_small", 64, "linear"),
    "torchvision squeezenet1_1": ("torchvision:squeezenet1_1", 64, "linear"),
    "torchvision densenet121": ("torchvision:densenet121", 64, "linear"),
    "torchvision regnet_y_400mf": ("torchvision:regnet_y_400mf", 64, "linear"),
    "torchvision swin_t": ("torchvision:swin_t", 64, "linear"),
    "timm deit_tiny_distilled": ("timm:deit_tiny_distilled_patch16_224", 32, "linear"),
    "timm mobilenetv3_small_050": ("timm:mobilenetv3_small_050", 64, "linear"),
    **{
        f"timm {name}": (f"timm:{name}", None, "linear")
        for name in (
            "test_byobnet",
            "test_coatnet",
            "test_convnext",
            "test_convnext2",
            "test_convnext3",
            "test_efficientnet",
            "test_efficientnet_evos",
            "test_efficientnet_gn",
            "test_efficientnet_ln",
            "test_mambaout",
            "test_maxvit",
            "test_nfnet",
            "test_resnet",
            "test_vit",
            "test_vit2",
            "test_vit3",
            "test_vit4",
            "test_vit_relpos",
        )
    },
    "hf ViT": ("hf", 32, "linear"),
}
# What the benchmarks run, at the size at which they run it.
FULL_SIZE: dict[str, tuple[str, int | None, str]] = {
    "timm resnet50": ("timm:resnet50", 224, "linear"),
    "timm vit_small_patch16_224": ("timm:vit_small_patch16_224", 224, "linear"),
    "timm mobilenetv3_large_100": ("timm:mobilenetv3_large_100", 224, "linear"),
}
# Fixes that stay nodes, on heads of each kind; the rest changes no node.
_KINDS = (
    "centred head",
    "centred l2 head",
    "log-softmax",
    "affine, blend, affine",
    "Dirichlet",
)
STEPS = {
    f"{head}, {kind}": (head, kind)
    for head in ("linear", "convolution", "onnx Gemm 11", "onnx MatMul 18")
    for kind in _KINDS
}


@cache
def architecture(name: str) -> onnx.ModelProto:
    """Return an untrained network's graph in float32."""
    arch, size_px, head = {**ARCHITECTURES, **FULL_SIZE}[name]
    torch.manual_seed(0)
    if arch == "hf":
        module: nn.Module = _hugging_face(size_px or 32)
    else:
        module = build(arch, CLASSES, head=head, image_size_px=size_px).eval()  # type: ignore[arg-type]
    return clean_up(onnx_from_classifier(module, _preprocessing(arch, size_px), {}))


@cache
def stepped(name: str, folder: Path) -> onnx.ModelProto:
    """Return a small network's graph in float32 with the nodes of a fix behind or in its head."""
    head, kind = STEPS[name]
    if head.startswith("onnx"):
        _, form, opset = head.split()
        model: Classifier | OnnxClassifier = onnx_model(
            folder, gemm=form == "Gemm", opset=int(opset)
        )
    else:
        model = small_model(folder, head)
    fix = maps_by_kind(6, model.head.weight.shape[1])[kind]
    return clean_up(_graph(model, fix))


def _graph(model: Classifier | OnnxClassifier, fix: LogitMap) -> onnx.ModelProto:
    if isinstance(model, OnnxClassifier):
        return onnx_from_foreign(model, fix, {})[0]
    with folded(model, fix) as (module, _):
        return onnx_from_classifier(module, model.preprocessing, {})


def _preprocessing(arch: str, size_px: int | None) -> Preprocessing:
    if size_px is None:
        return default_preprocessing(arch)
    return Preprocessing(size_px, size_px, resize_mode="none")


def _hugging_face(size_px: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=size_px,
        patch_size=8,
        num_labels=CLASSES,
    )

    class Logits(nn.Module):
        """The logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = ViTForImageClassification(config).eval()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images).logits

    return Logits().eval()


def at(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return a float32 graph at another precision, as export makes it."""
    made: dict[str, Callable[[], onnx.ModelProto]] = {
        "fp32": lambda: model,
        "fp16": lambda: to_low_precision(model, "fp16"),
        "bf16": lambda: to_low_precision(model, "bf16"),
        "int8": lambda: quantise(model, measure_ranges(model, _images(model))),
    }
    return made[precision]()


def _images(model: onnx.ModelProto) -> np.ndarray:
    size = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(0).integers(0, 256, size=(4, *size), dtype=np.uint8)
