"""Values of tunable parameters that ``auto`` tries, where several fixes share them."""

__all__ = ["POWERS", "RIDGES", "STRENGTHS"]

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(41))
"""τ = 0, 0.05, … 2."""

POWERS = tuple(round(0.1 * step, 1) for step in range(16))
"""γ = 0, 0.1, … 1.5: of detectors, where every value tried is an evaluation of all boxes."""

RIDGES = (1.0, 0.1, 0.01, 0.001)
"""Strengths of an L2 penalty, from the mildest fix to the freest one."""
