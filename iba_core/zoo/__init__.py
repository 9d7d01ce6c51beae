"""Pretrained networks, without a framework: tables, weights, preprocessing and class names."""
