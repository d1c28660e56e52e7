"""Applies one quantity of decisions to GPUs, power limits or SM clocks, and leaves every GPU as it was found."""

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from proxy.control.knobs import POWER, Knob, KnobError, NoPrivilege, Quantity
from proxy.control.lock import GpuLocks
from proxy.control.restore import Found, RestoreFile, set_back
from proxy.control.watchdog import Watchdog

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
    """One device after a decision: what it asks for (None: what was found), and what the hardware enforces."""

    device: str
    quantity: Quantity
    wanted: float | None
    enforced: float | None
    effect: Effect
    reason: str = ""

    @property
    def in_force(self) -> bool:
        return self.effect in (Effect.SET, Effect.KEPT)

    @property
    def setting(self) -> str | None:
        """A name for what the device now works under: empty as it was found, None where nothing is new.

        A limit's is what is enforced, in steps of 10: another limiter, the temperature's say, may move it by a little
        all the time. A clock's is what was asked for: the clock at a moment says nothing of the next.
        """
        if self.effect is Effect.BACK:
            return ""
        if not self.in_force:
            return None
        value = self.enforced if self.quantity is POWER else self.wanted
        return None if value is None else f"{round(value, -1):.0f} {self.quantity.unit}"


class Actuator:
    """Sets one quantity, at most once in `dwell_s` seconds on a device, after writing down what it found.

    Calls block for some milliseconds a device and may come from different threads. Nothing that goes wrong raises: it
    is in the result, and logged once for as long as it lasts.
    """

    def __init__(
        self,
        knobs: Mapping[str, Knob],
        path: Path | None = None,
        dwell_s: float = 10.0,
        quantity: Quantity = POWER,
        locks: GpuLocks | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """`locks` keep other gateways of the host off a GPU; `watchdog` sets back what we cannot, should we die."""
        self.quantity, self.dwell_s = quantity, dwell_s
        self._knobs = dict(knobs)
        self._file = RestoreFile(path, quantity)
        self._locks, self._watchdog = locks, watchdog
        self._found: dict[str, Found] = {}  # what we have to set back
        self._leftover: dict[str, Found] = {}  # what an earlier process had to, and could not yet be
        self._wanted: dict[str, float] = {}  # what is in force
        self._written_t: dict[str, float] = {}
        self._forbidden: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._over = False
        self._mutex = threading.Lock()

    def apply(self, values: Mapping[str, float], now: float) -> list[Applied]:
        """Bring the devices to these values, and those that are not named any more back to what was found.

        A value outside of the device's range is refused, never clamped. `now` is in Unix seconds. After `restore`
        nothing is applied any more.
        """
        with self._mutex:
            if self._over:  # a call that was under way in its thread when the gateway stopped
                return []
            results = [self._apply(device, value, now) for device, value in values.items()]
            results += [self._back(device, now) for device in list(self._found) if device not in values]
            for result in results:
                self._say(result)
            return results

    def set_back(self) -> list[Applied]:
        """Set every device back to what was found, whatever the dwell time."""
        with self._mutex:
            results = [self._back(device, None) for device in list(self._found)]
            for result in results:
                self._say(result)
            return results

    def restore(self) -> list[Applied]:
        """Set every device back, let go of the file, and set nothing any more."""
        self._over = True
        results = self.set_back()
        self._file.release()
        return results

    def _apply(self, device: str, value: float, now: float) -> Applied:
        knob = self._knobs.get(device)
        if knob is None:
            known = ", ".join(sorted(self._knobs)) or "none"
            return self._told(
                device, value, None, Effect.REFUSED, f"no {self.quantity.name} is known of it; known: {known}"
            )
        if device in self._forbidden:
            return self._told(device, value, None, Effect.REFUSED, self._forbidden[device])
        try:
            if device in self._found and abs(self._wanted.get(device, math.inf) - value) < self.quantity.same:
                return self._told(device, value, knob.enforced(), Effect.KEPT)
            if reason := self._out_of_range(value, knob.range()):
                return self._told(device, value, None, Effect.REFUSED, reason)
            if self._too_soon(device, now):
                return self._told(device, value, knob.enforced(), Effect.WAITING)
            self._written_t[device] = now
            if reason := self._note_down(device, knob, value, now):
                return self._told(device, value, None, Effect.REFUSED, reason)
            try:
                knob.write(value)
            except NoPrivilege:
                if device not in self._wanted:
                    self._forget(device)
                raise
            except KnobError:
                if device not in self._wanted and not self._found[device].is_ours(knob.read(), self.quantity.same):
                    self._forget(device)
                raise
            self._wanted[device] = value
            self._note_ours(device, value, knob.read())
            return self._told(device, value, knob.enforced(), Effect.SET)
        except NoPrivilege as error:
            self._forbidden[device] = f"not allowed to set {self.quantity.name}s, going on without ({error})"
            return self._told(device, value, None, Effect.REFUSED, self._forbidden[device])
        except KnobError as error:
            return self._told(device, value, None, Effect.REFUSED, str(error))

    def _back(self, device: str, now: float | None) -> Applied:
        """Set one device back; without a time, whatever the dwell time."""
        knob, found = self._knobs[device], self._found[device]
        try:
            if now is not None:
                if self._too_soon(device, now):
                    return self._told(device, None, knob.enforced(), Effect.WAITING)
                self._written_t[device] = now
            said = set_back(found, knob, self.quantity)
            del self._found[device]
            self._wanted.pop(device, None)
            self._save()
            self._unlock(knob)
            return self._told(device, None, knob.enforced(), Effect.BACK, said)
        except (KnobError, OSError) as error:
            return self._told(
                device, None, None, Effect.REFUSED, f"not set back to {self.quantity.words(found.value)}: {error}"
            )

    def _too_soon(self, device: str, now: float) -> bool:
        return now - self._written_t.get(device, -math.inf) < self.dwell_s

    def _note_down(self, device: str, knob: Knob, value: float, now: float) -> str:
        """Write down what is found and what is about to be set; returns why not, if so. Raises KnobError."""
        try:
            if not self._file.take():
                return f"another process ({self._file.holder()}) holds the {self.quantity.name}s"
            if self._locks and (holder := self._locks.take(knob.place, self.quantity.name)) is not None:
                if not self._found:
                    self._file.release()
                return f"{holder} sets this GPU: it is only observed"
            if self._watchdog is not None:
                self._watchdog.start()
            leftover = self._leftover if self._found else self._file.read()
            found = self._found.get(device)
            if found is None:
                seen = knob.read()
                earlier = leftover.get(device)
                is_left = (
                    earlier is not None and earlier.uuid == knob.uuid and earlier.is_ours(seen, self.quantity.same)
                )
                found = earlier if earlier is not None and is_left else Found(device, knob.uuid, seen, now)
            noted = {**self._found, device: replace(found, ours=(*found.ours, value))}
            self._file.write(leftover | noted)
        except (OSError, ValueError) as error:
            return f"what was found cannot be written down, so nothing is set: {error}"
        self._found = noted
        self._leftover = {name: entry for name, entry in leftover.items() if name not in noted}
        return ""

    def _note_ours(self, device: str, value: float, seen: float | None) -> None:
        """Once it is set, older values cannot be seen any more; the driver may have rounded ours."""
        ours = (value,) if seen is None or abs(value - seen) < self.quantity.same else (value, seen)
        self._found[device] = replace(self._found[device], ours=ours)
        try:
            self._save()
        except OSError as error:  # what is on disk names this value too, so it can still be set back
            logger.warning("%s cannot be written: %s", self._file.path, error)

    def _forget(self, device: str) -> None:
        """Nothing of ours is on the device, so there is nothing to set back."""
        del self._found[device]
        self._unlock(self._knobs[device])
        try:
            self._save()
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._file.path, error)

    def _unlock(self, knob: Knob) -> None:
        if self._locks is not None:
            self._locks.release(knob.place, self.quantity.name)

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
                logger.warning("%s of %s: %s", self.quantity.name, result.device, result.reason)
        elif result.effect is not Effect.WAITING:
            self._said.pop(result.device, None)
        if result.effect is Effect.SET:
            words, what = self.quantity.words(result.wanted), f"{self.quantity.name} of {result.device}"
            logger.info("%s: %s, enforced %s", what, words, result.enforced)
        elif result.effect is Effect.BACK:
            logger.info("%s", result.reason)

    def _told(
        self, device: str, wanted: float | None, enforced: float | None, effect: Effect, reason: str = ""
    ) -> Applied:
        return Applied(device, self.quantity, wanted, enforced, effect, reason)

    def _out_of_range(self, value: float, bounds: tuple[float, float] | None) -> str:
        unit = self.quantity.unit
        if not math.isfinite(value) or value <= 0:
            return f"{value} {unit} is no {self.quantity.name}"
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            return f"{value:g} {unit} is outside of what the device allows, {bounds[0]:g} to {bounds[1]:g} {unit}"
        return ""
