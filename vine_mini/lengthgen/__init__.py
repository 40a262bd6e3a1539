"""Length generalization (arXiv 2305.19466): decoders with six position encodings, trained on short sequences, tested on long."""
