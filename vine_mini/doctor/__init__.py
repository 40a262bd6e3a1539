"""What this machine can do: the `doctor` command."""
