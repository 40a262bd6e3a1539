"""VinePPO (arXiv 2410.01679) and its on-policy baselines, small enough to read in an afternoon."""

__version__ = "0.2.0"
