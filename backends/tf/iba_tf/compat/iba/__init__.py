"""The names of the package IBA, for TensorFlow, in its modules `tensorflow_v1` and `utils`."""
