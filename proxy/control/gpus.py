"""The knobs of all hosts."""

from collections.abc import Mapping

from proxy.config import Host
from proxy.control.knobs import Knob, Knobs, PowerKnob
from proxy.control.local_knobs import local_knobs
from proxy.control.zeusd_knobs import zeusd_knobs


def open_knobs(hosts: Mapping[str, Host]) -> Knobs:
    """The knobs of every GPU that can be reached now. What cannot be reached is logged."""
    power: dict[str, PowerKnob] = {}
    sm_clock: dict[str, Knob] = {}
    for host, settings in hosts.items():
        if settings.local:
            found = local_knobs(host)
        elif settings.zeusd:
            found = zeusd_knobs(host, settings.zeusd)
        else:
            continue
        power |= found.power
        sm_clock |= found.sm_clock
    return Knobs(power, sm_clock)
