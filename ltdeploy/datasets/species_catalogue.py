"""The twenty-eight invented moths, the most frequent first.

The species of a genus share a shape and a palette and differ in one or two details of the pattern.
Every genus has frequent and rare members, so a rare moth always has a common look-alike.
"""

from __future__ import annotations

from .species_genera import (
    BLUSH,
    COBALT,
    CREAM,
    CRIMSON,
    EMBER,
    GOLD,
    INK,
    LONG_TAIL,
    ROSE,
    RUST,
    SHORT_TAIL,
    SNOW,
    UMBER,
    Ground,
    Species,
    aurantea,
    cineroptis,
    dots,
    lunavis,
    marmorisca,
    nivalba,
    ocelvera,
    rgb,
    rubrastra,
    striganthe,
)
from .species_wings import Band

__all__ = ["CATALOGUE"]


def _ground(base: str, tip: str) -> Ground:
    return rgb(base), rgb(tip)


_PEACOCK, _DUSK = _ground("7a5436", "c09462"), _ground("4e4248", "8c7c80")
_ASH, _IRON = _ground("847a6e", "b0a698"), _ground("c06a38", "c06a38")
_WOOD, _FAWN, _MOSS = (
    _ground("6e5640", "a88a66"),
    _ground("8a6a4c", "b89470"),
    _ground("5c6c3c", "94a062"),
)
_CELADON = _ground("cfe2a6", "b4d494")
_LEMON, _SAFFRON = _ground("f0d04a", "ecc046"), _ground("e8963a", "e0a04c")

_SIX = ((0.26, 0.30), (0.28, 0.74), (0.52, 0.28), (0.55, 0.70), (0.78, 0.36), (0.78, 0.68))
_FOUR = (_SIX[0], _SIX[2], _SIX[3], _SIX[5])
_ERMINE = tuple(
    (s, (k + 0.5) / row)
    for s, row in ((0.34, 2), (0.55, 3), (0.76, 4), (0.92, 5))
    for k in range(row)
)
_LEOPARD = dots(rgb("20284a"), 0.075, (0.40, 0.35), (0.72, 0.22), (0.74, 0.50), (0.70, 0.78))
_SLASH = (Band(0.62, 0.05, UMBER, slant=0.3),)
_SILVER = (Band(0.62, 0.07, SNOW, slant=0.3), Band(0.30, 0.05, SNOW, slant=0.3))
_BELTS = (Band(0.36, 0.10, CREAM), Band(0.68, 0.10, CREAM, slant=-0.08))
_SCRIPT = tuple(Band(at, 0.03, INK, 0.85, wave=0.028, waves=4) for at in (0.40, 0.72))
_ROSE_LINE, _ROSE_ZONE, _RUST_LINE = (
    Band(0.45, 0.05, ROSE, slant=-0.1),
    Band(0.52, 0.20, ROSE, slant=-0.1),
    Band(0.45, 0.05, RUST, slant=-0.1),
)

CATALOGUE: tuple[Species, ...] = (
    ocelvera("Ocelvera regina", _PEACOCK, UMBER, "fh", GOLD, COBALT),
    cineroptis("Cineroptis undata", _ASH, (0.32, 0.55, 0.78)),
    rubrastra("Rubrastra sexnotata", CRIMSON, spots=dots(CRIMSON, 0.062, *_SIX)),
    lunavis("Lunavis serena", _CELADON, LONG_TAIL),
    striganthe("Striganthe lignea", _WOOD, _SLASH, _FAWN),
    marmorisca("Marmorisca caesarea", EMBER, _LEOPARD),
    nivalba(
        "Nivalba punctella",
        spots=dots(INK, 0.026, *_ERMINE),
        hind_spots=dots(INK, 0.03, (0.55, 0.4)),
    ),
    aurantea("Aurantea citrina", _LEMON, ROSE, edge=0.16, band=_ROSE_LINE),
    ocelvera("Ocelvera monocula", _PEACOCK, UMBER, "h", GOLD, COBALT),
    cineroptis("Cineroptis bilinea", _ASH, (0.32, 0.78)),
    rubrastra("Rubrastra bifasciata", CRIMSON, bands=_BELTS),
    striganthe("Striganthe rosea", _WOOD, _SLASH, (ROSE, BLUSH)),
    lunavis("Lunavis brevis", _CELADON, SHORT_TAIL),
    marmorisca("Marmorisca hebe", CRIMSON, _LEOPARD),
    aurantea("Aurantea zonata", _LEMON, ROSE, edge=0.06, band=_ROSE_ZONE),
    nivalba("Nivalba pura", spots=dots(INK, 0.034, (0.5, 0.4))),
    ocelvera("Ocelvera vespera", _DUSK, INK, "fh", CREAM, RUST),
    cineroptis("Cineroptis lunata", _ASH, (0.32, 0.78), spots=dots(SNOW, 0.085, (0.56, 0.38))),
    striganthe("Striganthe viridis", _MOSS, _SLASH, _FAWN),
    rubrastra("Rubrastra quadripuncta", CRIMSON, spots=dots(CRIMSON, 0.062, *_FOUR)),
    marmorisca("Marmorisca nuda", EMBER, ()),
    lunavis("Lunavis rosalba", _CELADON, LONG_TAIL, border=ROSE),
    nivalba("Nivalba lineola", bands=_SCRIPT),
    aurantea("Aurantea crocea", _SAFFRON, RUST, edge=0.16, band=_RUST_LINE),
    ocelvera("Ocelvera caeca", _PEACOCK, UMBER, "f", GOLD, COBALT),
    cineroptis("Cineroptis ferrea", _ASH, (0.32, 0.55, 0.78), hind=_IRON),
    rubrastra("Rubrastra flavida", GOLD, spots=dots(GOLD, 0.062, *_SIX)),
    striganthe("Striganthe argentea", _WOOD, _SILVER, _FAWN),
)
