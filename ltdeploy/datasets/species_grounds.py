"""What moths rest on: nine textures, drawn once a process."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..arrays import FloatArray
from .species_wings import Colour, noise_tile

__all__ = ["GROUND_PX", "KINDS", "ground"]

GROUND_PX = 512


def ground(kind: int) -> Image.Image:
    """Return one of the :data:`KINDS` as an RGB picture of ``GROUND_PX`` squared."""
    return _textures()[kind]


@lru_cache(maxsize=1)
def _textures() -> tuple[Image.Image, ...]:
    return tuple(Image.fromarray(np.clip(paint(), 0, 255).astype(np.uint8)) for paint in KINDS)


def _rgb(tone: FloatArray) -> Colour:
    red, green, blue = (int(value) for value in tone)
    return red, green, blue


def _field(seed: int, across: float, down: float) -> FloatArray:
    """Stretch a noise tile over a ground, shape (512, 512): larger steps make finer grain."""
    steps = np.arange(GROUND_PX)
    rows, columns = (steps * down).astype(int) % 256, (steps * across).astype(int) % 256
    field: FloatArray = noise_tile(seed, 6)[np.ix_(rows, columns)]
    return field


def _blend(low: Colour, high: Colour, amount: FloatArray) -> FloatArray:
    first, last = np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)
    result: FloatArray = first + (last - first) * np.clip(amount, 0, 1)[..., None]
    return result


def _smooth(values: FloatArray, radius: float) -> FloatArray:
    low, high = float(values.min()), float(values.max())
    picture = Image.fromarray(((values - low) * (255 / (high - low))).astype(np.uint8))
    blurred = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float32) * ((high - low) / 255) + low


def _relief(height: FloatArray, depth: float) -> FloatArray:
    """Return a factor that lights a height field from the upper left."""
    slope = np.roll(height, (1, 1), axis=(0, 1)) - height
    result: FloatArray = np.clip(1 - depth * slope, 0.5, 1.5)[..., None]
    return result


def _bark() -> FloatArray:
    ridges = _field(11, 1.0, 0.22) + 0.4 * _field(12, 1.7, 0.6)
    cracks = np.clip(1.4 - np.abs(ridges) * 3.2, 0, 1)
    lichen = np.clip(_smooth(_field(13, 0.5, 0.5), 2) * 1.6 - 1.4, 0, 1)
    colour = _blend((92, 74, 60), (150, 130, 108), 0.5 + 0.3 * ridges)
    colour += (np.array((52, 40, 33), dtype=np.float32) - colour) * (0.8 * cracks)[..., None]
    colour += (np.array((158, 168, 140), dtype=np.float32) - colour) * (0.7 * lichen)[..., None]
    return colour * _relief(_smooth(ridges, 1.2), 0.35)


def _leaf() -> FloatArray:
    y, x = np.mgrid[0:GROUND_PX, 0:GROUND_PX].astype(np.float32)
    colour = _blend((66, 104, 44), (126, 158, 76), 0.5 + 0.22 * _smooth(_field(21, 0.6, 0.6), 2))
    ribs = np.abs(np.mod((y + np.abs(x - 256) * 0.7) / 58, 1) - 0.5) * 58
    nets = np.clip(1 - np.abs(_field(22, 0.9, 0.9)) * 5, 0, 1)
    vein = np.maximum(np.clip(2.6 - ribs, 0, 1), np.clip(5 - np.abs(x - 256), 0, 1))
    colour += (np.array((168, 186, 112), dtype=np.float32) - colour) * (0.65 * vein)[..., None]
    colour += (np.array((60, 92, 40), dtype=np.float32) - colour) * (0.12 * nets)[..., None]
    arched: FloatArray = colour * (1 - 0.10 * np.cos(ribs / 58 * 2 * math.pi))[..., None]
    return arched


def _sand() -> FloatArray:
    grain = np.random.default_rng(31).standard_normal((GROUND_PX, GROUND_PX)).astype(np.float32)
    ripple = np.sin(np.arange(GROUND_PX)[:, None] / 17 + _smooth(_field(32, 0.4, 0.4), 4) * 1.5)
    colour = _blend((176, 148, 108), (222, 198, 156), 0.5 + 0.22 * ripple + 0.14 * grain)
    random = np.random.default_rng(32)
    layer = Image.new("L", (2 * GROUND_PX, 2 * GROUND_PX))
    pen = ImageDraw.Draw(layer)
    for _ in range(140):
        x, y = random.uniform(0, 2 * GROUND_PX, 2)
        wide, high = random.uniform(2, 9), random.uniform(2, 7)
        pen.ellipse((x - wide, y - high, x + wide, y + high), fill=int(random.integers(90, 230)))
    stones = np.asarray(layer.reduce(2), dtype=np.float32)[..., None] / 255
    return colour + (np.array((104, 92, 80), dtype=np.float32) - colour) * stones


def _wall() -> FloatArray:
    bumps = _smooth(_field(41, 1.0, 1.0), 1.0)
    stain = _smooth(_field(42, 0.25, 0.25), 6)
    colour = _blend((186, 176, 160), (220, 212, 198), 0.5 + 0.3 * stain + 0.1 * bumps)
    crack = np.clip(1 - np.abs(_smooth(_field(43, 0.3, 0.3), 2)) * 40, 0, 1)
    crack *= np.clip(_smooth(_field(44, 0.3, 0.3), 4) * 2 - 0.6, 0, 1)
    colour *= (1 - 0.35 * crack)[..., None]
    return colour * _relief(bumps, 0.18)


def _sheet() -> FloatArray:
    y, x = np.mgrid[0:GROUND_PX, 0:GROUND_PX].astype(np.float32)
    folds = _smooth(_field(51, 0.18, 0.5), 8)
    weave = np.sin(x * 2.1) * np.sin(y * 2.1)
    colour = _blend((196, 198, 206), (240, 238, 232), 0.6 + 0.3 * folds + 0.05 * weave)
    return colour * _relief(folds, 1.6)


def _litter() -> FloatArray:
    """Draw fallen leaves and needles over dark soil."""
    random = np.random.default_rng(61)
    picture = Image.new("RGB", (2 * GROUND_PX, 2 * GROUND_PX), (58, 46, 36))
    pen = ImageDraw.Draw(picture)
    tones = (
        (104, 76, 48),
        (132, 94, 56),
        (88, 66, 46),
        (148, 118, 76),
        (96, 100, 58),
        (76, 56, 42),
    )
    for _ in range(900):
        cx, cy = random.uniform(0, 2 * GROUND_PX, 2)
        long, angle = random.uniform(26, 90), random.uniform(0, 2 * math.pi)
        wide = long * random.uniform(0.05, 0.45)
        tone = np.array(tones[int(random.integers(len(tones)))]) * random.uniform(0.75, 1.15)
        outline = []
        for step in range(14):
            p = 2 * math.pi * step / 14
            u, v = long * math.cos(p), wide * math.sin(p)
            outline.append(
                (
                    cx + u * math.cos(angle) - v * math.sin(angle),
                    cy + u * math.sin(angle) + v * math.cos(angle),
                )
            )
        pen.polygon(outline, fill=_rgb(tone), outline=(46, 36, 28))
        u, v = math.cos(angle) * long, math.sin(angle) * long
        pen.line((cx - u, cy - v, cx + u, cy + v), fill=_rgb(tone * 0.8), width=2)
    colour = np.asarray(picture.reduce(2), dtype=np.float32)
    return colour * (1 + 0.07 * _field(62, 1.0, 1.0))[..., None]


def _moss() -> FloatArray:
    """Draw short shoots over dark green, the later and higher ones lighter."""
    random = np.random.default_rng(71)
    picture = Image.new("RGB", (2 * GROUND_PX, 2 * GROUND_PX), (44, 54, 26))
    pen = ImageDraw.Draw(picture)
    shoots = 9000
    places, ways = random.uniform(0, 2 * GROUND_PX, (shoots, 2)), random.uniform(0, 7, shoots)
    for number, ((x, y), way) in enumerate(zip(places, ways, strict=True)):
        tone = np.array((64, 80, 34)) + np.array((84, 78, 40)) * (number / shoots)
        tone = tone * random.uniform(0.8, 1.1)
        end = (x + 20 * math.cos(way), y + 20 * math.sin(way))
        pen.line((x, y, *end), fill=_rgb(tone), width=5)
    colour = np.asarray(picture.reduce(2), dtype=np.float32)
    return colour * (1 + 0.14 * _smooth(_field(72, 0.5, 0.5), 3))[..., None]


def _slate() -> FloatArray:
    layers = _smooth(_field(81, 0.3, 0.9), 1.5)
    lichen = np.clip(_smooth(_field(82, 0.6, 0.6), 1.5) * 2.2 - 2.2, 0, 1)
    colour = _blend((88, 94, 102), (134, 138, 142), 0.5 + 0.3 * layers + 0.05 * _field(83, 2, 2))
    colour += (np.array((196, 176, 92), dtype=np.float32) - colour) * (0.75 * lichen)[..., None]
    return colour * _relief(layers, 0.5)


def _plank() -> FloatArray:
    rings = _smooth(_field(91, 1.0, 0.08), 0.8)
    grain = np.sin(rings * 7 + np.arange(GROUND_PX)[None, :] / 24)
    colour = _blend((134, 112, 88), (182, 160, 130), 0.5 + 0.25 * grain + 0.12 * rings)
    gap = np.clip(3 - np.abs(np.mod(np.arange(GROUND_PX), 170) - 85.0), 0, 1)
    colour *= (1 - 0.65 * gap)[None, :, None]
    return colour


KINDS: tuple[Callable[[], FloatArray], ...] = (
    _bark,
    _leaf,
    _sand,
    _wall,
    _sheet,
    _litter,
    _moss,
    _slate,
    _plank,
)
