"""Decisions without I/O: when a request runs, in whose company, under which power limit."""
