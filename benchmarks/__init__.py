"""Measurements that stand in results/ and the README; each module is run with `python -m benchmarks.<name>`."""
