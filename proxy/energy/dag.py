"""The graph of a run's calls: its critical path, what each call could be late by, and what each cost.

The critical path method (J. E. Kelley and M. R. Walker, "Critical-path planning and scheduling", 1959): with d the
seconds that a call took, a call's earliest finish is d after the last earliest finish of its parents; its latest finish
is the first latest start (latest finish less d) of those that follow from it, or the end of the whole; its slack is
latest less earliest finish. The critical path is a chain without slack from a beginning to the end.

A call's seconds count from when nothing of its run held it any more, so from the end of its last parent where an engine
was given it before: a wait at the gate is in them, a wait for its parents is not, and neither is what a client did
between two calls. So the path's seconds are what the run takes at
least with these calls.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One request that ended. `name` is its node's, or else its id; `parents` are such names, or ids of requests.

    `began` is when it could begin (its turn to queue); times are Unix seconds. `joules` are null where not known.
    """

    id: str
    name: str
    step: str
    parents: tuple[str, ...]
    began: float
    ended: float
    joules: float | None
    answered: bool


@dataclass(frozen=True, slots=True)
class Place:
    """A node of the graph. `joules` are those of all calls of that name, which is more than one where some failed."""

    step: str
    parents: tuple[str, ...]
    seconds: float
    slack_s: float
    joules: float | None


@dataclass(frozen=True, slots=True)
class Dag:
    """A run's graph; `critical_path` in its order, `critical_path_s` what its calls took one after the other."""

    critical_path: tuple[str, ...]
    critical_path_s: float
    critical_path_joules: float | None
    nodes: Mapping[str, Place]


def dag(calls: Sequence[Call]) -> Dag | None:
    """The graph of these calls, null for none.

    Of several calls of one name that counts which was answered, the last of them. A parent that is unknown, or ended
    later than its child, is none.
    """
    joules: dict[str, float | None] = {}
    chosen: dict[str, Call] = {}
    for call in sorted(calls, key=lambda call: (call.answered, call.ended)):
        chosen[call.name] = call
        joules[call.name] = _sum((joules.get(call.name), call.joules))
    if not chosen:
        return None
    name_of = {call.id: call.name for call in calls} | {name: name for name in chosen}
    parents: dict[str, tuple[str, ...]] = {}
    for call in sorted(chosen.values(), key=lambda call: call.ended):  # parents are before their children, then
        names = dict.fromkeys(name_of[parent] for parent in call.parents if parent in name_of)
        parents[call.name] = tuple(name for name in names if name in parents)
    seconds = {
        name: max(0.0, chosen[name].ended - max([chosen[name].began, *(chosen[one].ended for one in above)]))
        for name, above in parents.items()
    }
    earliest: dict[str, float] = {}  # finish
    for name, above in parents.items():
        earliest[name] = max((earliest[one] for one in above), default=0.0) + seconds[name]
    end = max(earliest.values())
    latest = dict.fromkeys(parents, end)
    for name in reversed(parents):
        for one in parents[name]:
            latest[one] = min(latest[one], latest[name] - seconds[name])
    path = [max(earliest, key=earliest.__getitem__)]
    while above := parents[path[-1]]:
        path.append(max(above, key=earliest.__getitem__))
    places = {
        name: Place(chosen[name].step, above, seconds[name], max(0.0, latest[name] - earliest[name]), joules[name])
        for name, above in parents.items()
    }
    return Dag(tuple(reversed(path)), end, _sum(joules[name] for name in path), places)


def _sum(joules: Iterable[float | None]) -> float | None:
    """Whole microjoules stay whole; null where nothing is known."""
    known = [one for one in joules if one is not None]
    return round(sum(known), 6) if known else None
