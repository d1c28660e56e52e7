"""The admission queue in front of one engine: when a request runs, and in whose company.

Sans-I/O: requests arrive as tickets, and every call returns the tickets that may go now. Within a workflow the order is
first come, first served; a workflow at its limit does not hold up the others.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


class QueueFull(Exception):
    """The queue has as many tickets as it may hold."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One attempt's place: in the queue, then in flight, then gone."""

    workflow: str
    number: int = 0
    released: bool = False
    gone: bool = False


@dataclass(slots=True)
class Gate:
    """Limits count requests: `limit` over all, `limits` per workflow, `capacity` those that may queue; None is none."""

    capacity: int
    limit: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    queues: dict[str, deque[Ticket]] = field(default_factory=dict)
    total: int = 0  # in flight
    waiting: int = 0
    arrivals: int = 0

    def arrive(self, ticket: Ticket) -> bool:
        """Take a ticket in; True when it may go at once. Raises QueueFull."""
        self.arrivals += 1
        ticket.number = self.arrivals
        if self._has_room(ticket.workflow) and ticket.workflow not in self.queues:
            self._release(ticket)
            return True
        if self.waiting >= self.capacity:
            ticket.gone = True
            raise QueueFull
        self.queues.setdefault(ticket.workflow, deque()).append(ticket)
        self.waiting += 1
        return False

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """A ticket is done, or gives up waiting; returns those that may go now. Leaving twice changes nothing."""
        if ticket.gone:
            return []
        ticket.gone = True
        if ticket.released:
            self.total -= 1
            self.in_flight[ticket.workflow] -= 1
            if not self.in_flight[ticket.workflow]:
                del self.in_flight[ticket.workflow]
        else:
            self._unqueue(ticket)
        return self._admit()

    def set_limits(self, limit: int | None, limits: Mapping[str, int]) -> list[Ticket]:
        """Change the limits; returns the tickets that may go now. Narrowing waits for those in flight to leave."""
        self.limit, self.limits = limit, dict(limits)
        return self._admit()

    def queued(self, workflow: str) -> int:
        return len(self.queues.get(workflow, ()))

    def workflows(self) -> set[str]:
        """The workflows that have a ticket here or a limit."""
        return {*self.in_flight, *self.queues, *self.limits}

    def _has_room(self, workflow: str) -> bool:
        if self.limit is not None and self.total >= self.limit:
            return False
        own = self.limits.get(workflow)
        return own is None or self.in_flight.get(workflow, 0) < own

    def _unqueue(self, ticket: Ticket) -> None:
        queue = self.queues[ticket.workflow]
        queue.remove(ticket)
        if not queue:
            del self.queues[ticket.workflow]
        self.waiting -= 1

    def _release(self, ticket: Ticket) -> None:
        ticket.released = True
        self.total += 1
        self.in_flight[ticket.workflow] = self.in_flight.get(ticket.workflow, 0) + 1

    def _admit(self) -> list[Ticket]:
        released: list[Ticket] = []
        while self.waiting:
            heads = [queue[0] for name, queue in self.queues.items() if self._has_room(name)]
            if not heads:
                break
            ticket = min(heads, key=lambda head: head.number)
            self._unqueue(ticket)
            self._release(ticket)
            released.append(ticket)
        return released
