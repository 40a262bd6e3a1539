"""VinePPO and its on-policy baselines. Docstrings cite the sections of version 2 of the paper (arXiv 2410.01679v2)."""

__version__ = "0.2.0"
