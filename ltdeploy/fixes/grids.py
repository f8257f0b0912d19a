"""Values of tunable parameters that ``auto`` tries, where several fixes share them."""

__all__ = ["RIDGES", "STRENGTHS"]

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(41))
"""τ = 0, 0.05, … 2."""

RIDGES = (1.0, 0.1, 0.01, 0.001)
"""Strengths of an L2 penalty, from the mildest fix to the freest one."""
