"""Concepts, their models and embeddings, and how they are judged."""
