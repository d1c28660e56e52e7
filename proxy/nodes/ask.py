"""What a request says of named nodes: its own name, and the nodes whose outputs belong into its text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.identify import Identity
from proxy.nodes.placeholders import OPENING, Listed, fill, named, openings
from proxy.refusal import Refusal

OWN_NODE, OWN_PARENTS = "x-workflow-node", "x-workflow-parent"
MOST_NEEDS = 512  # nodes that one request may name
MOST_OPENINGS = 16_384  # escaped ones too; each takes a microsecond of the event loop


@dataclass(frozen=True, slots=True)
class Ask:
    """`name` is the request's own, `needs` says how often it names each other node.

    Where the client lists parents (`X-Workflow-Parent`), only these can be named: every other placeholder is text.
    """

    name: str
    needs: Mapping[str, int]
    listed: Listed

    def filled(self, raw: bytes, body: Mapping[str, Any], outputs: Mapping[str, str], most_bytes: int) -> bytes:
        """The request's bytes with the outputs in place; `body` is what `raw` holds, and is filled too.

        Raises Refusal (413) for more than `most_bytes`.
        """
        # Looked at before: a small body may name a large output many times.
        if len(raw) + sum(times * len(outputs[name]) for name, times in self.needs.items()) <= 2 * most_bytes:
            raw = orjson.dumps(body) if fill(body, outputs, self.listed) else raw
            if len(raw) <= most_bytes:
                return raw
        what = f"with the outputs of its nodes the body is larger than {most_bytes} bytes"
        raise Refusal(413, what, "body_too_large")


def ask(identity: Identity, body: Mapping[str, Any]) -> Ask | None:
    """What a request asks for; None where it has no `X-Workflow-Node`, since no other header names a node of ours.

    Raises Refusal (400) for one that names others without a run, or too many of them.
    """
    if identity.node is None or identity.sources.get("node") != OWN_NODE:
        return None
    if (count := openings(body)) > MOST_OPENINGS:
        message = f"a request may hold {OPENING!r} {MOST_OPENINGS} times at most, not {count} times"
        raise Refusal(400, message, "too_many_nodes")
    listed = frozenset(identity.parents) if identity.sources.get("parents") == OWN_PARENTS else None
    needs = named(body, listed) if count else {}
    if needs and identity.alone:
        message = "a call can name nodes of its own run alone: send X-Workflow-Id, the same for all calls of the run"
        raise Refusal(400, message, "node_without_run", param="X-Workflow-Id")
    if len(needs) > MOST_NEEDS:
        raise Refusal(400, f"a request may name {MOST_NEEDS} nodes at most, not {len(needs)}", "too_many_nodes")
    return Ask(identity.node, needs, listed)


def with_needs(identity: Identity, asked: Ask) -> Identity:
    """The identity with the named nodes among its parents."""
    more = [name for name in asked.needs if name not in identity.parents]
    if not more:
        return identity
    sources = identity.sources if identity.parents else {**identity.sources, "parents": "placeholders"}
    return identity._replace(parents=(*identity.parents, *more), sources=sources)
