"""TensorFlow backend."""
