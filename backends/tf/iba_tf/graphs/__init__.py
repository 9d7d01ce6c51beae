"""Graphs that can be split anywhere."""
