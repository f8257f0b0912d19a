"""Detectors as graphs of fixed sizes: the same numbers of boxes for every photograph."""
