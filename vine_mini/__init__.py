"""VinePPO (arXiv 2410.01679v2, whose sections the docstrings cite) and its on-policy baselines, small enough to read in an afternoon."""

__version__ = "0.2.0"
