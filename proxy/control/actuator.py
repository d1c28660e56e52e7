"""Applies the power part of decisions to GPUs, and leaves every GPU as it was found."""

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from proxy.control.knobs import KnobError, NoPrivilege, PowerKnob
from proxy.control.restore import SAME_W, Found, RestoreFile, set_back

logger = logging.getLogger(__name__)


class Effect(StrEnum):
    """What became of one device's part of a decision."""

    SET = "set"  # written just now
    KEPT = "kept"  # in force already
    WAITING = "waiting"  # written too recently: it comes when the dwell time is over
    REFUSED = "refused"  # cannot be had; the reason says why
    BACK = "back"  # set back to what was found, or found to be another's now


@dataclass(frozen=True, slots=True)
class Applied:
    """One device after a decision: the watts it asks for (None: what was found), and what the hardware enforces."""

    device: str
    wanted_w: float | None
    enforced_w: float | None
    effect: Effect
    reason: str = ""

    @property
    def setting(self) -> str | None:
        """A name for what the device now works under: empty as it was found, None where nothing is new.

        In steps of 10 W: another limiter, the temperature's say, may move what is enforced by a little all the time.
        """
        if self.effect is Effect.BACK:
            return ""
        if self.effect not in (Effect.SET, Effect.KEPT) or self.enforced_w is None:
            return None
        return f"{round(self.enforced_w, -1):.0f} W"


class PowerActuator:
    """Sets power limits, at most once in `dwell_s` seconds on a device, after writing down what it found.

    Calls block for some milliseconds a device and may come from different threads. Nothing that goes wrong raises: it
    is in the result, and logged once for as long as it lasts.
    """

    def __init__(self, knobs: Mapping[str, PowerKnob], path: Path | None = None, dwell_s: float = 10.0) -> None:
        self._knobs = dict(knobs)
        self._file = RestoreFile(path)
        self._dwell_s = dwell_s
        self._found: dict[str, Found] = {}  # what we have to set back
        self._leftover: dict[str, Found] = {}  # what an earlier process had to, and could not yet be
        self._wanted_w: dict[str, float] = {}  # the limits in force
        self._written_t: dict[str, float] = {}
        self._forbidden: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._over = False
        self._mutex = threading.Lock()

    def apply(self, limits_w: Mapping[str, float], now: float) -> list[Applied]:
        """Bring the devices to these limits (watts), and those that are not named any more back to what was found.

        A limit outside of the device's range is refused, never clamped. `now` is in Unix seconds. After `restore`
        nothing is applied any more.
        """
        with self._mutex:
            if self._over:  # a call that was under way in its thread when the gateway stopped
                return []
            results = [self._apply(device, limit_w, now) for device, limit_w in limits_w.items()]
            results += [self._back(device, now) for device in list(self._found) if device not in limits_w]
            for result in results:
                self._say(result)
            return results

    def restore(self) -> list[Applied]:
        """Set every device back to what was found, whatever the dwell time, and let go of the file."""
        with self._mutex:
            self._over = True
            results = [self._back(device, None) for device in list(self._found)]
            for result in results:
                self._say(result)
            self._file.release()
            return results

    def _apply(self, device: str, limit_w: float, now: float) -> Applied:
        knob = self._knobs.get(device)
        if knob is None:
            known = ", ".join(sorted(self._knobs)) or "none"
            return Applied(device, limit_w, None, Effect.REFUSED, f"no power limit is known of it; known: {known}")
        if device in self._forbidden:
            return Applied(device, limit_w, None, Effect.REFUSED, self._forbidden[device])
        try:
            if device in self._found and abs(self._wanted_w.get(device, math.inf) - limit_w) < SAME_W:
                return Applied(device, limit_w, knob.enforced_w(), Effect.KEPT)
            if reason := _out_of_range(limit_w, knob.range_w()):
                return Applied(device, limit_w, None, Effect.REFUSED, reason)
            if self._too_soon(device, now):
                return Applied(device, limit_w, knob.enforced_w(), Effect.WAITING)
            self._written_t[device] = now
            if reason := self._note_down(device, knob, limit_w, now):
                return Applied(device, limit_w, None, Effect.REFUSED, reason)
            try:
                knob.set_limit_w(limit_w)
            except KnobError:
                self._forget_unless_ours(device, knob)
                raise
            self._wanted_w[device] = limit_w
            self._note_ours(device, limit_w, knob.get_limit_w())
            return Applied(device, limit_w, knob.enforced_w(), Effect.SET)
        except NoPrivilege as error:
            self._forbidden[device] = f"not allowed to set power limits, going on without ({error})"
            return Applied(device, limit_w, None, Effect.REFUSED, self._forbidden[device])
        except KnobError as error:
            return Applied(device, limit_w, None, Effect.REFUSED, str(error))

    def _back(self, device: str, now: float | None) -> Applied:
        """Set one device back; without a time, whatever the dwell time."""
        knob, found = self._knobs[device], self._found[device]
        try:
            if now is not None:
                if self._too_soon(device, now):
                    return Applied(device, None, knob.enforced_w(), Effect.WAITING)
                self._written_t[device] = now
            said = set_back(found, knob)
            del self._found[device]
            self._wanted_w.pop(device, None)
            self._save()
            return Applied(device, None, knob.enforced_w(), Effect.BACK, said)
        except (KnobError, OSError) as error:
            return Applied(device, None, None, Effect.REFUSED, f"not set back to {found.limit_w:g} W: {error}")

    def _too_soon(self, device: str, now: float) -> bool:
        return now - self._written_t.get(device, -math.inf) < self._dwell_s

    def _note_down(self, device: str, knob: PowerKnob, limit_w: float, now: float) -> str:
        """Write down what is found and what is about to be set; returns why not, if so. Raises KnobError."""
        try:
            if not self._file.take():
                return f"another process ({self._file.holder()}) holds the power limits"
            leftover = self._leftover if self._found else self._file.read()
            found = self._found.get(device)
            if found is None:
                seen_w = knob.get_limit_w()
                earlier = leftover.get(device)
                is_left = earlier is not None and earlier.uuid == knob.uuid and earlier.is_ours(seen_w)
                found = earlier if earlier is not None and is_left else Found(device, knob.uuid, seen_w, now)
            noted = {**self._found, device: replace(found, ours_w=(*found.ours_w, limit_w))}
            self._file.write(leftover | noted)
        except (OSError, ValueError) as error:
            return f"what was found cannot be written down, so nothing is set: {error}"
        self._found = noted
        self._leftover = {name: entry for name, entry in leftover.items() if name not in noted}
        return ""

    def _note_ours(self, device: str, limit_w: float, seen_w: float) -> None:
        """Once it is set, older limits cannot be seen any more; the driver may have rounded ours."""
        ours_w = (limit_w,) if abs(limit_w - seen_w) < SAME_W else (limit_w, seen_w)
        self._found[device] = replace(self._found[device], ours_w=ours_w)
        try:
            self._save()
        except OSError as error:  # what is on disk names this limit too, so it can still be set back
            logger.warning("%s cannot be written: %s", self._file.path, error)

    def _forget_unless_ours(self, device: str, knob: PowerKnob) -> None:
        """After a write that failed: with nothing of ours on the device there is nothing to set back."""
        found = self._found[device]
        if device in self._wanted_w or found.is_ours(knob.get_limit_w()):
            return
        del self._found[device]
        try:
            self._save()
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._file.path, error)

    def _save(self) -> None:
        self._file.write(self._leftover | self._found)
        if not self._found:
            self._file.release()

    def _say(self, result: Applied) -> None:
        """Log what is new: a refusal once while it lasts, once for all devices when the privilege is missing."""
        if result.effect is Effect.REFUSED:
            # a daemon's refusal names the GPU, so that its words differ from one to the next
            key, what = ("privilege", "") if result.device in self._forbidden else (result.device, result.reason)
            if self._said.get(key) != what:
                self._said[key] = what
                logger.warning("power limit of %s: %s", result.device, result.reason)
        elif result.effect is not Effect.WAITING:
            self._said.pop(result.device, None)
        if result.effect is Effect.SET:
            logger.info("power limit of %s: %g W, enforced %s", result.device, result.wanted_w, result.enforced_w)
        elif result.effect is Effect.BACK:
            logger.info("%s", result.reason)


def _out_of_range(limit_w: float, range_w: tuple[float, float] | None) -> str:
    if not math.isfinite(limit_w) or limit_w <= 0:
        return f"{limit_w} W is no power limit"
    if range_w is not None and not range_w[0] <= limit_w <= range_w[1]:
        return f"{limit_w:g} W is outside of what the device allows, {range_w[0]:g} to {range_w[1]:g} W"
    return ""
