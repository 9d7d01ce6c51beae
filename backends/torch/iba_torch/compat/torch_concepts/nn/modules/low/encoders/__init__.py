"""Layers that map inputs to concepts."""
