"""The bottlenecks as PyTorch modules."""
