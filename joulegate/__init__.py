"""Joulegate."""
