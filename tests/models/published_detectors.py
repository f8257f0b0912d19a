"""detectron2's and mmdetection's detectors from their definitions, in plain functions of weights.

Small random weights under the libraries' own keys, and what their networks compute of a canvas,
written from their documentation and sources without any of the code that is under test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

HEIGHT, WIDTH = 64, 96
CHANNELS, HIDDEN = 16, 32
BGR_MEAN = (103.53, 116.28, 123.675)
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
Weights = dict[str, Tensor]


@dataclass
class Made:
    """A detector: its weights by the library's keys, and what the weights do not show."""

    library: str
    family: str = "rcnn"  # "cascade", "retinanet"
    classes: int = 3
    columns: int = 4
    agnostic: bool = False
    stride_in_1x1: bool = True
    mean: tuple[float, ...] = BGR_MEAN
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    bgr: bool = True
    groups: int = 1
    temperature: float | None = None
    weights: Weights = field(default_factory=dict)

    @property
    def is_detectron2(self) -> bool:
        return self.library == "detectron2"

    @property
    def stages(self) -> int:
        return 3 if self.family == "cascade" else 1


def drawn(made: Made, seed: int = 0) -> Made:
    """Fill in random weights, one block in each stage."""
    generator = torch.Generator().manual_seed(seed)
    held = made.weights

    def layer(name: str, *shape: int, spread: float = 1.4, bias: float | None = 0.1) -> None:
        fan = math.prod(shape[1:])
        held[f"{name}.weight"] = torch.randn(shape, generator=generator) * spread / fan**0.5
        if bias is not None:
            held[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * bias

    def norm(name: str, channels: int) -> None:
        for key, low, high in (
            ("weight", 0.7, 1.3), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2),
            ("running_var", 0.7, 1.3),
        ):  # fmt: skip
            values = torch.rand(channels, generator=generator) * (high - low) + low
            held[f"{name}.{key}"] = values

    two = made.is_detectron2
    stem = "backbone.bottom_up.stem.conv1" if two else "backbone.conv1"
    layer(stem, 64, 3, 7, 7, spread=0.02 if max(made.std) == 1 else 1.0, bias=None)
    norm(f"{stem}.norm" if two else "backbone.bn1", 64)
    before = 64
    for stage in range(4):
        inner, outer = 64 << stage, 256 << stage
        if made.groups > 1:
            inner *= 2  # 32 groups of 4 channels
        at = f"backbone.bottom_up.res{stage + 2}.0" if two else f"backbone.layer{stage + 1}.0"
        for number, shape in enumerate(
            ((inner, before, 1, 1), (inner, inner // made.groups, 3, 3), (outer, inner, 1, 1)), 1
        ):
            layer(f"{at}.conv{number}", *shape, bias=None)
            norm(f"{at}.conv{number}.norm" if two else f"{at}.bn{number}", shape[0])
        layer(f"{at}.shortcut" if two else f"{at}.downsample.0", outer, before, 1, 1, bias=None)
        norm(f"{at}.shortcut.norm" if two else f"{at}.downsample.1", outer)
        before = outer
    first = 1 if made.family == "retinanet" else 0
    for stage in range(first, 4):
        level, width = stage - first, 256 << stage
        inner_name, outer_name = (
            (f"backbone.fpn_lateral{stage + 2}", f"backbone.fpn_output{stage + 2}")
            if two
            else (f"neck.lateral_convs.{level}.conv", f"neck.fpn_convs.{level}.conv")
        )
        layer(inner_name, CHANNELS, width, 1, 1, spread=1.0)
        layer(outer_name, CHANNELS, CHANNELS, 3, 3)
    if made.family == "retinanet":
        for number, width in ((6, 2048), (7, CHANNELS)):
            name = f"neck.fpn_convs.{number - 3}.conv"
            layer(f"backbone.top_block.p{number}" if two else name, CHANNELS, width, 3, 3)
        for subnet, short in (("cls", "cls"), ("bbox", "reg")):
            for number in range(4):
                name = f"bbox_head.{short}_convs.{number}.conv"
                layer(
                    f"head.{subnet}_subnet.{2 * number}" if two else name,
                    CHANNELS, CHANNELS, 3, 3,
                )  # fmt: skip
        layer("head.cls_score" if two else "bbox_head.retina_cls", 9 * made.classes, CHANNELS, 3, 3)
        layer("head.bbox_pred" if two else "bbox_head.retina_reg", 36, CHANNELS, 3, 3, spread=0.5)
        return made
    rpn = "proposal_generator.rpn_head" if two else "rpn_head"
    names = (
        ("conv", "objectness_logits", "anchor_deltas")
        if two
        else ("rpn_conv", "rpn_cls", "rpn_reg")
    )
    for name, shape in zip(
        names, ((CHANNELS, CHANNELS, 3, 3), (3, CHANNELS, 1, 1), (12, CHANNELS, 1, 1)), strict=True
    ):
        layer(f"{rpn}.{name}", *shape, spread=0.3 if shape[0] == 12 else 1.4)
    rows = 1 if made.agnostic or made.family == "cascade" else made.classes
    for stage in range(made.stages):
        part = f".{stage}" if made.family == "cascade" else ""
        head, predictor = f"roi_heads.box_head{part}", f"roi_heads.box_predictor{part}"
        names = (f"{head}.fc1", f"{head}.fc2", f"{predictor}.cls_score", f"{predictor}.bbox_pred")
        if not two:
            inside = f"roi_head.bbox_head{part}"
            names = tuple(
                f"{inside}.{name}" for name in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")
            )  # type: ignore[assignment]
        shapes = (
            (HIDDEN, CHANNELS * 49), (HIDDEN, HIDDEN), (made.columns, HIDDEN), (4 * rows, HIDDEN),
        )  # fmt: skip
        for name, shape in zip(names, shapes, strict=True):
            layer(name, *shape, spread=0.7)
    return made


def computed(made: Made, canvas: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
    """Return boxes and logits of one canvas, uint8 (H, W, 3) R, G, B, as the library gives them.

    For a cascade the probabilities where it averages those, else the logits.
    """
    pixels = torch.from_numpy(canvas.astype(np.float32)).permute(2, 0, 1)
    if made.bgr:
        pixels = pixels[[2, 1, 0]]
    shape = (3, 1, 1)
    pixels = (pixels - torch.tensor(made.mean).reshape(shape)) / torch.tensor(made.std).reshape(
        shape
    )
    levels = _pyramid(made, _trunk(made, pixels[None]))
    if made.family == "retinanet":
        return _retinanet(made, levels)
    boxes = _proposals(made, levels)
    return _heads(made, levels, boxes)


def _conv(held: Weights, name: str, x: Tensor, **options: Any) -> Tensor:
    return functional.conv2d(x, held[f"{name}.weight"], held.get(f"{name}.bias"), **options)


def _norm(held: Weights, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        held[f"{name}.{key}"].reshape(1, -1, 1, 1)
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def _trunk(made: Made, x: Tensor) -> list[Tensor]:
    held, two = made.weights, made.is_detectron2
    stem = "backbone.bottom_up.stem.conv1" if two else "backbone.conv1"
    x = _norm(
        held, f"{stem}.norm" if two else "backbone.bn1", _conv(held, stem, x, stride=2, padding=3)
    )
    x = functional.max_pool2d(x.relu(), 3, 2, 1)
    outs = []
    for stage in range(4):
        at = f"backbone.bottom_up.res{stage + 2}.0" if two else f"backbone.layer{stage + 1}.0"
        stride = 1 if stage == 0 else 2
        strides = (stride, 1, 1) if made.stride_in_1x1 else (1, stride, 1)
        y = x
        for number in (1, 2, 3):
            middle = {"padding": 1, "groups": made.groups} if number == 2 else {}
            y = _conv(held, f"{at}.conv{number}", y, stride=strides[number - 1], **middle)
            y = _norm(held, f"{at}.conv{number}.norm" if two else f"{at}.bn{number}", y)
            y = y.relu() if number < 3 else y
        short = f"{at}.shortcut" if two else f"{at}.downsample.0"
        side = _conv(held, short, x, stride=stride)
        x = (y + _norm(held, f"{short}.norm" if two else f"{at}.downsample.1", side)).relu()
        outs.append(x)
    return outs


def _pyramid(made: Made, trunk: list[Tensor]) -> list[Tensor]:
    held, two = made.weights, made.is_detectron2
    first = 1 if made.family == "retinanet" else 0
    merged: list[Tensor] = []
    for stage in reversed(range(first, 4)):
        name = (
            f"backbone.fpn_lateral{stage + 2}"
            if two
            else f"neck.lateral_convs.{stage - first}.conv"
        )
        x = _conv(held, name, trunk[stage])
        if merged:
            x = x + merged[0].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        merged.insert(0, x)
    outs = []
    for level, x in enumerate(merged):
        name = f"backbone.fpn_output{level + first + 2}" if two else f"neck.fpn_convs.{level}.conv"
        outs.append(_conv(held, name, x, padding=1))
    if made.family != "retinanet":
        return [*outs, outs[-1][:, :, ::2, ::2]]
    p6 = _conv(
        held,
        "backbone.top_block.p6" if two else "neck.fpn_convs.3.conv",
        trunk[3],
        stride=2,
        padding=1,
    )
    # detectron2 has a ReLU here, mmdetection none unless its config says so.
    name, between = ("backbone.top_block.p7", p6.relu()) if two else ("neck.fpn_convs.4.conv", p6)
    return [*outs, p6, _conv(held, name, between, stride=2, padding=1)]


def _anchors(height: int, width: int, stride: int, shapes: list[tuple[float, float]]) -> Tensor:
    """Return anchors of given (width, height) around the corners of the cells."""
    found = []
    for row in range(height):
        for column in range(width):
            for w, h in shapes:
                x, y = column * stride, row * stride
                found.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return torch.tensor(found)


def _moved(made: Made, boxes: Tensor, deltas: Tensor, factor: tuple[float, ...]) -> Tensor:
    dx, dy, dw, dh = (deltas / torch.tensor(factor)).unbind(-1)
    largest = math.log(1000 / 16)
    least = -math.inf if made.is_detectron2 else -largest
    w, h = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x, y = boxes[..., 0] + w / 2 + dx * w, boxes[..., 1] + h / 2 + dy * h
    w, h = w * dw.clamp(least, largest).exp(), h * dh.clamp(least, largest).exp()
    return _inside(torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1))


def _inside(boxes: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))


def _overlap(one: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(one[:2], others[:, :2])
    high = torch.minimum(one[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    area = (others[:, 2:] - others[:, :2]).prod(dim=1)
    return shared / ((one[2:] - one[:2]).prod() + area - shared)


def _proposals(made: Made, levels: list[Tensor]) -> Tensor:
    held, two = made.weights, made.is_detectron2
    head = "proposal_generator.rpn_head." if two else "rpn_head.rpn_"
    score, delta = ("objectness_logits", "anchor_deltas") if two else ("cls", "reg")
    found: list[tuple[float, Tensor]] = []
    for number, level in enumerate(levels):
        stride, size = 4 << number, 32 << number
        shapes = [(size / ratio**0.5, size * ratio**0.5) for ratio in (0.5, 1.0, 2.0)]
        x = _conv(held, f"{head}conv", level, padding=1).relu()
        logits = _conv(held, f"{head}{score}", x)[0].permute(1, 2, 0).reshape(-1)
        deltas = _conv(held, f"{head}{delta}", x)[0].permute(1, 2, 0).reshape(-1, 4)
        anchors = _anchors(level.shape[2], level.shape[3], stride, shapes)
        best = logits.sort(descending=True).indices[:1000]
        boxes = _moved(made, anchors[best], deltas[best], (1.0,) * 4)
        alive = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        for at in range(len(best)):
            if alive[at]:
                found.append((float(logits[best[at]]), boxes[at]))
                alive[at + 1 :] &= _overlap(boxes[at], boxes[at + 1 :]) <= 0.7
    found.sort(key=lambda one: -one[0])
    return torch.stack([box for _, box in found[:1000]])


def _pooled(made: Made, levels: list[Tensor], boxes: Tensor) -> Tensor:
    parts = []
    for box in boxes:
        side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        number = 4 + math.floor(
            math.log2(side / 224 + 1e-16 if made.is_detectron2 else side / 224 + 2.5e-7)
        )
        level = min(max(number, 2), 5) - 2
        parts.append(
            roi_align(
                levels[level], [box[None]], 7, 1 / (4 << level), sampling_ratio=0, aligned=True
            )
        )
    return torch.cat(parts).flatten(1)


def _heads(made: Made, levels: list[Tensor], boxes: Tensor) -> dict[str, Tensor]:
    held, two = made.weights, made.is_detectron2
    parts = []
    for stage in range(made.stages):
        part = f".{stage}" if made.family == "cascade" else ""
        head, predictor = f"roi_heads.box_head{part}", f"roi_heads.box_predictor{part}"
        fcs = (f"{head}.fc1", f"{head}.fc2", f"{predictor}.cls_score", f"{predictor}.bbox_pred")
        if not two:
            inside = f"roi_head.bbox_head{part}"
            fcs = tuple(
                f"{inside}.{n}" for n in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")
            )  # type: ignore[assignment]
        x = _pooled(made, levels, boxes)
        for name in fcs[:2]:
            x = (x @ held[f"{name}.weight"].T + held[f"{name}.bias"]).relu()
        rows, features = held[f"{fcs[2]}.weight"], x
        if made.temperature is not None:
            rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-6)
            features = x / (x.norm(dim=1, keepdim=True) + 1e-6) * made.temperature
        logits = features @ rows.T + held[f"{fcs[2]}.bias"]
        deltas = (x @ held[f"{fcs[3]}.weight"].T + held[f"{fcs[3]}.bias"]).reshape(len(x), -1, 4)
        factor = tuple((stage + 1) * one for one in (10.0, 10.0, 5.0, 5.0))
        moved = _moved(made, boxes[:, None], deltas, factor)
        if deltas.shape[1] == 1:
            moved = moved[:, 0]
        if made.family == "cascade":
            boxes = moved
        parts.append(logits)
    if made.family == "cascade" and two:
        return {"boxes": moved, "probabilities": sum(z.softmax(1) for z in parts) / 3}  # type: ignore[dict-item]
    return {"boxes": moved, "logits": torch.stack(parts).mean(dim=0)}


def _retinanet(made: Made, levels: list[Tensor]) -> dict[str, Tensor]:
    held, two = made.weights, made.is_detectron2
    logits, boxes = [], []
    for number, level in enumerate(levels):
        stride, size = 8 << number, 32 << number
        if two:
            shapes = [
                (size * 2 ** (k / 3) / r**0.5, size * 2 ** (k / 3) * r**0.5)
                for k in range(3)
                for r in (0.5, 1.0, 2.0)
            ]
        else:
            shapes = [
                (size * 2 ** (k / 3) / r**0.5, size * 2 ** (k / 3) * r**0.5)
                for r in (0.5, 1.0, 2.0)
                for k in range(3)
            ]
        x = y = level
        for at in range(4):
            x = _conv(
                held,
                f"head.cls_subnet.{2 * at}" if two else f"bbox_head.cls_convs.{at}.conv",
                x,
                padding=1,
            ).relu()
            y = _conv(
                held,
                f"head.bbox_subnet.{2 * at}" if two else f"bbox_head.reg_convs.{at}.conv",
                y,
                padding=1,
            ).relu()
        z = _conv(held, "head.cls_score" if two else "bbox_head.retina_cls", x, padding=1)
        d = _conv(held, "head.bbox_pred" if two else "bbox_head.retina_reg", y, padding=1)
        logits.append(z[0].permute(1, 2, 0).reshape(-1, made.classes))
        anchors = _anchors(level.shape[2], level.shape[3], stride, shapes)
        boxes.append(_moved(made, anchors, d[0].permute(1, 2, 0).reshape(-1, 4), (1.0,) * 4))
    return {"boxes": torch.cat(boxes), "logits": torch.cat(logits)}


def canvas_of(seed: int = 1) -> npt.NDArray[np.uint8]:
    """Return a smooth random canvas, uint8 (H, W, 3)."""
    coarse = torch.rand((1, 3, 8, 12), generator=torch.Generator().manual_seed(seed)) * 255
    smooth = functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")
    pixels: npt.NDArray[np.uint8] = smooth.clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    return pixels
