"""What a command line needs: settings, runs, checkpoints, pictures."""
