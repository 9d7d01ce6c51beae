"""The version of the package, for all that writes it into files."""

VERSION = "0.1.0"
