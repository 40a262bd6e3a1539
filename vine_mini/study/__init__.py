"""The claims of the VinePPO paper, each measured at a scale that anyone can repeat: `python -m vine_mini study`."""
