"""Draw a spread moth: its wings, and body and antennae over their hinges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from ..arrays import FloatArray
from .species_wings import (
    BOX,
    FORE_HINGE,
    HIND_HINGE,
    Colour,
    Wing,
    noise_tile,
    paint_wing,
)

__all__ = ["Body", "draw_moth"]


@dataclass(frozen=True)
class Body:
    """Thorax, abdomen and antennae."""

    fur: Colour
    abdomen: Colour
    stripe: Colour
    stripes: int = 0
    width: float = 0.115
    length: float = 0.62
    antenna: Literal["thread", "club", "feather"] = "thread"
    antenna_colour: Colour = (70, 52, 36)


def draw_moth(
    fore: Wing,
    hind: Wing,
    body: Body,
    random: np.random.Generator,
    *,
    unit_px: float,
    fore_turn_deg: float,
    hind_turn_deg: float,
) -> Image.Image:
    """Draw one individual, head up, wings spread alike on both sides, on a transparent ground.

    Parameters
    ----------
    unit_px : pixels per forewing length.
    fore_turn_deg, hind_turn_deg : how far the wings are swung back from the spread position.

    Returns
    -------
    RGBA picture that covers `BOX`.
    """
    width = math.ceil(BOX[2] * unit_px)
    height = math.ceil((BOX[3] - BOX[1]) * unit_px)
    half = np.zeros((height, width, 4), dtype=np.float32)
    paint_wing(half, hind, HIND_HINGE, hind_turn_deg, unit_px, random)
    paint_wing(half, fore, FORE_HINGE, fore_turn_deg, unit_px, random)
    whole = np.concatenate([half[:, ::-1], half], axis=1)
    _paint_body(whole, body, unit_px, random)
    np.clip(whole, 0, 255, out=whole)
    picture = Image.fromarray(whole.astype(np.uint8))
    _draw_antennae(picture, body, unit_px, random)
    return picture


def _paint_body(whole: FloatArray, body: Body, unit_px: float, random: np.random.Generator) -> None:
    """Paint abdomen, thorax and head as furry, rounded shapes over the wings' hinges."""
    middle = whole.shape[1] // 2
    reach = math.ceil(body.width * 1.6 * unit_px)
    top, bottom = int((-0.42 - BOX[1]) * unit_px), int((body.length + 0.1 - BOX[1]) * unit_px)
    part = whole[top:bottom, middle - reach : middle + reach]
    x = (np.arange(2 * reach, dtype=np.float32) + 0.5 - reach) / unit_px
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5) / unit_px + BOX[1]
    offset = int(random.integers(256))
    fluff = noise_tile(2)[
        (np.arange(top, bottom)[:, None] * 3 + offset) % 256, (np.arange(2 * reach) * 9) % 256
    ]
    w = body.width
    along = np.clip((y + 0.05) / np.float32(body.length + 0.05), 0, 1)
    profile = w * 0.92 * np.sqrt(np.clip(1 - along**2.6, 0, 1)) * (y > -0.05) + np.float32(1e-6)
    stripe = np.clip(np.sin(along * np.float32(2 * math.pi * body.stripes)) * 2, 0, 1)[..., None]
    ground = np.array(body.abdomen, dtype=np.float32)
    tone = ground + (np.array(body.stripe, dtype=np.float32) - ground) * stripe
    _lay(part, np.abs(x) / profile, tone, fluff, unit_px * w)
    fur = np.array(body.fur, dtype=np.float32)
    neck = math.ceil(0.45 * unit_px)  # rows that head and thorax can touch
    part, fluff, y = part[:neck], fluff[:neck], y[:neck]
    head = np.sqrt((x / (w * 0.62)) ** 2 + ((y + 0.30) / (w * 0.62)) ** 2)
    _lay(part, head, fur * np.float32(0.82), fluff, unit_px * w * 0.6)
    thorax = np.sqrt((x / (w * 1.22)) ** 2 + ((y + 0.08) / 0.2) ** 2)
    _lay(part, thorax, fur, fluff, unit_px * w)


def _lay(
    part: FloatArray, distance: FloatArray, tone: FloatArray, fluff: FloatArray, radius_px: float
) -> None:
    """Lay a rounded shape, given as a distance that is 1 on its rim, over part of a picture."""
    cover = np.clip((1 - distance + fluff * 0.06) * radius_px + 0.5, 0, 1)[..., None]
    rounded = 0.55 + 0.55 * np.sqrt(np.clip(1.02 - distance**2, 0.02, 1)) + 0.07 * fluff
    blend = np.where(part[..., 3:] > 0, cover, (cover > 0).astype(np.float32))
    part[..., :3] += (tone * rounded[..., None] - part[..., :3]) * blend
    part[..., 3:] = np.maximum(part[..., 3:], cover * 255)


def _draw_antennae(
    picture: Image.Image, body: Body, unit_px: float, random: np.random.Generator
) -> None:
    pen = ImageDraw.Draw(picture)
    lean, curl = random.uniform(0.55, 0.95), random.uniform(-0.1, 0.25)
    feathered = body.antenna == "feather"
    length = 0.42 if feathered else 0.5
    colour = (*body.antenna_colour, 255)
    line_px = max(1, round(unit_px * 0.018))
    for side in (-1, 1):

        def at(x: float, y: float, side: int = side) -> tuple[float, float]:
            return picture.width / 2 + side * x * unit_px, (y - BOX[1]) * unit_px

        def stem(d: float) -> tuple[float, float, float]:
            way = lean + curl * d
            return 0.03 + math.sin(way) * d * length, -0.33 - math.cos(way) * d * length, way

        pen.line([at(*stem(step / 8)[:2]) for step in range(9)], fill=colour, width=line_px)
        if body.antenna == "club":
            x, y = at(*stem(1.0)[:2])
            size = 0.028 * unit_px
            pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)
        for step in range(1, 24 if feathered else 0):
            x, y, way = stem(step / 24)
            barb = 0.085 * math.sin(math.pi * (0.12 + 0.85 * step / 24))
            for bend in (way - 1, way + 1):
                tip = at(x + math.sin(bend) * barb, y - math.cos(bend) * barb)
                pen.line((at(x, y), tip), fill=colour, width=max(1, line_px // 2))
