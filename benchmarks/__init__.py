"""The measurements in results/ and the README. `python -m benchmarks.<name>` runs one of them."""
