"""Layers of the low level."""
