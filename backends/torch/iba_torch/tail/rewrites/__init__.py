"""Faster equivalents of a few modules of a tail."""
