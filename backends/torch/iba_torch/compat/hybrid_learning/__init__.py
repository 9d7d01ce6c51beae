"""The names of the package hybrid_learning 2.0 in its modules, as far as this library offers its classes.

The data sets and the classification of whole images are left out; see the migration page. For code that was
written for version 1.0, see `iba_torch.compat.hybrid_learning_v1`.
"""
