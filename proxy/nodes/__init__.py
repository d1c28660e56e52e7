"""Named dependencies: calls of one run that take one another's outputs, sent in any order and all at once."""
