"""How wrong are the values? A critic and Monte Carlo values against the truth, at the states of real trajectories."""
