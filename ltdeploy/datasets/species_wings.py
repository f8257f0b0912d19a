"""Paint a moth's wings as polar fields.

A wing is star-shaped about its hinge. Its pixels carry two coordinates, as veins and growth do in
a real one: ``s`` runs from the hinge (0) to the outer edge (1), ``t`` from the leading edge (0) to
the inner edge (1). A band is a range of ``s``, a vein a value of ``t``, an eyespot a disc around a
point. Lengths are in forewing lengths; x points right, y down, the hinges lie near the origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ..arrays import FloatArray

__all__ = [
    "BOX",
    "FORE_HINGE",
    "HIND_HINGE",
    "Band",
    "Colour",
    "Pattern",
    "Shape",
    "Spot",
    "Wing",
    "noise_tile",
    "paint_wing",
]

Colour = tuple[int, int, int]

# Left, top, right and bottom of the drawn specimen, in forewing lengths.
BOX = (-1.3, -1.15, 1.3, 1.45)
FORE_HINGE = (0.05, -0.13)
HIND_HINGE = (0.05, 0.03)
_TABLE = 512
_TILE = 256


@dataclass(frozen=True)
class Shape:
    """Outline of a wing: the angle it spans, how far it reaches, how its tip bends.

    ``start_deg`` and ``stop_deg`` are the directions of the leading and the inner edge when the
    moth is spread (0 points right, positive is down); ``reach`` is the distance of the outer edge
    at even steps from one to the other; ``hook`` bends the tip, in radians.
    """

    start_deg: float
    stop_deg: float
    reach: tuple[float, ...]
    hook: float = 0.0


@dataclass(frozen=True)
class Band:
    """A stripe along the outer edge.

    ``at`` and ``width`` are in s, ``slant`` is the change of s over t, ``wave`` and ``waves`` the
    height and number of its waves, ``soft`` the width of its rims, ``reach`` its range of t.
    """

    at: float
    width: float
    colour: Colour
    opacity: float = 1.0
    slant: float = 0.0
    wave: float = 0.0
    waves: float = 3.0
    zigzag: bool = False
    soft: float = 0.03
    reach: tuple[float, float] = (-0.1, 1.1)


@dataclass(frozen=True)
class Spot:
    """A disc at (s, t) made of rings: (outer radius, colour), the widest first."""

    s: float
    t: float
    rings: tuple[tuple[float, Colour], ...]
    stretch: float = 1.0


@dataclass(frozen=True)
class Pattern:
    """What is painted on a wing, from the ground up."""

    base: Colour
    tip: Colour
    bands: tuple[Band, ...] = ()
    spots: tuple[Spot, ...] = ()
    veins: float = 0.0
    vein_colour: Colour = (40, 30, 24)
    mottle: float = 0.3
    streaks: float = 0.0
    speckles: float = 0.0
    speckle_colour: Colour = (30, 26, 24)
    edge: float = 0.0
    edge_colour: Colour = (40, 30, 24)
    lunules: int = 0
    lunule_colour: Colour = (240, 220, 170)
    lunule_radius: float = 0.035


@dataclass(frozen=True)
class Wing:
    """A shape and what is painted on it."""

    shape: Shape
    pattern: Pattern


@lru_cache(maxsize=64)
def noise_tile(seed: int, octaves: int = 5) -> FloatArray:
    """Return a periodic fractal noise tile of shape (256, 256) with mean 0 and deviation 1."""
    random = np.random.default_rng([seed, octaves])
    total = np.zeros((_TILE, _TILE), dtype=np.float32)
    for octave in range(octaves):
        cells = 4 << octave
        lattice = random.standard_normal((cells, cells)).astype(np.float32)
        padded = np.pad(lattice, 4, mode="wrap")
        scale = _TILE // cells
        picture = Image.fromarray(padded).resize(
            (padded.shape[1] * scale, padded.shape[0] * scale), Image.Resampling.BICUBIC
        )
        total += np.asarray(picture)[4 * scale : -4 * scale, 4 * scale : -4 * scale] * 0.6**octave
    result: FloatArray = (total - total.mean()) / total.std()
    result.setflags(write=False)
    return result


@lru_cache(maxsize=256)
def _reach_table(shape: Shape) -> FloatArray:
    """Return the distance of the outer edge over `t`, smooth, with rounded corners."""
    t = np.linspace(0, 1, _TABLE)
    knots = np.linspace(0, 1, len(shape.reach))
    table = np.interp(t, knots, shape.reach)
    kernel = np.exp(-0.5 * (np.arange(-40, 41) / 16) ** 2)
    table = np.convolve(np.pad(table, 40, mode="edge"), kernel / kernel.sum(), mode="valid")
    corner = np.minimum(1, np.minimum(t, 1 - t) / 0.05)
    table = table * (0.84 + 0.16 * np.sqrt(1 - (1 - corner) ** 2))
    smooth: FloatArray = table.astype(np.float32)
    return smooth


def paint_wing(
    half: FloatArray,
    wing: Wing,
    hinge: tuple[float, float],
    turn_deg: float,
    unit_px: float,
    random: np.random.Generator,
) -> None:
    """Paint a right wing over what is on the right half of a specimen.

    Parameters
    ----------
    half : array of shape (H, W, 4), float32, RGBA in 0..255, whose left edge is the body's middle;
        changed in place.
    turn_deg : how far the wing is swung back from the spread position.
    """
    shape = wing.shape
    start = math.radians(shape.start_deg + turn_deg)
    span = math.radians(shape.stop_deg - shape.start_deg)
    table = _reach_table(shape)
    window = _window(half, hinge, start, span, float(table.max()), unit_px)
    part = half[window]
    y = (np.arange(window[0].start, window[0].stop, dtype=np.float32) + 0.5) / unit_px
    y = (y + np.float32(BOX[1] - hinge[1]))[:, None]
    x = (np.arange(part.shape[1], dtype=np.float32) + 0.5) / unit_px - np.float32(hinge[0])
    r = np.sqrt(x * x + y * y)
    # Measured from the middle of the wing, so that arctan2 does not jump inside it.
    middle = start + span / 2
    forward = x * np.float32(math.cos(middle)) + y * np.float32(math.sin(middle))
    sideways = y * np.float32(math.cos(middle)) - x * np.float32(math.sin(middle))
    angle = np.arctan2(sideways, forward) + np.float32(span / 2) - np.float32(shape.hook) * r * r
    t = angle * np.float32(1 / span)
    reach = table[np.clip(t * (_TABLE - 1), 0, _TABLE - 1).astype(np.int32)]
    rim_px = np.minimum(reach - r, np.minimum(t, 1 - t) * np.float32(span) * r)
    inside = np.nonzero(rim_px > -0.5 / unit_px)
    r, t, reach = r[inside], t[inside], reach[inside]
    cover = np.clip(rim_px[inside] * unit_px + 0.5, 0, 1)
    colour = _paint_pattern(wing.pattern, r / reach, t, r, span, table, random)
    # Straight (not premultiplied) colour: a half-covered pixel on nothing keeps the wing's colour.
    under = part[inside]
    blend = np.where(under[:, 3] > 0, cover, np.float32(1))[:, None]
    under[:, :3] += (colour - under[:, :3]) * blend
    under[:, 3] = np.maximum(under[:, 3], cover * 255)
    part[inside] = under


def _window(
    half: FloatArray,
    hinge: tuple[float, float],
    start: float,
    span: float,
    reach: float,
    unit_px: float,
) -> tuple[slice, slice]:
    """Return the rows and columns that a wing can touch."""
    ways = np.append(np.linspace(start - 0.3, start + span + 0.3, 9), 0.0)
    down, out = reach * np.sin(ways), reach * np.cos(ways[:-1])
    rows = np.array([down.min(), down.max()]) + hinge[1] - BOX[1]
    top = max(0, math.floor(rows[0] * unit_px))
    bottom = min(half.shape[0], math.ceil(rows[1] * unit_px) + 1)
    right = min(half.shape[1], math.ceil((max(out.max(), 0.0) + hinge[0]) * unit_px) + 1)
    return slice(top, bottom), slice(0, right)


def _paint_pattern(
    pattern: Pattern,
    s: FloatArray,
    t: FloatArray,
    r: FloatArray,
    span: float,
    table: FloatArray,
    random: np.random.Generator,
) -> FloatArray:
    """Return the colours of the pixels at (s, t), shape (n, 3), 0..255."""
    angle = t * np.float32(span)
    u, v = r * np.cos(angle), r * np.sin(angle)  # the wing's own frame: moves with its pattern
    offset = random.integers(0, _TILE, 4)
    coarse = _sample(noise_tile(1), u * 90 + offset[0], v * 90 + offset[1])
    hairs = _sample(noise_tile(2), s * 40 + offset[2], t * 420 + offset[3])
    base = np.array(pattern.base, dtype=np.float32)
    colour = base + (np.array(pattern.tip, dtype=np.float32) - base) * s[:, None]
    shift = random.normal(0, 0.012, len(pattern.bands) + 1).astype(np.float32)
    for band, moved in zip(pattern.bands, shift[1:], strict=True):
        _mix(colour, band.colour, _band_cover(band, s + shift[0], t, coarse, moved))
    if pattern.streaks:
        _mix(colour, pattern.vein_colour, np.clip(hairs * 0.5 - 0.2, 0, 1) * pattern.streaks)
    if pattern.veins:
        ridge = np.abs(np.mod(t * 7.5, 1) - 0.5) * r
        cover = np.clip(1.25 - ridge * 26, 0, 1) * np.clip((s - 0.15) * 4, 0, 1)
        _mix(colour, pattern.vein_colour, cover * pattern.veins)
    if pattern.edge:
        cover = np.clip((s - 1 + pattern.edge + coarse * 0.008) / 0.03 + 0.5, 0, 1)
        _mix(colour, pattern.edge_colour, cover)
    if pattern.lunules:
        across = (np.mod(t * pattern.lunules, 1) - 0.5) / pattern.lunules * np.float32(span) * r
        away = np.sqrt(across**2 + ((s - 0.915) * r) ** 2)
        _mix(
            colour, pattern.lunule_colour, np.clip((pattern.lunule_radius - away) * 50 + 0.5, 0, 1)
        )
    if pattern.speckles:
        fine = _sample(noise_tile(3, 6), u * 230 + offset[1], v * 230 + offset[2])
        cover = np.clip((fine - 2.6 + pattern.speckles * 2.2) * 2.5, 0, 1)
        _mix(colour, pattern.speckle_colour, cover)
    size = random.uniform(0.85, 1.15)
    for spot in pattern.spots:
        _paint_spot(colour, spot, u, v, span, table, size)
    relief = 1 + 0.07 * pattern.mottle * coarse + 0.035 * hairs
    relief *= 0.86 + 0.14 * np.clip(t * 9, 0, 1)  # the leading edge curves away from the light
    relief *= 0.90 + 0.12 * np.minimum(s * 1.6, 1)
    colour *= relief[:, None]
    return colour


def _band_cover(
    band: Band, s: FloatArray, t: FloatArray, coarse: FloatArray, moved: float
) -> FloatArray:
    line = s - np.float32(band.at + moved) - np.float32(band.slant) * (t - 0.5) + coarse * 0.006
    if band.wave:
        phase = t * np.float32(band.waves)
        if band.zigzag:
            line = line + np.float32(band.wave) * (4 * np.abs(np.mod(phase, 1) - 0.5) - 1)
        else:
            line = line + np.float32(band.wave) * np.sin(phase * np.float32(2 * math.pi))
    cover = np.clip((band.width / 2 - np.abs(line)) / band.soft + 0.5, 0, 1)
    first, last = band.reach
    if first > 0 or last < 1:
        cover *= np.clip(np.minimum(t - first, last - t) * 25 + 0.5, 0, 1)
    result: FloatArray = cover * np.float32(band.opacity)
    return result


def _paint_spot(
    colour: FloatArray,
    spot: Spot,
    u: FloatArray,
    v: FloatArray,
    span: float,
    table: FloatArray,
    size: float,
) -> None:
    distance = spot.s * float(table[int(spot.t * (_TABLE - 1))])
    across, along = math.sin(spot.t * span), math.cos(spot.t * span)
    du, dv = u - distance * along, v - distance * across
    outwards, sideways = du * along + dv * across, dv * along - du * across
    away = np.sqrt((outwards / spot.stretch) ** 2 + sideways**2)
    for radius, ring in spot.rings:
        _mix(colour, ring, np.clip((radius * size - away) * 45 + 0.5, 0, 1))


def _mix(colour: FloatArray, other: Colour, cover: FloatArray) -> None:
    colour += (np.array(other, dtype=np.float32) - colour) * cover[:, None]


def _sample(tile: FloatArray, u: FloatArray, v: FloatArray) -> FloatArray:
    rows = v.astype(np.int32) & (_TILE - 1)
    result: FloatArray = tile[rows, u.astype(np.int32) & (_TILE - 1)]
    return result
