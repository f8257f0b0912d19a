"""Draw one spread moth: wings as polar fields, body, antennae.

A wing is star-shaped about its hinge. Its pixels carry two coordinates, as veins and growth do in a
real one: ``s`` runs from the hinge (0) to the outer edge (1), ``t`` from the leading edge (0) to the
inner edge (1). A band is a range of ``s``, a vein a value of ``t``, an eyespot a disc around a point.
Lengths are in units of a forewing of ordinary length; x points right, y down, the hinge lies near
the origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

__all__ = [
    "BOX",
    "Band",
    "Body",
    "Colour",
    "Pattern",
    "Shape",
    "Spot",
    "Wing",
    "draw_moth",
    "noise_tile",
]

Array = npt.NDArray[np.float32]
Colour = tuple[int, int, int]

# Left, top, right and bottom of the drawn specimen, in forewing lengths.
BOX = (-1.3, -1.15, 1.3, 1.45)
_FORE_HINGE = (0.05, -0.13)
_HIND_HINGE = (0.05, 0.03)
_TABLE = 512
_TILE = 256


@dataclass(frozen=True)
class Shape:
    """Outline of a wing: the angle it spans, how far it reaches, how its tip bends.

    ``start_deg`` and ``stop_deg`` are the directions of the leading and the inner edge when the moth
    is spread (0 points right, positive is down); ``reach`` is the distance of the outer edge at even
    steps from one to the other; ``hook`` bends the tip, in radians.
    """

    start_deg: float
    stop_deg: float
    reach: tuple[float, ...]
    hook: float = 0.0


@dataclass(frozen=True)
class Band:
    """A stripe along the outer edge: ``at`` and ``width`` in s, ``slant`` its change of s over t."""

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


@dataclass(frozen=True)
class Body:
    """Thorax, abdomen and antennae."""

    fur: Colour
    abdomen: Colour
    stripe: Colour
    stripes: int = 0
    width: float = 0.115
    length: float = 0.62
    antenna: str = "thread"
    antenna_colour: Colour = (70, 52, 36)


@lru_cache(maxsize=8)
def noise_tile(seed: int, octaves: int = 5) -> Array:
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
    result: Array = (total - total.mean()) / total.std()
    result.setflags(write=False)
    return result


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
    _paint_wing(half, hind, _HIND_HINGE, hind_turn_deg, unit_px, random, shade_rows=True)
    _paint_wing(half, fore, _FORE_HINGE, fore_turn_deg, unit_px, random, shade_rows=False)
    whole = np.concatenate([half[:, ::-1], half], axis=1)
    _paint_body(whole, body, unit_px, random)
    np.clip(whole, 0, 255, out=whole)
    picture = Image.fromarray(whole.astype(np.uint8))
    _draw_antennae(picture, body, unit_px, random)
    return picture


@lru_cache(maxsize=256)
def _reach_table(shape: Shape) -> Array:
    """Return the distance of the outer edge over `t`, smooth, with rounded corners."""
    t = np.linspace(0, 1, _TABLE)
    knots = np.linspace(0, 1, len(shape.reach))
    table = np.interp(t, knots, shape.reach)
    kernel = np.exp(-0.5 * (np.arange(-40, 41) / 16) ** 2)
    table = np.convolve(np.pad(table, 40, mode="edge"), kernel / kernel.sum(), mode="valid")
    corner = np.minimum(1, np.minimum(t, 1 - t) / 0.05)
    table = table * (0.84 + 0.16 * np.sqrt(1 - (1 - corner) ** 2))
    return table.astype(np.float32)


def _paint_wing(
    half: Array,
    wing: Wing,
    hinge: tuple[float, float],
    turn_deg: float,
    unit_px: float,
    random: np.random.Generator,
    *,
    shade_rows: bool,
) -> None:
    shape = wing.shape
    start = math.radians(shape.start_deg + turn_deg)
    span = math.radians(shape.stop_deg - shape.start_deg)
    x, y = _half_grid(half.shape[0], half.shape[1], unit_px)
    x, y = x - np.float32(hinge[0]), y - np.float32(hinge[1])
    r = np.sqrt(x * x + y * y)
    near = r < max(shape.reach) * 1.02
    x, y, r = x[near], y[near], r[near]
    angle = np.arctan2(y, x) - np.float32(start)
    angle = angle - np.float32(shape.hook) * r * r
    # A wing swung far back crosses the line where arctan2 jumps.
    angle = np.mod(angle + np.float32(math.pi - span / 2), np.float32(2 * math.pi)) - np.float32(
        math.pi - span / 2
    )
    t = angle * np.float32(1 / span)
    table = _reach_table(shape)
    reach = table[np.clip(t * (_TABLE - 1), 0, _TABLE - 1).astype(np.int32)]
    alpha = np.clip((reach - r) * unit_px + 0.5, 0, 1)
    alpha *= np.clip(np.minimum(t, 1 - t) * np.float32(span) * r * unit_px + 0.5, 0, 1)
    inside = alpha > 0
    r, t, alpha = r[inside], t[inside], alpha[inside]
    s = r / reach[inside]
    colour = _paint_pattern(wing.pattern, s, t, r, span, table, random)
    rows, columns = np.nonzero(near)
    rows, columns = rows[inside], columns[inside]
    under = half[rows, columns]
    mixed = under.copy()
    cover = alpha[:, None]
    # Straight (not premultiplied) colour: a half-covered pixel on nothing keeps the wing's colour.
    solid = np.where(under[:, 3:] > 0, under[:, :3] + (colour - under[:, :3]) * cover, colour)
    mixed[:, :3] = solid
    mixed[:, 3] = np.maximum(under[:, 3], alpha * 255)
    half[rows, columns] = mixed


@lru_cache(maxsize=8)
def _half_grid(height: int, width: int, unit_px: float) -> tuple[Array, Array]:
    x = (np.arange(width, dtype=np.float32) + 0.5) / unit_px
    y = (np.arange(height, dtype=np.float32) + 0.5) / unit_px + BOX[1]
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def _paint_pattern(
    pattern: Pattern,
    s: Array,
    t: Array,
    r: Array,
    span: float,
    table: Array,
    random: np.random.Generator,
) -> Array:
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
        _mix(colour, pattern.lunule_colour, np.clip((pattern.lunule_radius - away) * 50 + 0.5, 0, 1))
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


def _band_cover(band: Band, s: Array, t: Array, coarse: Array, moved: float) -> Array:
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
    result: Array = cover * np.float32(band.opacity)
    return result


def _paint_spot(
    colour: Array, spot: Spot, u: Array, v: Array, span: float, table: Array, size: float
) -> None:
    distance = spot.s * float(table[int(spot.t * (_TABLE - 1))])
    across, along = math.sin(spot.t * span), math.cos(spot.t * span)
    du, dv = u - distance * along, v - distance * across
    outwards, sideways = du * along + dv * across, dv * along - du * across
    away = np.sqrt((outwards / spot.stretch) ** 2 + sideways**2)
    for radius, ring in spot.rings:
        _mix(colour, ring, np.clip((radius * size - away) * 45 + 0.5, 0, 1))


def _mix(colour: Array, other: Colour, cover: Array) -> None:
    colour += (np.array(other, dtype=np.float32) - colour) * cover[:, None]


def _sample(tile: Array, u: Array, v: Array) -> Array:
    rows = v.astype(np.int32) & (_TILE - 1)
    result: Array = tile[rows, u.astype(np.int32) & (_TILE - 1)]
    return result


def _paint_body(
    whole: Array, body: Body, unit_px: float, random: np.random.Generator
) -> None:
    """Paint abdomen, thorax and head as furry, rounded shapes over the wings' hinges."""
    middle = whole.shape[1] // 2
    reach = math.ceil(body.width * 1.6 * unit_px)
    top, bottom = int((-0.42 - BOX[1]) * unit_px), int((body.length + 0.1 - BOX[1]) * unit_px)
    part = whole[top:bottom, middle - reach : middle + reach]
    x = (np.arange(2 * reach, dtype=np.float32) + 0.5 - reach) / unit_px
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5) / unit_px + BOX[1]
    offset = int(random.integers(_TILE))
    fluff = noise_tile(2)[
        (np.arange(top, bottom)[:, None] * 3 + offset) % _TILE, (np.arange(2 * reach) * 9) % _TILE
    ]
    w = np.float32(body.width)
    along = np.clip((y + 0.05) / (body.length + 0.05), 0, 1)
    profile = w * 0.92 * np.sqrt(np.clip(1 - along**2.6, 0, 1)) * (y > -0.05) + 1e-6
    stripe = np.clip(np.sin(along * (2 * math.pi * body.stripes)) * 2, 0, 1) if body.stripes else 0.0
    flank = np.clip(np.abs(x) / profile * 1.2, 0, 1.0)
    ground = np.array(body.abdomen, dtype=np.float32)
    tone = ground + (np.array(body.stripe, dtype=np.float32) - ground) * np.asarray(
        stripe * np.ones_like(flank)
    )[..., None]
    _lay(part, np.abs(x) / profile, tone, fluff, unit_px * w)
    fur = np.broadcast_to(np.array(body.fur, dtype=np.float32), (*fluff.shape, 3))
    head = np.sqrt((x / (w * 0.62)) ** 2 + ((y + 0.30) / (w * 0.62)) ** 2)
    _lay(part, head, fur * 0.82, fluff, unit_px * w * 0.6)
    thorax = np.sqrt((x / (w * 1.22)) ** 2 + ((y + 0.08) / 0.2) ** 2)
    _lay(part, thorax, fur, fluff, unit_px * w)


def _lay(part: Array, distance: Array, tone: Array, fluff: Array, radius_px: float) -> None:
    """Lay a rounded shape, given as a distance that is 1 on its rim, over part of a picture."""
    cover = np.clip((1 - distance + fluff * 0.06) * radius_px + 0.5, 0, 1)[..., None]
    round_ = 0.55 + 0.55 * np.sqrt(np.clip(1.02 - distance**2, 0.02, 1)) + 0.07 * fluff
    lit = tone * round_[..., None]
    solid = np.where(part[..., 3:] > 0, part[..., :3] + (lit - part[..., :3]) * cover, lit)
    part[..., :3] = np.where(cover > 0, solid, part[..., :3])
    part[..., 3:] = np.maximum(part[..., 3:], cover * 255)


def _draw_antennae(
    picture: Image.Image, body: Body, unit_px: float, random: np.random.Generator
) -> None:
    pen = ImageDraw.Draw(picture)
    middle = picture.width / 2
    lean, curl = random.uniform(0.55, 0.95), random.uniform(-0.1, 0.25)
    colour = (*body.antenna_colour, 255)
    length = 0.5 if body.antenna != "feather" else 0.42
    line_px = max(1, round(unit_px * 0.018))
    for side in (-1, 1):
        points = []
        for step in range(9):
            d = step / 8
            a = lean + curl * d
            x = 0.03 + math.sin(a) * d * length
            y = -0.33 - math.cos(a) * d * length
            points.append((middle + side * x * unit_px, (y - BOX[1]) * unit_px))
        pen.line(points, fill=colour, width=line_px)
        if body.antenna == "club":
            x, y = points[-1]
            size = 0.028 * unit_px
            pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)
        elif body.antenna == "feather":
            for step in range(1, 24):
                d = step / 24
                a = lean + curl * d
                x, y = 0.03 + math.sin(a) * d * length, -0.33 - math.cos(a) * d * length
                barb = 0.085 * math.sin(math.pi * (0.12 + 0.85 * d))
                start = (middle + side * x * unit_px, (y - BOX[1]) * unit_px)
                for bend in (-1.0, 1.0):
                    b = a + bend
                    end = (x + math.sin(b) * barb, y - math.cos(b) * barb)
                    tip = (middle + side * end[0] * unit_px, (end[1] - BOX[1]) * unit_px)
                    pen.line((start, tip), fill=colour, width=max(1, line_px // 2))
