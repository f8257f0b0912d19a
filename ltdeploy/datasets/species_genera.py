"""The eight invented genera: what their species have in common.

A genus is a function from the details in which its species differ to a :class:`Species`. A ground
is a pair of colours, at the hinge and at the edge of the wing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .species_body import Body
from .species_wings import Band, Colour, Pattern, Shape, Spot, Wing

__all__ = [
    "BLUSH",
    "COBALT",
    "CREAM",
    "CRIMSON",
    "EMBER",
    "GOLD",
    "INK",
    "LONG_TAIL",
    "ROSE",
    "RUST",
    "SHORT_TAIL",
    "SNOW",
    "SOOT",
    "UMBER",
    "Ground",
    "Species",
    "aurantea",
    "cineroptis",
    "dots",
    "lunavis",
    "marmorisca",
    "nivalba",
    "ocelvera",
    "rgb",
    "rubrastra",
    "striganthe",
]

Ground = tuple[Colour, Colour]


@dataclass(frozen=True)
class Species:
    """Name and anatomy of a moth."""

    name: str
    fore: Wing
    hind: Wing
    body: Body


def rgb(code: str) -> Colour:
    """Read a colour of six hexadecimal digits."""
    return int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16)


INK, SOOT, UMBER, OLIVE = rgb("1c1614"), rgb("322a28"), rgb("3e2616"), rgb("76743e")
CREAM, SNOW, GOLD, COBALT = rgb("f2e4c4"), rgb("f4f2ec"), rgb("f0b83c"), rgb("283a78")
EMBER, CRIMSON, ROSE, BLUSH = rgb("de6a28"), rgb("c22632"), rgb("d4748c"), rgb("ecb8b4")
RUST = rgb("a4502a")


def dots(colour: Colour, radius: float, *places: tuple[float, float]) -> tuple[Spot, ...]:
    """Return plain spots of one size at the given (s, t)."""
    return tuple(Spot(s, t, ((radius, colour),), stretch=1.15) for s, t in places)


# -- Ocelvera: like emperors, with eyes on the wings -----------------------------------------------

_OCELVERA_FORE = Shape(-38, 26, (0.98, 1.0, 0.95, 0.87, 0.76, 0.62), hook=0.12)
_OCELVERA_HIND = Shape(-2, 98, (0.62, 0.74, 0.76, 0.77, 0.75, 0.62))


def ocelvera(
    name: str, ground: Ground, line: Colour, eyes: str, iris: Colour, pupil: Colour
) -> Species:
    """Build an Ocelvera; `eyes` says which wings bear one, of ``f`` and ``h``."""

    def eye(s: float, t: float, radius: float) -> tuple[Spot, ...]:
        parts = ((1.0, INK), (0.76, iris), (0.46, pupil), (0.16, SNOW))
        return (Spot(s, t, tuple((radius * share, colour) for share, colour in parts)),)

    fore = Pattern(
        *ground,
        veins=0.35,
        edge=0.05,
        edge_colour=line,
        lunules=7,
        bands=(
            Band(0.76, 0.055, line, wave=0.025, waves=3.5, zigzag=True),
            Band(0.30, 0.05, line, wave=0.02),
        ),
        spots=eye(0.55, 0.38, 0.125) if "f" in eyes else (),
    )
    hind = Pattern(
        *ground,
        veins=0.3,
        edge=0.05,
        edge_colour=line,
        bands=(Band(0.80, 0.06, line, wave=0.02), Band(0.28, 0.06, line)),
        spots=eye(0.55, 0.45, 0.135) if "h" in eyes else (),
    )
    body = Body(*ground, line, 5, antenna="feather")
    return Species(name, Wing(_OCELVERA_FORE, fore), Wing(_OCELVERA_HIND, hind), body)


# -- Lunavis: pale, with tails ---------------------------------------------------------------------

_LUNAVIS_FORE = Shape(-36, 22, (1.0, 0.94, 0.82, 0.74, 0.68, 0.56), hook=0.22)
LONG_TAIL = Shape(0, 104, (0.56, 0.62, 0.64, 0.65, 0.67, 0.74, 1.12, 1.44, 0.92, 0.56, 0.50))
SHORT_TAIL = Shape(0, 104, (0.56, 0.62, 0.64, 0.65, 0.66, 0.69, 0.80, 0.92, 0.72, 0.56, 0.50))
_PLUM, _HONEY = rgb("7c5a68"), rgb("b49a5c")


def lunavis(name: str, ground: Ground, tail: Shape, *, border: Colour | None = None) -> Species:
    """Build a Lunavis; a coloured border is wide, the ordinary one a thin dark line."""

    def eye(s: float, t: float, size: float) -> tuple[Spot, ...]:
        return (Spot(s, t, ((0.06 * size, _PLUM), (0.042 * size, GOLD), (0.018 * size, INK))),)

    fore = Pattern(
        *ground,
        veins=0.3,
        vein_colour=OLIVE,
        mottle=0.15,
        spots=eye(0.56, 0.30, 1.0),
        edge=0.07 if border else 0.02,
        edge_colour=border or _PLUM,
    )
    hind = replace(fore, spots=eye(0.60, 0.36, 1.1))
    body = Body(SNOW, CREAM, CREAM, 0, 0.105, 0.46, antenna="feather", antenna_colour=_HONEY)
    return Species(name, Wing(_LUNAVIS_FORE, fore), Wing(tail, hind), body)


# -- Cineroptis: geometers, coloured like bark -----------------------------------------------------

_CINEROPTIS_FORE = Shape(-30, 34, (0.98, 1.0, 0.96, 0.90, 0.84, 0.66))
_CINEROPTIS_HIND = Shape(2, 96, (0.66, 0.74, 0.73, 0.76, 0.72, 0.60))


def cineroptis(
    name: str,
    ground: Ground,
    lines: tuple[float, ...],
    *,
    spots: tuple[Spot, ...] = (),
    hind: Ground | None = None,
) -> Species:
    """Build a Cineroptis with wavy lines at the given s."""
    bands = tuple(Band(at, 0.04, SOOT, 0.85, wave=0.028, waves=4) for at in lines)
    fore = Pattern(
        *ground,
        bands=bands,
        spots=spots,
        veins=0.25,
        mottle=1.0,
        streaks=0.25,
        speckles=0.35,
        lunules=8,
        lunule_colour=SOOT,
        lunule_radius=0.024,
    )
    base, tip = hind or ground
    back = replace(fore, base=base, tip=tip, spots=(), bands=bands[:2])
    body = Body(*ground, ground[0], 6, 0.085, 0.56)
    return Species(name, Wing(_CINEROPTIS_FORE, fore), Wing(_CINEROPTIS_HIND, back), body)


# -- Rubrastra: burnets, black and bright ----------------------------------------------------------

_RUBRASTRA_FORE = Shape(-24, 20, (0.98, 1.0, 0.97, 0.90, 0.82, 0.70))
_RUBRASTRA_HIND = Shape(-2, 94, (0.60, 0.64, 0.62, 0.60, 0.58, 0.50))
_STEEL = (rgb("1a2226"), rgb("24343a"))


def rubrastra(
    name: str, hind: Colour, *, bands: tuple[Band, ...] = (), spots: tuple[Spot, ...] = ()
) -> Species:
    """Build a Rubrastra with bands or spots on black, and hindwings of one colour."""
    fore = Pattern(*_STEEL, bands=bands, spots=spots, veins=0.2, mottle=0.4)
    back = Pattern(hind, hind, veins=0.15, edge=0.10, edge_colour=INK)
    body = Body(INK, rgb("20282c"), INK, 3, 0.12, 0.60, antenna="club", antenna_colour=INK)
    return Species(name, Wing(_RUBRASTRA_FORE, fore), Wing(_RUBRASTRA_HIND, back), body)


# -- Striganthe: hawk moths, with long narrow wings ------------------------------------------------

_STRIGANTHE_FORE = Shape(-22, 16, (1.12, 1.08, 0.94, 0.78, 0.66, 0.56), hook=0.16)
_STRIGANTHE_HIND = Shape(-2, 76, (0.62, 0.62, 0.58, 0.54, 0.50, 0.44))


def striganthe(name: str, ground: Ground, bands: tuple[Band, ...], hind: Ground) -> Species:
    """Build a Striganthe; its hindwings show their own ground."""
    fore = Pattern(*ground, bands=bands, veins=0.15, streaks=0.6, mottle=0.6)
    back = Pattern(*hind, edge=0.12, edge_colour=UMBER, veins=0.2)
    body = Body(*ground, UMBER, 6, 0.145, 0.80)
    return Species(name, Wing(_STRIGANTHE_FORE, fore), Wing(_STRIGANTHE_HIND, back), body)


# -- Nivalba: ermines, white -----------------------------------------------------------------------

_NIVALBA_FORE = Shape(-28, 26, (0.94, 0.97, 0.95, 0.88, 0.78, 0.66))
_NIVALBA_HIND = Shape(2, 96, (0.62, 0.68, 0.68, 0.68, 0.64, 0.54))
_WHITE = (rgb("f6f4ee"), rgb("ece8de"))


def nivalba(
    name: str,
    *,
    spots: tuple[Spot, ...] = (),
    hind_spots: tuple[Spot, ...] = (),
    bands: tuple[Band, ...] = (),
) -> Species:
    """Build a Nivalba: white, with a golden abdomen and whatever black is given."""
    fore = Pattern(
        *_WHITE, bands=bands, spots=spots, veins=0.12, mottle=0.25, vein_colour=rgb("a09a8c")
    )
    back = replace(fore, spots=hind_spots, bands=())
    body = Body(SNOW, GOLD, INK, 4, 0.125, 0.56, antenna="feather", antenna_colour=SOOT)
    return Species(name, Wing(_NIVALBA_FORE, fore), Wing(_NIVALBA_HIND, back), body)


# -- Marmorisca: tiger moths, marbled --------------------------------------------------------------

_MARMORISCA_FORE = Shape(-30, 28, (0.96, 1.0, 0.98, 0.92, 0.84, 0.70))
_MARMORISCA_HIND = Shape(2, 98, (0.66, 0.72, 0.74, 0.74, 0.70, 0.58))
_CHOCOLATE = rgb("4c2e1e")
_MARBLE = (
    Band(0.25, 0.055, CREAM, slant=0.10),
    Band(0.52, 0.055, CREAM, wave=0.05, waves=1.5, zigzag=True),
    Band(0.78, 0.055, CREAM, wave=0.06, waves=2.0, zigzag=True),
    Band(0.64, 0.044, CREAM, slant=0.55),
)


def marmorisca(name: str, hind: Colour, spots: tuple[Spot, ...]) -> Species:
    """Build a Marmorisca: chocolate marbled with cream, and spots on bright hindwings."""
    fore = Pattern(_CHOCOLATE, _CHOCOLATE, bands=_MARBLE, mottle=0.4, edge=0.03, edge_colour=CREAM)
    back = Pattern(hind, hind, spots=spots, veins=0.1, edge=0.03, edge_colour=CREAM)
    body = Body(_CHOCOLATE, hind, INK, 5, 0.14, 0.60, antenna_colour=CREAM)
    return Species(name, Wing(_MARMORISCA_FORE, fore), Wing(_MARMORISCA_HIND, back), body)


# -- Aurantea: sallows, yellow with a coloured hem -------------------------------------------------

_AURANTEA_FORE = Shape(-34, 28, (1.0, 0.97, 0.88, 0.84, 0.80, 0.66), hook=0.18)
_AURANTEA_HIND = Shape(2, 98, (0.64, 0.70, 0.74, 0.70, 0.66, 0.54))


def aurantea(name: str, ground: Ground, hem: Colour, *, edge: float, band: Band) -> Species:
    """Build an Aurantea with one band and a hem that covers `edge` of the wing."""
    fore = Pattern(
        *ground,
        bands=(band,),
        edge=edge,
        edge_colour=hem,
        veins=0.15,
        vein_colour=RUST,
        speckles=0.15,
        speckle_colour=RUST,
        mottle=0.4,
    )
    back = replace(fore, speckles=0.0)
    body = Body(*ground, hem, 0, 0.10, 0.52, antenna="feather", antenna_colour=RUST)
    return Species(name, Wing(_AURANTEA_FORE, fore), Wing(_AURANTEA_HIND, back), body)
