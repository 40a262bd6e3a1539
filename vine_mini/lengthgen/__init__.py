"""Length generalization (arXiv 2305.19466): decoders with position encodings, trained on short sequences, tested on long ones."""
