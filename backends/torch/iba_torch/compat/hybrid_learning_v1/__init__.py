"""The names of the package hybrid_learning 1.0 (2020) in its modules, as far as this library offers them."""
