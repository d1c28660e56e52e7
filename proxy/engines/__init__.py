"""Serving engines: one file a kind."""
