"""How right the split is: against exact Shapley values on the emulator (`python -m benchmarks.attribution`)."""
