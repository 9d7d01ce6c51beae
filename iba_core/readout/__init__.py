"""The readout bottleneck: formulas, the network's state, and its training."""
