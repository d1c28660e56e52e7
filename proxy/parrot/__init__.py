"""Parrot behind the OpenAI API: what a plain client sends becomes a semantic call, and its answer a reply again."""
