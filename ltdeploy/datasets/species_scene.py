"""Photograph a drawn moth: ground, pose, shadow, what grows over it, light and camera."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from .species_wings import BOX, Array, Colour, noise_tile

__all__ = ["GROUNDS", "photograph"]

_GROUND_PX = 512
_UNITS_ACROSS = 2.75  # forewing lengths from edge to edge of a picture, before the zoom varies


def photograph(
    moth: Image.Image, random: np.random.Generator, size_px: int
) -> npt.NDArray[np.uint8]:
    """Lay a moth on some ground and take its picture.

    Parameters
    ----------
    moth : RGBA picture that covers `BOX`.
    random : what chooses ground, pose, light, occlusion, blur and noise.
    size_px : width and height of the picture.

    Returns
    -------
    array of shape (size_px, size_px, 3), uint8.
    """
    light = random.uniform(0, 2 * math.pi)
    scene = _ground(random, size_px)
    specimen = _pose(moth, random, size_px)
    _cast_shadow(scene, specimen[..., 3], light, random)
    scene *= 1 - specimen[..., 3:]
    scene += specimen[..., :3] * specimen[..., 3:]
    if random.random() < 0.3:
        _grow_over(scene, random)
    _illuminate(scene, light, random)
    return _expose(scene, random)


def _ground(random: np.random.Generator, size_px: int) -> Array:
    """Return a turned, tinted window of one of the grounds, shape (size_px, size_px, 3), 0..255."""
    texture = _texture(int(random.integers(len(GROUNDS))))
    zoom = random.uniform(1.0, 1.8) * 96 / size_px
    turn = random.uniform(0, 2 * math.pi)
    a, b = zoom * math.cos(turn), zoom * math.sin(turn)
    slack = _GROUND_PX / 2 - 0.75 * zoom * size_px
    cx, cy = _GROUND_PX / 2 + random.uniform(-slack, slack, 2)
    half = size_px / 2
    window = texture.transform(
        (size_px, size_px),
        Image.Transform.AFFINE,
        (a, -b, cx - a * half + b * half, b, a, cy - b * half - a * half),
        resample=Image.Resampling.BILINEAR,
    )
    scene = np.asarray(window, dtype=np.float32)
    tint: Array = (random.uniform(0.82, 1.12) * random.uniform(0.95, 1.05, 3)).astype(np.float32)
    return scene * tint


def _pose(moth: Image.Image, random: np.random.Generator, size_px: int) -> Array:
    """Turn, zoom, shift and tilt the moth into the frame; return RGBA in 0..255 and alpha in 0..1."""
    unit = size_px / _UNITS_ACROSS * random.uniform(0.80, 1.08)
    turn = random.normal(0, 0.45)
    shift = size_px * random.uniform(-0.07, 0.07, 2)
    source_unit = moth.width / (BOX[2] - BOX[0])
    # Pixels of the picture to pixels of the moth: first the tilt, then a turn and a zoom.
    tilt = random.normal(0, 0.10, 2) / (size_px / 2)
    a = math.cos(turn) * source_unit / unit
    b = math.sin(turn) * source_unit / unit
    squeeze = 1 + random.uniform(-0.10, 0.10)
    centre = size_px / 2
    to_moth = np.array(
        [
            [a * squeeze, b * squeeze, moth.width / 2],
            [-b / squeeze, a / squeeze, moth.height * 0.47],
            [0, 0, 1],
        ]
    )
    tilting = np.array([[1, 0, 0], [0, 1, 0], [tilt[0], tilt[1], 1]])
    centring = np.array([[1, 0, -centre - shift[0]], [0, 1, -centre - shift[1]], [0, 0, 1]])
    matrix = to_moth @ tilting @ centring
    # Sampled at twice the size, then averaged: the picture has no jagged edges.
    matrix = matrix @ np.diag([0.5, 0.5, 1.0])
    matrix /= matrix[2, 2]
    posed = moth.transform(
        (2 * size_px, 2 * size_px),
        Image.Transform.PERSPECTIVE,
        tuple(matrix.reshape(-1)[:8].tolist()),
        resample=Image.Resampling.BILINEAR,
    ).reduce(2)
    specimen = np.array(posed, dtype=np.float32)
    specimen[..., 3] *= 1 / 255
    return specimen


def _cast_shadow(scene: Array, cover: Array, light: float, random: np.random.Generator) -> None:
    size_px = scene.shape[0]
    height = random.uniform(0.01, 0.05) * size_px
    mask = Image.fromarray((cover * 255).astype(np.uint8))
    mask = mask.filter(ImageFilter.BoxBlur(random.uniform(0.4, 1.0) * height))
    dx, dy = round(-math.cos(light) * height), round(-math.sin(light) * height)
    shadow = np.roll(np.asarray(mask, dtype=np.float32), (dy, dx), axis=(0, 1))
    scene *= (1 - shadow * (random.uniform(0.35, 0.65) / 255))[..., None]


def _grow_over(scene: Array, random: np.random.Generator) -> None:
    """Let grass blades or one leaf hide part of the picture."""
    size_px = scene.shape[0]
    k = 2
    layer = Image.new("L", (k * size_px, k * size_px))
    pen = ImageDraw.Draw(layer)
    blades = int(random.integers(1, 4)) if random.random() < 0.6 else 0
    for _ in range(blades):
        start = random.uniform(-0.1, 1.1, 2) * k * size_px
        angle = random.uniform(0, math.pi)
        bend, width = random.uniform(-0.6, 0.6), random.uniform(0.012, 0.03) * k * size_px
        left, right = [], []
        for step in range(-8, 9):
            a = angle + bend * step / 8
            x = start[0] + math.cos(a) * step * size_px * k * 0.14
            y = start[1] + math.sin(a) * step * size_px * k * 0.14
            w = width * (1 - abs(step) / 9)
            left.append((x - math.sin(a) * w, y + math.cos(a) * w))
            right.append((x + math.sin(a) * w, y - math.cos(a) * w))
        pen.polygon(left + right[::-1], fill=int(random.integers(170, 256)))
    if not blades:
        angle = random.uniform(0, 2 * math.pi)
        away = random.uniform(0.40, 0.62) * k * size_px
        cx = k * size_px / 2 + math.cos(angle) * away
        cy = k * size_px / 2 + math.sin(angle) * away
        long, wide = random.uniform(0.28, 0.5) * k * size_px, random.uniform(0.10, 0.2) * k * size_px
        lean = angle + math.pi / 2 + random.normal(0, 0.5)
        outline = []
        for step in range(32):
            p = 2 * math.pi * step / 32
            x, y = long * math.cos(p), wide * math.sin(p) * (1 + 0.35 * math.cos(p))
            outline.append(
                (
                    cx + x * math.cos(lean) - y * math.sin(lean),
                    cy + x * math.sin(lean) + y * math.cos(lean),
                )
            )
        pen.polygon(outline, fill=255)
        rib = math.cos(lean) * long, math.sin(lean) * long
        pen.line((cx - rib[0], cy - rib[1], cx + rib[0], cy + rib[1]), fill=200, width=2 * k)
    layer = layer.reduce(k).filter(ImageFilter.BoxBlur(random.uniform(0, 0.012) * size_px))
    tone = np.asarray(layer, dtype=np.float32)[..., None] / 255
    cover = np.minimum(tone * 1.6, 1)
    green = np.array(_GREENS[int(random.integers(len(_GREENS)))], dtype=np.float32)
    grain = noise_tile(2)[:size_px, :size_px, None] if size_px <= 256 else 0.0
    scene *= 1 - cover
    scene += cover * green * (0.45 + 0.6 * tone + 0.06 * grain)


def _illuminate(scene: Array, light: float, random: np.random.Generator) -> None:
    """Apply the fall-off of the light, its colour, and the lens's darker corners."""
    size_px = scene.shape[0]
    axis = np.linspace(-1, 1, size_px, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    strength = np.float32(random.uniform(0.0, 0.22))
    field = 1 + strength * (np.float32(math.cos(light)) * x + np.float32(math.sin(light)) * y)
    field = field - np.float32(random.uniform(0.02, 0.14)) * (x * x + y * y)
    warmth = random.normal(0, 0.06)
    exposure = math.exp(random.normal(0.02, 0.14))
    colour = np.array([1 + warmth, 1 + 0.2 * random.normal(0, 0.05), 1 - warmth], dtype=np.float32)
    scene *= field[..., None]
    scene *= colour * np.float32(exposure)


def _expose(scene: Array, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Blur by focus and movement, bend highlights softly, add sensor noise, round to bytes."""
    size_px = scene.shape[0]
    soft = scene * np.float32(1 / 255)
    # Highlights roll off instead of clipping flat.
    soft = np.where(soft > 0.8, 0.8 + 0.2 * np.tanh((soft - 0.8) * 3), soft) * 255
    picture = Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8))
    if random.random() < 0.35:
        picture = picture.filter(ImageFilter.BoxBlur(random.uniform(0.2, 0.9) * size_px / 96))
    pixels = np.asarray(picture, dtype=np.float32)
    if random.random() < 0.12:
        way = random.uniform(0, math.pi)
        reach = random.uniform(0.8, 2.2) * size_px / 96
        pixels = sum(
            np.roll(
                pixels,
                (round(math.sin(way) * reach * k), round(math.cos(way) * reach * k)),
                axis=(0, 1),
            )
            for k in (-1.0, -0.5, 0.0, 0.5, 1.0)
        ) * np.float32(0.2)
    noise = random.standard_normal((size_px, size_px, 3), dtype=np.float32)
    noise[..., 1:] = 0.6 * noise[..., 1:] + 0.4 * noise[..., :1]
    pixels = pixels + noise * np.float32(random.uniform(1.0, 6.0))
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


# -- grounds ---------------------------------------------------------------------------------------

_GREENS: tuple[Colour, ...] = ((92, 128, 52), (122, 148, 66), (70, 104, 58), (150, 146, 74))


def _field(seed: int, across: float, down: float) -> Array:
    """Stretch a noise tile over a ground, shape (512, 512): larger steps make finer grain."""
    steps = np.arange(_GROUND_PX)
    rows, columns = (steps * down).astype(int) % 256, (steps * across).astype(int) % 256
    return noise_tile(seed, 6)[np.ix_(rows, columns)]


def _blend(low: Colour, high: Colour, amount: Array) -> Array:
    first, last = np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)
    result: Array = first + (last - first) * np.clip(amount, 0, 1)[..., None]
    return result


def _smooth(values: Array, radius: float) -> Array:
    low, high = float(values.min()), float(values.max())
    picture = Image.fromarray(((values - low) * (255 / (high - low))).astype(np.uint8))
    blurred = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float32) * ((high - low) / 255) + low


def _relief(height: Array, depth: float) -> Array:
    """Return a factor that lights a height field from the upper left."""
    slope = np.roll(height, (1, 1), axis=(0, 1)) - height
    result: Array = np.clip(1 - depth * slope, 0.5, 1.5)[..., None]
    return result


def _bark() -> Array:
    ridges = _field(11, 1.0, 0.22) + 0.4 * _field(12, 1.7, 0.6)
    cracks = np.clip(1.4 - np.abs(ridges) * 3.2, 0, 1)
    lichen = np.clip(_smooth(_field(13, 0.5, 0.5), 2) * 1.6 - 1.4, 0, 1)
    colour = _blend((92, 74, 60), (150, 130, 108), 0.5 + 0.3 * ridges)
    colour += (np.array((52, 40, 33), dtype=np.float32) - colour) * (0.8 * cracks)[..., None]
    colour += (np.array((158, 168, 140), dtype=np.float32) - colour) * (0.7 * lichen)[..., None]
    return colour * _relief(_smooth(ridges, 1.2), 0.35)


def _leaf() -> Array:
    y, x = np.mgrid[0:_GROUND_PX, 0:_GROUND_PX].astype(np.float32)
    colour = _blend((66, 104, 44), (126, 158, 76), 0.5 + 0.22 * _smooth(_field(21, 0.6, 0.6), 2))
    ribs = np.abs(np.mod((y + np.abs(x - 256) * 0.7) / 58, 1) - 0.5) * 58
    nets = np.clip(1 - np.abs(_field(22, 0.9, 0.9)) * 5, 0, 1)
    vein = np.maximum(np.clip(2.6 - ribs, 0, 1), np.clip(5 - np.abs(x - 256), 0, 1))
    colour += (np.array((168, 186, 112), dtype=np.float32) - colour) * (0.65 * vein)[..., None]
    colour += (np.array((60, 92, 40), dtype=np.float32) - colour) * (0.22 * nets)[..., None]
    return colour * (1 - 0.10 * np.cos(ribs / 58 * 2 * math.pi))[..., None]


def _sand() -> Array:
    grain = np.random.default_rng(31).standard_normal((_GROUND_PX, _GROUND_PX)).astype(np.float32)
    ripple = np.sin(np.arange(_GROUND_PX)[:, None] / 17 + _smooth(_field(32, 0.4, 0.4), 4) * 1.5)
    colour = _blend((176, 148, 108), (222, 198, 156), 0.5 + 0.22 * ripple + 0.14 * grain)
    stones = np.clip(_smooth(_field(33, 1.0, 1.0), 1) * 4 - 7, 0, 1)
    return colour + (np.array((120, 108, 96), dtype=np.float32) - colour) * stones[..., None]


def _wall() -> Array:
    bumps = _smooth(_field(41, 1.0, 1.0), 1.0)
    stain = _smooth(_field(42, 0.25, 0.25), 6)
    colour = _blend((186, 176, 160), (220, 212, 198), 0.5 + 0.3 * stain + 0.1 * bumps)
    crack = np.clip(1 - np.abs(_smooth(_field(43, 0.3, 0.3), 2)) * 40, 0, 1)
    colour *= (1 - 0.35 * crack)[..., None]
    return colour * _relief(bumps, 0.18)


def _sheet() -> Array:
    y, x = np.mgrid[0:_GROUND_PX, 0:_GROUND_PX].astype(np.float32)
    folds = _smooth(_field(51, 0.18, 0.5), 8)
    weave = np.sin(x * 2.1) * np.sin(y * 2.1)
    colour = _blend((196, 198, 206), (240, 238, 232), 0.6 + 0.3 * folds + 0.05 * weave)
    return colour * _relief(folds, 1.6)


def _litter() -> Array:
    """Draw fallen leaves and needles over dark soil."""
    random = np.random.default_rng(61)
    picture = Image.new("RGB", (2 * _GROUND_PX, 2 * _GROUND_PX), (58, 46, 36))
    pen = ImageDraw.Draw(picture)
    tones = ((104, 76, 48), (132, 94, 56), (88, 66, 46), (148, 118, 76), (96, 100, 58), (76, 56, 42))
    for _ in range(900):
        cx, cy = random.uniform(0, 2 * _GROUND_PX, 2)
        long, angle = random.uniform(26, 90), random.uniform(0, 2 * math.pi)
        wide = long * random.uniform(0.05, 0.45)
        tone = np.array(tones[int(random.integers(len(tones)))]) * random.uniform(0.75, 1.15)
        outline = []
        for step in range(14):
            p = 2 * math.pi * step / 14
            u, v = long * math.cos(p), wide * math.sin(p)
            outline.append(
                (cx + u * math.cos(angle) - v * math.sin(angle),
                 cy + u * math.sin(angle) + v * math.cos(angle))
            )
        pen.polygon(outline, fill=tuple(int(c) for c in tone), outline=(46, 36, 28))
        u, v = math.cos(angle) * long, math.sin(angle) * long
        pen.line((cx - u, cy - v, cx + u, cy + v), fill=tuple(int(c * 0.8) for c in tone), width=2)
    colour = np.asarray(picture.reduce(2), dtype=np.float32)
    return colour * (1 + 0.07 * _field(62, 1.0, 1.0))[..., None]


def _moss() -> Array:
    clumps = _smooth(_field(71, 0.5, 0.5), 1.5)
    tufts = _field(72, 1.7, 1.7)
    colour = _blend((52, 66, 30), (128, 142, 62), 0.45 + 0.3 * clumps + 0.14 * tufts)
    return colour * _relief(_smooth(tufts, 0.8) * 0.5 + clumps, 0.4)


def _slate() -> Array:
    layers = _smooth(_field(81, 0.3, 0.9), 1.5)
    lichen = np.clip(_smooth(_field(82, 0.6, 0.6), 1.5) * 2.2 - 2.2, 0, 1)
    colour = _blend((88, 94, 102), (134, 138, 142), 0.5 + 0.3 * layers + 0.05 * _field(83, 2, 2))
    colour += (np.array((196, 176, 92), dtype=np.float32) - colour) * (0.75 * lichen)[..., None]
    return colour * _relief(layers, 0.5)


def _plank() -> Array:
    rings = _smooth(_field(91, 1.0, 0.08), 0.8)
    grain = np.sin(rings * 7 + np.arange(_GROUND_PX)[None, :] / 24)
    colour = _blend((134, 112, 88), (182, 160, 130), 0.5 + 0.25 * grain + 0.12 * rings)
    gap = np.clip(3 - np.abs(np.mod(np.arange(_GROUND_PX), 170) - 85.0), 0, 1)
    return colour * (1 - 0.65 * gap)[None, :, None].astype(np.float32)


GROUNDS: tuple[Callable[[], Array], ...] = (
    _bark, _leaf, _sand, _wall, _sheet, _litter, _moss, _slate, _plank,
)


@lru_cache(maxsize=len(GROUNDS))
def _texture(kind: int) -> Image.Image:
    return Image.fromarray(np.clip(GROUNDS[kind](), 0, 255).astype(np.uint8))
