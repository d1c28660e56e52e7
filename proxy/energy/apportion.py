"""Engines that each have a known part of a device: their plans made one.

Inside of an engine's part its own plan holds; the band of a share is that plan's, for the part itself is measured.
"""

from collections.abc import Sequence

import numpy as np

from proxy.energy.share import Floats, Plan


def apportion(known: Sequence[tuple[Plan, float]], others: Plan | None, busy: float) -> Plan:
    """One plan of `known`, each with its part of what is busy (0 to 1), and of `others`, who share what is left.

    Without others what is left is foreign, and so is an engine's part that none of its requests can have.
    """
    too_much = max(1.0, sum(part for _, part in known))  # ticks of CPU time may sum to a little more than all
    plans = [(plan, part / too_much) for plan, part in known]
    left = max(0.0, 1.0 - sum(part for _, part in plans))
    if others is not None:
        plans.append((others, left))
    alone = plans[0][0].alone if len(plans) == 1 else None
    rows = [_of_whole(plan, part) for plan, part in plans]
    ours = [len(plan.parts) for plan, _ in plans]
    # Requests come first, and then who is foreign.
    foreign = sum(float(row[0, n:].sum()) for row, n in zip(rows, ours, strict=True)) + (0.0 if others else left)
    table = np.concatenate([*(row[:, :n] for row, n in zip(rows, ours, strict=True)), np.full((3, 1), foreign)], axis=1)
    parts = [one for plan, _ in plans for one in plan.parts]
    return Plan(parts, *table, busy=busy, alone=alone, part=plans[0][1] if alone else 1.0)


def _of_whole(plan: Plan, part: float) -> Floats:
    """A plan's rows (weights, lows, highs) as parts of everything that is busy; one without any is nobody's."""
    if not plan.weights.size:
        return np.full((3, 1), part)
    return part * np.stack((plan.weights / plan.weights.sum(), plan.lows, plan.highs))
