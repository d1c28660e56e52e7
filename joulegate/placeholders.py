r"""Text that names other calls of a run, for a gateway to put their outputs in (docs/nodes.md).

A call that has a node's name may hold `{{node:NAME}}`; what comes from users must be escaped there, or it could name
nodes too.
"""

_OPENING = "{{node:"


def output_of(node: str) -> str:
    """Where the output of the call `node` belongs. Raises ValueError for what cannot be named in a text."""
    fit = 0 < len(node) <= 200 and node.isascii() and node.isprintable() and node == node.strip()
    if not fit or "{" in node or "}" in node:
        raise ValueError(f"a node is named by 1 to 200 printable ASCII characters without braces, not {node[:60]!r}")
    return f"{_OPENING}{node}}}}}"


def escape(text: str) -> str:
    """The text so that it names no node, whatever is in it: it arrives as it was.

    Put no backslash of your own, and no text that may end in one, right before a placeholder that is to be filled.
    """
    return text.replace(_OPENING, "\\" + _OPENING)
