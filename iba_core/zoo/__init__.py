"""Pretrained networks: the parts that do not depend on a framework (tables, weights, preprocessing, names)."""
