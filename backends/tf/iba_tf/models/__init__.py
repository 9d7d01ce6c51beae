"""Everything that becomes a graph: Keras models, functions, sessions, frozen graphs, files."""
