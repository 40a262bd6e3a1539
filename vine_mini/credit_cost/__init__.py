"""What Monte Carlo credit costs and what it is worth, measured on the user's own policy: `python -m vine_mini credit-cost`."""
