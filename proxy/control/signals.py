"""What the gateway knows, in the words of a policy."""

from collections.abc import Iterable, Mapping

from policies.interface import DeviceSignals, EngineSignals, QueueSignals, Signals
from proxy.route import Lane


def observe(
    now: float, lanes: Iterable[Lane], power_w: Mapping[str, float], limits_w: Mapping[str, float | None]
) -> Signals:
    """The signals at `now`: gates and engines from their lanes, watts and enforced limits by device."""
    return Signals(
        now=now,
        engines={lane.name: _engine(lane) for lane in lanes},
        devices={
            name: DeviceSignals(power_w=power_w.get(name), power_limit_w=limits_w.get(name))
            for name in {*power_w, *limits_w}
        },
    )


def _engine(lane: Lane) -> EngineSignals:
    gate, sample = lane.gate, lane.sample
    return EngineSignals(
        up=lane.up,
        queues={
            name: QueueSignals(in_flight=gate.in_flight.get(name, 0), queued=gate.queued(name))
            for name in gate.workflows()
        },
        running=sample.running if sample else None,
        waiting=sample.waiting if sample else None,
        kv_usage=sample.kv_usage if sample else None,
    )
