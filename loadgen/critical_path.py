"""Which requests of a run its latency hangs on: the chain of calls, each waited for by the next, that ended last."""

from collections.abc import Sequence

from loadgen.record import RequestRecord


def critical_path(requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    """The requests of one run on its critical path, in their order.

    From the one that ended last, back each time to the one among those it had waited for that ended last.
    """
    by_node = {request.node: request for request in requests}
    path: list[RequestRecord] = []
    waited: list[RequestRecord] = list(requests)
    while waited:
        last = max(waited, key=lambda request: request.ended_s)
        path.append(last)
        waited = [by_node[node] for node in (*last.parents, *last.after) if node in by_node]
    return path[::-1]
