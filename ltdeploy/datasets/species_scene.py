"""Photograph a drawn moth: ground, pose, shadow, what grows over it, light and camera."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from ..arrays import FloatArray
from .species_grounds import GROUND_PX, KINDS, ground
from .species_wings import BOX, Colour

__all__ = ["photograph"]

_GRAIN_SHIFTS = 128
_UNITS_ACROSS = 2.5  # forewing lengths from edge to edge of a picture, before the zoom varies

_GREENS: tuple[Colour, ...] = ((92, 128, 52), (122, 148, 66), (70, 104, 58), (150, 146, 74))


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


def _ground(random: np.random.Generator, size_px: int) -> FloatArray:
    """Return a turned, tinted window of one of the grounds, shape (size_px, size_px, 3), 0..255."""
    texture = ground(int(random.integers(len(KINDS))))
    zoom = random.uniform(1.0, 1.8) * 96 / size_px
    turn = random.uniform(0, 2 * math.pi)
    a, b = zoom * math.cos(turn), zoom * math.sin(turn)
    slack = GROUND_PX / 2 - 0.75 * zoom * size_px
    cx, cy = GROUND_PX / 2 + random.uniform(-slack, slack, 2)
    half = size_px / 2
    window = texture.transform(
        (size_px, size_px),
        Image.Transform.AFFINE,
        (a, -b, cx - a * half + b * half, b, a, cy - b * half - a * half),
        resample=Image.Resampling.BILINEAR,
    )
    scene = np.asarray(window, dtype=np.float32)
    tint: FloatArray = (random.uniform(0.82, 1.12) * random.uniform(0.95, 1.05, 3)).astype(
        np.float32
    )
    return scene * tint


def _pose(moth: Image.Image, random: np.random.Generator, size_px: int) -> FloatArray:
    """Turn, zoom, shift and tilt the moth into the frame; return RGB in 0..255 and A in 0..1."""
    unit = size_px / _UNITS_ACROSS * random.uniform(0.80, 1.08)
    turn = random.normal(0, 0.4)
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
    matrix /= matrix[2, 2]
    posed = moth.transform(
        (size_px, size_px),
        Image.Transform.PERSPECTIVE,
        tuple(matrix.reshape(-1)[:8].tolist()),
        resample=Image.Resampling.BILINEAR,
    )
    specimen = np.array(posed, dtype=np.float32)
    specimen[..., 3] *= 1 / 255
    return specimen


def _cast_shadow(
    scene: FloatArray, cover: FloatArray, light: float, random: np.random.Generator
) -> None:
    size_px = scene.shape[0]
    height = random.uniform(0.01, 0.05) * size_px
    mask = Image.fromarray((cover * 255).astype(np.uint8))
    mask = mask.filter(ImageFilter.BoxBlur(random.uniform(0.4, 1.0) * height))
    dx, dy = round(-math.cos(light) * height), round(-math.sin(light) * height)
    shadow = np.roll(np.asarray(mask, dtype=np.float32), (dy, dx), axis=(0, 1))
    scene *= (1 - shadow * (random.uniform(0.35, 0.65) / 255))[..., None]


def _grow_over(scene: FloatArray, random: np.random.Generator) -> None:
    """Let grass blades or one leaf hide part of the picture."""
    size_px = scene.shape[0]
    layer = Image.new("L", (2 * size_px, 2 * size_px))
    pen = ImageDraw.Draw(layer)
    if random.random() < 0.6:
        for _ in range(int(random.integers(1, 4))):
            _draw_blade(pen, 2 * size_px, random)
    else:
        _draw_leaf(pen, 2 * size_px, random)
    layer = layer.reduce(2).filter(ImageFilter.BoxBlur(random.uniform(0, 0.012) * size_px))
    tone = np.asarray(layer, dtype=np.float32)[..., None] / 255
    cover = np.minimum(tone * 1.6, 1)
    green = np.array(_GREENS[int(random.integers(len(_GREENS)))], dtype=np.float32)
    scene *= 1 - cover
    scene += cover * green * (0.45 + 0.6 * tone)


def _draw_blade(pen: ImageDraw.ImageDraw, size_px: int, random: np.random.Generator) -> None:
    start = random.uniform(-0.1, 1.1, 2) * size_px
    angle, bend = random.uniform(0, math.pi), random.uniform(-0.6, 0.6)
    width = random.uniform(0.012, 0.03) * size_px
    left, right = [], []
    for step in range(-8, 9):
        way = angle + bend * step / 8
        x = start[0] + math.cos(way) * step * size_px * 0.14
        y = start[1] + math.sin(way) * step * size_px * 0.14
        half = width * (1 - abs(step) / 9)
        left.append((x - math.sin(way) * half, y + math.cos(way) * half))
        right.append((x + math.sin(way) * half, y - math.cos(way) * half))
    pen.polygon(left + right[::-1], fill=int(random.integers(170, 256)))


def _draw_leaf(pen: ImageDraw.ImageDraw, size_px: int, random: np.random.Generator) -> None:
    angle = random.uniform(0, 2 * math.pi)
    away = random.uniform(0.40, 0.62) * size_px
    cx, cy = size_px / 2 + math.cos(angle) * away, size_px / 2 + math.sin(angle) * away
    long, wide = random.uniform(0.28, 0.5) * size_px, random.uniform(0.10, 0.2) * size_px
    lean = angle + math.pi / 2 + random.normal(0, 0.5)
    cos, sin = math.cos(lean), math.sin(lean)
    outline = []
    for step in range(32):
        way = 2 * math.pi * step / 32
        u, v = long * math.cos(way), wide * math.sin(way) * (1 + 0.35 * math.cos(way))
        outline.append((cx + u * cos - v * sin, cy + u * sin + v * cos))
    pen.polygon(outline, fill=255)
    rib = (cx - cos * long, cy - sin * long, cx + cos * long, cy + sin * long)
    pen.line(rib, fill=200, width=max(1, size_px // 48))


def _illuminate(scene: FloatArray, light: float, random: np.random.Generator) -> None:
    """Apply the fall-off of the light, its colour, and the lens's darker corners."""
    size_px = scene.shape[0]
    axis = np.linspace(-1, 1, size_px, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    field = 1 + random.uniform(0.0, 0.22) * (math.cos(light) * x + math.sin(light) * y)
    field -= random.uniform(0.02, 0.14) * (x * x + y * y)
    warmth = random.normal(0, 0.06)
    exposure = math.exp(random.normal(0.02, 0.14))
    colour = np.array([1 + warmth, 1 + 0.2 * random.normal(0, 0.05), 1 - warmth], dtype=np.float32)
    scene *= field[..., None]
    scene *= colour * np.float32(exposure)


def _expose(scene: FloatArray, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Blur by focus and movement, bend highlights softly, add sensor noise, round to bytes."""
    size_px = scene.shape[0]
    # Highlights roll off instead of clipping flat: a parabola from 3/4 of white up to 5/4.
    over = np.clip(scene - 191.25, 0, 127.5)
    developed = np.clip(scene, 0, 318.75) - over * over * np.float32(1 / 255)
    picture = Image.fromarray(developed.astype(np.uint8))
    if random.random() < 0.35:
        picture = picture.filter(ImageFilter.BoxBlur(random.uniform(0.2, 0.9) * size_px / 96))
    pixels: FloatArray = np.asarray(picture, dtype=np.float32)
    if random.random() < 0.12:
        way = random.uniform(0, math.pi)
        reach = random.uniform(0.8, 2.2) * size_px / 96
        steps = [(math.sin(way) * reach * k, math.cos(way) * reach * k) for k in (-1, -0.5, 0.5, 1)]
        moved = [np.roll(pixels, (round(dy), round(dx)), axis=(0, 1)) for dy, dx in steps]
        pixels = np.mean([pixels, *moved], axis=0)
    top, left = random.integers(0, _GRAIN_SHIFTS, 2)
    noise = _grain(size_px)[top : top + size_px, left : left + size_px]
    pixels = pixels + noise * random.uniform(1.0, 6.0)
    photo: npt.NDArray[np.uint8] = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return photo


@lru_cache(maxsize=4)
def _grain(size_px: int) -> FloatArray:
    """Return sensor noise to cut windows from; drawing it afresh would cost more than the moth."""
    side = size_px + _GRAIN_SHIFTS
    noise = np.random.default_rng(5).standard_normal((side, side, 3), dtype=np.float32)
    noise[..., 1:] = 0.6 * noise[..., 1:] + 0.4 * noise[..., :1]
    return noise
