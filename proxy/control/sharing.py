"""How much of a prompt other prompts of the same workflow begin with too. Sampled, bounded, and never text.

Prompts are compared block by block by hashes (`proxy.affinity`); what is not a whole block counts for nothing.
"""

from collections.abc import Mapping
from typing import Any

from proxy.affinity import PrefixAffinity, Trait

EVERY_S = 0.2  # so seldom a workflow's prompts are looked at
_ENTRIES = 20_000  # beginnings that are remembered, of all workflows
_MEMORY = 0.1  # what one more prompt counts


class Sharing:
    """By workflow, of all its tenants apart: a prefix cache may not be shared between them."""

    def __init__(self) -> None:
        self._seen = PrefixAffinity(_ENTRIES)
        self._looked: dict[str, float] = {}
        self._part: dict[str, float] = {}
        self._blocks: dict[str, float] = {}

    def look(self, workflow: str, tenant: str, body: Mapping[str, Any], now: float) -> None:
        """Take a prompt in, where the last one of the workflow is long enough ago."""
        before = self._looked.get(workflow)
        if before is not None and now - before < EVERY_S:
            return
        self._looked[workflow] = now
        trait = self._trait(workflow, tenant, body)
        known = self._seen.known(trait).get(workflow, 0)
        self._seen.went(trait, workflow)
        if before is None:  # it had nothing to be compared with
            return
        part = known / len(trait) if trait else 0.0
        first = workflow not in self._part
        self._part[workflow] = part if first else (1 - _MEMORY) * self._part[workflow] + _MEMORY * part
        self._blocks[workflow] = known if first else (1 - _MEMORY) * self._blocks[workflow] + _MEMORY * known

    def part(self, workflow: str) -> float | None:
        """The part of a prompt (0 to 1) that is shared, on average; None while fewer than two prompts were seen."""
        return self._part.get(workflow)

    def prefix(self, workflow: str, tenant: str, body: Mapping[str, Any]) -> int:
        """A number for the beginning that a prompt shares with others of its workflow, 0 where they share none."""
        shared = round(self._blocks.get(workflow, 0.0))
        trait = self._trait(workflow, tenant, body) if shared else ()
        return trait[min(shared, len(trait)) - 1] if trait else 0

    def _trait(self, workflow: str, tenant: str, body: Mapping[str, Any]) -> Trait:
        return self._seen.trait(f"{workflow}\0{tenant}", "", body)
