"""Checkpoints: from a file to a network with an explicit head."""
