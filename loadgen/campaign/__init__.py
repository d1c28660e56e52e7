"""Campaigns: a grid of knobs over workloads, repeated, in random order, kept on disk as it grows."""
