"""What policies save, on the emulated engine: `python -m benchmarks.policies`."""
