"""The twenty-eight invented moths, the most frequent first.

Eight genera share a shape and a palette; their species differ in one or two details of the pattern.
Every genus has frequent and rare members, so a rare moth always has a common look-alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .species_wings import Band, Body, Colour, Pattern, Shape, Spot, Wing

__all__ = ["CATALOGUE", "Species"]


@dataclass(frozen=True)
class Species:
    """Name and anatomy of a moth."""

    name: str
    fore: Wing
    hind: Wing
    body: Body


def _rgb(code: str) -> Colour:
    return int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16)


_INK, _SOOT, _UMBER, _COCOA = _rgb("1c1614"), _rgb("322a28"), _rgb("3e2616"), _rgb("5a3a24")
_CREAM, _SNOW, _STRAW, _GOLD = _rgb("f2e4c4"), _rgb("f4f2ec"), _rgb("e6cf96"), _rgb("f0b83c")
_EMBER, _CRIMSON, _ROSE, _BLUSH = _rgb("de6a28"), _rgb("c22632"), _rgb("d4748c"), _rgb("ecb8b4")
_COBALT, _SKY, _OLIVE, _RUST = _rgb("283a78"), _rgb("8cb4d8"), _rgb("76743e"), _rgb("a4502a")


def _eye(s: float, t: float, radius: float, iris: Colour, pupil: Colour) -> Spot:
    return Spot(
        s,
        t,
        ((radius, _INK), (radius * 0.76, iris), (radius * 0.46, pupil), (radius * 0.16, _SNOW)),
    )


def _dots(colour: Colour, radius: float, *places: tuple[float, float]) -> tuple[Spot, ...]:
    return tuple(Spot(s, t, ((radius, colour),), stretch=1.15) for s, t in places)


# -- Ocelvera: emperor-like, an eye on every wing --------------------------------------------------

_OCELVERA_FORE = Shape(-38, 26, (0.98, 1.0, 0.95, 0.87, 0.76, 0.62), hook=0.12)
_OCELVERA_HIND = Shape(-2, 98, (0.62, 0.74, 0.76, 0.77, 0.75, 0.62))


def _ocelvera(
    name: str, base: str, tip: str, line: Colour, eyes: str, iris: Colour, pupil: Colour,
    *, lunules: int = 7,
) -> Species:
    fore = Pattern(
        _rgb(base), _rgb(tip), veins=0.35, edge=0.05, edge_colour=line, lunules=lunules,
        bands=(
            Band(0.76, 0.055, line, wave=0.025, waves=3.5, zigzag=True),
            Band(0.30, 0.05, line, wave=0.02),
        ),
        spots=(_eye(0.55, 0.38, 0.125, iris, pupil),) if "f" in eyes else (),
    )
    hind = Pattern(
        _rgb(base), _rgb(tip), veins=0.3, edge=0.05, edge_colour=line,
        bands=(Band(0.80, 0.06, line, wave=0.02), Band(0.28, 0.06, line)),
        spots=(_eye(0.55, 0.45, 0.135, iris, pupil),) if "h" in eyes else (),
    )
    body = Body(_rgb(base), _rgb(tip), line, 5, antenna="feather")
    return Species(name, Wing(_OCELVERA_FORE, fore), Wing(_OCELVERA_HIND, hind), body)


# -- Lunavis: pale, with tails ---------------------------------------------------------------------

_LUNAVIS_FORE = Shape(-36, 22, (1.0, 0.94, 0.82, 0.74, 0.68, 0.56), hook=0.22)
_LONG_TAIL = Shape(0, 104, (0.56, 0.62, 0.64, 0.68, 0.84, 1.28, 1.22, 0.66, 0.50))
_SHORT_TAIL = Shape(0, 104, (0.56, 0.62, 0.64, 0.67, 0.76, 0.90, 0.84, 0.64, 0.50))


def _lunavis(
    name: str, base: str, tip: str, costa: Colour, iris: Colour, tail: Shape,
    *, border: Colour | None = None, line: bool = False,
) -> Species:
    bands = (Band(0.70, 0.03, costa, opacity=0.8, slant=-0.04),) if line else ()
    rim = {"edge": 0.07, "edge_colour": border} if border else {"edge": 0.02, "edge_colour": costa}
    fore = Pattern(
        _rgb(base), _rgb(tip), veins=0.3, vein_colour=_OLIVE, mottle=0.15, bands=bands,
        spots=(Spot(0.56, 0.30, ((0.06, costa), (0.042, iris), (0.018, _INK))),), **rim,  # type: ignore[arg-type]
    )
    hind = replace(
        fore, bands=bands, spots=(Spot(0.60, 0.36, ((0.065, costa), (0.046, iris), (0.02, _INK))),)
    )
    body = Body(_SNOW, _CREAM, _CREAM, width=0.105, length=0.46, antenna="feather",
                antenna_colour=_rgb("b49a5c"))
    return Species(name, Wing(_LUNAVIS_FORE, fore), Wing(tail, hind), body)


# -- Cineroptis: bark-coloured geometers -----------------------------------------------------------

_CINEROPTIS_FORE = Shape(-30, 34, (0.98, 1.0, 0.96, 0.90, 0.84, 0.66))
_CINEROPTIS_HIND = Shape(6, 96, (0.66, 0.74, 0.73, 0.76, 0.72, 0.60))


def _cineroptis(
    name: str, base: str, tip: str, bands: tuple[Band, ...],
    *, spots: tuple[Spot, ...] = (), hind: str | None = None, speckles: float = 0.35,
) -> Species:
    fore = Pattern(
        _rgb(base), _rgb(tip), bands=bands, spots=spots, veins=0.25, mottle=1.0, streaks=0.25,
        speckles=speckles, lunules=8, lunule_colour=_SOOT, lunule_radius=0.024,
    )
    back = replace(
        fore, spots=(), bands=bands[:2],
        base=_rgb(hind) if hind else fore.base, tip=_rgb(hind) if hind else fore.tip,
    )
    body = Body(_rgb(base), _rgb(tip), _SOOT, 6, width=0.085, length=0.56)
    return Species(name, Wing(_CINEROPTIS_FORE, fore), Wing(_CINEROPTIS_HIND, back), body)


# -- Rubrastra: burnets, black and red -------------------------------------------------------------

_RUBRASTRA_FORE = Shape(-24, 20, (0.98, 1.0, 0.97, 0.90, 0.82, 0.70))
_RUBRASTRA_HIND = Shape(4, 92, (0.60, 0.64, 0.62, 0.60, 0.58, 0.50))


def _rubrastra(
    name: str, fore_bands: tuple[Band, ...], spots: tuple[Spot, ...], hind: Colour,
    *, rim: float = 0.10, belt: Colour = _INK,
) -> Species:
    fore = Pattern(
        _rgb("1a2226"), _rgb("24343a"), bands=fore_bands, spots=spots, veins=0.2, mottle=0.4
    )
    back = Pattern(hind, hind, veins=0.15, edge=rim, edge_colour=_INK)
    body = Body(_INK, _rgb("20282c"), belt, 3, width=0.12, length=0.60, antenna="club",
                antenna_colour=_INK)
    return Species(name, Wing(_RUBRASTRA_FORE, fore), Wing(_RUBRASTRA_HIND, back), body)


# -- Striganthe: hawk moths, long narrow wings -----------------------------------------------------

_STRIGANTHE_FORE = Shape(-22, 16, (1.12, 1.08, 0.94, 0.78, 0.66, 0.56), hook=0.16)
_STRIGANTHE_HIND = Shape(4, 74, (0.62, 0.62, 0.58, 0.54, 0.50, 0.44))


def _striganthe(
    name: str, base: str, tip: str, bands: tuple[Band, ...], hind_base: Colour, hind_tip: Colour,
    *, stripe: Colour = _UMBER, spots: tuple[Spot, ...] = (),
) -> Species:
    fore = Pattern(
        _rgb(base), _rgb(tip), bands=bands, spots=spots, veins=0.15, streaks=0.6, mottle=0.6
    )
    back = Pattern(hind_base, hind_tip, edge=0.12, edge_colour=stripe, veins=0.2)
    body = Body(_rgb(base), _rgb(tip), stripe, 6, width=0.145, length=0.80)
    return Species(name, Wing(_STRIGANTHE_FORE, fore), Wing(_STRIGANTHE_HIND, back), body)


# -- Nivalba: ermines, white -----------------------------------------------------------------------

_NIVALBA_FORE = Shape(-28, 26, (0.94, 0.97, 0.95, 0.88, 0.78, 0.66))
_NIVALBA_HIND = Shape(2, 96, (0.62, 0.68, 0.68, 0.68, 0.64, 0.54))
_ERMINE = tuple((s, t) for s, row in ((0.34, 2), (0.55, 3), (0.76, 4), (0.92, 5))
                for t in ((k + 0.5) / row for k in range(row)))


def _nivalba(
    name: str, abdomen: Colour, *, spots: tuple[Spot, ...] = (), bands: tuple[Band, ...] = (),
    hind_spots: tuple[Spot, ...] = (), tip: str = "ece8de",
) -> Species:
    fore = Pattern(
        _rgb("f6f4ee"), _rgb(tip), bands=bands, spots=spots, veins=0.12, mottle=0.25,
        vein_colour=_rgb("a09a8c"),
    )
    back = replace(fore, spots=hind_spots, bands=())
    body = Body(_SNOW, abdomen, _INK, 4, width=0.125, length=0.56, antenna="feather",
                antenna_colour=_SOOT)
    return Species(name, Wing(_NIVALBA_FORE, fore), Wing(_NIVALBA_HIND, back), body)


# -- Marmorisca: tiger moths, marbled --------------------------------------------------------------

_MARMORISCA_FORE = Shape(-30, 28, (0.96, 1.0, 0.98, 0.92, 0.84, 0.70))
_MARMORISCA_HIND = Shape(2, 98, (0.66, 0.72, 0.74, 0.74, 0.70, 0.58))


def _marmorisca(
    name: str, ground: str, net: Colour, bands: tuple[Band, ...], hind: Colour,
    hind_spots: tuple[Spot, ...],
) -> Species:
    fore = Pattern(_rgb(ground), _rgb(ground), bands=bands, mottle=0.4, edge=0.03, edge_colour=net)
    back = Pattern(hind, hind, spots=hind_spots, veins=0.1, edge=0.03, edge_colour=_CREAM)
    body = Body(_rgb(ground), hind, _INK, 5, width=0.14, length=0.60, antenna_colour=_CREAM)
    return Species(name, Wing(_MARMORISCA_FORE, fore), Wing(_MARMORISCA_HIND, back), body)


def _net(colour: Colour, width: float) -> tuple[Band, ...]:
    return (
        Band(0.25, width, colour, slant=0.10),
        Band(0.52, width, colour, wave=0.05, waves=1.5, zigzag=True),
        Band(0.78, width, colour, wave=0.06, waves=2.0, zigzag=True),
        Band(0.64, width * 0.8, colour, slant=0.55),
    )


# -- Aurantea: sallows, yellow and pink ------------------------------------------------------------

_AURANTEA_FORE = Shape(-34, 28, (1.0, 0.97, 0.88, 0.84, 0.80, 0.66), hook=0.18)
_AURANTEA_HIND = Shape(2, 98, (0.64, 0.70, 0.74, 0.70, 0.66, 0.54))


def _aurantea(
    name: str, base: str, tip: str, bands: tuple[Band, ...], *, edge: float, edge_colour: Colour,
    veins: float = 0.15, spots: tuple[Spot, ...] = (),
) -> Species:
    fore = Pattern(
        _rgb(base), _rgb(tip), bands=bands, spots=spots, edge=edge, edge_colour=edge_colour,
        veins=veins, vein_colour=_RUST, speckles=0.15, speckle_colour=_RUST, mottle=0.4,
    )
    back = replace(fore, spots=(), bands=bands[:1], speckles=0.0)
    body = Body(_rgb(base), _rgb(tip), edge_colour, 0, width=0.10, length=0.52, antenna="feather",
                antenna_colour=_RUST)
    return Species(name, Wing(_AURANTEA_FORE, fore), Wing(_AURANTEA_HIND, back), body)


def _wavy(*places: float, colour: Colour = _SOOT, width: float = 0.04) -> tuple[Band, ...]:
    return tuple(Band(at, width, colour, 0.85, wave=0.028, waves=4) for at in places)


_LEOPARD = _dots(_rgb("20284a"), 0.075, (0.40, 0.35), (0.72, 0.22), (0.74, 0.50), (0.70, 0.78))
_SIX = _dots(_CRIMSON, 0.062, (0.26, 0.30), (0.28, 0.74), (0.52, 0.28), (0.55, 0.70), (0.78, 0.36),
             (0.78, 0.68))
_PALE_BELTS = (Band(0.36, 0.10, _CREAM), Band(0.68, 0.10, _CREAM, slant=-0.08))

CATALOGUE: tuple[Species, ...] = (
    _ocelvera("Ocelvera regina", "7a5436", "c09462", _UMBER, "fh", _GOLD, _COBALT),
    _cineroptis("Cineroptis undata", "847a6e", "b0a698", _wavy(0.32, 0.55, 0.78)),
    _rubrastra("Rubrastra sexnotata", (), _SIX, _CRIMSON),
    _lunavis("Lunavis serena", "cfe2a6", "b4d494", _rgb("7c5a68"), _GOLD, _LONG_TAIL),
    _striganthe("Striganthe lignea", "6e5640", "a88a66", (Band(0.62, 0.05, _UMBER, slant=0.3),),
                _rgb("8a6a4c"), _rgb("b89470")),
    _marmorisca("Marmorisca caesarea", "4c2e1e", _CREAM, _net(_CREAM, 0.055), _EMBER, _LEOPARD),
    _nivalba("Nivalba punctella", _GOLD, spots=_dots(_INK, 0.026, *_ERMINE),
             hind_spots=_dots(_INK, 0.03, (0.55, 0.4))),
    _aurantea("Aurantea citrina", "f0d04a", "ecc046", (Band(0.45, 0.05, _ROSE, slant=-0.1),),
              edge=0.16, edge_colour=_ROSE),
    _ocelvera("Ocelvera monocula", "7a5436", "c09462", _UMBER, "h", _GOLD, _COBALT),
    _cineroptis("Cineroptis bilinea", "847a6e", "b0a698", _wavy(0.32, 0.78)),
    _rubrastra("Rubrastra bifasciata", _PALE_BELTS, (), _CRIMSON),
    _striganthe("Striganthe rosea", "6e5640", "a88a66", (Band(0.62, 0.05, _UMBER, slant=0.3),),
                _ROSE, _BLUSH),
    _lunavis("Lunavis brevis", "cfe2a6", "b4d494", _rgb("7c5a68"), _GOLD, _SHORT_TAIL),
    _marmorisca("Marmorisca hebe", "4c2e1e", _CREAM, _net(_CREAM, 0.055), _CRIMSON, _LEOPARD),
    _aurantea("Aurantea zonata", "f0d04a", "ecc046", (Band(0.52, 0.20, _ROSE, slant=-0.1),),
              edge=0.06, edge_colour=_ROSE),
    _nivalba("Nivalba pura", _GOLD, spots=_dots(_INK, 0.034, (0.5, 0.4))),
    _ocelvera("Ocelvera vespera", "4e4248", "8c7c80", _INK, "fh", _CREAM, _RUST),
    _cineroptis("Cineroptis lunata", "847a6e", "b0a698", _wavy(0.32, 0.78),
                spots=_dots(_SNOW, 0.085, (0.56, 0.38))),
    _striganthe("Striganthe viridis", "5c6c3c", "94a062", (Band(0.62, 0.05, _UMBER, slant=0.3),),
                _rgb("8a6a4c"), _rgb("b89470")),
    _rubrastra("Rubrastra quadripuncta", (), _SIX[:1] + _SIX[2:4] + _SIX[5:], _CRIMSON),
    _marmorisca("Marmorisca nuda", "4c2e1e", _CREAM, _net(_CREAM, 0.055), _EMBER, ()),
    _lunavis("Lunavis rosalba", "cfe2a6", "b4d494", _rgb("7c5a68"), _GOLD, _LONG_TAIL,
             border=_ROSE),
    _nivalba("Nivalba lineola", _GOLD, bands=_wavy(0.40, 0.72, width=0.03, colour=_INK)),
    _aurantea("Aurantea crocea", "e8963a", "e0a04c", (Band(0.45, 0.05, _RUST, slant=-0.1),),
              edge=0.16, edge_colour=_RUST),
    _ocelvera("Ocelvera caeca", "7a5436", "c09462", _UMBER, "f", _GOLD, _COBALT),
    _cineroptis("Cineroptis ferrea", "847a6e", "b0a698", _wavy(0.32, 0.55, 0.78), hind="c06a38"),
    _rubrastra("Rubrastra flavida", (), _dots(_GOLD, 0.062, *((p.s, p.t) for p in _SIX)), _GOLD),
    _striganthe("Striganthe argentea", "6e5640", "a88a66",
                (Band(0.62, 0.07, _SNOW, slant=0.3), Band(0.30, 0.05, _SNOW, slant=0.3)),
                _rgb("8a6a4c"), _rgb("b89470")),
)
