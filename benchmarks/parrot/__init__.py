"""What Parrot makes of the same work on the same engine: `python -m benchmarks.parrot CHECKOUT PYTHON`."""
