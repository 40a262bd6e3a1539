"""A small transformer with a choice of position encodings."""
