"""The bottlenecks as Keras layers and as copies of models."""
