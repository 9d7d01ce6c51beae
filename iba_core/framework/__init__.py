"""What the core asks of a framework and of a model: arrays, gradients, compilation, noise, layers."""
