"""Detectors: architectures, checkpoints, heads, and what their parts give before suppression."""
