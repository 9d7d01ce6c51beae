"""The per-sample bottleneck: formulas, settings, statistics, noise, and the loop that optimises a mask."""
