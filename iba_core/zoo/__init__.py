"""Pretrained networks, as far as no framework is concerned: tables, weights on disk, preprocessing, names."""
