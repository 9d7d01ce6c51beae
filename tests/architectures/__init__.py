"""Real architectures with random weights, explained and compared with passes of the whole model."""
