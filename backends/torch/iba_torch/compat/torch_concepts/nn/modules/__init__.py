"""Layers of concepts, by level."""
