"""Length generalization: small decoders with six position encodings, trained on short sequences and tested on long ones."""
