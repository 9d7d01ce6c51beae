"""A module split at a layer: the head is recorded, the tail replayed."""
