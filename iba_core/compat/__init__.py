"""The maps of this library in the form that other tools ask for, for models of every framework."""
