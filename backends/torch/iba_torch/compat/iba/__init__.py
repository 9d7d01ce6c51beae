"""The names of the package IBA, for PyTorch, in its modules `pytorch`, `pytorch_readout` and `utils`."""
